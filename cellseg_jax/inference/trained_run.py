"""A trained run in Python: arrays in, labels out, by the code of the command `predict`.

    run = cellseg_jax.load("runs/NAME")
    label = run.predict(image)                 # (H, W) or (H, W, C) pixels -> (H, W) ids
    labels = run.predict([one, two])           # several, of any sizes, in batches
    table = run.measure(label, image)          # {column: values}, as the command's CSV

The pixels of an array count as those of a TIFF that holds them: the labels are bit for bit those
that `predict` writes for these files, where it gets the same images together.
"""

import contextlib
import copy
import math
import numbers
import pathlib
import re
import tempfile
from collections.abc import Iterator

import numpy as np

from cellseg_jax import cli
from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.data import lazy
from cellseg_jax.data.stacks import chosen_channels
from cellseg_jax.errors import InputError, check_choice
from cellseg_jax.files import read_json
from cellseg_jax.inference import segment
from cellseg_jax.inference.image_notes import ImageNotes
from cellseg_jax.inference.options import AS_TRAINED, GIVEN, IN_MEMORY_PIXELS, PredictOptions
from cellseg_jax.inference.outputs import table
from cellseg_jax.inference.outputs.files import objects
from cellseg_jax.inference.predictor import check_read
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import scores_file


def load(workdir, *, checkpoint: str = "best", tune: str = "") -> "TrainedRun":
    """A trained run, ready to segment images.

    Args:
      workdir: the folder of a run, or a list of several, which predict together.
      checkpoint: "best" or "last".
      tune: ap50 | pq | seg ...: decode with the options that score best on the validation images
        of the run, found once and kept in its tuning.json.
    Raises: InputError where there is no such run.
    """
    workdirs = [workdir] if isinstance(workdir, (str, pathlib.Path)) else list(workdir)
    with python_words():
        check_choice(checkpoint, cli.CHECKPOINTS, "--checkpoint")
        runs = segment.open_runs(",".join(map(str, workdirs)), (), AS_TRAINED,
                                 checkpoint=checkpoint, metric=tune)
    return TrainedRun(runs)


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """InputErrors name options as Python has them: diameter, where the command has --diameter."""
    try:
        yield
    except InputError as error:
        raise InputError(without_dashes(str(error))) from error


def without_dashes(text: str) -> str:
    """The text with options as Python has them, diameter for --diameter; commands stay."""
    text, command, rest = text.partition("python -m")
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", text) + command + rest


class TrainedRun:
    """One run or several, ready to segment arrays; made by `load`.

    Attributes:
      config: of the run, of the first of several.
      workdir: its folder.
      in_memory_pixels: of images that are predicted together; a larger image comes in bands, so
        that only its label need fit memory.
      notes: what a user should know of the last predicted images, such as cells of another size
        than the training's; a line each, which are printed too.
    """

    def __init__(self, runs: segment.Runs):
        self._members = getattr(runs.predictor, "members", [runs.predictor])
        self.in_memory_pixels = IN_MEMORY_PIXELS
        self.notes: list[str] = []

    @property
    def config(self):
        """The config, with the options of decoding in its section eval."""
        return self._members[0].config

    @property
    def workdir(self) -> pathlib.Path:
        """The folder of the run, of the first of several."""
        return self._members[0].workdir

    @property
    def scores(self) -> dict:
        """{name: score} of the test images at their original size, from eval/test.json.

        Empty where none were taken.
        """
        return read_json(scores_file(self.workdir), {}).get("metrics_original_size", {})

    def predict(self, images, **options):
        """The label of an image, or of each of a list of images.

        Args:
          images: (H, W) or (H, W, C) integers or floats, of any size, with the channels of the
            training's files, or those alone that the run chose of them; or a list of them.
          options: scale, diameter, pixel_size, halo, tta, channels as the flags of `predict`; and
            the keys of config.eval, such as threshold=0.4 or min_size=20.
        Returns: (H, W) int32, instance ids or, of a run of classes, classes; 0 is background. A
          list of them for a list.
        Raises: InputError for an image or option that cannot be used.
        """
        return self._each("tiff", images, options)

    def probabilities(self, images, **options):
        """(H, W, K) float32 of an image, or a list: the outputs that are probabilities.

        Arguments as those of `predict`. All of a large image's are in memory.
        """
        return self._each("probability", images, options)

    def uncertainty(self, images, **options):
        """(H, W) float32 of an image, or a list: how the probability varies.

        The standard deviation over the runs and views: several runs or tta="flips" is needed.
        """
        return self._each("uncertainty", images, options | {"uncertain": True})

    def measure(
        self, label, image=None, *, pixel_size: float = 0.0, channels=""
    ) -> dict[str, list]:
        """Measurements of the objects of a label: the columns of `predict --format=csv`.

        Args:
          label: (H, W) integers, of `predict`.
          image: (H, W) or (H, W, C) pixels as for `predict`, for the mean intensities; None leaves
            them out.
          pixel_size: micrometres of a pixel, for columns in micrometres; 0 leaves them out.
          channels: as the flag of `predict`.
        Returns: {column: values}, one value per object; pandas.DataFrame takes it.
        """
        label, classes = np.asarray(label), derived.class_names(self.config)
        if label.ndim != 2:
            raise InputError(f"label: got shape {label.shape}; expected (H, W)")
        if label.dtype.kind not in "bui":
            raise InputError(f"label: got {label.dtype}; expected integers")
        label = label.astype(np.uint8) if label.dtype == bool else label
        most = len(classes) if classes else np.iinfo(np.int64).max
        if label.min(initial=0) < 0 or label.max(initial=0) > most:
            expected = f"classes, 0 to {most}" if classes else "ids, from 0"
            raise InputError(f"label: got numbers from {label.min()} to {label.max()}; expected "
                             f"{expected}")
        if not (isinstance(pixel_size, numbers.Real) and 0 <= pixel_size < math.inf):
            raise InputError(f"pixel_size: got {pixel_size!r}; expected micrometres, or 0")
        pixels = np.zeros((*label.shape, 0))
        if image is not None:
            with python_words():
                index = segment.read_options(self.config, str(channels)).channel_index
            image = chosen(as_image(image), index)
            pixels = table.intensities(image, 0, image.shape[0])
        if pixels.shape[:2] != label.shape:
            raise InputError(f"label: got shape {label.shape}; expected that of its image, "
                             f"{pixels.shape[:2]}")
        size = (pixel_size, pixel_size) if pixel_size else None
        label, class_of = objects(label, classes)
        return table.columns_of(label, pixels, class_of, classes, pixel_size=size)

    def _each(self, wanted: str, images, options):
        """What the format `wanted` of outputs.FORMATS holds of each image, in their order."""
        several, out, options = isinstance(images, (list, tuple)), {}, dict(options)
        numbered = list(enumerate(images if several else [images]))
        name = "image {}" if several else "image"
        with python_words():
            channels = str(options.pop("channels", ""))
            runs = self._runs(**options)
            index = segment.read_options(self.config, channels).channel_index
            notes = ImageNotes(runs.predictor, runs.options)
            for group, error in segment.together(runs, numbered, lambda item: chosen(
                    as_image(item[1], name.format(item[0])), index), self.in_memory_pixels):
                if error:
                    raise error
                pictures, items = zip(*group, strict=True)
                large = segment.is_large(pictures[0], self.in_memory_pixels)
                found = (_of_large if large else _found)(runs, pictures, wanted)
                for (n, _), picture, values in zip(items, pictures, found, strict=True):
                    out[n] = values
                    if wanted == "tiff":
                        notes.add(picture, values)
            self.notes = [without_dashes(line) for line in notes.lines()]
        for line in self.notes:
            terminal.log(line)
        return [out[n] for n, _ in numbered] if several else out[0]

    def _runs(self, *, halo="", uncertain=False, **options) -> segment.Runs:
        """The runs with these options; the others are keys of config.eval."""
        given = {key: options.pop(key) for key in GIVEN if key in options}
        known = [*GIVEN, "channels", *(key for key in self.config.eval)]
        for key in options:
            check_choice(key, known, "option")
        changes = {f"eval.{key}": value for key, value in options.items()}
        members = [copy.copy(member) for member in self._members]
        for member in members:
            if changes:
                check_read(member.config, options)
                member.config = member.sized(config_lib.changed(member.config, changes))
        return segment.ready(members, PredictOptions(uncertain=uncertain, **given), str(halo or ""))


