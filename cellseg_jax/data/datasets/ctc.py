"""Cell Tracking Challenge: time-lapse sequences with gold, silver and tracking truth.

Two training sequences per dataset, 10 MB to some GB, from
https://celltrackingchallenge.net/2d-datasets (DIC-C2DH-HeLa, Fluo-N2DH-GOWT1, Fluo-N2DL-HeLa,
PhC-C2DH-U373, PhC-C2DL-PSC, ...). The challenge has its own conditions of use; cite Maska et al.
2023 (Nature Methods 20). The archives have no published checksums: compare the number of frames
with the page. Original layout:

    <dataset>/01/t067.tif                     8 or 16 bit; frame numbers of three or more digits
    <dataset>/01_GT/SEG/man_seg067.tif        gold: drawn by experts, some frames only
    <dataset>/01_GT/TRA/man_track067.tif      tracking: a marker per cell, the same number over time
    <dataset>/01_GT/TRA/man_track.txt         label, first frame, last frame, parent (0: none)
    <dataset>/01_ST/SEG/man_seg067.tif        silver: drawn by software, all frames

In some gold frames only some cells are drawn. The SEG score counts drawn cells alone, but a loss
takes the others for background, so such frames are left out unless `partial` says otherwise. How
many cells there are is known from man_track.txt; outside of the field of interest (50 or 25 pixels
at the border of some datasets) cells need not be in it. Scale 16-bit images by their range
(normalize=minmax or percentile): those of Fluo-N2DL-HeLa have an offset of 32768 and fill 6% of the
dtype's range.
"""

import functools
import pathlib
import re

import numpy as np
from scipy import ndimage

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import check_root, check_size, entries, read_image, read_mask
from cellseg_jax.data.records import Finding, Record, Records, Sample
from cellseg_jax.errors import InputError, check_choice, pick
from cellseg_jax.targets.geometry import without_gaps

DOWNLOAD = ("Get a training dataset such as DIC-C2DH-HeLa from "
            "https://celltrackingchallenge.net/2d-datasets and unpack it")
TRUTHS = {"gold": ("GT/SEG", "man_seg"), "silver": ("ST/SEG", "man_seg"),
          "tracking": ("GT/TRA", "man_track")}
PARTIAL = ("drop", "keep", "ignore")


def records(root, truth="gold", sequences=(), partial="drop", complete=0.9, block=0,
            rim=5) -> Records:
    """One record per frame that has the chosen truth, named like 01_t067, sorted by name.

    With gold truth the label files are decoded here once, to count the drawn cells. Labels stay
    as drawn: numbers have gaps, and a cell in two pieces is one instance.

    Args:
      root: the folder of one dataset, which holds 01, 01_GT and so on.
      truth: gold (experts) | silver (software, complete) | tracking (markers, which in many
        datasets are smaller than the cells).
      sequences: names such as ("01",); (): all that have the truth.
      partial: drop | keep | ignore gold frames in which only some cells are drawn. ignore: they are
        kept, and what is not known in them is not annotated (-1 in the label): see
        `partly_annotated`. Frames of a sequence without man_track.txt count as complete.
      complete: the fraction of the tracked cells that must be drawn for a frame to count as
        complete. One short of 13 is usually a cell that just enters.
      block: frames t and u of a sequence are one group if t // block == u // block; frames on
        either side of such an edge can be near copies in different parts. 0: a sequence is one
        group, the only way that no cell is in two parts.
      rim: with partial=ignore, pixels around each drawn cell that are known to be background.
    """
    folder, prefix = pick(TRUTHS, truth, "config.data.truth")
    check_choice(partial, PARTIAL, "config.data.partial")
    if block < 0 or not 0 <= complete <= 1 or rim < 1:
        raise InputError(f"config.data: got block={block}, complete={complete}, rim={rim}; "
                         "expected at least 0 frames, a fraction from 0 to 1, and at least 1 pixel")
    root = check_root(root, DOWNLOAD)
    chosen, findings = _chosen(root, folder, sequences)
    kept = []
    for name in chosen:
        images = _frames(root / name, "t")
        labels = _frames(root / f"{name}_{folder}", prefix)
        lone = sorted(labels.keys() - images.keys())
        if lone:
            raise InputError(f"{labels[lone[0]]}: {root / name} has no image of frame {lone[0]}; "
                             "frames are matched by number, add or remove files")
        some_drawn, noticed = _check_tracks(
            root, name, images, labels if truth == "gold" else {}, partial, complete)
        findings += noticed
        markers = _markers(root, name, some_drawn) if partial == "ignore" else {}
        kept += [
            Record(f"{name}_{images[t].stem}", name + (f"_block{t // block:03d}" if block else ""),
                   (images[t], path, *markers.get(t, ())),
                   functools.partial(_read, (images[t], path, *markers.get(t, ())), name,
                                     rim if t in markers else 0))
            for t, path in labels.items() if t not in some_drawn or partial != "drop"]
    if not kept:
        raise InputError(f"config.data.partial: '{root}' has no gold frame with all cells drawn; "
                         "set config.data.partial=ignore, config.data.truth=silver, or a lower "
                         "config.data.complete")
    if not block and len(chosen) < 3:
        findings.append(Finding(
            "warning", "config.data.block", f"whole sequences are groups, here {len(chosen)}: too "
            "few for training, validation and test; set a fraction of config.data.split to 0, or "
            "config.data.block=20 to cut sequences into groups of neighbouring frames"))
    return Records(sorted(kept, key=lambda record: record.name), findings)


