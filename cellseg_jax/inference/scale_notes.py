"""What a user should know of the scale of predicted images: one line each, after all of them."""

import math
from collections.abc import Iterator

import numpy as np

from cellseg_jax.config import derived
from cellseg_jax.data.micrometres import believed
from cellseg_jax.data.records import some
from cellseg_jax.data.scale import cell_diameters

RATIO = 1.5  # of diameters, from which cells are too large or small for what was trained
ENOUGH = 5  # cells; the median of fewer says little


def _differ(one: float, other: float) -> bool:
    return max(one / other, other / one) > RATIO


class ScaleNotes:
    """Images whose cells are of another size than those of the training, or without a pixel size.

    Args:
      predictor: Predictor or Ensemble; of several runs the first counts.
      options: PredictOptions.
    """

    def __init__(self, predictor, options):
        self.scale, self.options = predictor.scale, options
        self.compares = derived.has_cells(predictor.config) and self.scale.diameter > 0
        self.count, self.others, self.without, self.finer = 0, [], [], []

    def add(self, image, label) -> None:
        """Take note of an image (data.lazy.Image) and the label found in it."""
        self.count += 1
        factor = self.scale.known_factor(image, self.options)
        if self.scale.resizes(self.options):
            factor = math.sqrt(math.prod(self.scale.fits_size) / math.prod(image.shape[:2]))
        elif self.scale.reads_pixel_size and not factor:
            self.without.append(image.name)
        own = believed(image.pixel_size)
        if own and factor is not None and self.scale.pixel_size and not self.scale.asked(
                self.options) and _differ(own / (factor or 1.0), self.scale.pixel_size):
            self.finer.append(f"{image.name}: {own / (factor or 1.0):.3g}")
        if not self.compares or factor is None:  # brought to the right scale by its own cells
            return
        diameters = cell_diameters(label) * (factor or 1.0)
        if len(diameters) >= ENOUGH:
            median = float(np.median(diameters))
            if _differ(median, self.scale.diameter):
                self.others.append(f"{image.name}: {median:.1f}")

    def lines(self) -> Iterator[str]:
        """A line of each kind that there is."""
        if self.others:
            yield (
                f"{len(self.others)} of {self.count} images have cells of another size than the "
                f"training's, whose median diameter is {self.scale.diameter:.1f} pixels as the "
                f"network sees them: {some(self.others)}. Pass --diameter=PIXELS of the cells in "
                "the image, or --scale")
        if self.finer:
            yield (
                f"{len(self.finer)} of {self.count} images have pixels of another size than the "
                f"training's, {self.scale.pixel_size:.3g} um as the network sees them: "
                f"{some(self.finer)}. Pass --pixel_size=UM of the images, or --scale")
        if self.without:
            yield (
                f"{len(self.without)} of {self.count} images have no pixel size that can be "
                f"believed and are taken at their own scale: {some(self.without)}; the run was "
                f"trained at {self.scale.pixel_size:g} um. Pass --pixel_size=UM of the images")
