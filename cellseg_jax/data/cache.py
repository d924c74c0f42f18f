"""Images decoded once into memory-mapped arrays of one fixed size, keyed by content and settings.

    <directory>/<key>/            one folder per key, whole or not there at all
      image.npy                   (n, H, W, C) uint8 or uint16
      label.npy                   (n, H, W) uint16 or int32
      pixel_weight.npy            (n, H, W) float16, with targets that weigh pixels
      original.npy                all labels at original size, one after the other
      flat_image.npy              all images likewise, with random crops; flat_pixel_weight.npy too
      tables.npz                  a (m, C, 2) float32 per normalisation, foreground, anchors
      meta.json                   names, groups, strata, original sizes, fingerprint, versions
    <directory>/<key>.lock        held while a process decodes; the others wait
    <directory>/fingerprints/     content hashes by the (path, size, mtime) of all files
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cellseg_jax.crops import from_grid, to_grid
from cellseg_jax.data.fingerprint import content_fingerprint
from cellseg_jax.data.npy import GrowingNpy
from cellseg_jax.data.read import NUM_CHANNELS, to_channels
from cellseg_jax.data.records import Finding
from cellseg_jax.data.resize import FITS
from cellseg_jax.errors import InputError, pick
from cellseg_jax.files import locked
from cellseg_jax.normalize import RANGES, image_ranges
from cellseg_jax.targets import TARGETS

VERSION = 2  # of decoding, resizing, ranges and layout: raise it when any of them changes
THREADS = 2
MAX_ERRORS = 10  # bad files named at once
ANCHORS = 64  # foreground pixels kept per image, for crops that are sure to hold a cell


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset of m images, decoded. The big arrays are memory-mapped, read-only.

    A sample is an image or, with grid > 1, one of its grid * grid patches, column after column:
    the n = m * grid**2 samples of one image follow one another.
    """

    image: np.ndarray  # (n, H, W, C) uint8 or uint16
    label: np.ndarray  # (n, H, W) uint16 or int32
    pixel_weight: np.ndarray | None  # (n, H, W) float16
    tables: dict[str, np.ndarray]  # normalisation -> (m, C, 2) float32; foreground, anchors
    flat: dict[str, np.ndarray]  # image, label, pixel_weight at original size, one after the other
    original_sizes: np.ndarray  # (m, 2) height and width
    image_names: tuple[str, ...]  # m
    image_groups: tuple[str, ...]
    image_strata: tuple[str, ...]
    image_parts: tuple[str, ...]  # train, val or test where the dataset says so, else ""
    findings: tuple[Finding, ...]  # of the decoding
    grid: int
    fingerprint: str  # of the content, wherever it lies

    @property
    def num_samples(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """Of what a device would have to hold to train."""
        trained = self.flat if "image" in self.flat else {
            "image": self.image, "label": self.label, "pixel_weight": self.pixel_weight}
        return sum(x.nbytes for x in trained.values() if x is not None)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """(n) of the samples."""
        if self.grid == 1:
            return self.image_names
        cells = [f"{c}_{r}" for c in range(self.grid) for r in range(self.grid)]
        return tuple(f"{name}/{cell}" for name in self.image_names for cell in cells)

    @property
    def groups(self) -> tuple[str, ...]:
        """(n) as the next two."""
        return self._per_sample(self.image_groups)

    @property
    def strata(self) -> tuple[str, ...]:
        return self._per_sample(self.image_strata)

    @property
    def parts(self) -> tuple[str, ...]:
        return self._per_sample(self.image_parts)

    @property
    def foreground(self) -> np.ndarray:
        """(n,) float32, the share of pixels that are no background."""
        return self.tables["foreground"].reshape(-1)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(m,) int64, the first pixel of each image in the flat arrays."""
        areas = self.original_sizes.prod(1)
        return np.cumsum(areas) - areas

    def range(self, normalize: str) -> np.ndarray:
        """(n, C, 2) float32, low and high of each whole original image."""
        pick(RANGES, normalize, "config.data.normalize")
        return np.repeat(self.tables[normalize], self.grid**2, axis=0)

    def original_label(self, i: int) -> np.ndarray:
        """(H0, W0) int32 of image i, the truth at the size it was drawn."""
        height, width = self.original_sizes[i]
        flat = self.flat["label"][self.offsets[i] : self.offsets[i] + height * width]
        return flat.reshape(height, width).astype(np.int32)

    def whole_images(self) -> Sequence[np.ndarray]:
        """(m) fitted images (H, W, C), patches put together again, one at a time."""
        return self.image if self.grid == 1 else _Whole(self.image, self.grid**2)

    def _per_sample(self, values):
        return tuple(v for v in values for _ in range(self.grid**2))


class _Whole(Sequence):
    """Images of which only the patches are stored."""

    def __init__(self, patches, cells):
        self.patches, self.cells = patches, cells

    def __len__(self):
        return len(self.patches) // self.cells

    def __getitem__(self, i):
        return from_grid(self.patches[i * self.cells : (i + 1) * self.cells])


def open_cache(records, *, dataset: str, options: dict, size, fit: str, channels: str, directory,
               grid: int = 1, target: str = "foreground", weight_options: dict | None = None,
               progress: Callable[[int, int], None] | None = None) -> Arrays:
    """The arrays of `records`, from the cache if they are there, else decoded into it.

    Several processes may call this at once: one decodes, the others wait for it. A process
    that is killed leaves a temporary folder, which the next one removes.

    Args:
      records: list of Record, sorted by name.
      dataset, options: what made the records; part of the key, as are the next three.
      size: (H, W) of the fitted images.
      fit: resize | center_crop | random_crop | pad.
      channels: gray | rgb | rgba.
      directory: of the cache.
      grid: patches per side that a fitted image is cut into.
      target, weight_options: whose pixel weights to store, if it has some.
      progress: called with (samples done, samples in all) while decoding.
    """
    if not records:
        raise InputError("config.data.root: no images found")
    directory = pathlib.Path(directory).expanduser()
    fit_fn = pick(FITS, fit, "config.data.fit")
    pick(NUM_CHANNELS, channels, "config.data.channels")
    if size[0] % grid or size[1] % grid:
        raise InputError(f"config.data.grid: got {grid}; expected a divisor of data.size "
                         f"{size[0]}x{size[1]}")
    if grid > 1 and fit == "random_crop":
        raise InputError("config.data.grid: patches and random crops at once; expected "
                         "data.grid=1, or data.fit=resize, center_crop or pad")
    weigh = TARGETS[target].pixel_weight
    if weigh is not None:
        weigh = functools.partial(weigh, **(weight_options or {}))
    weighed = None if weigh is None else [target, weight_options]
    fingerprint = content_fingerprint(records, directory, dataset, options)
    settings = [VERSION, dataset, options, list(size), fit, channels, grid, weighed, fingerprint]
    folder = directory / hashlib.blake2b(
        json.dumps(settings, sort_keys=True).encode(), digest_size=12).hexdigest()
    if _whole(folder):
        return _open(folder)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not _whole(folder):  # else another process made it while this one waited
                for stale in directory.glob(f"{folder.name}.tmp*"):
                    shutil.rmtree(stale)  # of a killed process: the lock is ours
                shutil.rmtree(folder, ignore_errors=True)  # a file of it was deleted
                temporary = folder.with_suffix(f".tmp{os.getpid()}")
                try:
                    temporary.mkdir()
                    decode = functools.partial(
                        _decode, size=tuple(size), fit_fn=fit_fn, channels=channels, grid=grid,
                        keep_flat=fit == "random_crop", weigh=weigh)
                    _write(temporary, records, decode, fingerprint, grid, progress)
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"config.data.cache: cannot write to '{directory}' ({error.strerror}); "
                         "pass --config.data.cache=DIR with a folder of yours") from error
    return _open(folder)


class _Decoded(NamedTuple):
    """One record: rows of the big arrays, entries of the tables, and the rest."""

    arrays: dict[str, np.ndarray]  # file name -> values to append
    tables: dict[str, np.ndarray]  # one entry each
    size: tuple[int, int]
    stratum: str
    findings: tuple[Finding, ...]


def _decode(record, size, fit_fn, channels, grid=1, keep_flat=False, weigh=None) -> _Decoded:
    sample = record.read()
    image = to_channels(sample.image, channels)
    original = sample.label.astype(np.uint16 if sample.label.max() < 2**16 else np.int32)
    fitted_image, fitted_label = fit_fn(image, original, size, record.name)
    label = to_grid(fitted_label, grid)
    arrays = {"image": to_grid(fitted_image, grid), "label": label,
              "original": original.reshape(-1)}
    if keep_flat:
        arrays["flat_image"] = image.reshape(-1, image.shape[-1])
    if weigh is not None:
        arrays["pixel_weight"] = to_grid(weigh(fitted_label).astype(np.float16), grid)
        if keep_flat:
            arrays["flat_pixel_weight"] = weigh(original).astype(np.float16).reshape(-1)
    tables = {normalize: image_ranges(image, normalize) for normalize in RANGES}
    tables["foreground"] = (label > 0).mean((1, 2), dtype=np.float32)
    tables["anchors"] = _anchors(original)
    return _Decoded(arrays, tables, original.shape, sample.stratum, sample.findings)


def _anchors(label) -> np.ndarray:
    """(ANCHORS, 2) int32: evenly chosen foreground pixels (y, x), or -1 where there are none."""
    inside = np.flatnonzero(label)
    if not len(inside):
        return np.full((ANCHORS, 2), -1, np.int32)
    chosen = inside[((np.arange(ANCHORS) + 0.5) * len(inside) / ANCHORS).astype(np.int64)]
    return np.stack(np.divmod(chosen, label.shape[1]), -1).astype(np.int32)


def _write(folder, records, decode, fingerprint, grid, progress) -> None:
    files, tables = {}, collections.defaultdict(list)
    sizes, strata, findings, errors = [], [], [], []
    for done, future in enumerate(_in_order(decode, records), 1):
        try:
            one = future.result()
        except InputError as error:
            errors.append((records[done - 1].name, error))
            if len(errors) == MAX_ERRORS:
                break
            continue
        if not errors:  # once a file is bad, the rest is decoded to find the others
            for name, values in one.arrays.items():
                files.setdefault(name, GrowingNpy(folder / f"{name}.npy")).append(values)
            for name, value in one.tables.items():
                tables[name].append(value)
            sizes.append(one.size)
            strata.append(one.stratum)
            findings.extend(one.findings)
        if progress:
            progress(done, len(records))
    if errors:
        names = [name for name, _ in errors[1:]]
        least = "at least " if done < len(records) else ""
        more = f"; and {least}{len(names)} more bad images: {', '.join(names)}" if names else ""
        raise InputError(f"{errors[0][1]}{more}") from errors[0][1]
    for file in files.values():
        file.close()
    np.savez(folder / "tables.npz", **tables)
    meta = {
        "version": VERSION, "numpy": np.__version__, "fingerprint": fingerprint, "grid": grid,
        "bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
        "names": [record.name for record in records],
        "groups": [record.group for record in records],
        "strata": strata, "parts": [record.part for record in records],
        "original_sizes": sizes, "findings": findings,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _in_order(function, items) -> Iterator[concurrent.futures.Future]:
    """Futures of function(item) in the order of the items, a few ahead of the consumer."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        ahead = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, 2 * THREADS))
        while ahead:
            yield ahead.popleft()
            ahead.extend(pool.submit(function, item) for item in itertools.islice(items, 1))


def _whole(folder: pathlib.Path) -> bool:
    try:
        sizes = json.loads((folder / "meta.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _open(folder: pathlib.Path) -> Arrays:
    meta = json.loads((folder / "meta.json").read_text())
    files = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r")
             for name in meta["bytes"] if name.endswith(".npy")}
    with np.load(folder / "tables.npz") as tables:
        tables = dict(tables)
    flat = {"label": files["original"]}
    flat |= {name.removeprefix("flat_"): x for name, x in files.items() if name.startswith("flat_")}
    return Arrays(
        files["image"], files["label"], files.get("pixel_weight"), tables, flat,
        np.array(meta["original_sizes"]),
        *(tuple(meta[key]) for key in ("names", "groups", "strata", "parts")),
        findings=tuple(Finding(*f) for f in meta["findings"]), grid=meta["grid"],
        fingerprint=meta["fingerprint"])
