"""What there is to know of a dataset by reading every file once: facts, and what is wrong.

Nothing decoded is kept but thumbnails, so it works for datasets larger than the memory.
"""

import collections
import concurrent.futures
import functools
import os
import pathlib
import re
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax import data
from cellseg_jax.data.quality import annotation, checks, duplicates, shift
from cellseg_jax.data.quality.topology import pieces_and_holes
from cellseg_jax.data.read import JUNK
from cellseg_jax.data.records import BadFiles, Finding, Record, some
from cellseg_jax.data.resize import FITS
from cellseg_jax.data.scale import median_diameter
from cellseg_jax.errors import InputError

THREADS = 2
NUM_ALIGNED = 100  # images of which masks are compared with edges, see shift
NUM_PREVIEWS, PREVIEW_SIDE = 16, 256  # images kept for a contact sheet; pixels, longer side
KINDS = {1: "gray", 2: "gray + alpha", 3: "RGB", 4: "RGBA"}
LITTLE = 0.5  # share of the range of 16 bit below which it is worth a word


class Facts(NamedTuple):
    """One image and its label, as read."""

    name: str
    path: str  # the image file; the name where there is none
    group: str
    part: str  # of the dataset's own split, or ""
    stratum: str
    size: tuple[int, int]  # height, width
    channels: int  # as stored, 1 to 4; or those that were chosen
    dtype: str
    coloured: bool
    alpha: str  # "" | "constant" | "varies"
    low: np.ndarray  # (min(C, 3),) of the colours
    high: np.ndarray
    pixels: np.ndarray  # of every class, then beyond them; else of background and foreground
    num_objects: int  # distinct values above 0
    in_pieces: int  # of these, with instances: how many are in several pieces, and have holes
    with_holes: int
    print: np.ndarray | None  # what near-duplicates are found by, of duplicates.fingerprints
    preview: tuple[np.ndarray, np.ndarray] | None  # reduced image and label, of some samples
    unknown: annotation.Unknown = annotation.Unknown(0, 0)  # what no other number here counts
    covering: annotation.Covering = annotation.Covering()  # of instances
    sides: tuple[str, str] = ("", "")  # of annotation.sides
    borders: np.ndarray | None = None  # shift.border_gradients; None: not looked at, or too few
    diameter: float = 0.0  # of the median instance, pixels; 0 where there is none


class Examination(NamedTuple):
    """A dataset examined. `parts` are indices into `facts`, {} where no split is possible."""

    facts: tuple[Facts, ...]
    findings: tuple[Finding, ...]  # errors first
    parts: dict[str, np.ndarray]
    num_images: int  # with those that cannot be read


def examine(data_config, progress: Callable[[int, int], None] | None = None) -> Examination:
    """Reads all samples of config.data and checks them, one by one, together and as split.

    Args:
      data_config: as for data.load.
      progress: called with (samples done, samples in all).
    Raises: InputError where there is nothing to read, such as a root that does not exist.
    """
    try:
        records = data.records_of(data_config)
        findings = list(records.findings)
    except BadFiles as error:
        records = error.records
        findings = [*error.findings, *getattr(records, "findings", ())]
    facts = []
    previewed, aligned = (set(np.linspace(0, len(records) - 1, most).astype(int))
                          for most in (NUM_PREVIEWS, NUM_ALIGNED))
    instances = data_config.get("labels", "instances") == "instances"
    read = functools.partial(_read, num_classes=_num_classes(data_config), instances=instances,
                             printed=len(records) <= duplicates.MAX_IMAGES,
                             chosen=bool(data_config["channel_index"]))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(read, records, *((i in chosen for i in range(len(records)))
                                            for chosen in (previewed, aligned)))
        for done, (one, found) in enumerate(results, 1):
            facts += [] if one is None else [one]
            findings += found
            if progress:
                progress(done, len(records))
    parts = {}
    if facts:
        found, parts = _together(data_config, facts)
        findings += found
    findings += _ignored_files(data_config["root"])
    findings.sort(key=lambda finding: checks.LEVELS.index(finding.level))
    return Examination(tuple(facts), tuple(findings), parts, len(records))


