"""Sizes of pixels in micrometres from the units that files use."""

BELIEVED_UM = (1e-5, 1e4)  # smallest and largest pixel; other values are mistakes
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "millimeter": 1e3, "centimeter": 1e4, "nm": 1e-3,
               "nanometer": 1e-3, "angstrom": 1e-4, "inch": 25400, "um": 1, "\xb5m": 1,
               "\u03bcm": 1, "\\u00B5m": 1, "micron": 1, "microns": 1, "micrometer": 1}


def in_micrometres(*sizes):
    """Sizes given as (value, unit); None if one is missing, of no known unit, or impossible."""
    known = [float(value) * MICROMETRES[unit] for value, unit in sizes
             if value and unit in MICROMETRES]
    possible = len(known) == len(sizes) and all(
        BELIEVED_UM[0] <= one <= BELIEVED_UM[1] for one in known)
    return tuple(known) if possible else None
