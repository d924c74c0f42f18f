"""How many pixels are decoded at once: a file that declares more is refused before memory is taken.
"""

import os

from cellseg_jax.errors import InputError

MOST_PIXELS, VARIABLE = 2**30, "CELLSEG_MAX_PIXELS"  # about 32,000 x 32,000


def check_pixels(height: int, width: int, what: str = "declares") -> None:
    """InputError for an image, tile or strip of more pixels than the limit.

    The limit is MOST_PIXELS, or the number in the environment variable VARIABLE.
    """
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdecimal():
        raise InputError(f"{VARIABLE}: got {text!r}; expected a number of pixels")
    limit = int(text or MOST_PIXELS)
    if height * width > limit:
        raise InputError(f"{what} {width} x {height} = {width * height:,} pixels, which are "
                         f"decoded at once; the limit is {limit:,}: if the file is right, set "
                         f"{VARIABLE}={width * height}, or save it as a tiled TIFF")
