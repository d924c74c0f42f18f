"""The factor by which an image is resized for a network that was trained at some scale.

It is one number per image: --scale, or it follows from --diameter, --pixel_size, the image's own
pixel size (runs with data.pixel_size), or the cells that a first look finds (data.diameter).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.micrometres import believed
from cellseg_jax.data.resize import resize_image
from cellseg_jax.data.scale import (
    LARGEST,
    limited,
    scaled_size,
    weighted_median_diameter,
)
from cellseg_jax.errors import InputError

FIRST_LOOK = 2**22  # pixels of an image that are looked at for the diameter of its cells
WINDOWS = 3  # per side, that a larger image is looked at in


class RunScale(NamedTuple):
    """The scale that the network of a run sees cells at; 0 where it is not known."""

    fits_size: tuple[int, int] | None  # (H, W) that every image is resized to; None: tiles
    diameter: float  # pixels, of the median cell
    pixel_size: float  # micrometres of a pixel
    finds_diameter: bool  # whether images are brought to `diameter` by their own cells
    reads_pixel_size: bool  # whether images are brought to `pixel_size` by their own
    first_factor: float  # of the first look: the median of the training images

    @classmethod
    def of(cls, data_config, cells: dict) -> "RunScale":
        """Of a run's config.data and the training_cells of its environment.json."""
        value = lambda key, default: cells.get(key) or default
        return cls(
            tuple(data_config.size) if data_config.fit == "resize" else None,
            data_config.diameter or value("median_diameter_seen", 0.0),
            data_config.pixel_size or value("median_pixel_size_seen_um", 0.0),
            data_config.diameter > 0, data_config.pixel_size > 0, value("median_factor", 1.0))

    def check(self, options) -> None:
        """InputError where an option needs what the run does not know, or asks for too much."""
        given = [name for name in ("scale", "diameter", "pixel_size") if getattr(options, name)]
        if len(given) > 1:
            raise InputError(f"--{given[0]}: got --{given[1]} too; expected one of the two, each "
                             "decides the scale of the images")
        for name, seen, unit in (("diameter", self.diameter, "pixels"),
                                 ("pixel_size", self.pixel_size, "um")):
            asked = getattr(options, name)
            if asked and not seen:
                raise InputError(f"--{name}: the run does not know the {name} of its training "
                                 "images; pass --scale=FACTOR")
            if asked and not 1 / LARGEST <= asked / seen <= LARGEST:
                raise InputError(f"--{name}: got {asked:g}; the network has seen {seen:.3g} "
                                 f"{unit}; expected {seen / LARGEST:.3g} to {seen * LARGEST:.3g}")

    def known_factor(self, image, options) -> float | None:
        """The factor of a data.lazy.Image, as far as it is known without looking at its cells.

        0 is the image's own scale. None where its cells must be found.
        """
        if options.scale:
            return options.scale
        if options.diameter:
            return self.diameter / options.diameter
        if options.pixel_size:
            return options.pixel_size / self.pixel_size
        if self.reads_pixel_size:
            return self.factor_by_pixel_size(image) or 0.0
        return None if self.finds_diameter else 0.0

    def factor_by_pixel_size(self, image) -> float | None:
        """None where the image has no pixel size that can be believed."""
        own = believed(image.pixel_size)
        factor = own and own / self.pixel_size
        return factor if factor and limited(factor) == factor else None

    def resizes(self, options) -> bool:
        """Whether images are resized to `fits_size`, as in training."""
        return self.fits_size is not None and not self.asked(options)

    @staticmethod
    def asked(options) -> bool:
        """Whether a user decides the scale."""
        return bool(options.scale or options.diameter or options.pixel_size)

    def factors(self, images, options, look: Callable) -> list[float]:
        """The factor of each data.lazy.Image; some are looked at for their cells.

        Args:
          look: (pieces, numbers) -> labels: cells that the network finds in (h, w, C) pieces of
            images with these numbers, at the scale that the pieces have.
        """
        known = [self.known_factor(image, options) for image in images]
        unknown = [n for n, factor in enumerate(known) if factor is None]
        pieces, numbers = [], []
        for n in unknown:
            for top, bottom, left, right in first_look(images[n].shape):
                piece = images[n].rows(top, bottom)[:, left:right]
                pieces.append(resize_image(piece, scaled_size(piece.shape, self.first_factor)))
                numbers.append(n)
        labels = look(pieces, np.array(numbers)) if pieces else []
        for n in unknown:
            found = weighted_median_diameter(
                *(label for label, number in zip(labels, numbers, strict=True) if number == n))
            known[n] = limited(self.first_factor * self.diameter / (found or self.diameter))
        return known

    def least_area(self) -> int:
        """Pixels below which an object of the first look is no cell, whatever the factor."""
        return round(math.pi / 4 * (self.diameter / LARGEST) ** 2)


def first_look(size) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of the windows that are looked at for the diameter of cells.

    The whole image or, of more than FIRST_LOOK pixels, WINDOWS x WINDOWS evenly spread windows: an
    image in bands and one in memory are looked at alike.
    """
    if size[0] * size[1] <= FIRST_LOOK:
        return [(0, size[0], 0, size[1])]
    spans = []
    for length in size[:2]:
        side = min(math.isqrt(FIRST_LOOK) // WINDOWS, length)
        spans.append([(start, start + side) for start in
                      np.linspace(0, length - side, WINDOWS).round().astype(int).tolist()])
    return [(*rows, *columns) for rows in spans[0] for columns in spans[1]]