def finding_of(error: InputError) -> Finding:
    """The Finding of an InputError, whose text begins with where it is."""
    where, _, what = str(error).partition(": ")
    return Finding("error", where, what)


# --- one sample ----------------------------------------------------------------------------------


def _read(record: Record, previewed, aligned, *, num_classes, instances, printed, chosen):
    """(Facts or None, findings) of one record."""
    try:
        sample = record.read()
    except InputError as error:
        return None, [finding_of(error)]
    image, label = sample.image, sample.label
    has_alpha = image.shape[-1] in (2, 4) and not chosen
    colour, alpha = (image[..., :-1], image[..., -1]) if has_alpha else (image, None)
    unknown = annotation.unknown(label)
    known = label[label >= 0] if unknown.pixels else label.reshape(-1)
    known = known if known.size else np.zeros(1, label.dtype)
    values = np.bincount(known) if known.max() < label.size else None
    num_objects = (np.count_nonzero(values[1:]) if values is not None
                   else np.count_nonzero(np.unique(known)))
    if num_classes:
        pixels = np.bincount(np.minimum(known, num_classes), minlength=num_classes + 1)
    else:
        background = int(values[0]) if values is not None else np.count_nonzero(known == 0)
        pixels = np.array([background, known.size - background])
    pieces, holes = pieces_and_holes(np.maximum(label, 0)) if instances else ((), ())
    return Facts(
        record.name, str(record.files[0]) if record.files else record.name, record.group,
        record.part, sample.stratum, image.shape[:2], image.shape[-1], str(image.dtype),
        coloured=colour.shape[-1] == 3 and bool((colour != colour[..., :1]).any()),
        alpha="" if alpha is None else "varies" if (alpha != alpha[0, 0]).any() else "constant",
        low=colour.min(0).min(0), high=colour.max(0).max(0), pixels=pixels,
        num_objects=int(num_objects), in_pieces=len(pieces), with_holes=len(holes),
        print=duplicates.fingerprints([colour])[0] if printed else None,
        preview=_preview(colour, label) if previewed else None, unknown=unknown,
        covering=annotation.covering(label) if instances else annotation.Covering(),
        sides=annotation.sides(label),
        borders=shift.border_gradients(colour, np.maximum(label, 0)) if aligned else None,
        diameter=median_diameter(label) if instances else 0.0), list(sample.findings)


