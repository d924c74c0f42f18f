"""Images and probabilities in bands: some rows after the other, so that memory holds a few.

An image in bands is a `data.lazy.Image`, whose `rows(start, stop)` reads rows when they are
needed. A band of probabilities is (n, W, K); bands follow each other without a gap.
"""

import collections
from collections.abc import Callable, Iterator

import numpy as np

from cellseg_jax.crops import mirrored
from cellseg_jax.data import resize
from cellseg_jax.data.colours import has_alpha, num_channels, to_channels
from cellseg_jax.data.lazy import Image
from cellseg_jax.errors import InputError


def row_ranges(height: int, width: int, pixels: int) -> list[tuple[int, int]]:
    """(start, stop) of bands of at most `pixels` (one row at least) that make up an image."""
    step = max(1, pixels // width)
    return [(start, min(start + step, height)) for start in range(0, height, step)]


def with_channels(image: Image, data_config) -> Image:
    """The image with the channels that a network takes: those chosen, or gray, rgb or rgba.

    Raises: InputError where the image has others.
    """
    wanted = data_config.channels, data_config.channel_index
    count = image.shape[-1]
    if not data_config.channel_index and count in (2, 4) and not image.alpha:
        raise InputError(f"{image.path or image.name}: has {count} channels, none of them alpha; "
                         "the run was trained with gray or RGB: choose one or three with predict "
                         "--channels")
    try:
        to_channels(np.zeros((1, 1, count), image.dtype), *wanted)  # raises before a read
    except InputError as error:
        raise InputError(f"{image.path or image.name}: {error}") from error
    return image._replace(
        shape=(*image.shape[:2], num_channels(*wanted)), alpha=has_alpha(*wanted),
        rows=lambda start, stop: to_channels(image.rows(start, stop), *wanted))


def resized(image: Image, size: tuple[int, int], pixels: int) -> Image:
    """The image resized to (H, W), some rows at a time; at most `pixels` are read at once."""
    if image.shape[:2] == tuple(size):
        return image
    height = image.shape[0]
    step = max(1, pixels * size[0] // (height * image.shape[1]))

    def rows(start, stop):
        return resize.resize_in_bands(image.rows, size, (start, stop), height, step)

    return image._replace(shape=(*size, image.shape[2]), rows=rows)


def padded_rows(image: Image, width: int, fill) -> Callable:
    """(start, stop) -> rows of the image extended to `width` and to any height.

    Args:
      fill: (C,) values beyond the image; None mirrors the image there.
    """
    height, inside = image.shape[:2]

    def mirrored_rows(start, stop):
        rows = mirrored(np.arange(start, stop), height)
        first, last = int(rows.min()), int(rows.max()) + 1
        band = image.rows(first, last)[rows - first]
        return band if width == inside else band[:, mirrored(np.arange(width), inside)]

    def filled_rows(start, stop):
        last = min(stop, height)
        out = np.empty((stop - start, width, len(fill)), image.dtype)
        out[:] = fill
        out[: last - start, :inside] = image.rows(start, last)
        return out

    return mirrored_rows if fill is None else filled_rows


def cropped(bands, height: int, width: int) -> Iterator[np.ndarray]:
    """The bands without what lies beyond an image of that size."""
    for band in bands:
        yield band[:height, :width]
        height -= len(band)
        if height <= 0:
            return


class Rows:
    """Rows of consecutive bands by their numbers; those above the last ones asked for are dropped.

        rows = Rows(bands)
        rows(0, 40); rows(30, 70)    # (40, W, K) each
    """

    def __init__(self, bands):
        self._bands, self._held = iter(bands), collections.deque()
        self._first = self._stop = 0  # of the rows that are held

    def __call__(self, start: int, stop: int, columns=np.s_[:]) -> np.ndarray:
        """Rows `start` to `stop`, (stop - start, W, K); `start` never falls.

        Args:
          columns: slice of the columns; a copy is made of these alone.
        """
        while self._held and self._first + len(self._held[0]) <= start:
            self._first += len(self._held.popleft())
        while self._stop < stop:
            self._held.append(next(self._bands))
            self._stop += len(self._held[-1])
        parts, first = [], self._first
        for band in self._held:
            parts.append(band[max(start - first, 0) : max(stop - first, 0), columns])
            first += len(band)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def rechunked(bands, ranges) -> Iterator[np.ndarray]:
    """The same rows in bands of the given (start, stop)."""
    rows = Rows(bands)
    for start, stop in ranges:
        yield rows(start, stop)


def resized_bands(bands, size, target, pixels: int) -> Iterator[np.ndarray]:
    """The bands of probabilities of `size`, resized to `target`; unchanged where equal."""
    if size == target:
        yield from bands
        return
    rows = Rows(bands)
    for part in row_ranges(*target, pixels):
        start, stop = resize.rows_needed(part, target[0], size[0])
        yield resize.resize_rows(rows(start, stop), target, part, size[0], start)
