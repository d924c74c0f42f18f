"""Sizes of pixels in micrometres from the units that files use, and which of them are believed."""

import math
import re
import unicodedata

SQUARE = 0.01  # pixels are square if height and width differ by this share at most
BELIEVED_UM = (1e-5, 1e4)  # smallest and largest pixel; other values are mistakes
# Names as `_plain` makes them.
MICROMETRES = {"m": 1e6, "meter": 1e6, "metre": 1e6, "cm": 1e4, "centimeter": 1e4,
               "centimetre": 1e4, "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "nm": 1e-3,
               "nanometer": 1e-3, "nanometre": 1e-3, "angstrom": 1e-4, "\xc5": 1e-4, "inch": 25400,
               "inche": 25400, "in": 25400, "um": 1, "\u03bcm": 1, "micron": 1, "micrometer": 1,
               "micrometre": 1}


def in_micrometres(*sizes) -> tuple[float, float] | None:
    """(height, width) given as (value, unit) each, nan where a value is no number or missing.

    None where nothing is said in a known unit; whether the rest can be right is for `believed`.
    """
    sizes = [(value, _plain(unit)) for value, unit in sizes]
    said = [value not in (None, "") and unit in MICROMETRES for value, unit in sizes]
    known = tuple(_number(value) * MICROMETRES[unit] if there else math.nan
                  for (value, unit), there in zip(sizes, said, strict=True))
    return known if any(said) else None


def _plain(unit) -> str:
    """A unit as in MICROMETRES: words small and in the singular, the micro sign as Greek mu.

    ImageJ writes letters beyond ASCII as \\uXXXX.
    """
    unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), str(unit))
    unit = unicodedata.normalize("NFKC", unit).strip()
    return unit.lower().removesuffix("s") if len(unit) > 2 else unit  # Mm is not mm


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def believed(pixel_size) -> float | None:
    """Micrometres of a square pixel from (height, width); None for what cannot be right.

    That is a pixel that is not square or not from 1e-5 to 1e4 um, or an unknown size.
    """
    if pixel_size is None or not all(map(math.isfinite, pixel_size)):
        return None
    low, high = sorted(pixel_size)
    smallest, largest = BELIEVED_UM
    square = smallest <= low and high <= largest and high <= low * (1 + SQUARE)
    return math.sqrt(low * high) if square else None


def checked(pixel_size) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """(the size or None where it is not believed, what a user should know of that)."""
    if pixel_size is None or believed(pixel_size) is not None:
        return pixel_size, ()
    height, width = pixel_size
    smallest, largest = BELIEVED_UM
    return None, (f"pixel size of {height:g} x {width:g} um (height x width) is not believed, "
                  f"lengths are in pixels; expected two equal ones from {smallest:g} to "
                  f"{largest:g} um",)
