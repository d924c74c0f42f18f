"""Pages of TIFF files, read row by row."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tifffile

from cellseg_jax.errors import InputError


class Plane(NamedTuple):
    """A page of a TIFF or a plane of a Zarr array; `rows` is that of lazy.Image, of any dtype."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray]


def tiff_plane(page) -> Plane:
    """A page by its tiles or strips, or mapped into memory where it is not compressed."""
    key = page.keyframe
    if key.is_memmappable:
        return mapped_plane(page, page.dataoffsets[0])
    separate, depth, height, width, contiguous = key.shaped
    if depth > 1:
        raise InputError(f"its tiles are {depth} planes deep; expected 2-D tiles")
    if key.is_contiguous:  # packed bits and other rare ones
        return _coloured(
            page, lambda start, stop: page.asarray().reshape(key.shaped)[:, 0, start:stop])
    path, decode = page.parent.filehandle.path, key.decode
    options = {"_fullsize": False}
    if key.compression in (6, 7, 34892, 33007):  # JPEG
        options |= {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
    length, across = (key.tilelength, -(-width // key.tilewidth)) if key.is_tiled else (
        key.rowsperstrip, 1)
    down = -(-height // length)
    kept = {}  # decoded tiles of the last row, which the next band may begin in

    def read(start, stop):
        out = np.full((separate, stop - start, width, contiguous), key.nodata, key.dtype)
        before = dict(kept)
        kept.clear()
        with open(path, "rb") as file:
            for row in range(start // length, -(-stop // length)):
                for index in (plane * down * across + row * across + column
                              for plane in range(separate) for column in range(across)):
                    if index not in before:
                        file.seek(page.dataoffsets[index])
                        encoded = file.read(page.databytecounts[index]) or None
                        before[index] = decode(encoded, index, **options)
                    segment, (plane, _, top, left, _), _ = tile = before.pop(index)
                    if (row + 1) * length > stop:
                        kept[index] = tile
                    if segment is None:
                        continue  # a sparse file leaves out what is empty
                    segment = segment[0, max(start - top, 0) : stop - top, : width - left]
                    at = max(top, start) - start
                    out[plane, at : at + len(segment), left : left + segment.shape[1]] = segment
        return out

    return _coloured(page, read)


def mapped_plane(page, offset) -> Plane:
    """An uncompressed page at a place in its file, mapped into memory."""
    key = page.keyframe
    path, dtype = page.parent.filehandle.path, key.parent.byteorder + key._dtype.char

    def read(start, stop):
        return np.memmap(path, dtype, "r", offset, key.shaped)[:, 0, start:stop]

    return _coloured(page, read)


def _coloured(page, read) -> Plane:
    """Pages to (n, W, C): planes of colours side by side, palettes looked up, white as highest."""
    key = page.keyframe
    separate, _, height, width, contiguous = key.shaped
    palette = None
    if key.photometric == tifffile.PHOTOMETRIC.PALETTE:
        palette = (key.colormap >> 8).astype(np.uint8).T  # TIFF palettes have 16 bits
    inverted = key.photometric == tifffile.PHOTOMETRIC.MINISWHITE

    def rows(start, stop):
        band = np.moveaxis(read(start, stop), 0, 2).reshape(stop - start, width, -1)
        if palette is not None:
            return palette[band[..., 0]]
        return ~band if inverted else np.array(band)

    if palette is not None:
        return Plane((height, width, 3), np.dtype(np.uint8), rows)
    return Plane((height, width, separate * contiguous), key.dtype, rows)
