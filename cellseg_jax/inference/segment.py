"""Prediction of many images: small ones together, large ones in bands, one file per format."""

import collections
import contextlib
import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.data import lazy
from cellseg_jax.data.records import some
from cellseg_jax.data.stacks import ReadOptions, chosen_channels
from cellseg_jax.errors import InputError, print_error
from cellseg_jax.files import write_atomic
from cellseg_jax.inference import coco_out, images_in, outputs, stacks_out, tune
from cellseg_jax.inference.ensemble import Ensemble
from cellseg_jax.inference.image_notes import ImageNotes
from cellseg_jax.inference.options import IN_MEMORY_PIXELS, PredictOptions, check
from cellseg_jax.inference.outputs.table import COLUMNS_FILE, description
from cellseg_jax.inference.outputs.tiff import BandedTiff
from cellseg_jax.inference.predictor import Predictor, run_config
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import TUNING_FILE
from cellseg_jax.step.memory import peak_rss

IRRELEVANT = ("every", "batch_size", "panels")  # keys of config.eval that leave labels as they are
ROWS_EVERY_S = 10.0  # between two lines on the rows of a large image


class Runs(NamedTuple):
    """One run or several, ready to predict."""

    predictor: Any  # Predictor or Ensemble
    options: PredictOptions
    made_by: dict  # what the labels depend on


class Work(NamedTuple):
    """What is to be predicted, and into which files."""

    jobs: list[tuple[pathlib.Path, pathlib.Path]]  # see images_in.find
    out: Any  # the folder
    formats: list[str]  # of outputs.FORMATS
    in_memory_pixels: int = IN_MEMORY_PIXELS
    channels: str = ""  # numbers or names in place of the training's data.channel_index


class Segmented(NamedTuple):
    """What was found in an image that fits memory."""

    label: np.ndarray  # (H, W) int32 instance ids, or classes
    probs: np.ndarray  # (H, W, K)
    variance: np.ndarray | None  # (H, W), where wanted


# --- the runs ------------------------------------------------------------------------------------


def open_runs(workdir: str, overrides, options: PredictOptions, *, checkpoint: str = "best",
              halo: str = "", metric: str = "") -> Runs:
    """The runs that predict together.

    Args:
      workdir: the folder of a run; of several, with commas between.
      overrides: [(config key, text), ...], of eval alone.
      options: without the halo.
      checkpoint: "best" or "last".
      halo: pixels, "auto" or "".
      metric: of tune.METRICS, for which decoding is tuned; "" leaves it as configured.
    Raises: InputError for runs that cannot be used in that way.
    """
    workdirs = [workdir] if pathlib.Path(workdir).exists() else [
        folder for folder in workdir.split(",") if folder.strip()]
    if not workdirs:
        raise InputError(f"--workdir: got {workdir!r}; expected the folder of a trained run")
    if len({pathlib.Path(folder).resolve() for folder in workdirs}) < len(workdirs):
        raise InputError(f"--workdir: got {workdir!r}, with a run twice; expected each once, since "
                         "the mean and the spread over runs are computed")
    check(options, halo, len(workdirs))
    if metric and len(workdirs) > 1:
        raise InputError("--tune: tunes one run; for several pass --config.eval.threshold=... and "
                         "the other values yourself")
    members = [Predictor(folder, run_config(folder, overrides), checkpoint) for folder in workdirs]
    if metric:
        tuning = tune.tune(members[0], metric, fixed=[key for key, _ in overrides])
        terminal.log(tune.sentence(tuning))
        members[0].config = tune.apply(members[0].config, tuning)
    elif len(workdirs) == 1 and (pathlib.Path(workdirs[0]) / TUNING_FILE).exists():
        terminal.log(f"{TUNING_FILE} of the run is not used; pass --tune=METRIC to use it")
    _note_decoding(members)
    return ready(members, options, halo)


def ready(members, options: PredictOptions, halo: str = "") -> Runs:
    """Opened runs, a Predictor each, to be used with these options; see `open_runs`.

    Raises: InputError where they cannot be used in that way.
    """
    check(options, halo, len(members))
    options = options._replace(halo=_halo(halo, members))
    for member in members:
        member.check(options)
    return Runs(members[0] if len(members) == 1 else Ensemble(members), options,
                _made_by(members, options))


def _note_decoding(members) -> None:
    """One line where the runs' configs decode differently: one label needs one way."""
    first, *others = (member.config for member in members)
    for key in derived.decode_keys(first) if others else ():
        its = {one.eval[key] for one in others} - {first.eval[key]}
        if its:
            terminal.log(f"config.eval.{key}: is {first.eval[key]} in the first run, which counts, "
                         f"and {', '.join(map(str, sorted(its)))} in others; pass "
                         f"--config.eval.{key}=... to choose")


