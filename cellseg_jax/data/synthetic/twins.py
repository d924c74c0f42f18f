"""Synthetic twins: the layout, sizes, dtypes and quirks of a dataset, filled with synthetic cells.

A twin holds no pixel of its original. It lets everything run where the original is not, and its
quirks are those that the originals are known for: partial truth, overlaps, missing labels,
numbers with gaps. `TWINS` has one writer for each dataset, called as writer(folder, count, seed,
zoom); image i of a twin depends on (seed, i) only.
"""

import csv
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tifffile
from scipy import ndimage

from cellseg_jax.data import synthetic
from cellseg_jax.data.split import PARTS
from cellseg_jax.data.synthetic import looks
from cellseg_jax.data.synthetic.drawing import glow, noise, stain
from cellseg_jax.data.synthetic.parts import (
    SEEN,
    coco_shapes,
    deep_part,
    few_colours,
    hex_digits,
    moving_cells,
    nuclei,
    run_lengths,
    to_integers,
    write_lzw,
    write_png,
    write_text,
    write_tiff,
)
from cellseg_jax.errors import InputError, pick

MIN_SIDE, MIN_RADIUS = 32, 4.0  # pixels; smaller images hold no cells, smaller cells no shape


class Twin(NamedTuple):
    """How a dataset is imitated."""

    write: Callable  # (folder, count, seed, zoom)
    native: tuple[int, int]  # (H, W) in pixels; the commonest where there are several
    count: int  # by default
    counted: str  # what count counts


class Zoom(NamedTuple):
    """Sizes of a twin relative to its original's: (vertical, horizontal) factors."""

    height: float = 1.0
    width: float = 1.0

    def size(self, native) -> tuple[int, int]:
        """(H, W) of what has the size `native` in the original, at least 32x32."""
        return tuple(max(MIN_SIDE, round(n * f)) for n, f in zip(native, self, strict=True))

    def radius(self, native) -> float:
        """Pixels of what has the radius `native` in the original, at least 4."""
        return max(MIN_RADIUS, native * (self.height * self.width) ** 0.5)


def write(name, out, *, count=0, seed=0, size=(0, 0)) -> int:
    """Write the twin of the dataset `name` into the folder `out`; returns the images counted.

    The folder appears when all of it is written, or not at all.

    Args:
      name: one of TWINS.
      out: a folder that does not exist yet or is empty.
      count: how many, of the unit in TWINS; 0 is the twin's own.
      seed: of everything. The same seed writes the same pixels.
      size: (H, W) in pixels of what has the original's size; (0, 0) keeps that. Where the original
        has several sizes, all change by the same factors.
    """
    twin, out = pick(TWINS, name, "--like"), pathlib.Path(out).expanduser()
    if count < 0:
        raise InputError(f"--count: got {count}; expected 0 (that is {twin.count}) or above")
    if seed < 0:
        raise InputError(f"--seed: got {seed}; expected 0 or above")
    if len(size) != 2 or any(0 < s < MIN_SIDE or s < 0 for s in size) or (0 in size and any(size)):
        raise InputError(f"--size: got {','.join(map(str, size))}; expected H,W, both at least "
                         f"{MIN_SIDE}, or 0 for the original's {twin.native[0]},{twin.native[1]}")
    zoom = Zoom(*(s / n for s, n in zip(size, twin.native, strict=True))) if any(size) else Zoom()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out: {out} is not an empty folder; choose another, or delete it")
        part = out.with_name(f"{out.name}.part{os.getpid()}")
        part.mkdir(parents=True)
        try:
            twin.write(part, count or twin.count, seed, zoom)
            part.replace(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"--out: cannot write to {out} ({error.strerror}); "
                         "choose another folder") from error
    return count or twin.count


# The files of each dataset, in alphabetical order.