def as_image(pixels, name: str = "image") -> lazy.Image:
    """An array as an image file that holds its pixels would be read.

    Args:
      pixels: (H, W) or (H, W, C).
    Raises: InputError where it is no image.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or not pixels.size:
        hint = "; several images are a list" if pixels.ndim > 3 else ""
        raise InputError(f"{name}: got shape {pixels.shape}; expected (H, W) or (H, W, C){hint}")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] > 4 and pixels.shape[-1] >= min(pixels.shape[:2]):
        raise InputError(f"{name}: got shape {pixels.shape}; expected (H, W) or (H, W, C); "
                         "channels first? Pass np.moveaxis(image, 0, -1). A stack? Pass "
                         "list(stack)")
    return lazy.of_pixels(pixels, name)


def chosen(image: lazy.Image, channel_index: str) -> lazy.Image:
    """The channels of an array that a run takes, by numbers as of a file with these channels.

    Args:
      channel_index: of config.data. An array that has just as many channels as it names, and not
        all of its numbers, holds what was chosen already.
    Raises: InputError for another number of channels.
    """
    names, count = chosen_channels(channel_index), image.shape[2]
    if names and all(name.isdecimal() and int(name) < count for name in names):
        numbers = [int(name) for name in names]
        return image._replace(shape=(*image.shape[:2], len(numbers)), alpha=False,
                              rows=lambda start, stop: image.rows(start, stop)[..., numbers])
    if names and count != len(names):
        raise InputError(f"{image.name}: got {count} channels; expected {len(names)}, which are "
                         f"{channel_index} of the training's files")
    return image


def _found(runs: segment.Runs, images, wanted: str) -> Iterator[np.ndarray]:
    """Yields what the format `wanted` holds of images in memory."""
    if wanted == "tiff":
        yield from (found.label for found in segment.in_memory(runs, images))
        return
    for probs in runs.predictor.probs(images, runs.options):
        yield segment.values_of(runs, wanted, *segment.parted(probs, runs.options))


def _of_large(runs: segment.Runs, images, wanted: str) -> Iterator[np.ndarray]:
    """The same of the one large image."""
    if wanted == "tiff":
        beside = pathlib.Path(tempfile.gettempdir(), "label")
        yield np.array(segment.label_in_bands(runs, images[0], beside), np.int32)
        return
    yield np.concatenate([segment.values_of(runs, wanted, *segment.parted(band, runs.options))
                          for band in runs.predictor.bands(images[0], runs.options)])
