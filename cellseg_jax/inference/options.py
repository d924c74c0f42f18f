"""How a trained network is applied to images: what `predict` and a run in Python are given."""

import math
import numbers
from typing import NamedTuple

from cellseg_jax.errors import InputError, check_choice

IN_MEMORY_PIXELS = 2**24  # of the images that are in memory together; larger ones come in bands
LARGEST_SCALE = 64
VIEWS = {"": (0,), "flips": (0, 1, 2, 3), "all": tuple(range(8))}  # numbers of tile_blending.turns


class PredictOptions(NamedTuple):
    """How a trained network is applied to images."""

    scale: float = 0.0  # 0 repeats the training's fit; above 0 tiles the image at that scale
    halo: int = 0  # pixels of a tile's edge that are cropped; 0 blends overlapping tiles
    tta: str = ""  # "" | flips | all: the mean over 4 or 8 views of each tile
    uncertain: bool = False  # one more output: the variance over views and runs
    band_pixels: int = 2**24  # of an image that are in memory at once while read or resized
    # In place of scale, which then follows from what the network was trained with:
    diameter: float = 0.0  # of the cells in the image, pixels
    pixel_size: float = 0.0  # of the image, micrometres


AS_TRAINED = PredictOptions()
GIVEN = ("scale", "diameter", "pixel_size", "halo", "tta")  # what a user may set


def check(options: PredictOptions, halo: str, num_runs: int = 1) -> None:
    """InputError for a value that no run can be used with.

    Args:
      halo: as the user gave it: pixels, "auto" or "".
      num_runs: that predict together.
    """
    for name in ("scale", "diameter", "pixel_size"):
        value = getattr(options, name)
        if not (isinstance(value, numbers.Real) and math.isfinite(value) and value >= 0):
            raise InputError(f"--{name}: got {value!r}; expected 0 (as in training) or above")
    if options.scale and not 1 / LARGEST_SCALE <= options.scale <= LARGEST_SCALE:
        raise InputError(f"--scale: got {options.scale:g}; expected a factor from "
                         f"1/{LARGEST_SCALE} to {LARGEST_SCALE}, such as 0.5 for half the size")
    if halo not in ("", "auto") and not halo.isdecimal():
        raise InputError(f"--halo: got {halo!r}; expected pixels or auto")
    check_choice(options.tta, VIEWS, "--tta")
    if options.uncertain and num_runs == 1 and not options.tta:
        raise InputError("--format=uncertainty: a single prediction has no spread; pass several "
                         "runs (--workdir=a,b,c), or --tta=flips")
