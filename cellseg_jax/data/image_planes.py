"""Pages of TIFF files as planes, read row by row."""

import numpy as np
import tifffile

from cellseg_jax.data.limits import check_pixels
from cellseg_jax.data.stacks import Plane
from cellseg_jax.errors import InputError

PHOTOMETRIC = tifffile.PHOTOMETRIC
JPEG = (6, 7, 34892, 33007)  # compressions whose decoder turns YCbCr into RGB
# Others hold colours or measurements in a form that is not that of gray or RGB pixels.
READ = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE,
        PHOTOMETRIC.MASK)
ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
# What pixels are read as: what the file shows, the same without its colour table, or as stored.
COLOURS, INDICES, STORED = "colours", "indices", "stored"
TABLE_NOTE = ("has a colour table: its colours are read; if the table is only for display, "
              "config.data.channels=gray reads the stored values")
WHITE_NOTE = ("is stored with white as 0 and its stored values are read, so that more than half "
              "of it is foreground; if cells are black in it, save it inverted, with black as 0")


def tiff_plane(page, values: str) -> Plane:
    """A page by its tiles or strips, or mapped into memory where it is not compressed.

    Args:
      values: COLOURS | INDICES | STORED. With the last, white may be 0, as in masks.
    """
    key = page.keyframe
    check_kind(key)
    if key.is_final and page.dataoffsets[0]:
        return mapped_plane(page, page.dataoffsets[0], values)
    separate, depth, height, width, contiguous = key.shaped
    if key.is_contiguous or not any(page.dataoffsets):  # packed bits and other rare ones
        return _coloured(page, lambda start, stop: page.asarray().reshape(
            key.shaped)[:, 0, start:stop], values)
    path, decode = page.parent.filehandle.path, key.decode
    options = {"_fullsize": False}
    if key.compression in JPEG:
        options |= {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
    length, across = (key.tilelength, -(-width // key.tilewidth)) if key.is_tiled else (
        key.rowsperstrip, 1)
    down = -(-height // length)
    check_pixels(min(length, height), key.tilewidth if key.is_tiled else width,
                 "has a tile or strip of")
    kept = {}  # decoded tiles of the last row, which the next band may begin in

    def read(start, stop):
        check_pixels(stop - start, width, "is read in bands of")
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

    return _coloured(page, read, values)


def mapped_plane(page, offset, values: str) -> Plane:
    """An uncompressed page at a place in its file, mapped into memory."""
    key = page.keyframe
    check_kind(key)
    path, dtype = page.parent.filehandle.path, key.parent.byteorder + key._dtype.char

    def read(start, stop):
        return np.memmap(path, dtype, "r", offset, key.shaped)[:, 0, start:stop]

    return _coloured(page, read, values)


def check_kind(key) -> None:
    """InputError for a compression, colours or pixels that are not read here."""
    if key.compression != 1:
        try:
            tifffile.TIFF.DECOMPRESSORS[key.compression]
        except KeyError as error:
            name = getattr(key.compression, "name", key.compression)
            raise InputError(f"its compression ({name}) is not known here; save it without, or "
                             "with deflate, LZW or JPEG") from error
    if key.predictor != 1 and key.predictor not in tifffile.TIFF.UNPREDICTORS:
        raise InputError(f"its predictor {key.predictor} is not known here; save it without")
    formats = key.tags.valueof("SampleFormat")
    if isinstance(formats, tuple) and len(set(formats)) > 1:
        raise InputError(f"its channels are of different types (SampleFormat {formats}); save "
                         "them as one")
    if 0 in key.shaped:
        raise InputError(f"has no pixels: {key.imagelength} x {key.imagewidth}")
    if key.dtype is None:
        raise InputError(f"its pixels of {key.bitspersample} bit (SampleFormat {key.sampleformat}) "
                         "are not known here; save it as 8 or 16 bit integers")
    if key.dtype.kind not in "buif":
        raise InputError(f"pixels are {key.dtype}; expected 8 or 16 bit integers")
    if key.shaped[1] > 1:
        raise InputError(f"its tiles are {key.shaped[1]} planes deep; expected 2-D tiles")
    in_jpeg = key.photometric == PHOTOMETRIC.YCBCR and key.compression in JPEG
    if key.photometric not in READ and not in_jpeg:
        name = getattr(key.photometric, "name", key.photometric)
        raise InputError(f"its colours are {name}; expected gray or RGB, convert it")
    if key.is_subsampled and not in_jpeg:
        raise InputError("its colours are stored at a lower resolution; expected gray or RGB, "
                         "convert it")


def _coloured(page, read, values) -> Plane:
    """Pages to (n, W, C): planes of colours side by side, palettes looked up, white as highest."""
    key = page.keyframe
    separate, _, height, width, contiguous = key.shaped
    samples, palette, invert, notes = separate * contiguous, None, None, ()
    if key.photometric == PHOTOMETRIC.PALETTE and values == COLOURS:
        if samples > 1:
            raise InputError(f"has a colour table and {samples} channels; expected one")
        table = key.colormap  # of 16 bit, but for old writers
        palette = (table >> 8 if table.max() > 255 else table).astype(np.uint8).T
        notes = (TABLE_NOTE,)
    if key.photometric == PHOTOMETRIC.MINISWHITE and values == STORED:
        notes = (WHITE_NOTE,)
    elif key.photometric == PHOTOMETRIC.MINISWHITE:
        if key.dtype.kind not in "bu":
            raise InputError(f"white is 0 in it and pixels are {key.dtype}; expected unsigned "
                             "integers, save it with black as 0")
        highest = key.dtype.type(2 ** key.bitspersample - 1)
        invert = lambda band: highest - band if key.dtype.kind == "u" else ~band
    base = 3 if key.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) else 1
    alpha = samples == base + 1 and key.extrasamples in [(one,) for one in ALPHA]

    def rows(start, stop):
        band = np.moveaxis(read(start, stop), 0, 2).reshape(stop - start, width, -1)
        if palette is not None:
            return palette[band[..., 0]]
        band = np.array(band)
        if invert:  # alpha is no colour
            colours = band[..., : samples - alpha]
            colours[:] = invert(colours)
        return band

    if palette is not None:
        return Plane((height, width, 3), np.dtype(np.uint8), rows, coloured=True, notes=notes)
    return Plane((height, width, samples), key.dtype, rows, coloured=base == 3, alpha=alpha,
                 notes=notes)
