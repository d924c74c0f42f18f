"""What a user should know of the contrast of predicted images: one line each, after all of them."""

from collections.abc import Iterator

import numpy as np

from cellseg_jax.data.records import some
from cellseg_jax.inference.row_bands import with_channels
from cellseg_jax.normalize import contrast

FAINT = 0.2  # of the least contrast of a training image, below which an image is another thing
STRETCHED = 5.0  # times what the extremes of a training image exceed its other pixels by
MANY = 2**24  # pixels, of more than which only STRIPES of ROWS are looked at
STRIPES, ROWS = 16, 16


class ContrastNotes:
    """Images that are nearly empty, or whose range a few pixels decide, unlike all trained on.

    Only images of the training's integer type are compared: every image is normalised by its own
    range, so that other types say nothing. Of large images some rows are looked at.

    Args:
      predictor: Predictor or Ensemble; of several runs the first counts.
    """

    def __init__(self, predictor):
        self.config, self.known = predictor.config.data, predictor.contrast
        self.count, self.faint, self.stretched = 0, [], []

    def add(self, image, label) -> None:
        """Take note of an image (data.lazy.Image); its label is not looked at."""
        del label
        self.count += 1
        if self.known is None or str(np.dtype(image.dtype)) != self.known.dtype:
            return
        found = contrast(_pixels(with_channels(image, self.config)), self.config.percentiles,
                         each=bool(self.config.channel_index))
        if found.width < FAINT * self.known.width:
            self.faint.append(f"{image.name}: {found.width:.4g}")
        elif (self.config.normalize.startswith("minmax")
              and found.stretch > STRETCHED * self.known.stretch):
            self.stretched.append(f"{image.name}: {found.stretch:.3g} times")

    def lines(self) -> Iterator[str]:
        """A line of each kind that there is."""
        low, high = self.config.percentiles
        if self.faint:
            yield (
                f"{len(self.faint)} of {self.count} images have less contrast than any training "
                f"image, whose gray values differ by {self.known.width:.4g} at least between "
                f"percentiles {low:g} and {high:g}: {some(self.faint)}. An empty field has its "
                "noise stretched to the whole range, and may show cells that are none")
        if self.stretched:
            yield (
                f"{len(self.stretched)} of {self.count} images have a few pixels that widen their "
                f"range, in training by {self.known.stretch:.3g} times at most: "
                f"{some(self.stretched)}. The other pixels are dark for the network; train with "
                "config.data.normalize=percentile, or remove the hot pixels")


def _pixels(image) -> np.ndarray:
    """All pixels, or some rows of a large image."""
    height, width = image.shape[:2]
    if height * width <= MANY:
        return image.read()
    starts = range(0, height, -(-height // STRIPES))
    return np.concatenate([image.rows(start, min(start + ROWS, height)) for start in starts])
