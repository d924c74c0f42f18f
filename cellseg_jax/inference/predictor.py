"""A trained run that turns images into probabilities, and probabilities into labels.

What runs compute alike is traced and compiled once: hundreds of runs of a study share it.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import logit

from cellseg_jax import classical, crops, metrics, models, normalize, targets
from cellseg_jax.config import derived
from cellseg_jax.crops import mirrored, round_up
from cellseg_jax.data import read, resize
from cellseg_jax.data.lazy import Image, from_array
from cellseg_jax.errors import InputError
from cellseg_jax.inference import tiles
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import CHECKPOINTS
from cellseg_jax.step.mapped import map_probs
from cellseg_jax.step.mesh import all_devices, fetch, put
from cellseg_jax.step.programs import (
    _abstract_state,
    _calibration,
    _once,
    _scoring,
    eval_program,
    scoring_values,
)
from cellseg_jax.step.spec import make_spec, traced_values

BAND_PIXELS = 2**24  # of an image that are in memory at once while it is read or resized
VIEWS = {"": (0,), "flips": (0, 1, 2, 3), "all": tuple(range(8))}  # numbers of tiles.turns


class How(NamedTuple):
    """How a trained network is used on images."""

    scale: float = 0.0  # 0 repeats the training's fit; above 0 tiles the image at that scale
    halo: int = 0  # pixels of a tile's edge that are cropped; 0 blends overlapping tiles
    tta: str = ""  # "" | flips | all: the mean over 4 or 8 views of each tile
    uncertain: bool = False  # one more output: the variance over views and members


class Predictor:
    """A trained run that turns images into probabilities, repeating the training's `fit`.

    Args:
      workdir: the run's folder.
      config: its config, where eval.* may have been changed.
      which: "best" or "last" checkpoint.
      batch_size: images or tiles per call.
    """

    def __init__(self, workdir, config, which: str = "best", batch_size: int = 0):
        self.config, self.workdir = config, pathlib.Path(workdir)
        saved = checkpoint.saved_steps(self.workdir / CHECKPOINTS)
        if not saved:
            raise InputError(f"--workdir: no checkpoint in {workdir} yet; train first")
        self.mesh = all_devices()
        self.spec = make_spec([config])
        everywhere = NamedSharding(self.mesh, P())
        values = traced_values(config, 1, self.spec)
        shape = (*derived.input_size(config), derived.channels(config))
        wanted = _once(_abstract_state, self.spec, shape, tuple(sorted(
            (k, str(v.dtype)) for k, v in values.items())))
        part = {k: getattr(wanted, k) for k in (wanted.weights, "batch_stats")}
        part = checkpoint.abstract({k: v for k, v in part.items() if v}, everywhere)
        self.step, loaded = checkpoint.load_first(
            self.workdir / CHECKPOINTS, (saved[which], *saved.values()), part)
        self.variables = {"params": loaded[wanted.weights],
                          "batch_stats": loaded.get("batch_stats", {})}
        self.values = {k: put(v, everywhere) for k, v in scoring_values(values).items()}
        scoring = _scoring(self.spec)
        network = scoring._replace(loss_options={}, target_options={}, inactive=())
        self.eval_step = eval_program(self.spec, self.mesh, config.eval.threshold)
        self.calibration_counts = _once(_calibration, scoring)
        self._probs = _once(map_probs, network, self.mesh)
        self.batch_size = round_up(batch_size or config.eval.batch_size, self.mesh.size)
        self.tile = derived.input_size(config)
        self._rows = NamedSharding(self.mesh, P(("member", "data")))

    def __call__(self, image, ranges) -> np.ndarray:
        """(n, h, w, C) uint8|uint16 of one shape and (n, C, 2) ranges -> (n, h, w, K) float32."""
        sizes = [self.batch_size] * (len(image) // self.batch_size)
        rest = len(image) - sum(sizes)
        # Batches have two sizes at most, so that little is computed in vain and compiled twice.
        sizes += ([self.batch_size] if 2 * rest > self.batch_size
                  else [self.mesh.size] * -(-rest // self.mesh.size))
        out, start = [], 0
        for size in sizes:
            part = lambda x: np.resize(x[start : start + size], (size, *x.shape[1:]))
            probs = self._probs(self.variables, put(part(np.asarray(image)), self._rows),
                                put(part(np.asarray(ranges)), self._rows))
            out.append(fetch(probs)[: len(image) - start])
            start += size
        return np.concatenate(out)

    def image_probs(self, image, how: How = How()) -> np.ndarray:
        """(H, W, K) float32 probabilities of one whole image of any size: see `probs`."""
        return self.probs([image], how)[0]

    def probs(self, images, how: How = How()) -> list[np.ndarray]:
        """(H, W, K) float32 probabilities of each (H, W, 1 to 4) image, of any sizes.

        Runs that were trained on resized images resize and map the probabilities back; others
        tile at native scale with overlap. Batches hold tiles of several images.
        """
        if how.halo:
            return [np.concatenate(list(self.bands(from_array(image), how))) for image in images]
        config, sizes = self.config, [image.shape[:2] for image in images]
        images = [read.to_channels(image, config.data.channels) for image in images]
        range_ = np.stack([normalize.image_ranges(image, config.data.normalize) for image in images])
        predict = lambda batch, number: self._views(batch, range_[number], how)
        if self._resizes(how):
            cells = [crops.to_grid(resize.resize_image(image, config.data.size), config.data.grid)
                     for image in images]
            number = np.repeat(np.arange(len(images)), config.data.grid**2)
            out = np.split(predict(np.concatenate(cells), number), len(images))
            return [resize.resize_image(crops.from_grid(probs), size)
                    for probs, size in zip(out, sizes)]
        images = [resize.resize_image(image, _scaled(image.shape, how.scale)) for image in images]
        if self.tile is None:
            out = [predict(image[None], [n])[0] for n, image in enumerate(images)]
        else:
            out = tiles.predict_tiled(predict, images, tile=self.tile,
                                      overlap=config.eval.overlap, batch_size=self.batch_size)
        return [resize.resize_image(probs, size) for probs, size in zip(out, sizes)]

    def bands(self, image: Image, how: How = How()):
        """Yields the rows of `image_probs`, (n, W, K) one after the other, from an image in rows.

        The image is read twice, first for its range; one row of tiles is in memory.
        """
        config = self.config
        height, width = image.shape[:2]
        if self.tile is None:
            yield self.image_probs(image.read(), how)
            return
        image = _converted(image, config.data.channels)
        range_ = normalize.band_ranges(
            (image.rows(*rows) for rows in _chunks(height, width)), image.shape[-1],
            image.dtype, config.data.normalize)
        predict = lambda batch: self._views(batch, np.repeat(range_[None], len(batch), 0), how)
        if self._resizes(how):
            small = _resized(image, config.data.size)
            small = small.rows(0, config.data.size[0])
            probs = crops.from_grid(predict(crops.to_grid(small, config.data.grid)))
            for rows in _chunks(height, width):
                yield resize.resize_rows(probs, (height, width), rows, len(probs))
            return
        image = _resized(image, _scaled(image.shape, how.scale))
        size, tile, ends, plan = image.shape[:2], self.tile, None, {"overlap": config.eval.overlap}
        lengths = size
        if how.halo:
            align = self.stride()
            tile = tuple(round_up(max(side, 4 * how.halo), align) for side in tile)
            plan = {"halo": how.halo, "align": align}
            lengths = tuple(round_up(length, align) for length in size)
            # What a network adds beyond an image is 0 after normalisation.
            ends = range_[:, 0].astype(image.dtype)
        rows, columns = (tiles.spread(length, side, **plan) for length, side in zip(lengths, tile))
        padded = _padded(image, columns[-1][0] + tile[1], ends)
        bands = tiles.predict_bands(predict, padded, rows, columns, batch_size=self.batch_size)
        yield from _upscaled(_cut(bands, *size), size, (height, width))

    def check(self, how: How) -> None:
        """InputError where the run cannot be used in that way."""
        if how.halo and (self._resizes(how) or self.tile is None):
            raise InputError("--halo: this run sees an image as a whole, resized; expected tiles, "
                             "pass --scale=1 too" if self.tile else
                             "--halo: a classical method has no tiles; leave it out")
        if how.tta == "all" and self.tile and self.tile[0] != self.tile[1]:
            raise InputError(f"--tta: got all, but tiles are {self.tile[0]}x{self.tile[1]}; "
                             "expected square ones, use --tta=flips")

    def stride(self) -> int:
        """Pixels by which tiles must be apart for the network to see alike: its downsampling."""
        return models.stride(self.spec.module({}), derived.channels(self.config))

    def reach(self) -> int:
        """The halo that suffices: pixels around a logit that it can depend on, at least.

        Raises: InputError where that is all of the image.
        """
        options = {k: v for k, v in self.spec.model.items()
                   if k not in ("name", "num_outputs", "dtype")}
        field = models.receptive_field(self.config.model.name, **options)
        if field is None:
            raise InputError(f"--halo: {self.config.model.name} looks at more than 512 pixels "
                             "around each, or at the whole image; leave --halo out (tiles are "
                             "blended), or give a number of pixels")
        return round_up(-(-field // 2), self.stride())

    def _resizes(self, how) -> bool:
        return self.config.data.fit == "resize" and not how.scale

    def _views(self, batch, ranges, how) -> np.ndarray:
        """(n, h, w, K) mean over the views; where wanted, their variance as one more output."""
        outs = [tiles.turns_back(self(tiles.turns(batch, view), ranges), view)
                for view in VIEWS[how.tta]]
        return _mean(outs, how.uncertain)

    def decode(self, probs, **options) -> np.ndarray:
        """(H, W, K) probabilities -> (H, W) int32 instances (or classes) by the eval options.

        `options` replace those: threshold, decode, min_size, watershed_h.
        """
        names = {"threshold": "threshold", "method": "decode", "min_size": "min_size",
                 "h": "watershed_h"}
        values = {name: options.get(key, self.config.eval[key]) for name, key in names.items()}
        return targets.TARGETS[self.config.data.target].decode(logit(probs), **values)

    def counts(self, label, probs) -> metrics.Counts:
        """Of (1, K): Scores.main of one (H, W) label and its (H, W, K) probabilities."""
        target, threshold = targets.TARGETS[self.config.data.target], self.config.eval.threshold
        if self.config.data.target == "classes":
            truth = self.spec.encode(label)[..., 1:]
            return metrics.pixel_counts(truth[None], target.mask(probs, threshold)[None, ..., 1:])
        return metrics.pixel_counts(label[None, ..., None] > 0,
                                    target.cell_mask(probs, threshold)[None])


class ClassicalPredictor(Predictor):
    """The same of a classical method: probabilities are 0 or 1, and images are not tiled."""

    def __init__(self, workdir, config):
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.mesh, self.step = all_devices(), 0
        self.values = self.variables = None
        self.tile, self.batch_size = None, 1

    def __call__(self, image, ranges) -> np.ndarray:
        """(n, h, w, C) of one shape -> (n, h, w, 1) float32; ranges are not read."""
        method = classical.CLASSICAL[self.config.model.name]
        options = derived.classical_options(self.config)
        return np.stack([method(one, **options) for one in image])[..., None].astype(np.float32)

    def eval_step(self, values, variables, batch) -> dict:
        """What step.map_eval computes, without a loss."""
        target, threshold = targets.TARGETS[self.config.data.target], self.config.eval.threshold
        probs, label = jax.numpy.asarray(self(fetch(batch["image"]), None)), fetch(batch["label"])
        truth = target.encode(label, **derived.target_options(self.config))
        return {"probs": probs,
                "counts": metrics.pixel_counts(truth, target.mask(probs, threshold)),
                "cells": metrics.pixel_counts(label[..., None] > 0,
                                              target.cell_mask(probs, threshold))}


class Ensemble:
    """Several runs that learned one target: the mean of their probabilities."""

    def __init__(self, members):
        first, *others = members
        for other in others:
            for key in ("target", "num_classes"):
                mine, its = first.config.data[key], other.config.data[key]
                if mine != its:
                    raise InputError(f"--workdir: config.data.{key} is {mine!r} in one run and "
                                     f"{its!r} in another; expected runs that learned the same")
        self.members, self.config, self.decode = members, first.config, first.decode

    def probs(self, images, how: How = How()) -> list[np.ndarray]:
        """As Predictor.probs, the mean of the members."""
        outs = zip(*(member.probs(images, how) for member in self.members), strict=True)
        return [_joined(out, how.uncertain) for out in outs]

    def bands(self, image: Image, how: How = How()):
        """As Predictor.bands, the mean of the members."""
        height, width = image.shape[:2]
        streams = [_rechunked(member.bands(image, how), _chunks(height, width))
                   for member in self.members]
        for bands in zip(*streams, strict=True):
            yield _joined(bands, how.uncertain)


def make_predictor(workdir, config, which: str = "best", batch_size: int = 0) -> Predictor:
    """The Predictor of a run, whatever its model is; arguments as Predictor has them."""
    if derived.is_classical(config):
        return ClassicalPredictor(workdir, config)
    return Predictor(workdir, config, which, batch_size)


# --- images in bands -----------------------------------------------------------------------------


def _scaled(shape, scale: float) -> tuple[int, int]:
    scale = scale or 1.0
    return tuple(max(1, round(length * scale)) for length in shape[:2])


def _chunks(height: int, width: int):
    """(start, stop) of bands of BAND_PIXELS or less that make up an image."""
    step = max(1, BAND_PIXELS // width)
    return [(start, min(start + step, height)) for start in range(0, height, step)]


def _converted(image: Image, channels: str) -> Image:
    """The image with the channels that a network takes."""
    return image._replace(
        shape=(*image.shape[:2], read.NUM_CHANNELS[channels]),
        rows=lambda start, stop: read.to_channels(image.rows(start, stop), channels))


def _resized(image: Image, size) -> Image:
    """The image, resized row by row."""
    if image.shape[:2] == tuple(size):
        return image
    height = image.shape[0]

    def rows(start, stop):
        out = []
        step = max(1, BAND_PIXELS * size[0] // (height * image.shape[1]))
        for first in range(start, stop, step):
            part = first, min(first + step, stop)
            needed = resize.rows_needed(part, size[0], height)
            out.append(resize.resize_rows(image.rows(*needed), size, part, height, needed[0]))
        return np.concatenate(out)

    return image._replace(shape=(*size, image.shape[2]), rows=rows)


def _padded(image: Image, width: int, ends) -> Callable:
    """read_rows of the image, `width` wide and of any height: mirrored, or `ends` (C,) beyond."""
    height, inside = image.shape[:2]

    def read_rows(start, stop):
        rows, columns = np.arange(start, stop), np.arange(width)
        if ends is None:
            rows, columns = mirrored(rows, height), mirrored(columns, inside)
        first, last = int(rows.min()), min(int(rows.max()) + 1, height)
        band = image.rows(first, last)
        if ends is None:
            return band[rows - first] if width == inside else band[(rows - first)[:, None], columns]
        out = np.empty((stop - start, width, len(ends)), image.dtype)
        out[:] = ends
        out[: last - first, :inside] = band
        return out

    return read_rows


def _cut(bands, height: int, width: int):
    """The bands without what lies beyond the image."""
    for band in bands:
        yield band[:height, :width]
        height -= len(band)
        if height <= 0:
            return


def _rechunked(bands, chunks):
    """The same rows in bands (start, stop)."""
    held, first = next(bands), 0
    for start, stop in chunks:
        while first + len(held) < stop:
            held = np.concatenate([held[start - first :], next(bands)])
            first = start
        yield held[start - first : stop - first]


def _upscaled(bands, size, target):
    """The bands of an image of `size`, resized to `target`; unchanged where these are equal."""
    if size == target:
        yield from bands
        return
    held, first, bands = None, 0, iter(bands)
    for rows in _chunks(*target):
        start, stop = resize.rows_needed(rows, target[0], size[0])
        held = next(bands) if held is None else held
        while first + len(held) < stop:
            held, first = np.concatenate([held[start - first :], next(bands)]), start
        yield resize.resize_rows(held, target, rows, size[0], first)


def _mean(outs, uncertain: bool) -> np.ndarray:
    """The mean of arrays (..., K); if wanted their variance too, the mean over K, behind it."""
    mean = outs[0] if len(outs) == 1 else np.mean(outs, 0)
    if not uncertain:
        return mean
    return np.concatenate([mean, np.var(outs, 0).mean(-1, keepdims=True)], -1)


def _joined(outs, uncertain: bool) -> np.ndarray:
    """The mean of the members; the variance is that among them plus the mean of their own."""
    if not uncertain:
        return _mean(outs, False)
    joined = _mean([out[..., :-1] for out in outs], True)
    joined[..., -1] += np.mean([out[..., -1] for out in outs], 0)
    return joined
