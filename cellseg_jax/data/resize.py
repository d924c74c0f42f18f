"""Images and labels of one fixed size, on the host and in the dtype they came in."""

import numpy as np

from cellseg_jax.crops import mirrored
from cellseg_jax.errors import InputError

BAND_PIXELS = 2**22  # of a resized image that are computed at once: some arrays of that size


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size, C) of an (H, W, C) image, linear between half-pixel centres, without anti-aliasing.

    Output pixel i samples the input at (i + 0.5) H / H_out - 0.5, clamped to the image, as
    torch's interpolate(mode="bilinear", align_corners=False). uint8 and uint16 are rounded.
    """
    if image.shape[:2] == tuple(size):
        return image
    step = max(BAND_PIXELS // size[1], 1)
    rows = lambda start, stop: image[start:stop]
    return resize_in_bands(rows, size, (0, size[0]), image.shape[0], step)


def resize_in_bands(read, size, rows, height: int, step: int) -> np.ndarray:
    """As `resize_rows`, `step` rows at a time: memory holds little beside the result.

    Args:
      read: (start, stop) -> those rows of the image.
    """
    parts = []
    for start in range(*rows, step):
        part = start, min(start + step, rows[1])
        first, end = rows_needed(part, size[0], height)
        parts.append(resize_rows(read(first, end), size, part, height, first))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def resize_rows(band, size, rows, height: int, first: int = 0) -> np.ndarray:
    """Rows `rows` = (start, stop) of `resize_image`, bit for bit, from a band of the image.

    Args:
      band: (n, W, C), rows `first` and following; those of `rows_needed` at least.
      size: (H, W) of the whole resized image.
      height: rows of the whole image.
    Returns: (stop - start, size[1], C).
    """
    whole = height, band.shape[1]
    if whole == tuple(size):
        return band[rows[0] - first : rows[1] - first]
    resized = band
    for axis, length in sorted(enumerate(size), key=lambda pair: pair[1] / whole[pair[0]]):
        below, above, weight = _neighbours(length, whole[axis])
        shape = (1, -1, 1)
        if axis == 0:
            below, above, weight = (x[slice(*rows)] for x in (below, above, weight))
            below, above, shape = below - first, above - first, (-1, 1, 1)
        low = resized.take(below, axis).astype(np.float32)
        resized = low + weight.reshape(shape) * (resized.take(above, axis) - low)
    if np.issubdtype(band.dtype, np.integer):
        return np.rint(resized).astype(band.dtype)
    return resized


def rows_needed(rows, length: int, height: int) -> tuple[int, int]:
    """(start, stop) of the rows of an image that rows (start, stop) of `length` are made of."""
    below, above, _ = _neighbours(length, height)
    return int(below[rows[0]]), int(above[rows[1] - 1]) + 1


def _neighbours(length, old):
    """Per output pixel: the input pixels before and after its centre, the weight of the latter."""
    if length == old:
        return np.arange(length), np.arange(length), np.zeros(length, np.float32)
    centre = np.clip((np.arange(length) + 0.5) * (old / length) - 0.5, 0, old - 1)
    below = centre.astype(np.int64)
    return below, np.minimum(below + 1, old - 1), (centre - below).astype(np.float32)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size) of an (H, W) label: the value at the nearest half-pixel centre.

    Aligned with `resize_image`, as torch's "nearest-exact"; the legacy "nearest" samples
    floor(i H / H_out) and shifts objects by up to half an input pixel towards the origin. In
    integers: as floats, centres on the border of two pixels fall below it for some sizes.
    """
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new)
                     for old, new in zip(label.shape, size, strict=True))
    return label[rows[:, None], columns]


def resize(image, label, size, name):
    """Image and label stretched to `size`; the aspect ratio is not kept."""
    return resize_image(image, size), resize_label(label, size)


def center_crop(image, label, size, name):
    """The middle `size` pixels of image and label, at native scale."""
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        raise InputError(f"config.data.size: {size[0]}x{size[1]} is larger than image {name} of "
                         f"{height}x{width}; lower it, or set config.data.fit=pad, random_crop or "
                         "resize")
    return middle(image, label, size, name)


def middle(image, label, size, name):
    """The middle `size` pixels at native scale, mirrored where the image is smaller."""
    height, width = image.shape[:2]
    return _window(image, label, (height - size[0]) // 2, (width - size[1]) // 2, size)


def pad(image, label, size, name):
    """Image and label at native scale, mirrored at the lower and right edge up to `size`.

    Labels are mirrored too: the mirrored border shows real cells with their labels.
    """
    height, width = image.shape[:2]
    if height > size[0] or width > size[1]:
        raise InputError(f"config.data.size: {size[0]}x{size[1]} is smaller than image {name} of "
                         f"{height}x{width}; raise it, or set config.data.fit=random_crop, "
                         "center_crop or resize")
    return _window(image, label, 0, 0, size)


def _window(image, label, top, left, size):
    y = mirrored(top + np.arange(size[0]), image.shape[0])[:, None]
    x = mirrored(left + np.arange(size[1]), image.shape[1])
    return image[y, x], label[y, x]


# random_crop: training draws other windows in every step; this is what validation looks at.
FITS = {"resize": resize, "center_crop": center_crop, "random_crop": middle, "pad": pad}
