"""Labels and probabilities as TIFF: zlib strips, calibrated where the image is.

Labels are uint16, or uint32 above 65535 objects; probabilities are float32, a page per output.
A known pixel size is written as OME-XML, which Bio-Formats, QuPath and Napari read, and as the
resolution in centimetres, which Fiji's own reader takes. Fiji shows uint32 as float, exactly up
to 2^24 = 16,777,216. Files above 4 GB are BigTIFF.
"""

import pathlib
import tempfile
import zlib

import numpy as np
import tifffile

from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.files import atomic_file, naming

STRIP = 2**20  # bytes before compression
BAND = 512  # rows that are written at once
CLASSIC = 2**32 - 2**26  # bytes that 32-bit offsets reach, less room for the tables of strips


class BandedTiff:
    """A TIFF written from above to below, with memory for one band of rows.

        with BandedTiff(path, (height, width), np.uint32) as out:
            out.write_rows(rows)

    The file appears when the block ends well. Until then its strips lie, compressed, in a nameless
    temporary file of the same folder.

    Args:
      path: of the file.
      shape: (H, W) or (H, W, K); K > 1 become K pages.
      dtype: of the pixels.
      pixel_size: (height, width) of a pixel in micrometres, or None.
    """

    def __init__(self, path, shape, dtype, pixel_size=None):
        self.path, self.pixel_size, self.dtype = pathlib.Path(path), pixel_size, np.dtype(dtype)
        self.height, self.width, self.pages = (*shape, 1)[:3]
        self.strip_rows = min(self.height, max(1, STRIP // (self.width * self.dtype.itemsize)))
        self._waiting = np.empty((0, self.width, self.pages), dtype)
        self._strips = [[] for _ in range(self.pages)]  # (offset, length) in the temporary file
        self._written = 0

    def __enter__(self):
        self._spool = tempfile.TemporaryFile(dir=self.path.parent)
        return self

    def write_rows(self, rows) -> None:
        """The next (n, W) or (n, W, K) rows."""
        rows = np.asarray(rows, self.dtype).reshape(-1, self.width, self.pages)
        self._written += len(rows)
        if self._written > self.height:
            raise ValueError(f"{self._written} rows written, the image has {self.height}")
        rows = np.concatenate([self._waiting, rows])
        end = len(rows) if self._written == self.height else (
            len(rows) // self.strip_rows * self.strip_rows)
        for start in range(0, end, self.strip_rows):
            for page, strips in enumerate(self._strips):
                strip = rows[start : min(start + self.strip_rows, end), :, page]
                data = zlib.compress(np.ascontiguousarray(strip), 3)
                strips.append((self._spool.tell(), len(data)))
                with naming(self.path):
                    self._spool.write(data)
        self._waiting = rows[end:].copy()

    def __exit__(self, kind, *_):
        with self._spool:
            if kind is None:
                if self._written < self.height:
                    raise ValueError(f"{self._written} rows written, the image has {self.height}")
                with atomic_file(self.path) as temporary:
                    self._assemble(temporary)

    def _assemble(self, path):
        metadata, resolution = _calibration(self.pixel_size)
        shape = (self.height, self.width)
        if self.pages > 1:
            shape, metadata = (self.pages, *shape), metadata | {"axes": "CYX"}
        tifffile.imwrite(
            path, self._compressed(), shape=shape, dtype=self.dtype, compression="zlib",
            rowsperstrip=self.strip_rows, photometric="minisblack", metadata=metadata,
            ome=bool(self.pixel_size), bigtiff=self._spool.tell() > CLASSIC, **resolution)

    def _compressed(self):
        for offset, length in (strip for strips in self._strips for strip in strips):
            self._spool.seek(offset)
            yield self._spool.read(length)


def _calibration(pixel_size) -> tuple[dict, dict]:
    """(OME metadata, tags) of a (height, width) in micrometres; empty for None."""
    if not pixel_size:
        return {}, {}
    metadata = {}
    for axis, size in zip("YX", pixel_size, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return metadata, {"resolution": tuple(1e4 / size for size in pixel_size[::-1]),
                      "resolutionunit": "CENTIMETER"}


def write_stack(path, planes, axes: StackAxes, pixel_size=None) -> None:
    """Label files of one size, a plane each, as one OME-TIFF; one plane is in memory.

    Args:
      planes: paths, in the order of the axes.
      pixel_size: (height, width) of a pixel in micrometres, or None.
    """
    dtypes = []
    for plane in planes:
        with tifffile.TiffFile(plane) as file:
            size = file.pages[0].shape
            dtypes.append(file.pages[0].dtype)
    dtype = np.result_type(*dtypes)
    rows = min(size[0], max(1, STRIP // (size[1] * dtype.itemsize)))
    metadata, resolution = _calibration(pixel_size)

    def strips():
        for plane in planes:
            label = tifffile.imread(plane).astype(dtype)
            for start in range(0, size[0], rows):
                yield zlib.compress(label[start : start + rows].tobytes(), 3)

    shape = *axes.lengths.values(), *size
    with atomic_file(path) as temporary:
        tifffile.imwrite(
            temporary, strips(), shape=shape, dtype=dtype, compression="zlib", rowsperstrip=rows,
            photometric="minisblack", ome=True,
            metadata=metadata | {"axes": "".join(axes.lengths) + "YX"},
            bigtiff=int(np.prod(shape)) * dtype.itemsize > CLASSIC, **resolution)


def label_dtype(highest: int):
    """The dtype of a label file with ids up to `highest`."""
    return np.uint16 if highest < 2**16 else np.uint32


def write_label(path, label, image, probability=None, classes=()) -> None:
    """Ids or classes of (H, W) `label`; see `outputs.write`."""
    _write(path, label, label_dtype(int(label.max(initial=0))), image)


def write_probability(path, label, image, probability=None, classes=()) -> None:
    """(H, W, K) `probability`; see `outputs.write`."""
    if probability is None:
        raise ValueError("probability: missing; the run gives none")
    _write(path, probability, np.float32, image)


def _write(path, array, dtype, image):
    with BandedTiff(path, array.shape, dtype, image.pixel_size) as out:
        for start in range(0, array.shape[0], BAND):
            out.write_rows(array[start : start + BAND])
