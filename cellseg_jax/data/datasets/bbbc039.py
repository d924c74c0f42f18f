"""BBBC039: nuclei of U2OS cells in a chemical screen, one fluorescence field per compound.

200 images of 520x696 pixels, 16 bit, with 23,615 nuclei; public domain (CC0). Broad Bioimage
Benchmark Collection, https://bbbc.broadinstitute.org/BBBC039, Caicedo et al. 2019 (Cytometry
A 95): images.zip (78 MB), masks.zip (3 MB), metadata.zip. Original layout:

    images/<name>.tif
    masks/<name>.png          RGBA, alpha 255; the red channel separates touching nuclei
    metadata/training.txt     100 lines "<name>.png"; validation.txt and test.txt 50 each

Red is 0 in the background and 1 to 3 in nuclei: it is a colour, not a number of a nucleus. A
nucleus is an 8-connected region of one value, as in the decoder that the collection points to,
skimage.measure.label(mask[:, :, 0]). 3 masks are empty, and 59 regions are smaller than 10 pixels:
they stay as drawn. Crops of 512x640 are config.data.size with fit=center_crop or random_crop.
"""

import functools
import pathlib

import numpy as np
from skimage.measure import label as connected_components

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import check_root, check_size, entries, read_image
from cellseg_jax.data.records import Finding, Record, Records, Sample
from cellseg_jax.errors import InputError

COUNT, PIXELS = 200, 520 * 696  # images, and pixels of each
DOWNLOAD = ("Get images.zip, masks.zip and metadata.zip (81 MB, CC0) from "
            "https://bbbc.broadinstitute.org/BBBC039 and unpack them into one folder")
PARTS = {"training.txt": "train", "validation.txt": "val", "test.txt": "test"}


def records(root) -> Records:
    """One record per image, sorted by name, with the part that metadata/ gives it."""
    root = check_root(root, DOWNLOAD)
    images, masks = _by_stem(root / "images", ".tif"), _by_stem(root / "masks", ".png")
    for this, other, what in ((images, masks, "mask masks/{}.png"),
                              (masks, images, "image images/{}.tif")):
        lone = sorted(this.keys() - other.keys())
        if lone:
            raise InputError(f"{this[lone[0]]}: has no {what.format(lone[0])} ({len(lone)} such "
                             f"files); unpack the archive again")
    parts, findings = _parts(root / "metadata", images)
    return Records([
        Record(name, name, (images[name], masks[name]),
               functools.partial(_read, images[name], masks[name]), parts.get(name, ""))
        for name in sorted(images)], findings)


def _by_stem(folder: pathlib.Path, suffix: str) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise InputError(f"config.data.root: folder '{folder}' does not exist. {DOWNLOAD}")
    found = {path.stem: path for path in entries(folder) if path.suffix.lower() == suffix}
    if not found:
        raise InputError(f"config.data.root: '{folder}' has no {suffix} file. {DOWNLOAD}")
    return found


def _parts(folder: pathlib.Path, images):
    """{name: part} of the three lists, and findings."""
    if not depends_on(folder).is_dir():
        return {}, [Finding("note", str(folder), "not found: no official split; get metadata.zip")]
    parts = {}
    for file, part in PARTS.items():
        try:
            lines = depends_on(folder / file).read_text().split()
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / file}: cannot be read ({error}); expected a list of "
                             "names, get metadata.zip again") from error
        for name in (line.removesuffix(".png") for line in lines):
            if name not in images:
                raise InputError(f"{folder / file}: lists {name}.png, but there is no such image; "
                                 "unpack images.zip again")
            if name in parts:
                raise InputError(f"{folder / file}: lists {name}.png, which is listed already, as "
                                 f"{parts[name]}; expected each name once")
            parts[name] = part
    rest = len(images) - len(parts)
    return parts, [Finding("warning", str(folder), f"{rest} images are in no list, so the official "
                           "split leaves them out")] if rest else []


def _read(image_path, mask_path) -> Sample:
    image, colours = read_image(image_path), read_image(mask_path)
    check_size(mask_path, colours, image_path, image)
    label = connected_components(colours[..., 0], connectivity=2).astype(np.int32)
    findings = () if label.any() else (Finding("note", str(mask_path), "has no nucleus"),)
    return Sample(image, label, "", findings)