def _preview(image, label):
    """Image and label reduced by a whole factor: means of pixels, and the middle ones."""
    factor = -(-max(label.shape) // PREVIEW_SIDE)
    if factor == 1:
        return image, label
    height, width = (max(1, n // factor) for n in label.shape)
    tall, wide = (min(factor, n) for n in label.shape)
    cells = image[: height * tall, : width * wide].reshape(height, tall, width, wide, -1)
    rows, columns = (np.arange(n) * step + step // 2 for n, step in ((height, tall), (width, wide)))
    return cells.mean((1, 3)).astype(image.dtype), label[rows[:, None], columns]


# --- all samples ---------------------------------------------------------------------------------


def _together(data_config, facts) -> tuple[list[Finding], dict]:
    """Findings on the samples as a whole, and the split."""
    findings = [*_channels(data_config, facts), *_depth(data_config, facts),
                *_sizes(data_config, facts), *_objects(data_config, facts),
                *annotation.of_covering([fact.covering for fact in facts], data_config),
                *annotation.of_sides([fact.sides for fact in facts]),
                *shift.of_shifts([fact.borders for fact in facts]),
                *annotation.of_unknown([fact.unknown for fact in facts],
                                       [np.prod(fact.size) for fact in facts], data_config)]
    prints = [fact.print for fact in facts if fact.print is not None]
    pairs = duplicates.Pairs((), 0.0)
    if prints:
        pairs = duplicates.near_duplicates(facts, prints=np.stack(prints))
    else:
        findings.append(Finding("note", "config.data.split", "near-duplicates were not looked for "
                                f"among more than {duplicates.MAX_IMAGES:,} images"))
    view = _view(data_config, facts)
    num_classes = _num_classes(data_config)
    try:
        parts = data.split_of(data_config, view)
    except InputError as error:
        return [*findings, *checks.of_samples(view, num_classes=num_classes),
                finding_of(error)], {}
    findings += checks.quick(view, parts, num_classes=num_classes, pairs=pairs)
    if data_config["name"] == "folder" and not data_config["group"]:
        findings += _cases(facts)
    return findings, parts


def _view(data_config, facts):
    """What checks and split_of read of data.Arrays, made of facts.

    Each image is two pixels, its extremes, and each label a row of pixels in the same
    proportions: constant images and the balance of classes look the same in them.
    """
    paths = [_relative(fact.path, data_config["root"]) for fact in facts]
    names = paths if len(set(paths)) == len(paths) else [fact.name for fact in facts]
    foreground = np.array([1 - fact.pixels[0] / fact.pixels.sum() for fact in facts], np.float32)
    return types.SimpleNamespace(
        image=[np.stack([fact.low, fact.high])[None] for fact in facts],
        label=[_row(fact.pixels)[None] if fact.unknown.pixels < np.prod(fact.size)
               else np.full((1, 1), -1) for fact in facts],  # -1: nothing of it is annotated
        names=names, image_names=[fact.name for fact in facts], grid=1,
        groups=[fact.group for fact in facts], image_groups=[fact.group for fact in facts],
        strata=[fact.stratum for fact in facts], image_strata=[fact.stratum for fact in facts],
        parts=[fact.part for fact in facts], image_parts=[fact.part for fact in facts],
        foreground=foreground, holds_cells=foreground > 0)


def _row(pixels, length=4096) -> np.ndarray:
    """(length,) classes in the proportions of `pixels`; whatever occurs is there at least once."""
    counts = np.where(pixels > 0, np.maximum(pixels * length // pixels.sum(), 1), 0)
    counts[np.argmax(counts)] += length - counts.sum()
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _num_classes(data_config):
    kind = data_config.get("labels", "instances")
    return data_config["num_classes"] if kind == "classes" else None


def _relative(path, root) -> str:
    path, root = pathlib.Path(path), pathlib.Path(root).expanduser()
    return str(path.relative_to(root)) if root in path.parents else str(path)


def _paths(data_config, facts) -> str:
    return some([_relative(fact.path, data_config["root"]) for fact in facts])


def _channels(data_config, facts):
    channels, key = data_config["channels"], "config.data.channels"
    if data_config["channel_index"]:
        return  # chosen, one by one
    kinds = collections.Counter(KINDS[fact.channels] for fact in facts)
    gray = [fact for fact in facts if fact.channels < 3]
    if 0 < len(gray) < len(facts) and not data_config["mix"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        fewer = min(gray, [fact for fact in facts if fact.channels > 2], key=len)
        yield Finding("warning", key, f"gray and colour files are mixed ({counts}: "
                      f"{_paths(data_config, fewer)}); all become {channels}, if that is not meant "
                      "convert them, or set config.data.channels=gray")
    coloured = [fact for fact in facts if fact.coloured]
    if coloured and channels == "gray":
        yield Finding("note", key, f"{len(coloured)} of {len(facts)} images are coloured: they "
                      "become luminance; config.data.channels=rgb keeps the colours")
    if not coloured and channels != "gray":
        yield Finding("note", key, f"all images are gray: {channels} shows them to the network "
                      "three times; config.data.channels=gray loses nothing")
    varying = [fact for fact in facts if fact.alpha == "varies"]
    constant = [fact for fact in facts if fact.alpha == "constant"]
    if varying and channels != "rgba":
        yield Finding("warning", key, f"alpha varies in {len(varying)} files and is dropped, so "
                      f"hidden pixels show ({_paths(data_config, varying)}); flatten them, or "
                      "set config.data.channels=rgba")
    if constant and not varying:
        what = ("the fourth channel is constant, config.data.channels=rgb leaves it out"
                if channels == "rgba" else "it is dropped")
        yield Finding("note", key, f"4 channels in {len(constant)} files, alpha is constant in "
                      f"all of them: {what}")
    elif channels == "rgba" and coloured and not varying:
        yield Finding("note", key, "no file has alpha: with rgba the fourth channel is constant; "
                      "config.data.channels=rgb leaves it out")


def _depth(data_config, facts):
    key, normalize = "config.data.normalize", data_config["normalize"]
    kinds = collections.Counter(fact.dtype for fact in facts)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield Finding("note", key, f"8 and 16 bit files are mixed ({counts}); each image is scaled "
                      f"by its own range ({normalize})")
    deep = [fact for fact in facts if fact.dtype == "uint16"]
    if not deep:
        return
    low, high = min(fact.low.min() for fact in deep), max(fact.high.max() for fact in deep)
    share = (int(high) - int(low)) / np.iinfo(np.uint16).max
    if share < LITTLE:
        bits = int(high).bit_length()
        text = (f"16 bit images ({len(deep)}) have values from {low} to {high}, {share:.1%} of the "
                f"range{f', as from {bits} bit' if bits < 16 else ''}")
        if normalize == "dtype":
            yield Finding("warning", key, f"{text}, so config.data.normalize=dtype leaves almost "
                          "no contrast; set config.data.normalize=percentile or minmax")
        else:
            yield Finding("note", key, f"{text}; config.data.normalize={normalize} stretches them")


def _sizes(data_config, facts):
    """What the chosen fit refuses, once per size."""
    if data_config["fit"] == "resize" or data_config["diameter"] or data_config["pixel_size"]:
        return  # rescaled images have other sizes than their files
    for size, same in _by_size(facts).items():
        blank = np.broadcast_to(np.uint8(0), (*size, 1))
        try:
            FITS[data_config["fit"]](blank, blank[..., 0], tuple(data_config["size"]),
                                     _relative(same[0].path, data_config["root"]))
        except InputError as error:
            others = f" (and {len(same) - 1} more of that size)" if len(same) > 1 else ""
            yield finding_of(error)._replace(what=finding_of(error).what + others)


def _by_size(facts) -> dict:
    out = collections.defaultdict(list)
    for fact in facts:
        out[fact.size].append(fact)
    return out


def _objects(data_config, facts):
    """Objects that targets do not give back, and labels that hold something else."""
    for kind, what in (("in_pieces", "are in several pieces"), ("with_holes", "have a hole")):
        odd = [fact for fact in facts if getattr(fact, kind)]
        if odd:
            count = sum(getattr(fact, kind) for fact in odd)
            yield Finding("note", "config.data.root", f"{count} objects in {len(odd)} images {what}"
                          f": {_paths(data_config, odd)}; decoding parts and fills them")
    if ("labels" in data_config and data_config["labels"] == "instances" and len(facts) > 1
            and data_config["name"] == "folder" and max(f.num_objects for f in facts) == 1):
        yield Finding("warning", "config.data.labels", "every mask holds one object at most; if "
                      "it marks all cells together, set config.data.labels=binary")


def _cases(facts):
    """A regular expression for names such as patient7_03, where there are several of a kind."""
    pattern = r"^(.*?)[-_. ]*[0-9]+$"
    matches = [re.search(pattern, fact.name) for fact in facts]
    cases = collections.Counter(match and match[1] for match in matches)
    if "" in cases or None in cases or not 2 <= len(cases) <= 0.7 * len(facts):
        return
    yield Finding("note", "config.data.group", f"names look like {len(cases)} cases with several "
                  f"images each ({some(sorted(cases), 3)}); if images of one case are alike, "
                  f"config.data.group='{pattern}' keeps them in one part of the split")


def _ignored_files(root):
    """System files that listing leaves out."""
    if not root or not pathlib.Path(root).expanduser().is_dir():
        return
    names = [name for folder, _, files in os.walk(pathlib.Path(root).expanduser())
             if ".zarr" not in folder.lower() for name in files  # .zattrs and the like are read
             if name.startswith(".") or name.lower() in JUNK]
    if names:
        yield Finding("note", str(root), f"{len(names)} hidden or system files are ignored "
                      f"({some(sorted(set(names)))})")
