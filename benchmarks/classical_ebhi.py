"""The classical methods on EBHI-SEG, class by class, beside the numbers of its paper.

    python benchmarks/run.py classical_ebhi --root=EBHI-SEG [--option=mrf.beta=1,...] [--images=DIR]

The columns without a polarity are of "dark", which is what the stain
suggests; "best of two" takes the better of dark and bright of each image, knowing the truth, and
is no method. All scores are means over images at their own 224x224 pixels, labels
cut at 127, by cellseg_jax.metrics. "Everything" calls each pixel foreground: what a method must
beat. With --images, a few images with truth and masks are drawn into it.
"""

import ast
import collections
import pathlib

import numpy as np

from benchmarks.measuring import Result, Table
from cellseg_jax import classical, metrics
from cellseg_jax.data.datasets import ebhi_seg
from cellseg_jax.report import panels

# Mean Dice in table 3 of Shi et al. 2023, EBHI-Seg: a novel enteroscope biopsy histopathological
# hematoxylin and eosin image dataset for image segmentation tasks, Frontiers in Medicine 10.
# The paper does not say how many images it scored, nor which class of pixels it took for the
# foreground. Rows that repeat another row's scores to the last digit are marked "repeated".
PUBLISHED = {
    "Normal": dict(kmeans=0.648, mrf=0.636, otsu=0.410, watershed=0.461, sobel=0.652),
    "Polyp": dict(kmeans=0.592, mrf=0.511, otsu=0.400, watershed=0.433, sobel=0.583),
    "High-grade IN": dict(kmeans=0.626, mrf=0.550, otsu=0.249, watershed=0.472, sobel=0.634),
    "Low-grade IN": dict(kmeans=0.650, mrf=0.554, otsu=0.886, watershed=0.464, sobel=0.656),
    "Adenocarcinoma": dict(kmeans=0.633, mrf=0.554, otsu=0.336, watershed=0.458, sobel=0.553),
    "Serrated adenoma": dict(kmeans=0.636, mrf=0.571, otsu=0.393, watershed=0.449, sobel=0.698),
}
REPEATED = {("Normal", "mrf"), ("Serrated adenoma", "kmeans"), ("Low-grade IN", "mrf"),
            ("Adenocarcinoma", "mrf")}
SHOWN = ("dice", "iou", "conformity", "precision", "recall")  # with polarity="dark"
OTHERS = {"bright": "bright", "auto": "auto", "best": "best of two"}  # other polarities
OPTIONS = {
    "root": (pathlib.Path, "EBHI-SEG"),
    "option": ([], "of methods, as mrf.beta=1"),
    "images": ("", "a folder for pictures"),
}


def counts_of(label, masks):
    """metrics.Counts of (1, K) float64, a column per mask."""
    pred = np.stack(masks, -1)[None]
    counts = metrics.pixel_counts(np.broadcast_to(label[None, ..., None] > 0, pred.shape), pred)
    return metrics.Counts(*(np.asarray(c, np.float64) for c in counts))


def masks_of(image, options):
    """{(method, polarity): mask}; Sobel and "everything" have no polarity."""
    masks = {("everything", ""): np.ones(image.shape[:2], bool)}
    for name, method in classical.CLASSICAL.items():
        if "polarity" in classical.options(name):
            for polarity in classical.POLARITIES:
                masks[name, polarity] = method(image, polarity=polarity, **options[name])
        else:
            masks[name, ""] = method(image, **options[name])
    return masks


def best_of_two(dark, bright):
    """For each image the counts of the polarity with the larger Dice: chosen knowing the truth."""
    better = metrics.dice(dark) >= metrics.dice(bright)
    return metrics.Counts(*(np.where(better, a, b) for a, b in zip(dark, bright, strict=True)))


def measure(options) -> Result:
    chosen = collections.defaultdict(dict)
    for text in options.option:
        key, _, value = text.partition("=")
        method, _, name = key.partition(".")
        chosen[method][name] = ast.literal_eval(value)
    found = counted(options.root, chosen, options.images and pathlib.Path(options.images))
    return Result(tables(found))


def counted(root, options, pictures) -> dict:
    """{(class, method, polarity): metrics.Counts, an image a row}."""
    found = collections.defaultdict(list)  # (class, method, polarity) -> counts of each image
    for n, record in enumerate(ebhi_seg.records(root)):
        sample = record.read()
        masks = masks_of(sample.image, options)
        counts = counts_of(sample.label, list(masks.values()))
        for k, key in enumerate(masks):
            found[sample.stratum, *key].append([c[:, k : k + 1] for c in counts])
        if pictures and n % 20 == 0:
            pictures.mkdir(parents=True, exist_ok=True)
            name = record.name.replace("/", "_")
            for (method, polarity), mask in masks.items():
                if polarity in ("", "dark"):
                    panels.write_png(pictures / f"{name}_{method}.png", panels.panel(
                        sample.image, sample.label, mask.astype(np.int32), f"{name} {method}"))
    return {key: metrics.Counts(*(np.concatenate(c) for c in zip(*each, strict=True)))
            for key, each in found.items()}


def tables(found) -> list[Table]:
    """Of each class, and of their mean."""
    rows, by_method = [], collections.defaultdict(list)
    score = lambda name, counts: float(np.mean(metrics.PIXEL_SCORES[name](counts)))
    for stratum, published in PUBLISHED.items():
        for method in ("everything", *published):
            rule = "" if (stratum, method, "") in found else "dark"
            counts = found[stratum, method, rule]
            dice = {"dark": score("dice", counts), "published": published.get(method)}
            if rule:
                bright = found[stratum, method, "bright"]
                dice |= {"bright": score("dice", bright),
                         "auto": score("dice", found[stratum, method, "auto"]),
                         "best": score("dice", best_of_two(counts, bright))}
            by_method[method].append(dice)
            rows.append([f"{stratum} ({len(counts.tp)})", method,
                         *(score(name, counts) for name in SHOWN), *(dice.get(k) for k in OTHERS),
                         str(published.get(method, ""))
                         + " repeated" * ((stratum, method) in REPEATED)])
    macro = lambda each, k: np.mean([d[k] for d in each]).item() if each[0].get(k) else None
    return [
        Table(["class (images)", "method", *SHOWN, *(f"dice, {k}" for k in OTHERS.values()),
               "dice, paper"], rows),
        Table(["mean of six classes, dice", "dark", *OTHERS.values(), "paper"],
              [[method, *(macro(each, k) for k in ("dark", *OTHERS, "published"))]
               for method, each in by_method.items()])]
