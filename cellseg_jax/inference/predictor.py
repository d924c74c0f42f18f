"""A trained run that turns images into probabilities, and probabilities into labels."""

import math
import pathlib
from collections.abc import Iterator

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import crops, metrics, normalize, targets
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.data import resize
from cellseg_jax.data.lazy import Image, from_array
from cellseg_jax.data.scale import scaled_size
from cellseg_jax.errors import InputError
from cellseg_jax.files import interpreting, read_json
from cellseg_jax.inference import row_bands, stitch_labels, tile_blending
from cellseg_jax.inference.ensemble import mean_of
from cellseg_jax.inference.image_scale import RunScale
from cellseg_jax.inference.networks import ClassicalMethod, TrainedNetwork
from cellseg_jax.inference.options import AS_TRAINED, IN_MEMORY_PIXELS, VIEWS, PredictOptions
from cellseg_jax.inference.tile_blending import turns, turns_back
from cellseg_jax.runs.folder import (
    ENVIRONMENT_FILE,
    TRAINING_CELLS,
    TRAINING_CONTRAST,
    read_config,
)


def run_config(workdir, overrides):
    """The config of a trained run with other options of eval.

    Args:
      overrides: [(config key, text), ...].
    Raises: InputError for a key outside of eval, and as `check_read`.
    """
    for key, _ in overrides:
        if not key.startswith("eval."):
            raise InputError(f"config.{key}: is fixed by the training; only config.eval.* can "
                             "change")
    config = config_lib.override(read_config(workdir), overrides)
    check_read(config, [key.removeprefix("eval.") for key, _ in overrides])
    return config


def check_read(config, keys) -> None:
    """InputError for a key of config.eval that was asked for and that nothing would read."""
    unread = derived.unread_decoding(config, keys)
    if unread:
        read = ", ".join(f"config.eval.{key}" for key in derived.decode_keys(config))
        raise InputError(f"config.eval.{unread[0]}: nothing reads it in a run with data.target="
                         f"{config.data.target!r}; leave it out"
                         + (f"; its labels follow from {read}" if read else ""))


def sized(config, cells: dict, workdir):
    """The config with eval.min_size in pixels, where it is -1, "from the training cells".

    Args:
      cells: training_cells of the run's environment.json.
    Raises: InputError where the run does not know the areas of its training cells.
    """
    if config.eval.min_size >= 0:
        return config
    if "least_area" not in cells:
        raise InputError(f"config.eval.min_size: got -1, but {workdir} was trained with another "
                         "value and has not kept the areas of its training cells; expected "
                         "pixels, such as 10, or a run that is trained with -1")
    config = config.copy_and_resolve_references()
    config.eval.min_size = cells["least_area"]
    return config