def tracks(path) -> np.ndarray:
    """(T, 4) int64 of a man_track.txt: label, first frame, last frame, parent label (0: none).

    InputError for a line of another form, a label twice, an end before its begin, or a parent
    that is unknown or not over when its child begins.
    """
    path = pathlib.Path(path)
    try:
        lines = [line.split() for line in depends_on(path).read_text().splitlines() if line.strip()]
        rows = [[int(number) for number in line] for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected lines of four whole numbers: "
                         "label, first frame, last frame, parent") from error
    last_frame = {}
    for row in rows:
        if len(row) != 4 or row[0] < 1 or not 0 <= row[1] <= row[2]:
            raise InputError(f"{path}: found {' '.join(map(str, row))}; expected label (from 1), "
                             "first frame, last frame (not before the first), parent")
        if row[0] in last_frame:
            raise InputError(f"{path}: label {row[0]} is there twice; a label is one track")
        last_frame[row[0]] = row[2]
    for label, begin, _, parent in rows:
        if parent and last_frame.get(parent, begin) >= begin:
            raise InputError(f"{path}: track {label} begins in frame {begin}, but its parent "
                             f"{parent} does not end before it; expected a track that does, or 0")
    return np.array(rows, np.int64).reshape(-1, 4)


def _chosen(root, folder, sequences):
    """Names of the sequences to read, and findings on those left out."""
    found = _sequences(root)
    if not found:
        inside = [p for p in entries(root) if p.is_dir() and _sequences(p)]
        hint = (f"it is itself a sequence, pass '{root.absolute().parent}'"
                if root.absolute().name in _sequences(root.absolute().parent)
                else f"did you mean {inside[0]}?" if inside else DOWNLOAD)
        raise InputError(f"config.data.root: '{root}' has no sequence with truth such as 01 beside "
                         f"01_GT; {hint}")
    unknown = [name for name in sequences if name not in found]
    if unknown:
        raise InputError(f"config.data.sequences: '{root}' has no sequence {unknown[0]!r} with "
                         f"truth; expected some of {', '.join(found)}")
    without = [name for name in sequences or found if not (root / f"{name}_{folder}").is_dir()]
    chosen = [name for name in sequences or found if name not in without]
    if without and (sequences or not chosen):
        raise InputError(f"config.data.truth: folder '{root / without[0]}_{folder}' does not "
                         "exist; choose another truth or other sequences")
    return chosen, [Finding("note", str(root / name), f"has no {name}_{folder}: left out")
                    for name in without]


def _sequences(root) -> list[str]:
    names = {path.name for path in entries(root) if path.is_dir()}
    return sorted(name for name in names if {f"{name}_GT", f"{name}_ST"} & names)


def _frames(folder: pathlib.Path, prefix: str) -> dict[int, pathlib.Path]:
    """The TIFF files of a folder by frame number, in order."""
    found = {}
    for path in entries(folder):
        if path.suffix.lower() not in (".tif", ".tiff"):
            continue
        if re.fullmatch(rf"{prefix}_\d+_\d+", path.stem):
            raise InputError(f"{path}: is a slice of a 3-D dataset; expected 2-D frames like "
                             f"{prefix}067.tif, choose a dataset named -C2D or -N2D")
        match = re.fullmatch(rf"{prefix}(\d{{3,}})", path.stem)
        if not match:
            raise InputError(f"{path}: expected frames like {prefix}067.tif; move it away")
        if int(match[1]) in found:
            raise InputError(f"{path}: ambiguous, {found[int(match[1])].name} has the same frame "
                             "number; keep one of the two")
        found[int(match[1])] = path
    if not found:
        raise InputError(f"{folder}: has no frame; expected files like {prefix}067.tif")
    return dict(sorted(found.items()))


