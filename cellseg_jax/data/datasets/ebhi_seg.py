"""EBHI-SEG: colorectal biopsies, H&E at 400x, six classes of tissue, foreground or background.

2,228 RGB images of 224x224, 2,226 of them with a label; about 270 MB. Source, first release of
11-11-2022: https://doi.org/10.6084/m9.figshare.21540159. The archive states no licence;
https://github.com/dataset-ninja/ebhi-seg states CC BY 4.0. There is no official checksum: a
whole copy has the pairs per class of PAIRS below. Original layout:

    EBHI-SEG/<class>/image/<name>.png      RGB
    EBHI-SEG/<class>/label/<name>.png      gray, anti-aliased: 4.9 % of a label (median) is neither
                                           0 nor 255
"""

import collections
import functools
import pathlib
import re

import numpy as np

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import check_root, check_size, entries, read_image, read_mask
from cellseg_jax.data.records import Finding, Record, Records, Sample
from cellseg_jax.errors import InputError, pick

COUNT, PIXELS = 2226, 224 * 224  # images with a label, and pixels of each
DOWNLOAD = ("Get EBHI-SEG (CC BY 4.0) from https://doi.org/10.6084/m9.figshare.21540159 and "
            "unpack it")
PAIRS = {"Adenocarcinoma": 795, "High-grade IN": 186, "Low-grade IN": 637, "Normal": 76,
         "Polyp": 474, "Serrated adenoma": 58}  # 2,226; with the two below 2,228 images
CLASS_NAMES = tuple(PAIRS)  # of classes 1, 2, ... with labels="classes"
KNOWN_WITHOUT_LABEL = ("Low-grade IN/GT2012149-2-400-001.png",
                       "Low-grade IN/GTGT2012149-2-400-001.png")
LABELS = {"binary": "1 where the label is above the threshold",
          "classes": "the number of the class there: its place in PAIRS, from 1"}
CASE = re.compile("[0-9]{7}")


def records(root, labels="binary", classes=(), threshold=127) -> Records:
    """One record "<class>/<name>" per image with a label; `root` is the folder EBHI-SEG.

    The group is the case: the seven digits of a file name, of which some are in several class
    folders. The stratum is the class.

    Args:
      root: the folder with a folder per class.
      labels: of LABELS; 0 elsewhere. With classes, data.target="classes" and data.num_classes=7
        segment the six classes of tissue. An image has tissue of its own class alone, so that
        scores by image are 1 for the classes that it neither has nor gets: see dice_pooled.
      classes: names of class folders to read; () for all six.
      threshold: 0 .. 254. 127 takes the middle of the anti-aliased edges, 0 all of them and
        254 none; a few Adenocarcinoma labels are 253 throughout and empty then.
    """
    pick(LABELS, labels, "config.data.labels")
    if not 0 <= threshold <= 254:
        raise InputError(f"config.data.threshold: got {threshold}; expected 0 .. 254, the label "
                         "value up to which a pixel is background")
    for name in classes:
        pick(PAIRS, name, "config.data.classes")
    root = check_root(root, DOWNLOAD)
    chosen = [name for name in PAIRS if name in classes or not classes]
    missing = [name for name in chosen if not depends_on(root / name / "image").is_dir()]
    if missing == chosen:
        inside = root / "EBHI-SEG"
        hint = f"; did you mean {inside}?" if inside.is_dir() else f". {DOWNLOAD}"
        raise InputError(f"config.data.root: folder '{root}' has no <class>/image inside, such as "
                         f"'{chosen[0]}/image'{hint}")
    files = [path for name in chosen if name not in missing
             for path in entries(root / name / "image")]
    images = [path for path in files if path.suffix.lower() == ".png"]
    label_files = {path for name in chosen if depends_on(root / name / "label").is_dir()
                   for path in entries(root / name / "label")}
    label_of = {path: path.parent.parent / "label" / path.name for path in images}
    pairs = [path for path in images if label_of[path] in label_files]
    if not pairs:
        raise InputError(f"{label_of[images[0]] if images else root / chosen[0]}: not found; "
                         "expected <class>/label/<name>.png for every <class>/image/<name>.png")
    return Records(
        (Record(_name(path).removesuffix(path.suffix), _case(path), (path, label_of[path]),
                functools.partial(_read, path, label_of[path], threshold, labels))
         for path in sorted(pairs, key=_name)),
        [*(Finding("warning", str(root / name), "class folder not found") for name in missing),
         *_findings(root, chosen, files, images, pairs, label_files - set(label_of.values()))])


def _name(path: pathlib.Path) -> str:
    return f"{path.parent.parent.name}/{path.name}"


def _case(path: pathlib.Path) -> str:
    match = CASE.search(path.name)
    return match[0] if match else _name(path)


def _findings(root, chosen, files, images, pairs, lone_labels):
    """Findings from the file names: lone files, names and cases in several folders, the counts."""
    def found(level, paths, what):
        if paths:
            names = ", ".join(sorted(map(_name, paths))[:5]) + ", ..." * (len(paths) > 5)
            yield Finding(level, str(root), f"{len(paths)} {what}: {names}")

    yield from found("warning", set(files) - set(images), "files that are no PNG are left out")
    lone = set(images) - set(pairs)
    known = {path for path in lone if _name(path) in KNOWN_WITHOUT_LABEL}
    yield from found("note", known, "images without a label, as in every copy, are left out")
    yield from found("warning", lone - known, "images without a label are left out; expected "
                     "<class>/label/<same name>")
    yield from found("warning", lone_labels, "labels without an image are left out")
    yield from found("warning", [path for path in pairs if _case(path) == _name(path)],
                     "file names without the seven digits of a case; each is a case of its own")
    for kind, key in (("file names", lambda path: path.name), ("cases", _case)):
        folders = collections.defaultdict(set)
        for path in pairs:
            folders[key(path)].add(path.parent)
        shared = sum(len(parents) > 1 for parents in folders.values())
        if shared:
            yield Finding("note", str(root), f"{shared} of {len(folders)} {kind} are in several "
                          "class folders")
    counts = collections.Counter(path.parent.parent.name for path in pairs)
    expected = {name: PAIRS[name] for name in chosen}
    if counts != expected:
        yield Finding("note", str(root), f"{len(pairs):,} of {sum(expected.values()):,} pairs: "
                      + ", ".join(f"{name} {counts[name]} of {expected[name]}" for name in chosen))


def _read(image_path, label_path, threshold, labels) -> Sample:
    image, label = read_image(image_path), read_mask(label_path)
    check_size(label_path, label, image_path, image)
    low, high = label.min(), label.max()
    if label.dtype != np.uint8 or (label != label[..., :1]).any() or high == 1:
        raise InputError(f"{label_path}: label is {label.dtype} with {label.shape[-1]} channels "
                         f"and values {low} to {high}; expected 8-bit gray, 0 to 255")
    findings = ()
    if low == high:
        findings = Finding("note", str(label_path), f"label is constant, all {low}: scores of the "
                           f"{'background' if low > threshold else 'foreground'} have no pixel"),
    stratum = image_path.parent.parent.name
    value = 1 if labels == "binary" else 1 + list(PAIRS).index(stratum)
    return Sample(image, np.where(label[..., 0] > threshold, np.int32(value), np.int32(0)),
                  stratum, findings)
