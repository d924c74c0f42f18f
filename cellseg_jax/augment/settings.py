"""Which augmentations there are, what their strengths may be, and which of them settings name."""

from cellseg_jax.augment.geometric import GEOMETRIC
from cellseg_jax.augment.intensities import INTENSITY
from cellseg_jax.errors import pick

AUGMENTATIONS = {**GEOMETRIC, **INTENSITY}
OPTIONS = {"elastic_sigma": 8.0}  # pixels; numbers in settings that are no augmentation
WHOLE_PIXEL = ("flip_horizontal", "flip_vertical", "turn")
LIMITS = {  # largest strength and what it measures
    "rotation": (180, "degrees"),
    "zoom": (9, "the largest factor minus 1"),
    "zoom_in": (9, "the largest factor minus 1"),
    "shear": (44, "degrees"),
    "shift": (1, "a fraction of the side"),
    "elastic": (float("inf"), "pixels"),
    "brightness": (1, "a fraction"),
    "contrast": (1, "a fraction"),
    "gamma": (9, "the largest power minus 1"),
    "colour_jitter": (0.5, "a fraction, turns of the colour circle"),
    "rgb_shift": (1, "a fraction of the image's range"),
    "noise": (1, "a fraction of the image's range"),
}


def check(name: str, strength, size) -> str:
    """Why a strength, or a number of OPTIONS, is invalid for images of size (H, W).

    Returns: what was expected instead; "" for a valid one.
    """
    if name == "elastic_sigma":
        largest = min(size) / 4
        return "" if 0 < strength <= largest else (
            f"pixels above 0, at most {largest:g}, a quarter of the shorter side")
    if name in WHOLE_PIXEL:
        choices = (1,) if name != "turn" else (1, 2, 3) if size[0] == size[1] else (2, 3)
        return "" if strength in choices else (
            f"a strength among {choices} at size {tuple(size)}")
    largest, unit = LIMITS.get(name) or (min(size) / 4, "pixels")  # blur
    return "" if 0 <= strength <= largest else f"a strength from 0 to {largest:g} ({unit})"


def active_in(settings, table, size):
    """The names of `table` that settings switch on, in the table's order.

    Raises: as `warp`.
    """
    for name in settings:
        pick(AUGMENTATIONS | OPTIONS, name, "config.augment")
    active = [name for name in table if name in settings
              and not (_known(settings[name][0]) and settings[name][0] == 0)]
    for name in active:
        strength = settings[name][1]
        if _known(strength) and strength and (expected := check(name, strength, size)):
            raise ValueError(f"augment {name}: got {strength}; expected {expected}")
    return active


def _known(number):
    """Whether the number is known before tracing."""
    return isinstance(number, (int, float))