def _halo(text: str, members) -> int:
    if text != "auto":
        return int(text or 0)
    halo = max(member.network.reach() for member in members)
    terminal.log(f"--halo=auto: {halo} pixels")
    return halo


def _made_by(members, options: PredictOptions) -> dict:
    """What labels depend on, by the name that a user knows it by."""
    steps = [member.step for member in members]
    identities = [config_lib.identity(member.config) for member in members]
    return {"run": ", ".join(identities), "checkpoint step": steps if len(steps) > 1 else steps[0],
            "--scale": options.scale, "--halo": options.halo, "--tta": options.tta,
            **{f"--{key}": getattr(options, key) for key in ("diameter", "pixel_size")
               if getattr(options, key)},
            **{f"config.eval.{key}": value for key, value in members[0].config.eval.items()
               if key not in IRRELEVANT}}


# --- the images ----------------------------------------------------------------------------------


def segment(runs: Runs, work: Work) -> int:
    """Predict all images that are not finished; returns how many could not be read.

    Raises: InputError where an output cannot be written.
    """
    started = time.monotonic()
    notes = ImageNotes(runs.predictor, runs.options)
    options = read_options(runs.predictor.config, work.channels)
    jobs = images_in.without_channels(work.jobs, options)
    files = [(*job, images_in.planes(*job, options)) for job in jobs]
    planes = [plane for *_, of_file in files for plane in of_file]
    stacks = stacks_out.stacks_of(files, work.formats)
    images_in.check_distinct(planes, stacks)
    planes, errors = images_in.without_long_names(planes, work.formats, work.out)
    bad = len(errors)
    for error in errors:
        print_error(error)
    waiting = [plane for plane in planes if not images_in.is_finished(plane, work.formats)]
    if len(waiting) < len(planes):
        terminal.log(f"{len(planes) - len(waiting)} of {len(planes)} images were finished before")
    images_of = functools.lru_cache(1)(lambda path: lazy.open_images(path, options))
    file_notes = collections.defaultdict(list)

    def open_plane(plane):
        image = images_of(plane.path)[plane.number].calibrated()
        for note in image.notes:
            file_notes[note].append(image.name)
        return image

    try:
        with terminal.counting("predicting") as progress:
            for done, failed in _each(runs, work, waiting, notes, open_plane):
                bad += failed
                progress(done, len(waiting))
        stacks_out.write(stacks, options)
        if "coco" in work.formats:
            coco_out.write(dict.fromkeys(plane.stem.parent for plane in planes))
    except OSError as error:
        raise InputError(f"--out: cannot write {error.filename or work.out}: {error.strerror}; "
                         "the images before it are finished, start again to continue") from error
    notes.log()
    _log_file_notes(file_notes)
    if "csv" in work.formats:
        write_atomic(pathlib.Path(work.out, COLUMNS_FILE), description())
    print(f"images predicted: {len(waiting) - bad + len(errors)}, bad: {bad}, in "
          f"{time.monotonic() - started:.1f} s; peak memory {peak_rss() / 2**30:.2f} GiB")
    return bad


def read_options(config, channels: str) -> ReadOptions:
    """How files become images of these runs.

    Args:
      config: of the runs.
      channels: numbers or names of the channels that take the place of the training's; "": those.
    Raises: InputError where they are not as many as the run takes.
    """
    options = ReadOptions.of(config.data)
    if not channels:
        return options
    options = options._replace(channel_index=channels)
    options.check()
    count = len(chosen_channels(channels))
    index = config.data.channel_index
    wanted = (len(chosen_channels(index)),) if index else (1, 3)
    if count not in wanted:
        raise InputError(f"--channels: got {channels!r}, {count} channels; the run takes "
                         f"{' or '.join(map(str, wanted))}")
    return options


def _log_file_notes(found: dict) -> None:
    """A line for each thing that a user should know of some files."""
    for note, names in found.items():
        terminal.log(f"{some(names)}: {note}")


def _each(runs, work, waiting, notes, opened) -> Iterator[tuple[int, int]]:
    """Yields (images done, how many of the last ones failed); small images go together."""
    done = 0
    for group, error in together(runs, waiting, opened, work.in_memory_pixels):
        try:
            if error:
                raise error
            images, planes = zip(*group, strict=True)
            if is_large(images[0], work.in_memory_pixels):
                segment_in_bands(runs, images[0], planes[0].stem, work.formats, notes)
            else:
                segment_in_memory(runs, group, work.formats, notes)
            done, failed = done + len(group), 0
        except InputError as bad:
            print_error(bad)
            done, failed = done + 1, 1
        yield done, failed


def is_large(image: lazy.Image, in_memory_pixels: int) -> bool:
    """Whether an image comes in bands."""
    return image.shape[0] * image.shape[1] > in_memory_pixels