def bbbc039(folder, count, seed, zoom) -> None:
    """images/*.tif of 16 bit, masks/*.png and the lists in metadata/.

    The red channel separates touching nuclei: it has a few values, and each nucleus is one
    connected region of one value. Half of the images are for training, a quarter each for
    validation and test. One has no nucleus.
    """
    names = {"training": [], "validation": [], "test": []}
    for i in range(count):
        rng = np.random.default_rng([seed, 39, i])
        label, depth = nuclei(rng, zoom.size((520, 696)), radius=zoom.radius(13), coverage=0.13,
                               elongation=1.25, clustering=0.25)
        if i % 20 == 7:
            label, depth = np.zeros_like(label), np.zeros_like(depth)
        image = 110 + 9 * np.maximum(0, glow(rng, label, depth))
        well = f"{'ABCDEFGHIJKLMNOP'[i // 2 % 16]}{i // 32 + 1:02d}_s{i % 2 * 5 + 1}"
        name = f"IXMtest_{well}_w1{hex_digits(seed, 39, i)[:32].upper()}"
        write_tiff(folder / "images" / f"{name}.tif", to_integers(image, np.uint16))
        mask = np.zeros((*label.shape, 4), np.uint8)
        mask[..., 0], mask[..., 3] = few_colours(label), 255
        write_png(folder / "masks" / f"{name}.png", mask)
        names[("training", "validation", "training", "test")[i % 4]].append(f"{name}.png")
    for part, listed in names.items():
        write_text(folder / "metadata" / f"{part}.txt", "".join(f"{name}\n" for name in listed))