def _check_tracks(root, name, images, gold, partial, complete):
    """Frames partly drawn, and findings; `gold` are the label files whose cells are counted."""
    path, folder = root / f"{name}_GT/TRA/man_track.txt", root / f"{name}_GT/SEG"
    if not depends_on(path).is_file():
        unknown = Finding("note", str(path), "not found: gold frames in which only some cells are "
                          "drawn cannot be separated from complete ones")
        return set(), [unknown] if gold else []
    _, begin, end, _ = lines = tracks(path).T
    findings, seen = [], np.zeros(lines.shape[1], bool)
    for t in images:
        seen |= (begin <= t) & (t <= end)
    if not seen.all():
        findings.append(Finding("note", str(path), f"{np.count_nonzero(~seen)} of {len(seen)} "
                                f"tracks are in no frame of {root / name}"))
    some_drawn, short = {}, {}
    for t, label in gold.items():
        drawn = np.count_nonzero(np.unique(read_mask(label)))
        tracked = np.count_nonzero((begin <= t) & (t <= end))
        if drawn < tracked:
            where = some_drawn if drawn < complete * tracked else short
            where[t] = f"{images[t].stem[1:]} ({drawn} of {tracked} cells)"
    if short:
        findings.append(Finding("note", str(folder), "nearly all cells are drawn in frame "
                                + ", ".join(short.values())))
    if some_drawn:
        level, what = {
            "keep": ("warning", "kept, so a loss takes the others for background; "
                     "config.data.partial=ignore learns from the drawn ones alone"),
            "drop": ("warning", "left out; config.data.partial=ignore learns from the drawn ones"),
            "ignore": ("note", "the others, and what is not near a drawn one, are not annotated"),
        }[partial]
        findings.append(Finding(level, str(folder), "only some cells are drawn in frame "
                                f"{', '.join(some_drawn.values())}: {what}"))
    return set(some_drawn), findings


def _markers(root, name, frames) -> dict[int, tuple[pathlib.Path, ...]]:
    """{frame: (its file of markers,), or () where there is none}."""
    folder = root / f"{name}_GT/TRA"
    found = _frames(folder, "man_track") if frames and any(
        path.suffix == ".tif" for path in entries(folder)) else {}
    return {t: (found[t],) if t in found else () for t in frames}


def partly_annotated(label: np.ndarray, rim: int, markers: np.ndarray | None = None) -> np.ndarray:
    """The label of a frame in which only some cells are drawn, -1 where nothing is known.

    Known are the drawn cells and, as background, the pixels up to `rim` away from one. Where the
    markers of all cells are there, a pixel is not known to be background within one radius of a
    median drawn cell from the marker of a cell that is not drawn: it may be a neighbour that
    touches. A cell is drawn if drawn cells cover more than half of its marker. The pixels right
    beside a drawn cell are always background, if only as a gap between two cells, since the cell
    is known to end there.

    Args:
      label: (H, W) integers, 0 where no cell is drawn.
      rim: pixels.
      markers: (H, W) integers of the tracking truth, 0 where no marker is.
    Returns: (H, W) int32.
    """
    drawn = label > 0
    if not drawn.any():
        return np.full(label.shape, -1, np.int32)
    distance = ndimage.distance_transform_edt(~drawn)
    known = distance <= rim
    if markers is not None:
        _, markers = without_gaps(markers)
        covered = np.bincount(markers[drawn], minlength=markers.max() + 1)
        undrawn = 2 * covered <= np.bincount(markers.reshape(-1))
        undrawn[0] = False
        if undrawn[markers].any():
            areas = np.unique(label[drawn], return_counts=True)[1]
            radius = np.sqrt(np.median(areas) / np.pi)
            known &= (ndimage.distance_transform_edt(~undrawn[markers]) > radius) | (distance <= 1)
    return np.where(drawn | known, label.astype(np.int32), np.int32(-1))


def _read(files, stratum, rim) -> Sample:
    """The sample of (image, label, maybe markers); rim 0 where the frame counts as complete."""
    image = read_image(files[0])
    label, *markers = (_numbers(path, files[0], image) for path in files[1:])
    if rim:
        label = partly_annotated(label, rim, *markers)
    return Sample(image, label, stratum)


def _numbers(path, image_path, image) -> np.ndarray:
    """(H, W) int32 of a file of labels or markers."""
    label = read_mask(path)
    check_size(path, label, image_path, image)
    if label.shape[-1] != 1:
        raise InputError(f"{path}: label is RGB; expected one cell number per pixel")
    return label[..., 0].astype(np.int32)