def together(runs: Runs, items, opened: Callable, in_memory_pixels: int,
             ) -> Iterator[tuple[list[tuple[lazy.Image, Any]], InputError | None]]:
    """Yields ([(image, item), ...], None) of what is predicted at once, or ([], error) of one item.

    A large image comes alone and is not read; the others have their pixels in memory.

    Args:
      items: what `opened` makes a lazy.Image of; it may raise InputError.
      in_memory_pixels: of the images in memory together.
    """
    group, pixels, most = [], 0, runs.predictor.config.eval.batch_size
    for item in items:
        try:
            image = opened(item)
            if is_large(image, in_memory_pixels):
                yield [(image, item)], None
                continue
            image = image.loaded()
        except InputError as error:
            yield [], error
            continue
        group.append((image, item))
        pixels += image.shape[0] * image.shape[1]
        if len(group) >= most or pixels > in_memory_pixels:
            yield group, None
            group, pixels = [], 0
    if group:
        yield group, None


def in_memory(runs: Runs, images: Sequence[lazy.Image]) -> Iterator[Segmented]:
    """Yields what is found in each of some images that are in memory and predicted together."""
    for probs in runs.predictor.probs(images, runs.options):
        probs, variance = parted(probs, runs.options)
        yield Segmented(runs.predictor.decode(probs), probs, variance)


def segment_in_memory(runs: Runs, group, formats, notes) -> None:
    """Predict, decode and write images that are in memory.

    Args:
      group: [(lazy.Image, images_in.Plane), ...].
      notes: ImageNotes.
    """
    for (image, plane), found in zip(group, in_memory(runs, [image for image, _ in group]),
                                     strict=True):
        notes.add(image, found.label)
        for name in formats:
            values = values_of(runs, name, found.probs, found.variance)
            _write(runs, name, plane.stem, found.label, image, values)


def segment_in_bands(runs: Runs, image: lazy.Image, stem: pathlib.Path, formats, notes) -> None:
    """The same of one image that is read, predicted, decoded and written in bands."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * image.shape[0] * image.shape[1], shutil.disk_usage(stem.parent).free
    if needed > free:
        raise InputError(f"{image.path}: its label of {image.shape[1]} x {image.shape[0]} pixels "
                         f"needs {needed / 2**20:,.0f} MiB in {stem.parent}, where "
                         f"{free / 2**20:,.0f} MiB are free")
    in_bands = [name for name in formats if name in ("probability", "uncertainty")]
    label = label_in_bands(runs, image, stem, in_bands)
    notes.add(image, label)
    for name in formats:
        if name not in in_bands:
            _write(runs, name, stem, label, image)


def label_in_bands(runs: Runs, image: lazy.Image, stem: pathlib.Path, formats=()) -> np.memmap:
    """The label of one image in bands, in a file without a name that lies in the folder of `stem`.

    Args:
      stem: path of the outputs without suffix.
      formats: probability, uncertainty: files that are written as the bands pass.
    """
    with contextlib.ExitStack() as stack:
        bands = _written(runs, image, stem, formats, stack)
        label = runs.predictor.decode_bands(bands, image.shape[:2], stem.parent)
        for _ in bands:  # rows that only the last pixels of the margins reach
            pass
    return label


def _written(runs, image, stem, formats, stack) -> Iterator[np.ndarray]:
    """Yields bands of probabilities; those of `formats` are written as they pass.

    Args:
      stack: contextlib.ExitStack that closes the files.
    """
    writers, row, logged = {}, 0, 0.0
    for band in runs.predictor.bands(image, runs.options):
        probs, variance = parted(band, runs.options)
        for name in formats:
            values = values_of(runs, name, probs, variance)
            if name not in writers:
                writers[name] = stack.enter_context(BandedTiff(
                    outputs.output_path(name, stem), (*image.shape[:2], *values.shape[2:]),
                    np.float32, image.pixel_size))
            writers[name].write_rows(values)
        yield probs
        row += len(band)
        if row == image.shape[0] or time.monotonic() - logged > ROWS_EVERY_S:
            logged = time.monotonic()
            terminal.log(f"{image.name}: row {row} of {image.shape[0]}")


def parted(probs, options: PredictOptions):
    """(probabilities, variance or None)."""
    return (probs[..., :-1], probs[..., -1]) if options.uncertain else (probs, None)


def values_of(runs, name, probs, variance):
    """What a format holds: the standard deviation, or the outputs that are probabilities."""
    if name == "uncertainty":
        return np.sqrt(variance)
    return probs[..., : runs.predictor.target.num_binary]


def _write(runs, name, stem, label, image, probability=None) -> None:
    outputs.write(name, stem, label, image, probability=probability,
                  classes=derived.class_names(runs.predictor.config))
