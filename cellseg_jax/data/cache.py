"""Images decoded once into memory-mapped arrays of one fixed size, keyed by content and settings.

    <directory>/<key>/            one folder per key, whole or not there at all
      image.npy                   (n, H, W, C) uint8 or uint16
      label.npy                   (n, H, W) uint16 or int32
      original.npy                all labels at original size, one after the other
      ranges.npz                  one (n, C, 2) float32 per normalisation
      meta.json                   names, groups, strata, original sizes, fingerprint, versions
    <directory>/<key>.lock        held while a process decodes; the others wait
    <directory>/fingerprints/     content hashes by the (path, size, mtime) of all files
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np

from cellseg_jax.data.fingerprint import content_fingerprint
from cellseg_jax.data.npy import GrowingNpy
from cellseg_jax.data.ranges import RANGES, image_ranges
from cellseg_jax.data.records import NUM_CHANNELS, to_channels
from cellseg_jax.data.resize import FITS
from cellseg_jax.errors import InputError, pick

VERSION = 1  # of decoding, resizing, ranges and layout: raise it when any of them changes
THREADS = 2
MAX_ERRORS = 10  # bad files named at once


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset of n samples, decoded. The big arrays are memory-mapped, read-only."""

    image: np.ndarray  # (n, H, W, C) uint8 or uint16
    label: np.ndarray  # (n, H, W) uint16 or int32
    ranges: dict[str, np.ndarray]  # normalisation -> (n, C, 2) float32
    originals: np.ndarray  # labels at original size, flat, one after the other
    original_sizes: np.ndarray  # (n, 2) height and width
    names: tuple[str, ...]
    groups: tuple[str, ...]
    strata: tuple[str, ...]
    fingerprint: str  # of the content, wherever it lies

    @property
    def num_samples(self) -> int:
        return len(self.names)

    @property
    def nbytes(self) -> int:
        """Of image and label, what a device would have to hold."""
        return self.image.nbytes + self.label.nbytes

    def range(self, normalize: str) -> np.ndarray:
        """(n, C, 2) float32, low and high of each whole original image."""
        return pick(self.ranges, normalize, "config.data.normalize")

    def original_label(self, i: int) -> np.ndarray:
        """(H0, W0) int32, the truth at the size it was drawn."""
        areas = self.original_sizes.prod(1)
        start = areas[:i].sum()
        flat = self.originals[start : start + areas[i]]
        return flat.reshape(self.original_sizes[i]).astype(np.int32)


def open_cache(records, *, dataset: str, options: dict, size, fit: str, channels: str, directory,
               progress: Callable[[int, int], None] | None = None) -> Arrays:
    """The arrays of `records`, from the cache if they are there, else decoded into it.

    Several processes may call this at once: one decodes, the others wait for it. A process
    that is killed leaves a temporary folder, which the next one removes.

    Args:
      records: list of Record, sorted by name.
      dataset, options: what made the records; part of the key, as are the next three.
      size: (H, W) of the arrays.
      fit: resize | center_crop.
      channels: gray | rgb | rgba.
      directory: of the cache.
      progress: called with (samples done, samples in all) while decoding.
    """
    if not records:
        raise InputError("config.data.root: no images found")
    directory = pathlib.Path(directory).expanduser()
    fit_fn = pick(FITS, fit, "config.data.fit")
    pick(NUM_CHANNELS, channels, "config.data.channels")
    fingerprint = content_fingerprint(records, directory, dataset, options)
    settings = [VERSION, dataset, options, list(size), fit, channels, fingerprint]
    folder = directory / hashlib.blake2b(
        json.dumps(settings, sort_keys=True).encode(), digest_size=12).hexdigest()
    if _whole(folder):
        return _open(folder)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _whole(folder):  # else another process made it while this one waited
                for stale in directory.glob(f"{folder.name}.tmp*"):
                    shutil.rmtree(stale)  # of a killed process: the lock is ours
                shutil.rmtree(folder, ignore_errors=True)  # a file of it was deleted
                temporary = folder.with_suffix(f".tmp{os.getpid()}")
                try:
                    temporary.mkdir()
                    decode = functools.partial(
                        _decode, size=tuple(size), fit_fn=fit_fn, channels=channels)
                    _write(temporary, records, decode, fingerprint, progress)
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"config.data.cache: cannot write to '{directory}' ({error.strerror}); "
                         "pass --config.data.cache=DIR with a folder of yours") from error
    return _open(folder)


def _decode(record, size, fit_fn, channels):
    """(image, label, {normalisation: range}, original label, stratum) of one record."""
    sample = record.read()
    image = to_channels(sample.image, channels)
    ranges = {normalize: image_ranges(image, normalize) for normalize in RANGES}
    dtype = np.uint16 if sample.label.max() < 2**16 else np.int32
    original = sample.label.astype(dtype)
    return *fit_fn(image, original, size, record.name), ranges, original, sample.stratum


def _write(folder, records, decode, fingerprint, progress) -> None:
    image, label, originals = (
        GrowingNpy(folder / f"{name}.npy") for name in ("image", "label", "original"))
    ranges, sizes, strata, errors = collections.defaultdict(list), [], [], []
    for done, future in enumerate(_in_order(decode, records), 1):
        try:
            one_image, one_label, one_ranges, original, stratum = future.result()
        except InputError as error:
            errors.append((records[done - 1].name, error))
            if len(errors) == MAX_ERRORS:
                break
            continue
        if not errors:  # once a file is bad, the rest is decoded to find the others
            image.append(one_image[None])
            label.append(one_label[None])
            originals.append(original.reshape(-1))
            for normalize, value in one_ranges.items():
                ranges[normalize].append(value)
            sizes.append(original.shape)
            strata.append(stratum)
        if progress:
            progress(done, len(records))
    if errors:
        names = [name for name, _ in errors[1:]]
        least = "at least " if done < len(records) else ""
        more = f"; and {least}{len(names)} more bad images: {', '.join(names)}" if names else ""
        raise InputError(f"{errors[0][1]}{more}") from errors[0][1]
    for array in (image, label, originals):
        array.close()
    np.savez(folder / "ranges.npz", **ranges)
    meta = {
        "version": VERSION, "numpy": np.__version__, "fingerprint": fingerprint,
        "bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
        "names": [record.name for record in records],
        "groups": [record.group for record in records],
        "strata": strata, "original_sizes": sizes,
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


@contextlib.contextmanager
def _locked(path: pathlib.Path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go of it when a process dies
        yield


def _whole(folder: pathlib.Path) -> bool:
    try:
        sizes = json.loads((folder / "meta.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _open(folder: pathlib.Path) -> Arrays:
    meta = json.loads((folder / "meta.json").read_text())
    image, label, originals = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "label", "original"))
    with np.load(folder / "ranges.npz") as ranges:
        ranges = dict(ranges)
    return Arrays(image, label, ranges, originals, np.array(meta["original_sizes"]),
                  *(tuple(meta[key]) for key in ("names", "groups", "strata")),
                  fingerprint=meta["fingerprint"])
