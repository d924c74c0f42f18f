"""Prediction of many images: small ones together, large ones in bands, one file per format."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.data import lazy
from cellseg_jax.errors import InputError, check_choice, print_error
from cellseg_jax.inference import images_in, outputs, stitch_labels, tune
from cellseg_jax.inference.ensemble import Ensemble
from cellseg_jax.inference.outputs.tiff import BandedTiff
from cellseg_jax.inference.predictor import Predictor, run_config
from cellseg_jax.inference.row_bands import VIEWS, PredictOptions
from cellseg_jax.inference.scale_notes import ScaleNotes
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
    in_memory_pixels: int  # of the images in memory together; larger ones come in bands


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
    workdirs = [workdir] if pathlib.Path(workdir).exists() else workdir.split(",")
    check_choice(options.tta, VIEWS, "--tta")
    if options.uncertain and len(workdirs) == 1 and not options.tta:
        raise InputError("--format=uncertainty: a single prediction has no spread; pass several "
                         "runs (--workdir=a,b,c), or --tta=flips")
    if metric and len(workdirs) > 1:
        raise InputError("--tune: tunes one run; for several pass --config.eval.threshold=... and "
                         "the other values yourself")
    members = [Predictor(folder, run_config(folder, overrides), checkpoint) for folder in workdirs]
    if metric:
        tuning = tune.tune(members[0], metric, fixed=[key for key, _ in overrides])
        terminal.log(tune.sentence(tuning))
        members[0].config = tune.apply(members[0].config, tuning)
    elif len(workdirs) == 1 and (pathlib.Path(workdir) / TUNING_FILE).exists():
        terminal.log(f"{TUNING_FILE} of the run is not used; pass --tune=METRIC to use it")
    options = options._replace(halo=_halo(halo, members))
    for member in members:
        member.check(options)
    return Runs(members[0] if len(members) == 1 else Ensemble(members), options,
                _made_by(members, options))


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
    started, bad = time.monotonic(), 0
    notes = ScaleNotes(runs.predictor, runs.options)
    pages = runs.predictor.config.data.get("pages", "")
    planes = [plane for job in work.jobs for plane in images_in.planes(*job, pages)]
    waiting = [plane for plane in planes if not images_in.is_finished(plane, work.formats)]
    if len(waiting) < len(planes):
        terminal.log(f"{len(planes) - len(waiting)} of {len(planes)} images were finished before")
    try:
        with terminal.counting("predicting") as progress:
            for done, failed in _each(runs, work, waiting, notes):
                bad += failed
                progress(done, len(waiting))
    except OSError as error:
        raise InputError(f"--out: cannot write {error.filename or work.out}: {error.strerror}; "
                         "the images before it are finished, start again to continue") from error
    notes.log()
    print(f"images predicted: {len(waiting) - bad}, bad: {bad}, in "
          f"{time.monotonic() - started:.1f} s; peak memory {peak_rss() / 2**30:.2f} GiB")
    return bad


def _each(runs, work, waiting, notes) -> Iterator[tuple[int, int]]:
    """Yields (images done, how many of the last ones failed); small images go together."""
    pages = runs.predictor.config.data.get("pages", "")
    opened = functools.lru_cache(1)(lambda path: lazy.open_images(path, pages))
    largest = runs.predictor.config.eval.batch_size
    group, pixels, done = [], 0, 0
    for number, plane in enumerate(waiting, 1):
        failed = 0
        try:
            image = opened(plane.path)[plane.number]
            area = image.shape[0] * image.shape[1]
            if area > work.in_memory_pixels:
                segment_in_bands(runs, image, plane.stem, work.formats, notes)
                done += 1
            else:
                image = lazy.from_array(image.read(), image.name, image.pixel_size)
                group.append((image, plane.stem))
                pixels += area
        except InputError as error:
            print_error(error)
            done, failed = done + 1, 1
        full = len(group) >= largest or pixels > work.in_memory_pixels
        if group and (full or number == len(waiting)):
            segment_in_memory(runs, group, work.formats, notes)
            done, group, pixels = done + len(group), [], 0
        yield done, failed


def segment_in_memory(runs: Runs, group, formats, notes) -> None:
    """Predict, decode and write images that are in memory.

    Args:
      group: [(lazy.Image, output path without suffix), ...].
      notes: ScaleNotes.
    """
    all_probs = runs.predictor.probs([image for image, _ in group], runs.options)
    for (image, stem), probs in zip(group, all_probs, strict=True):
        probs, variance = _parted(probs, runs.options)
        label = runs.predictor.decode(probs)
        notes.add(image, label)
        for name in formats:
            values = _values(runs, name, probs, variance)
            _write(runs, name, stem, label, image, values)


def segment_in_bands(runs: Runs, image: lazy.Image, stem: pathlib.Path, formats, notes) -> None:
    """The same of one image that is read, predicted, decoded and written in bands."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    in_bands = [name for name in formats if name in ("probability", "uncertainty")]
    with contextlib.ExitStack() as stack:
        bands = _written(runs, image, stem, in_bands, stack)
        label = _decoded(runs.predictor, bands, image.shape[:2], stem.parent)
        for _ in bands:  # rows that only the last pixels of the margins reach
            pass
    notes.add(image, label)
    for name in formats:
        if name not in in_bands:
            _write(runs, name, stem, label, image)


def _decoded(run, bands, size, folder) -> np.memmap:
    """The label of an image, in a file without a name, from probabilities in bands."""
    config = run.config
    if config.data.target != "classes":
        return stitch_labels.stitched(
            bands, size, lambda probs: run.decode(probs, min_size=0), folder,
            touching=(config.eval.decode == "components"
                      and config.data.target in ("foreground", "boundary")),
            min_size=config.eval.min_size)
    label, row = stitch_labels.on_disk(size, folder), 0
    for probs in bands:
        label[row : row + len(probs)] = run.decode(probs)
        row += len(probs)
    return label


def _written(runs, image, stem, formats, stack) -> Iterator[np.ndarray]:
    """Yields bands of probabilities; those of `formats` are written as they pass.

    Args:
      stack: contextlib.ExitStack that closes the files.
    """
    writers, row, logged = {}, 0, 0.0
    for band in runs.predictor.bands(image, runs.options):
        probs, variance = _parted(band, runs.options)
        for name in formats:
            values = _values(runs, name, probs, variance)
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


def _parted(probs, options: PredictOptions):
    """(probabilities, variance or None)."""
    return (probs[..., :-1], probs[..., -1]) if options.uncertain else (probs, None)


def _values(runs, name, probs, variance):
    """What a format holds: the standard deviation, or the outputs that are probabilities."""
    if name == "uncertainty":
        return np.sqrt(variance)
    return probs[..., : runs.predictor.target.num_binary]


def _write(runs, name, stem, label, image, probability=None) -> None:
    data = runs.predictor.config.data
    classes = tuple(f"class {n}" for n in range(1, data.num_classes))
    outputs.write(name, stem, label, image, probability=probability,
                  classes=classes if data.target == "classes" else ())
