"""Outlines over the image, as PNG for a look at the result."""

import numpy as np
from PIL import Image

from cellseg_jax.files import atomic_file
from cellseg_jax.report import panels

BAND = 256  # rows that are read together
LARGEST = 2**25  # pixels of a picture, 5792 x 5792


def write(path, label, image, probability=None, classes=()) -> None:
    """The image with every object of (H, W) `label` outlined; see `outputs.write`.

    Images of more than 2^25 pixels are shown reduced, by every second, third, ... row and column.
    """
    height, width = label.shape
    step = 1
    while -(-height // step) * -(-width // step) > LARGEST:
        step += 1
    rows = max(1, BAND // step) * step
    bands = [image.rows(start, min(start + rows, height))[::step, ::step].copy()
             for start in range(0, height, rows)]  # views would keep the whole image
    if image.alpha:
        bands = [band[..., :-1] for band in bands]
    picture = panels.overlay(np.concatenate(bands), label[::step, ::step])
    with atomic_file(path) as temporary:
        # A quarter of the time of Pillow's own level, in files that are 4 % larger.
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=1)
