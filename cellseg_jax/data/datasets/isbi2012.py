"""ISBI 2012 challenge: membranes of neurons in electron microscopy, two stacks of slices.

30 labelled slices of 512x512 pixels of the ventral nerve cord of a fruit fly larva, 4x4x50 nm per
voxel, 8 MB per file; the terms of use ask to cite Cardona et al. 2010 (PLoS Biology 8) and
Arganda-Carreras et al. 2015 (Frontiers in Neuroanatomy 9). From
https://imagej.net/events/isbi-2012-segmentation-challenge. Original layout, one page per slice:

    train-volume.tif     8-bit gray
    train-labels.tif     255 inside of a cell, 0 on a membrane
    test-volume.tif      30 more slices, whose labels were never given out: not read here

About 78% of the pixels are inside of a cell: an answer of "cell" everywhere has a Dice score of
0.87, so score the membrane too: foreground=membrane.
"""

import functools

import numpy as np
from skimage.measure import label as connected_components

from cellseg_jax.data.read import (
    SLICES,
    check_root,
    check_size,
    num_images,
    read_image,
    read_mask,
)
from cellseg_jax.data.records import Finding, Record, Records, Sample
from cellseg_jax.errors import InputError, pick

COUNT, PIXELS = 30, 512 * 512  # images with labels, and pixels of each
DOWNLOAD = ("Get train-volume.tif and train-labels.tif (8 MB each) from "
            "https://imagej.net/events/isbi-2012-segmentation-challenge")
INSIDE, MEMBRANE = 255, 0
FOREGROUNDS = {"cell": INSIDE, "membrane": MEMBRANE}
LABELS = {"binary": False, "instances": True}


def records(root, labels="binary", foreground="cell", block=6) -> Records:
    """One record per slice, named slice_00 and so on.

    Args:
      root: the folder of the three files.
      labels: binary | instances: each 4-connected region inside membranes is one cell, as the
        challenge's Rand score counts them; needs foreground=cell.
      foreground: cell | membrane, what is 1 in a binary label.
      block: this many neighbouring slices, nearly copies of each other, are one group. At the
        edges of blocks neighbours can still fall into different parts; more slices per block
        leave fewer edges. 0: the stack is one group.
    """
    value = pick(FOREGROUNDS, foreground, "config.data.foreground")
    instances = pick(LABELS, labels, "config.data.labels")
    if instances and value == MEMBRANE:
        raise InputError("config.data.foreground: got 'membrane' with labels=instances; membranes "
                         "are one network, set config.data.labels=binary or foreground=cell")
    if block < 0:
        raise InputError(f"config.data.block: got {block}; expected 0 or more slices")
    root = check_root(root, DOWNLOAD)
    volume, truth, test = (root / f"{name}.tif" for name in (
        "train-volume", "train-labels", "test-volume"))
    for path in (volume, truth):
        if not path.is_file():
            raise InputError(f"config.data.root: file '{path}' does not exist. {DOWNLOAD}")
    count, count_truth = num_images(volume, SLICES), num_images(truth, SLICES, True)
    if count != count_truth:
        raise InputError(f"{truth}: has {count_truth} pages, {volume.name} has {count}; expected "
                         "one label per slice, download both again")
    findings = [Finding("note", str(test), "has no labels: not read")] if test.is_file() else []
    digits = len(str(count - 1))
    return Records([
        Record(f"slice_{page:0{digits}d}",
               f"block_{page // block:0{digits}d}" if block else "stack", (volume, truth),
               functools.partial(_read, volume, truth, page, value, instances))
        for page in range(count)], findings)


def _read(volume, truth, page, foreground, instances) -> Sample:
    image, values = read_image(volume, SLICES, page), read_mask(truth, SLICES, page)[..., 0]
    check_size(truth, values, volume, image)
    if not np.isin(values, (INSIDE, MEMBRANE)).all():
        raise InputError(f"{truth}: page {page} has values {np.unique(values)[:5].tolist()}; "
                         f"expected only {MEMBRANE} (membrane) and {INSIDE} (inside of a cell)")
    label = values == foreground
    if instances:
        label = connected_components(label, connectivity=1)
    return Sample(image, label.astype(np.int32), "")
