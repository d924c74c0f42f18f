"""What the writers of twins share: moving cells, COCO shapes, run-length codes, files."""

import hashlib

import numpy as np
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from skimage.measure import find_contours

from cellseg_jax.data.synthetic import looks
from cellseg_jax.data.synthetic.drawing import cells, gradient

MARGIN = 32  # pixels around a movie, where cells come from and go to
SEEN = (slice(MARGIN, -MARGIN),) * 2


def nuclei(rng, size, **options):
    """`cells`, at least one."""
    while True:
        label, depth = cells(rng, size, **options)
        if label.any():
            return label, depth


def moving_cells(rng, frames, size, zoom, *, speed, radius, **options):
    """[(label, depth)] of moving cells with a margin, and tracks [(label, first, last, parent)].

    Labels are odd numbers and follow man_track.txt. A cell that left does not come back.
    """
    canvas = tuple(np.add(size, 2 * MARGIN).tolist())
    label, depth = np.zeros(canvas, np.int32), 0
    while not label[SEEN].any():
        label, depth = cells(rng, canvas, radius=zoom.radius(radius), **options)
    flow = speed * min(1, zoom.height * zoom.width) ** 0.5 * np.stack(
        [gradient(rng, canvas, 3) for _ in range(2)])
    biggest = int(np.argmax(np.bincount(label[SEEN].ravel())[1:])) + 1
    mother, daughters = label == biggest, (2 * label.max() + 1, 2 * label.max() + 3)
    turn = rng.uniform(0, np.pi)
    across = np.tensordot((np.sin(turn), np.cos(turn)), np.mgrid[: canvas[0], : canvas[1]], 1)
    across -= across[mother].mean()
    divides = frames[len(frames) // 2]
    movie, shown = [], {}  # label: first and last position in frames
    for t, frame in enumerate(frames):
        now, inner = np.where(label > 0, 2 * label - 1, 0), depth
        if frame >= divides and t:
            now[mother] = np.where(across > 0, *daughters)[mother]
            now[mother & (abs(across) < 1.5)] = 0
            inner = np.where(mother, np.minimum(depth, abs(across) / zoom.radius(radius)), depth)
        there = 20 * np.sin((frame - frames[0]) / 20)  # and back, lest a long flow tears cells
        now, inner = looks.moved(now, inner, flow * there)
        sizes = np.bincount(now[SEEN].ravel(), minlength=daughters[1] + 1)
        gone = [n for n, (_, last) in shown.items() if last != t - 1]
        now[np.isin(now, [*gone, *np.flatnonzero(sizes < 6)])] = 0
        for n in np.unique(now[now > 0]).tolist():
            shown[n] = (shown.get(n, (t,))[0], t)
        now[0, 0] = daughters[1]  # in the margin: looks draw equally many strengths in all frames
        movie.append((now, np.where(now > 0, inner, 0)))
    tracks = [(n, frames[first], frames[last], 2 * biggest - 1 if n in daughters else 0)
              for n, (first, last) in sorted(shown.items())]
    skipped = next(frame + 1 for frame in frames if frame + 1 not in frames)
    return movie, [*tracks, (daughters[1] + 2, skipped, skipped, 0)]  # one in no kept frame


def deep_part(label, depth, least):
    """`label` where depth is at least `least`, or most of what a cell reaches."""
    ids = np.arange(label.max() + 1)
    reached = np.nan_to_num(ndimage.maximum(depth, label, ids))
    return np.where(depth >= np.minimum(least, 0.8 * reached)[label], label, 0)


def few_colours(label):
    """Each id as one 8-connected region, of the lowest value from 1 that no neighbour has."""
    coloured = np.zeros(np.add(label.shape, 2), np.uint8)  # with a margin
    for n, window in enumerate(ndimage.find_objects(label), 1):
        if window is None:
            continue
        pieces, _ = ndimage.label(np.pad(label[window] == n, 1), np.ones((3, 3)))
        whole = pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1
        around = coloured[tuple(slice(axis.start, axis.stop + 2) for axis in window)]
        taken = set(around[ndimage.binary_dilation(whole, np.ones((3, 3)))].tolist())
        around[whole] = next(value for value in range(1, 256) if value not in taken)
    return coloured[1:-1, 1:-1]


def coco_shapes(label, runs):
    """[{segmentation, area, bbox}] of all cells, drawn one pixel wider than they are."""
    shapes = []
    for n, window in enumerate(ndimage.find_objects(label), 1):
        if window is None or np.count_nonzero(label[window] == n) < 12:
            continue
        top, left = (max(0, axis.start - 2) for axis in window)
        around = label[top : window[0].stop + 2, left : window[1].stop + 2] == n
        cell = ndimage.binary_dilation(around)
        # COCO measures from the corner of a pixel, a contour from its middle.
        outline = max(find_contours(np.pad(cell, 1), 0.5), key=len)
        points = outline[:-1:2, ::-1] - 0.5 + (left, top)
        points = np.round(points.clip(0, label.shape[::-1]), 2)
        x, y = points.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        segmentation = [points.ravel().tolist()]
        if runs:  # as a list of counts and as a string in turn
            whole = np.zeros(label.shape, np.uint8, order="F")
            whole[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
            lengths = np.diff(np.flatnonzero(np.diff(whole.ravel("F"), prepend=0, append=2)))
            first = int(np.argmax(whole.ravel("F") > 0))
            segmentation = dict(size=list(label.shape), counts=[first, *lengths.tolist()])
            if n % 2:
                segmentation["counts"] = coco_mask.encode(whole)["counts"].decode()
            area = int(np.count_nonzero(cell))
        shapes.append(dict(
            segmentation=segmentation, area=float(area),
            bbox=[float(v) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))]))
    return shapes


def run_lengths(mask) -> str:
    """Run-length code as in the csv files of Kaggle: start and length, by columns, from 1."""
    edges = np.flatnonzero(np.diff(mask.ravel("F").astype(np.int8), prepend=0, append=0))
    return " ".join(f"{start + 1} {stop - start}" for start, stop in edges.reshape(-1, 2))


def hex_digits(*seed) -> str:
    """64 hex digits, the same for the same numbers."""
    return hashlib.sha256(" ".join(map(str, seed)).encode()).hexdigest()


def to_integers(image, dtype) -> np.ndarray:
    """An image of an integer dtype, rounded and clipped to its values."""
    return np.clip(np.rint(image), 0, np.iinfo(dtype).max).astype(dtype)


def write_text(path, text) -> None:
    """Write a text and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_png(path, image, mode=None) -> None:
    """Write a PNG and the folders above it; `mode` is one of Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(path, compress_level=1)


def write_tiff(path, image, **options) -> None:
    """Write a TIFF and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, metadata=None, **options)


def write_lzw(path, image, predictor=False) -> None:
    """Write a TIFF compressed by LZW."""
    write_tiff(path, image, compression="lzw", predictor=predictor)
