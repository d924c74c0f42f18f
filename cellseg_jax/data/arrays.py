"""A decoded dataset: images, labels and tables as arrays, and what is known of each image."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from cellseg_jax.crops import from_grid
from cellseg_jax.data.records import Finding
from cellseg_jax.errors import pick
from cellseg_jax.normalize import RANGES


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset of m images, decoded. The big arrays are memory-mapped, read-only.

    A sample is an image or, with grid > 1, one of its grid * grid patches, column after column:
    the n = m * grid**2 samples of one image follow one another.
    """

    image: np.ndarray  # (n, H, W, C) uint8 or uint16
    label: np.ndarray  # (n, H, W) uint16, int16 or int32; -1 is not annotated
    pixel_weight: np.ndarray | None  # (n, H, W) float16
    # normalisation -> (m, C, 2) float32; foreground, anchors; of rescaled images scale (m,) and
    # scaled_size (m, 2)
    tables: dict[str, np.ndarray]
    # image, label, pixel_weight before they are fitted, one after the other: what windows are of
    flat: dict[str, np.ndarray]
    original_sizes: np.ndarray  # (m, 2) height and width
    image_names: tuple[str, ...]  # m
    image_groups: tuple[str, ...]
    image_strata: tuple[str, ...]
    image_parts: tuple[str, ...]  # train, val or test in the dataset's own split, else ""
    findings: tuple[Finding, ...]  # of the decoding
    grid: int
    fingerprint: str  # of the content, wherever it lies
    whole_labels: np.ndarray  # labels at original size, one after the other
    folder: pathlib.Path | None = None  # of the cache that holds the arrays

    @property
    def num_samples(self) -> int:
        """n"""
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """Bytes that a device would have to hold to train."""
        trained = self.flat if "image" in self.flat else {
            "image": self.image, "label": self.label, "pixel_weight": self.pixel_weight}
        return sum(x.nbytes for x in trained.values() if x is not None)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """(n,) of the samples."""
        if self.grid == 1:
            return self.image_names
        cells = [f"{c}_{r}" for c in range(self.grid) for r in range(self.grid)]
        return tuple(f"{name}/{cell}" for name in self.image_names for cell in cells)

    @property
    def groups(self) -> tuple[str, ...]:
        """(n,) of the samples."""
        return self._per_sample(self.image_groups)

    @property
    def strata(self) -> tuple[str, ...]:
        """(n,) of the samples."""
        return self._per_sample(self.image_strata)

    @property
    def parts(self) -> tuple[str, ...]:
        """(n,) of the samples."""
        return self._per_sample(self.image_parts)

    @property
    def foreground(self) -> np.ndarray:
        """(n,) float32, the share of annotated pixels that are not background."""
        return self.tables["foreground"].reshape(-1)

    @property
    def holds_cells(self) -> np.ndarray:
        """(n,) bool: whether there is foreground in a sample or, of windows, in its whole image."""
        if "image" in self.flat:
            return self.tables["anchors"][:, 0, 0] >= 0
        return self.foreground > 0

    @property
    def flat_sizes(self) -> np.ndarray:
        """(m, 2) height and width of the images in the flat arrays: rescaled, if they are."""
        return self.tables.get("scaled_size", self.original_sizes)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(m,) int64, the first pixel of each image in the flat arrays."""
        return _starts(self.flat_sizes)

    @functools.cached_property
    def _original_offsets(self):
        return _starts(self.original_sizes)

    @property
    def scales(self) -> np.ndarray:
        """(m,) the factor that each image was rescaled by before it was fitted."""
        return self.tables.get("scale", np.ones(len(self.image_names)))

    def range(self, normalize: str) -> np.ndarray:
        """(n, C, 2) float32, low and high of each whole original image."""
        pick(RANGES, normalize, "config.data.normalize")
        return np.repeat(self.tables[normalize], self.grid**2, axis=0)

    def original_label(self, i: int) -> np.ndarray:
        """(H0, W0) int32 of image i, the label at its original size."""
        height, width = self.original_sizes[i]
        first = self._original_offsets[i]
        flat = self.whole_labels[first : first + height * width]
        return flat.reshape(height, width).astype(np.int32)

    def uncut(self, name: str, i: int) -> np.ndarray:
        """(H1, W1, ...) of image i what windows are cut of: a view of flat[name]."""
        height, width = self.flat_sizes[i]
        pixels = self.flat[name][self.offsets[i] : self.offsets[i] + height * width]
        return pixels.reshape(height, width, *pixels.shape[1:])

    def whole_images(self) -> Sequence[np.ndarray]:
        """(m,) fitted images (H, W, C), put together from their patches one at a time."""
        return self.image if self.grid == 1 else _Whole(self.image, self.grid**2)

    def _per_sample(self, values):
        return tuple(v for v in values for _ in range(self.grid**2))


def _starts(sizes):
    areas = sizes.prod(1)
    return np.cumsum(areas) - areas


class _Whole(Sequence):
    """Images of which only the patches are stored."""

    def __init__(self, patches, cells):
        self.patches, self.cells = patches, cells

    def __len__(self):
        return len(self.patches) // self.cells

    def __getitem__(self, i):
        return from_grid(self.patches[i * self.cells : (i + 1) * self.cells])