def ctc(folder, count, seed, zoom) -> None:
    """Three datasets of the Cell Tracking Challenge, two sequences each, `count` frames in each.

    Cells move, one divides, and some leave. GT/SEG draws a part of the frames, and in one of them
    a part of the cells, with numbers of its own; ST/SEG is complete and has the numbers of
    GT/TRA. Frame numbers start above 0 and jump in the middle. PhC has GT/SEG only.
    """
    for d, (name, (native, first, silver, cell, look)) in enumerate(CTC.items()):
        for sequence in (1, 2):
            rng = np.random.default_rng([seed, 50, d, sequence])
            frames = [first + t + (t >= (count + 1) // 2) * 10 for t in range(count)]
            movie, tracks = moving_cells(rng, frames, zoom.size(native), zoom, **cell)
            place = folder / name
            texture = int(rng.integers(2**31))  # of the cells: it moves little between frames
            numbers = rng.permutation(tracks[-1][0]) + 1  # of GT/SEG
            for t, (frame, (label, depth)) in enumerate(zip(frames, movie, strict=True)):
                image = look(np.random.default_rng(texture), label, depth)
                image, label, depth = image[SEEN], label[SEEN], depth[SEEN]
                image = image + rng.normal(0, 0.8, image.shape)
                wide = name.startswith("Fluo")  # 16 bit with an offset, in a narrow range
                write_lzw(place / f"{sequence:02d}/t{frame:03d}.tif",
                     np.uint16(33007 + np.clip(14 * image, 0, 3856)) if wide
                     else to_integers(image, np.uint8))
                truth = place / f"{sequence:02d}_GT"
                if t % 3 != 1:
                    gold = numbers[label] * (label > 0)
                    if t == 3:  # three cells of many
                        gold = gold * (label <= np.unique(label)[:4][-1])
                    write_lzw(truth / f"SEG/man_seg{frame:03d}.tif", gold.astype(np.uint16))
                if silver:
                    drawn = deep_part(label, depth, silver)
                    write_lzw(truth / f"TRA/man_track{frame:03d}.tif", drawn.astype(np.uint16))
                    soft = deep_part(label, depth, 0.06).astype(np.uint16)
                    write_lzw(place / f"{sequence:02d}_ST/SEG/man_seg{frame:03d}.tif", soft)
            if silver:
                write_text(truth / "TRA/man_track.txt",
                      "".join(f"{' '.join(map(str, track))}\n" for track in tracks))


def dsb2018(folder, count, seed, zoom) -> None:
    """stage1_train with one mask file per nucleus, and stage1_test with stage1_solution.csv.

    The nine sizes and the modalities as often as in the original, from 11 images on all of them.
    Of every ten images one has masks that overlap, one a mask in two pieces, one a mask with a
    hole, one RGBA masks and one 1-bit masks. A fifth as many test images.
    """
    for i in range(count):
        name, image, masks = _dsb2018_image([seed, 18, i], i, zoom)
        place = folder / "stage1_train" / name
        write_png(place / f"images/{name}.png", image)
        for n, mask in enumerate(masks):
            kind = {4: "RGBA", 5: "1"}.get(i % 10, "L") if n % 5 == 0 else "L"
            write_png(place / f"masks/{hex_digits(seed, i, n)}.png", np.uint8(mask) * 255, kind)
    rows = []
    for i in range(-(-count // 5)):
        name, image, masks = _dsb2018_image([seed, 19, i], i, zoom)
        write_png(folder / f"stage1_test/{name}/images/{name}.png", image)
        rows += [(name, run_lengths(mask), *mask.shape, "Public") for mask in masks]
    with open(folder / "stage1_solution.csv", "w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "EncodedPixels", "Height", "Width", "Usage"),
                                    *rows])


def ebhi_seg(folder, count, seed, zoom) -> None:
    """Six class folders with image/ and label/, `count` images in each.

    Three images to a case; one case, and so its file names, is in both High-grade IN and
    Low-grade IN. Labels have soft edges. Low-grade IN has two more images without label, and the
    last label of Adenocarcinoma is 253 everywhere.
    """
    for c, (kind, coverage) in enumerate(EBHI_SEG.items()):
        cases = [2012149 + (i > 2 or c not in (1, 2)) * (1000 * c + i // 3 + 1)
                 for i in range(count)]
        names = [f"GT{case}-2-400-{i % 3 + 2:03d}" for i, case in enumerate(cases)]
        if kind == "Low-grade IN":
            names += ["GT2012149-2-400-001", "GTGT2012149-2-400-001"]
        for i, name in enumerate(names):
            rng = np.random.default_rng([seed, 224, c, i])
            colour, inside = looks.glands(rng, zoom.size((224, 224)), coverage=coverage,
                                          radius=zoom.radius(rng.uniform(24, 36)))
            label = ndimage.gaussian_filter(255.0 * inside, 0.45)
            if kind == "Adenocarcinoma" and i == count - 1 > 0:
                label = np.full(inside.shape, 253)
            write_png(folder / kind / f"image/{name}.png", to_integers(colour, np.uint8))
            if i < count:
                write_png(folder / kind / f"label/{name}.png", to_integers(label, np.uint8))


def folder(folder, count, seed, zoom) -> None:
    """images/ and masks/ with instance ids in 16-bit PNG; four images to a case."""
    for i, record in enumerate(synthetic.records(count, zoom.size((256, 256)), seed)):
        sample, name = record.read(), f"case{i // 4:02d}_{i % 4}.png"
        write_png(folder / "images" / name, sample.image[..., :3])
        write_png(folder / "masks" / name, sample.label.astype(np.uint16))


def isbi2012(folder, count, seed, zoom) -> None:
    """train-volume.tif and train-labels.tif of `count` slices, test-volume.tif of a fifth.

    In the labels 255 is the inside of a cell and 0 the membrane.
    """
    for part, num_slices in (("train", count), ("test", -(-count // 5))):
        rng = np.random.default_rng([seed, 2012, part == "test"])
        volume, inside = looks.membranes(rng, num_slices, zoom.size((512, 512)))
        # As ImageJ writes a stack: one page per slice, uncompressed.
        stack = functools.partial(tifffile.imwrite, imagej=True, metadata={"axes": "ZYX"})
        stack(folder / f"{part}-volume.tif", to_integers(volume, np.uint8))
        if part == "train":
            stack(folder / "train-labels.tif", np.uint8(inside) * 255)


def livecell(folder, count, seed, zoom) -> None:
    """Two folders of images and three COCO files: half train, a quarter each val and test.

    All eight cell types from 12 images on, one polygon per cell, drawn a pixel wider than the
    cell, so that touching cells overlap. Two train images are of one field; the first of them has
    run-length codes in place of polygons, which the original never has, and the second few of
    its cells. The fifth image is in train and, under another id, in val.
    """
    entries = {part: ([], []) for part in PARTS}
    ids = iter(np.random.default_rng([seed, 704]).permutation(10**6) + 100)
    for i in range(count):
        part = ("train", "val", "train", "test")[i % 4]
        # Three types in a round of four images, each part another one; all parts see all in time.
        turn = i // 4
        kind = list(LIVECELL)[(3 * turn + list(entries).index(part)) % len(LIVECELL)]
        radius, elongation, coverage, clustering, rounded = LIVECELL[kind]
        rng = np.random.default_rng([seed, 704, i])
        size = zoom.size((520, 704))
        label, depth = nuclei(rng, size, radius=zoom.radius(radius), elongation=elongation,
                               coverage=coverage, clustering=clustering)
        bend = min(4, zoom.radius(radius) / 4) * (1 - rounded)
        label, depth = looks.moved(label, depth, bend * np.stack(
            [noise(rng, size, 1.2 * zoom.radius(radius) / 3) for _ in range(2)]))
        image = looks.phase_contrast(rng, label, depth, rounded=rounded)
        field = f"{'ABCDEFGH'[turn // 8 % 8]}{4 if part == 'test' else 3}_{1 + i % 2}"
        name = f"{kind}_Phase_{field}_{turn % 5:02d}d{4 * (turn % 6):02d}h00m_{i % 4 + 1}"
        where = "livecell_test_images" if part == "test" else "livecell_train_val_images"
        write_lzw(folder / f"images/{where}/{name}.tif", to_integers(image, np.uint8),
                  predictor=True)
        shapes = coco_shapes(label, runs=i == 0)
        for images, annotations in (entries[p] for p in ((part, "val") if i == 4 else (part,))):
            image_id = int(next(ids))
            images.append(dict(id=image_id, width=size[1], height=size[0], file_name=f"{name}.tif",
                               original_filename=f"{name}.png", url=""))
            annotations += [dict(id=int(next(ids)), image_id=image_id, category_id=1, iscrowd=0,
                                 **shape) for shape in (shapes[:3] if i == 2 else shapes)]
    for part, (images, annotations) in entries.items():
        write_text(folder / f"livecell_coco_{part}.json", json.dumps(dict(
            info=dict(year="2021", version="1.0", description="synthetic twin of LIVECell"),
            licenses=[], categories=[dict(supercategory="cell", id=1, name="cell")],
            images=images, annotations=annotations)))


def _dsb2018_image(seed, i, zoom):
    """(name, (H, W, 4) uint8 image, list of (H, W) bool masks) with the quirk of image i."""
    rng = np.random.default_rng(seed)
    weights = np.array([form[2] for form in DSB2018], float)
    form = i if i < len(DSB2018) else rng.choice(len(DSB2018), p=weights / weights.sum())
    modality, native, _ = DSB2018[form]
    wide = max(1, native[0] / 400)  # the larger images have larger nuclei
    label, depth = nuclei(
        rng, zoom.size(native), radius=zoom.radius(rng.uniform(6, 12) * wide),
        elongation=rng.uniform(1.1, 1.7), coverage=rng.uniform(0.05, 0.25),
        clustering=rng.uniform(0.2, 0.7))
    if modality == "fluorescence":
        colour = glow(rng, label, depth)[..., None]
    elif modality == "brightfield":
        colour = looks.brightfield(rng, label, depth)[..., None]
    else:
        light = modality == "stain_light"
        colour = stain(rng, label, depth, rng.uniform(0, np.pi), eosin=0.15 if light else 1.8)
        colour *= 1 if light else min(1, 155 / colour.mean())
    image = np.full((*label.shape, 4), 255, np.uint8)
    image[..., :3] = to_integers(colour, np.uint8)
    masks = [label == n for n in np.unique(label[label > 0])]
    largest = max(masks, key=np.count_nonzero)
    middle = np.unravel_index(np.argmax(ndimage.distance_transform_edt(largest)), label.shape)
    if i % 10 == 1:  # grown over its neighbours: a few pixels belong to two masks
        masks = [ndimage.binary_dilation(mask) for mask in masks]
    elif i % 10 == 2:
        largest[middle[0]] = False
    elif i % 10 == 3:
        largest[middle] = False
    return hex_digits(*seed), image, masks


# Properties of the originals.

# Modality, native size, and how many of 564 images have both.
DSB2018 = (
    ("fluorescence", (256, 256), 283), ("fluorescence", (360, 360), 76),
    ("fluorescence", (520, 696), 76), ("stain_light", (256, 320), 47),
    ("stain_dark", (256, 320), 43), ("brightfield", (1024, 1024), 14),
    ("fluorescence", (512, 640), 13), ("fluorescence", (603, 1272), 5),
    ("fluorescence", (256, 320), 3), ("fluorescence", (260, 347), 3),
    ("fluorescence", (1040, 1388), 1),
)
EBHI_SEG = {"Adenocarcinoma": 0.75, "High-grade IN": 0.7, "Low-grade IN": 0.68, "Normal": 0.6,
            "Polyp": 0.5, "Serrated adenoma": 0.65}  # share of the pixels that are glands
# Radius in pixels, elongation, coverage, clustering, how rounded.
LIVECELL = {
    "A172": (19, 2.0, 0.45, 0.5, 0.0), "BT474": (14, 1.3, 0.4, 0.9, 0.3),
    "BV2": (8, 1.1, 0.12, 0.85, 1.0), "Huh7": (26, 1.5, 0.4, 0.5, 0.1),
    "MCF7": (14, 1.4, 0.45, 0.8, 0.2), "SHSY5Y": (9, 2.5, 0.25, 0.7, 0.3),
    "SKOV3": (28, 1.7, 0.5, 0.5, 0.0), "SkBr3": (10, 1.1, 0.3, 0.8, 0.9),
}
# Native size, first frame, depth that tracking markers reach out to (0: GT/SEG only), cells, look.
CTC = {
    "DIC-C2DH-HeLa": ((512, 512), 1, 0.6, dict(
        radius=52, elongation=1.4, coverage=0.45, clustering=0.7, speed=1.5), looks.relief),
    "Fluo-N2DL-HeLa": ((700, 1100), 78, 0.02, dict(
        radius=13, elongation=1.25, coverage=0.13, clustering=0.3, speed=1.5), glow),
    "PhC-C2DL-PSC": ((576, 720), 98, 0, dict(
        radius=6, elongation=2.8, coverage=0.05, clustering=0.4, speed=1.5), looks.bright_phase),
}
TWINS = {
    "bbbc039": Twin(bbbc039, (520, 696), 20, "images"),
    "ctc": Twin(ctc, (512, 512), 6, "frames per sequence"),
    "dsb2018": Twin(dsb2018, (256, 256), 40, "training images"),
    "ebhi_seg": Twin(ebhi_seg, (224, 224), 9, "images per class"),
    "folder": Twin(folder, (256, 256), 24, "images"),
    "isbi2012": Twin(isbi2012, (512, 512), 30, "labelled slices"),
    "livecell": Twin(livecell, (520, 704), 32, "images"),
}
