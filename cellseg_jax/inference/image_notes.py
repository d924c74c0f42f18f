"""What a user should know of predicted images, kind by kind, after all of them."""

from collections.abc import Iterator

from cellseg_jax.inference.contrast_notes import ContrastNotes
from cellseg_jax.inference.scale_notes import ScaleNotes
from cellseg_jax.report import terminal


class ImageNotes:
    """The notes of all kinds.

    Args:
      predictor: Predictor or Ensemble.
      options: PredictOptions.
    """

    def __init__(self, predictor, options):
        self.kinds = ScaleNotes(predictor, options), ContrastNotes(predictor)

    def add(self, image, label) -> None:
        """Take note of an image (data.lazy.Image) and the label found in it."""
        for kind in self.kinds:
            kind.add(image, label)

    def lines(self) -> Iterator[str]:
        """A line of each kind that there is."""
        for kind in self.kinds:
            yield from kind.lines()

    def log(self) -> None:
        """Print the lines."""
        for line in self.lines():
            terminal.log(line)
