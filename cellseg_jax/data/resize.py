"""Images and labels of one fixed size, on the host and in the dtype they came in."""

import numpy as np

from cellseg_jax.errors import InputError


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size, C) of an (H, W, C) image, linear between half-pixel centres, without anti-aliasing.

    Output pixel i samples the input at (i + 0.5) H / H_out - 0.5, clamped to the image, as
    torch's interpolate(mode="bilinear", align_corners=False). uint8 and uint16 are rounded.
    """
    if image.shape[:2] == tuple(size):
        return image
    resized = image
    for axis, length in sorted(enumerate(size), key=lambda pair: pair[1] / image.shape[pair[0]]):
        centre = (np.arange(length) + 0.5) * (image.shape[axis] / length) - 0.5
        centre = np.clip(centre, 0, image.shape[axis] - 1)
        below = centre.astype(np.int64)
        above = np.minimum(below + 1, image.shape[axis] - 1)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        weight = (centre - below).astype(np.float32).reshape(shape)
        low = resized.take(below, axis).astype(np.float32)
        resized = low + weight * (resized.take(above, axis) - low)
    if np.issubdtype(image.dtype, np.integer):
        return np.rint(resized).astype(image.dtype)
    return resized


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size) of an (H, W) label: the value at the nearest half-pixel centre.

    Aligned with `resize_image`, as torch's "nearest-exact"; the legacy "nearest" samples
    floor(i H / H_out) and shifts objects by up to half an input pixel towards the origin.
    """
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * (old / new), old - 1).astype(np.int64)
        for old, new in zip(label.shape, size)
    )
    return label[rows[:, None], columns]


def resize(image, label, size, name):
    """Image and label stretched to `size`; the aspect ratio is not kept."""
    return resize_image(image, size), resize_label(label, size)


def center_crop(image, label, size, name):
    """The middle `size` pixels of image and label, at native scale."""
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        raise InputError(f"config.data.size: {size[0]}x{size[1]} is larger than image {name} of "
                         f"{height}x{width}; lower it or set config.data.fit=resize")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    window = slice(top, top + size[0]), slice(left, left + size[1])
    return image[window], label[window]


FITS = {"resize": resize, "center_crop": center_crop}