class Predictor:
    """A trained run that turns images into probabilities, repeating the training's `fit`.

    Args:
      workdir: the run's folder.
      config: its config, where eval.* may have been changed.
      which: "best" or "last" checkpoint.
      batch_size: images or tiles per call; 0 is eval.batch_size.
    Raises: InputError without a checkpoint, where the model has weights.
    """

    def __init__(self, workdir, config, which: str = "best", batch_size: int = 0):
        self.workdir = pathlib.Path(workdir)
        with interpreting(self.workdir / ENVIRONMENT_FILE):
            environment = read_json(self.workdir / ENVIRONMENT_FILE, {})
            self.cells = dict(environment.get(TRAINING_CELLS) or {})
            known = environment.get(TRAINING_CONTRAST)  # runs of older code have none
            self.contrast = normalize.Contrast(**known) if known else None
        self.sized_by_cells = config.eval.min_size < 0
        self.config = config = self.sized(config)
        self.network = (ClassicalMethod(config) if derived.is_classical(config)
                        else TrainedNetwork(workdir, config, which, batch_size))
        self.tile, self.batch_size = self.network.tile, self.network.batch_size
        self.target = targets.TARGETS[config.data.target]
        self.scale = RunScale.of(config.data, self.cells)

    def sized(self, config):
        """Another config of this run with eval.min_size in pixels, see `sized`."""
        return sized(config, self.cells, self.workdir)

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 of a classical method."""
        return self.network.step

    def image_probs(self, image, options: PredictOptions = AS_TRAINED) -> np.ndarray:
        """(H, W, K) float32 probabilities of one array or data.lazy.Image: see `probs`."""
        return self.probs([image], options)[0]

    def probs(self, images, options: PredictOptions = AS_TRAINED) -> list[np.ndarray]:
        """(H, W, K) float32 probabilities of each (H, W, 1 to 4) image, of any sizes.

        Runs that were trained on resized images resize and map the probabilities back; others
        tile with overlap, at native scale or at that of their training. Batches hold tiles of
        several images.

        Args:
          images: arrays, or data.lazy.Image where the pixel size should count.
        """
        images = [one if isinstance(one, Image) else from_array(one) for one in images]
        if options.halo:
            return [np.concatenate(list(self.bands(image, options))) for image in images]
        config, sizes = self.config.data, [image.shape[:2] for image in images]
        images, ranges = self._read(images)
        predict = lambda batch, number: self._views(batch, ranges[number], options)
        if self.scale.resizes(options):
            cells = [crops.to_grid(resize.resize_image(image.read(), config.size), config.grid)
                     for image in images]
            number = np.repeat(np.arange(len(images)), config.grid**2)
            probs = np.split(predict(np.concatenate(cells), number), len(images))
            out = [crops.from_grid(one) for one in probs]
        else:
            factors = self._factors(images, ranges, options)
            out = self._tiled(predict, [
                resize.resize_image(image.read(), scaled_size(image.shape, factor))
                for image, factor in zip(images, factors, strict=True)])
        return [self.resized(one, size) for one, size in zip(out, sizes, strict=True)]

    def factors(self, images, options: PredictOptions = AS_TRAINED) -> list[float]:
        """By which `probs` resizes each data.lazy.Image for the network; 0: not at all."""
        return self._factors(*self._read(images), options)

    def _read(self, images) -> tuple[list[Image], np.ndarray]:
        """Images in memory with the run's channels, and their ranges (n, C, 2)."""
        config = self.config.data
        images = [from_array(row_bands.with_channels(image, config).read(), image.name,
                             image.pixel_size) for image in images]
        return images, np.stack([
            normalize.image_ranges(image.read(), config.normalize, config.percentiles,
                                   each=bool(config.channel_index))
            for image in images])

    def _factors(self, images, ranges, options) -> list[float]:
        """`factors` of images with the run's channels."""
        first, smallest = self.scale.first_factor, self.config.eval.min_size

        def look(pieces, numbers):
            predict = lambda batch, which: self._views(batch, ranges[numbers[which]], AS_TRAINED)
            least = max(self.scale.least_area(), round(smallest * first**2))
            return [self.decode(maps, min_size=least) for maps in self._tiled(predict, pieces)]

        return self.scale.factors(images, options, look)

    def resized(self, maps, size) -> np.ndarray:
        """(*size, K) of the network's maps (H, W, K); outputs in pixels grow with the image."""
        return self._rescaled(resize.resize_image(maps, size), maps.shape, size)

    def _rescaled(self, maps, old, new) -> np.ndarray:
        """Maps that were resized from `old` to `new` (height, width), outputs in pixels too."""
        factors = new[0] / old[0], new[1] / old[1]
        if self.target.rescaled is None or factors == (1, 1):
            return maps
        n = derived.num_outputs(self.config)
        return np.concatenate([self.target.rescaled(maps[..., :n], factors), maps[..., n:]], -1)

    def _tiled(self, predict, images) -> list[np.ndarray]:
        if self.tile is None:
            return [predict(image[None], [n])[0] for n, image in enumerate(images)]
        return tile_blending.predict_tiled(predict, images, tile=self.tile,
                                   overlap=self.config.eval.overlap, batch_size=self.batch_size)

    def bands(self, image: Image, options: PredictOptions = AS_TRAINED) -> Iterator[np.ndarray]:
        """Yields the rows of `image_probs`, (n, W, K) one after the other, from an image in rows.

        The image is read twice, first for its range; one row of tiles is in memory.
        """
        if self.tile is None:
            yield self.image_probs(image, options)
            return
        size, pixels, config = image.shape[:2], options.band_pixels, self.config.data
        image = row_bands.with_channels(image, config)
        chunks = row_bands.row_ranges(*size, pixels)
        range_ = normalize.band_ranges((image.rows(*rows) for rows in chunks), image.shape[-1],
                                       image.dtype, config.normalize, config.percentiles,
                                       each=bool(config.channel_index))
        predict = lambda batch: self._views(batch, np.repeat(range_[None], len(batch), 0), options)
        if self.scale.resizes(options):
            small = row_bands.resized(image, config.size, pixels).rows(0, config.size[0])
            probs = crops.from_grid(predict(crops.to_grid(small, config.grid)))
            for rows in chunks:
                yield self._rescaled(resize.resize_rows(probs, size, rows, len(probs)),
                                     probs.shape, size)
            return
        factor, = self._factors([image], range_[None], options)
        image = row_bands.resized(image, scaled_size(size, factor), pixels)
        # What a network adds beyond an image is 0 after normalisation.
        fill = range_[:, 0].astype(image.dtype) if options.halo else None
        probs = self._rows_of_tiles(predict, image, fill, options.halo)
        for band in row_bands.resized_bands(probs, image.shape[:2], size, pixels):
            yield self._rescaled(band, image.shape, size)

    def _rows_of_tiles(self, predict, image, fill, halo) -> Iterator[np.ndarray]:
        """Bands of the probabilities of an image at the scale that the network sees."""
        tile, lengths, plan = self.tile, image.shape[:2], {"overlap": self.config.eval.overlap}
        if halo:
            align = self.network.stride()
            tile = tuple(round_up(max(side, 4 * halo), align) for side in tile)
            plan = {"halo": halo, "align": align}
            lengths = tuple(round_up(length, align) for length in lengths)
        rows, columns = (tile_blending.spread(length, side, **plan)
                         for length, side in zip(lengths, tile, strict=True))
        padded = row_bands.padded_rows(image, columns[-1][0] + tile[1], fill)
        out = tile_blending.predict_bands(
            predict, padded, rows, columns, batch_size=self.batch_size)
        return row_bands.cropped(out, *image.shape[:2])

    def check(self, options: PredictOptions) -> None:
        """InputError where the run cannot be used in that way."""
        self.scale.check(options)
        if options.halo and (self.scale.resizes(options) or self.tile is None):
            raise InputError("--halo: this run sees an image as a whole, resized; expected tiles, "
                             "pass --scale=1 too" if self.tile else
                             "--halo: a classical method has no tiles; leave it out")
        if options.tta == "all" and self.tile and self.tile[0] != self.tile[1]:
            raise InputError(f"--tta: got all, but tiles are {self.tile[0]}x{self.tile[1]}; "
                             "expected square ones, use --tta=flips")

    def _views(self, batch, ranges, options) -> np.ndarray:
        """(n, h, w, K) mean over the views; where wanted, their variance as one more output."""
        turned = self.target.turned or (lambda maps, view: maps)
        outs = [turned(turns_back(self.network(turns(batch, view), ranges), view), view)
                for view in VIEWS[options.tta]]
        return mean_of(outs, options.uncertain, self.target.num_binary)

    def decode(self, probs, **options) -> np.ndarray:
        """(H, W, K) probabilities -> (H, W) int32 instances (or classes) by the eval options.

        Images that `predict` decodes in blocks are decoded so here: scores are of the same labels.

        `options` replace those of the config, by their keys: threshold, decode, min_size, ...
        """
        size = probs.shape[:2]
        if math.prod(size) > IN_MEMORY_PIXELS:
            bands = (probs[slice(*rows)] for rows in row_bands.row_ranges(*size, IN_MEMORY_PIXELS))
            return self.decode_bands(bands, size, **options).view(np.int32)
        return self.target.decode(self.target.logits(probs),
                                  **derived.decode_options(self.config, **options))

    def decode_bands(self, bands, size, folder=None, **options) -> np.ndarray:
        """The same, uint32, of an image whose probabilities come in bands: see `stitched`.

        Args:
          folder: where the label lies on disk, in a file without a name; None: in memory.
        """
        options = derived.decode_options(self.config, **options)
        decode = lambda probs, **changed: self.target.decode(
            self.target.logits(probs), **options | changed)
        if self.config.data.target != "classes":
            return stitch_labels.stitched(
                bands, size, lambda probs: decode(probs, min_size=0), folder,
                touching=(options.get("method") == "components"
                          and self.config.data.target in ("foreground", "boundary", "signed")),
                min_size=options["min_size"])
        label, row = stitch_labels.zeros(size, folder), 0
        for probs in bands:
            label[row : row + len(probs)] = decode(probs)
            row += len(probs)
        return label

    def counts(self, label, probs) -> metrics.Counts:
        """Of (1, K): Scores.main of one (H, W) label and its (H, W, K) probabilities."""
        target, threshold = self.target, self.config.eval.threshold
        known = annotated(label)
        if self.config.data.target == "classes":
            truth = self.network.spec.encode(label[None])[..., 1:]
            return metrics.pixel_counts(truth, target.mask(probs, threshold)[None, ..., 1:],
                                        known)
        return metrics.pixel_counts(label[None, ..., None] > 0,
                                    target.cell_mask(probs, threshold)[None], known)


def annotated(label: np.ndarray) -> np.ndarray | None:
    """(1, H, W) bool: the annotated pixels of an (H, W) label; None where all are."""
    return None if label.min(initial=0) >= 0 else (label >= 0)[None]
