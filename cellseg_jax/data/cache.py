"""Images decoded once into memory-mapped arrays of one fixed size, keyed by content and settings.

    <directory>/<key>/            one folder per key, complete or not there at all
      image.npy                   (n, H, W, C) uint8 or uint16
      label.npy                   (n, H, W) uint16 or int32; with pixels that are not annotated,
                                  which are -1, int16 or int32
      pixel_weight.npy            (n, H, W) float16, with targets that weigh pixels
      original.npy                all labels at original size, one after the other
      flat_image.npy              all images likewise, with random crops; flat_pixel_weight.npy too
      flat_label.npy              with random crops of rescaled images, their labels likewise
      tables.npz                  a (m, C, 2) float32 per normalisation, foreground, anchors;
                                  of rescaled images scale and scaled_size
      meta.json                   names, groups, strata, original sizes, fingerprint, versions
      checksums.json              of these files, checked whenever they are opened
      near_duplicates.json        pairs of images, once they were looked for
    <directory>/<key>.lock        held while a process decodes; the others wait
    <directory>/fingerprints/     content hashes by path, size and times of all files
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cellseg_jax.crops import to_grid
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.data.colours import NUM_CHANNELS, to_channels
from cellseg_jax.data.fingerprint import content_fingerprint
from cellseg_jax.data.npy import GrowingNpy
from cellseg_jax.data.records import Finding
from cellseg_jax.data.resize import FITS
from cellseg_jax.data.scale import ScaleOptions, rescaled, scaled_size
from cellseg_jax.errors import InputError, pick
from cellseg_jax.files import checksums, locked, strangers
from cellseg_jax.files.maps import scratch_map
from cellseg_jax.normalize import PERCENTILES, RANGES, image_ranges
from cellseg_jax.report import terminal
from cellseg_jax.targets import TARGETS

VERSION = 3  # of decoding, resizing, ranges and layout: raise it when any of them changes
THREADS = 2  # that read and decode
MAX_ERRORS = 10  # bad files named at once
ANCHORS = 64  # foreground pixels kept per image, for crops that are sure to hold a cell


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """What decoded arrays follow from, beside the content of the files."""

    dataset: str  # with its options, what made the records
    options: dict
    size: tuple[int, int]  # (H, W) of the fitted images
    fit: str  # resize | center_crop | random_crop | pad
    channels: str  # gray | rgb | rgba
    grid: int = 1  # patches per side that a fitted image is cut into
    target: str = "foreground"  # whose pixel weights are stored, if it has some
    weight_options: dict | None = None
    percentiles: tuple[float, float] = PERCENTILES  # of the normalisation "percentile"
    scale: ScaleOptions = ScaleOptions()  # what scale images are brought to before they are fitted
    channel_index: str = ""  # of config.data: the channels that were chosen in place of `channels`

    def check(self) -> None:
        """InputError for a value that is unknown or does not go with the others."""
        pick(FITS, self.fit, "config.data.fit")
        pick(NUM_CHANNELS, self.channels, "config.data.channels")
        if self.size[0] % self.grid or self.size[1] % self.grid:
            raise InputError(f"config.data.grid: got {self.grid}; expected a divisor of data.size "
                             f"{self.size[0]}x{self.size[1]}")
        if self.grid > 1 and self.fit == "random_crop":
            raise InputError("config.data.grid: patches and random crops at once; expected "
                             "data.grid=1, or data.fit=resize, center_crop or pad")

    @property
    def weigh(self):
        """The function from a label to pixel weights, or None."""
        weigh = TARGETS[self.target].pixel_weight
        return weigh and functools.partial(weigh, **(self.weight_options or {}))

    def key(self, fingerprint: str) -> str:
        """The name of the folder of arrays from files of this content."""
        weighed = None if self.weigh is None else [self.target, self.weight_options]
        settings = [VERSION, self.dataset, self.options, list(self.size), self.fit, self.channels,
                    self.grid, weighed, fingerprint]
        # Of options that came later: caches that were made before keep their key.
        later = {} if self.percentiles == PERCENTILES else {"percentiles": self.percentiles}
        later |= {"scale": self.scale._asdict()} if self.scale.used else {}
        later |= {"channel_index": self.channel_index} if self.channel_index else {}
        settings += [later] if later else []
        text = json.dumps(settings, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def open_cache(records, options: CacheOptions, directory,
               progress: Callable[[int, int], None] | None = None) -> Arrays:
    """The arrays of `records`, from the cache if they are there, else decoded into it.

    Several processes may call this at once: one decodes, the others wait for it. A process
    that is killed leaves a temporary folder, which the next one removes.

    Args:
      records: list of Record, sorted by name.
      directory: of the cache.
      progress: called with (samples done, samples in all) while decoding.
    Raises: InputError without records, if the options do not go together, if a file cannot be
      read, or if the cache cannot be written.
    """
    if not records:
        raise InputError("config.data.root: no images found")
    options.check()
    directory = pathlib.Path(directory).expanduser()
    fingerprint = content_fingerprint(records, directory, options.dataset, options.options)
    folder = directory / options.key(fingerprint)
    # The parts of the dataset's own split are no content: they may change while the cache stays.
    parts = tuple(record.part for record in records)
    if _is_complete(folder):
        return dataclasses.replace(_open(folder), image_parts=parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")) as alone:
            if not _is_complete(folder):  # else another process made it while this one waited
                _make(folder, records, options, fingerprint, progress, alone)
    except OSError as error:
        raise InputError(f"config.data.cache: cannot write to '{directory}' "
                         f"({error.strerror or error}); pass --config.data.cache=DIR with a "
                         "folder of yours") from error
    return dataclasses.replace(_open(folder), image_parts=parts)


def _make(folder, records, options, fingerprint, progress, alone: bool) -> None:
    """Decode into a temporary folder, which becomes `folder` when it is complete.

    Args:
      alone: whether the lock is held; without, others may do the same, with the same result.
    """
    for stale in folder.parent.glob(f"{folder.name}.tmp*") if alone else ():
        shutil.rmtree(stale)  # of a killed process
    shutil.rmtree(folder, ignore_errors=True)  # a file of it was deleted
    temporary = folder.with_suffix(f".tmp{os.getpid()}_{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        decode = functools.partial(_decode, options=options, weigh=options.weigh)
        _write(temporary, records, decode, fingerprint, options.grid, progress)
        with contextlib.suppress(OSError if _is_complete(folder) else ()):  # another was faster
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Decoded(NamedTuple):
    """One record: rows of the big arrays, entries of the tables, and the rest."""

    arrays: dict[str, np.ndarray]  # file name -> values to append
    tables: dict[str, np.ndarray]  # one entry each
    size: tuple[int, int]
    stratum: str
    findings: tuple[Finding, ...]


def _decode(record, options, weigh, factor=None) -> _Decoded:
    """Of one record; `factor` in place of that of its true label."""
    sample, grid = record.read(), options.grid
    keep_flat = options.fit == "random_crop"
    image = to_channels(sample.image, options.channels, options.channel_index)
    original = sample.label.astype(_label_dtype(sample.label))
    factor = options.scale.factor(record, original) if factor is None else factor
    # Ranges are those of the original pixels.
    tables = {normalize: image_ranges(image, normalize, options.percentiles,
                                      each=bool(options.channel_index))
              for normalize in RANGES}
    image, scaled = rescaled(image, original, factor)
    name = record.name if factor == 1 else f"{record.name} (rescaled by {factor:.3g})"
    fitted_image, fitted_label = FITS[options.fit](image, scaled, options.size, name)
    label = to_grid(fitted_label, grid)
    arrays = {"image": to_grid(fitted_image, grid), "label": label,
              "original": original.reshape(-1)}
    if keep_flat:
        arrays["flat_image"] = image.reshape(-1, image.shape[-1])
        if options.scale.used:
            arrays["flat_label"] = scaled.reshape(-1)
    if weigh is not None:
        arrays["pixel_weight"] = to_grid(weigh(fitted_label).astype(np.float16), grid)
        if keep_flat:
            arrays["flat_pixel_weight"] = weigh(scaled).astype(np.float16).reshape(-1)
    tables["foreground"] = _foreground(label)
    tables["anchors"] = _anchors(scaled)
    if options.scale.used:
        tables |= {"scale": np.float64(factor), "scaled_size": np.array(scaled.shape)}
    return _Decoded(arrays, tables, original.shape, sample.stratum, sample.findings)


def refitted(arrays: Arrays, records, options: CacheOptions, factors: dict) -> Arrays:
    """Some images rescaled by other factors before they are fitted; the fitted others are empty.

    For scores of images whose true label must not decide the factor. The flat arrays, which
    training reads, stay. An image that became too small for center_crop or too large for pad is
    taken as random_crop takes it.

    Args:
      records: of all images.
      factors: {image: factor}.
    """
    cells, tables = arrays.grid**2, dict(arrays.tables)
    rows = [i * cells + cell for i in factors for cell in range(cells)]
    fitted = {name: getattr(arrays, name) for name in ("image", "label", "pixel_weight")}
    pixels = {name: scratch_map(one.dtype, one.shape, rows=rows)
              for name, one in fitted.items() if one is not None}
    tables |= {name: tables[name].copy() for name in ("scale", "foreground")}
    for i, factor in factors.items():
        size = scaled_size(arrays.original_sizes[i], factor)
        pads = options.fit == "pad" and all(np.array(size) <= options.size)
        fit = "pad" if pads else "random_crop"
        one = _decode(records[i], dataclasses.replace(options, fit=fit), options.weigh, factor)
        for name, values in pixels.items():
            values[i * cells : (i + 1) * cells] = one.arrays[name]
        for name in ("scale", "foreground"):
            tables[name][i] = one.tables[name]
    return dataclasses.replace(arrays, tables=tables, **pixels)


def _foreground(label) -> np.ndarray:
    """(n,) float32, the share of the annotated pixels of (n, H, W) that are not background."""
    share = (label > 0).mean((1, 2), dtype=np.float32)
    if label.min() >= 0:
        return share
    known = (label >= 0).mean((1, 2), dtype=np.float32)
    return np.where(known > 0, share / np.where(known > 0, known, 1), 0).astype(np.float32)


def _label_dtype(label):
    """The narrowest of uint16, int16 and int32 that holds the label; -1 is not annotated."""
    ignored, highest = label.min() < 0, label.max()
    if ignored:
        return np.int16 if highest < 2**15 else np.int32
    return np.uint16 if highest < 2**16 else np.int32


def _anchors(label) -> np.ndarray:
    """(ANCHORS, 2) int32: evenly chosen foreground pixels (y, x), or -1 where there are none."""
    counts = np.count_nonzero(label > 0, 1)
    ends = np.cumsum(counts)  # of rows: places of all foreground pixels would be 8 bytes of each
    if not ends[-1]:
        return np.full((ANCHORS, 2), -1, np.int32)
    chosen = ((np.arange(ANCHORS) + 0.5) * ends[-1] / ANCHORS).astype(np.int64)
    rows = np.searchsorted(ends, chosen, "right")
    before = chosen - (ends - counts)[rows]  # foreground pixels of the row before the chosen one
    columns = (np.cumsum(label[rows] > 0, 1, dtype=np.int32) > before[:, None]).argmax(1)
    return np.stack([rows, columns], -1).astype(np.int32)


def _write(folder, records, decode, fingerprint, grid, progress) -> None:
    files, tables = {}, collections.defaultdict(list)
    sizes, strata, findings, errors = [], [], [], []
    for done, one in enumerate(in_order(decode, records), 1):
        if isinstance(one, InputError):
            errors.append((records[done - 1].name, one))
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
        more = f"; and {least}{len(names)} more bad: {', '.join(names)}" if names else ""
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
    checksums.write(folder)


def in_order(function, items) -> Iterator:
    """function(item), or its InputError, in the order of the items; grain reads a few ahead."""
    import grain  # only here: it takes 0.3 s to import, and most commands find a cache

    def read(item):
        try:
            return function(item)
        except InputError as error:  # if raised, it would end the readers
            return error

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    return iter(grain.MapDataset.source(items).map(read).to_iter_dataset(options))


def _is_complete(folder: pathlib.Path) -> bool:
    """Whether all files are there as they were written; in caches of before, in their full length.

    Raises: InputError where something in the folder leads out of it.
    """
    strangers.check(folder, itself=True)
    try:
        if checksums.check(folder):
            return True
        sizes = json.loads((folder / "meta.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except checksums.Damaged as error:
        terminal.log(f"{error}; the images are decoded again")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it is not there, or not whole
    return False


def _open(folder: pathlib.Path) -> Arrays:
    """The arrays of a complete folder. Raises: InputError where it is none of this program's."""
    try:
        return _arrays(folder)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: is no cache of decoded images ({error}); remove it, or pass "
                         "--config.data.cache=DIR") from error


def _arrays(folder: pathlib.Path) -> Arrays:
    meta = json.loads((folder / "meta.json").read_text())
    files = {name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r")
             for name in meta["bytes"] if name.endswith(".npy") and "/" not in name}
    with np.load(folder / "tables.npz") as tables:
        tables = dict(tables)
    flat = {"label": files["original"]}  # flat_label takes its place
    flat |= {name.removeprefix("flat_"): x for name, x in files.items() if name.startswith("flat_")}
    return Arrays(
        files["image"], files["label"], files.get("pixel_weight"), tables, flat,
        np.array(meta["original_sizes"]),
        *(tuple(meta[key]) for key in ("names", "groups", "strata", "parts")),
        findings=tuple(Finding(*f) for f in meta["findings"]), grid=meta["grid"],
        fingerprint=meta["fingerprint"], whole_labels=files["original"], folder=folder)
