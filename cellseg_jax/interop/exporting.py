"""Export of a trained run: the program, proof that it computes the same, and what describes it."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data, targets
from cellseg_jax.config import derived
from cellseg_jax.crops import mirrored
from cellseg_jax.data.stacks import chosen_channels
from cellseg_jax.errors import InputError
from cellseg_jax.files import naming, owner, remove_leftovers
from cellseg_jax.inference import tune
from cellseg_jax.inference.predictor import Predictor, run_config
from cellseg_jax.interop import bioimageio, onnx, stablehlo
from cellseg_jax.interop.onnx_graph import OPSET
from cellseg_jax.interop.stablehlo import Program
from cellseg_jax.interop.usage_example import usage
from cellseg_jax.normalize import normalize, range_of
from cellseg_jax.runs import provenance
from cellseg_jax.runs.folder import read_config

LIMIT = 1e-4  # on the largest difference of a probability
IMAGES = 16  # that it is taken over
NO_DATA = f"{IMAGES} images of noise, since the run's data is not at hand"
PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime"),
            "bioimageio": ("onnx", "onnxruntime")}
ABOUT = "export.json"
CHANNEL_NAMES = {"gray": ("intensity",), "rgb": ("red", "green", "blue"),
                 "rgba": ("red", "green", "blue", "alpha")}
FORMULA = "(image - low) / (high - low), not clipped; 0 where high <= low"


class CannotExport(Exception):
    """The network has no form in the format, or the exported program differs from the run."""


class ExportOptions(NamedTuple):
    """What is written, and where."""

    format: str  # of PACKAGES
    out: Any  # the folder
    tile: tuple[int, int] | None = None  # (H, W) where sizes are fixed; None: the run's input size
    authors: tuple[str, ...] = ()  # of a bioimage.io package
    license: str = "CC-BY-4.0"  # SPDX name, of a bioimage.io package


class ExportedRun(NamedTuple):
    """A trained run and the images that its export is compared on."""

    config: Any
    predictor: Predictor  # in float32
    tile: tuple[int, int]
    images: np.ndarray  # (n, H, W, C) uint8 or uint16 of the size of a tile
    ranges: np.ndarray  # (n, C, 2)
    source: str  # where the images are from


def export(run: ExportedRun, options: ExportOptions) -> dict:
    """Write the export, all of it or nothing; returns export.json.

    Raises: CannotExport, and nothing is written.
    """
    # Of "." the name would be empty, and the new export would lie in the old one.
    out, form = pathlib.Path(os.path.abspath(options.out)), options.format
    with naming(out):
        return _export(run, options, out, form)


def _export(run, options, out, form) -> dict:
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers([out.parent])
    partial = out.parent / f".{out.name}.{owner()}.tmp"
    partial.mkdir()
    try:
        program = program_of(run, form)
        difference = largest_difference(run, runtime(form, program.data), form)
        if not difference <= LIMIT:
            raise CannotExport(f"the exported program differs from the run by {difference:.1e} on "
                               f"{IMAGES} images, {LIMIT:.0e} is allowed; nothing is written")
        about = describe(run, form, program, difference)
        if form == "bioimageio":
            about["notes"] += bioimageio.write_package(partial, run, program, about, options)
        else:
            (partial / f"model.{form}").write_bytes(program.data)
            if run.config.data.grid == 1:
                (partial / "usage.py").write_text(usage(about, run.config))
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except NotImplementedError as error:
        raise CannotExport(f"{run.config.model.name} has no such form: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return about


# --- the run -------------------------------------------------------------------------------------


def open_run(workdir, overrides, checkpoint: str, options: ExportOptions) -> ExportedRun:
    """The run that is to be exported.

    Args:
      overrides: (config key, text), of eval.* alone.
      checkpoint: "best" or "last".
    Raises: InputError for a run that cannot be exported, and for missing packages.
    """
    config = read_config(workdir)
    if derived.is_classical(config):
        raise InputError(f"--workdir: {config.model.name} is a classical method, which has no "
                         "network to export; call cellseg_jax.classical, or export a trained run")
    config = run_config(workdir, overrides)
    check_installed(options.format, PACKAGES[options.format])
    exact = config_lib.override(config, [("train.precision", "float32")])
    tile = options.tile or derived.input_size(config)
    predictor = Predictor(workdir, exact, checkpoint)
    dtype = np.dtype(predictor.contrast.dtype) if predictor.contrast else None
    images, ranges, source = comparison_images(config, tile, dtype or np.dtype(np.uint8))
    if (options.format == "bioimageio" and not dtype and source == NO_DATA
            and not range_of(config.data.normalize, config.data.percentiles).percentiles):
        raise InputError(f"--format=bioimageio: {workdir} has not kept whether its images are 8 or "
                         f"16 bit, by which data.normalize={config.data.normalize!r} divides; "
                         "expected the images of config.data.root, or --format=onnx")
    return ExportedRun(config, predictor, tile, images, ranges, source)


def check_installed(form: str, packages) -> None:
    """InputError for the first package that cannot be imported."""
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise InputError(f"--format={form}: needs {package}; "
                             "install cellseg_jax[export]") from None


def check_folder(out) -> None:
    """InputError for a folder that holds something else than an export."""
    out = pathlib.Path(out)
    if out.exists() and not (out / ABOUT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} holds something else than an export; choose another "
                         "folder or delete it")


def parse_tile(text: str) -> tuple[int, int]:
    """(height, width) of "H,W"; InputError for anything else."""
    try:
        height, width = map(int, text.strip("()").split(","))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"--tile: got {text!r}; expected height and width in pixels, as 256,256")
    return height, width


def comparison_images(config, tile, dtype=np.uint8) -> tuple[np.ndarray, np.ndarray, str]:
    """IMAGES images of the size of a tile, their ranges, and where they are from.

    Of the validation split, else of test or training; noise where they do not suffice.

    Args:
      dtype: of the noise where the run's data is not at hand, that of its training images: a
        package divides by its largest value.
    """
    top = np.iinfo(dtype).max
    noise = np.random.default_rng(0).integers(0, top + 1, (IMAGES, *tile, derived.channels(config)))
    images = noise.astype(dtype)
    ranges = np.full((IMAGES, images.shape[-1], 2), (0, top), np.float32)
    try:
        arrays = data.load(config.data)
    except InputError:
        return images, ranges, NO_DATA
    parts = data.split_of(config.data, arrays)
    split = next(name for name in ("val", "test", "train") if len(parts[name]))
    chosen = parts[split]
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, IMAGES).astype(int))]
    y, x = (mirrored(np.arange(n), length)
            for n, length in zip(tile, arrays.image.shape[1:3], strict=True))
    images = images.astype(arrays.image.dtype)
    images[: len(chosen)] = arrays.image[chosen][:, y[:, None], x]
    ranges[: len(chosen)] = arrays.tables[config.data.normalize][chosen // arrays.grid**2]
    noise = f" and {IMAGES - len(chosen)} of noise" * (len(chosen) < IMAGES)
    return images, ranges, f"{len(chosen)} images of the {split} split{noise}"


# --- the program ---------------------------------------------------------------------------------


def program_of(run: ExportedRun, form: str) -> Program:
    """The run as a program: image to probabilities in the layout of the format.

    Raises: NotImplementedError where the network has no such form.
    """
    module = run.predictor.network.spec.module({})
    variables = jax.device_get(run.predictor.network.variables)
    to_probs = targets.TARGETS[run.config.data.target].probs

    def channels_last(image):
        return to_probs(module.apply(variables, image, train=False))

    def channels_first(image):
        return channels_last(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    channels = run.images.shape[-1]
    if form == "stablehlo":
        return stablehlo.to_stablehlo(channels_last, (1, *run.tile, channels))
    return onnx.to_onnx(channels_first, (1, channels, *run.tile), names=("image", "probabilities"))


def runtime(form: str, program: bytes) -> Callable:
    """The exported program, run by its own runtime, with its own layout."""
    if form == "stablehlo":
        return jax.jit(jax.export.deserialize(bytearray(program)).call)
    import onnxruntime  # of the extra `export`

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def largest_difference(run: ExportedRun, compute: Callable, form: str) -> float:
    """The largest difference of a probability between program and run; nan where one is."""
    wanted = run.predictor.network(run.images, run.ranges)
    images = normalize(run.images, run.ranges, np.dtype(np.float32))
    found = []
    for image in images:
        if form == "stablehlo":
            found.append(np.asarray(compute(image[None]))[0])
        else:
            found.append(np.moveaxis(compute(np.moveaxis(image, -1, 0)[None])[0], 0, -1))
    return float(np.abs(np.stack(found) - wanted).max())


# --- its description -----------------------------------------------------------------------------


def describe(run: ExportedRun, form: str, program: Program, difference: float) -> dict:
    """export.json: what goes in, what comes out, what made it."""
    config, first = run.config, form != "stablehlo"
    # A least size that follows from the training cells is known to the predictor.
    eval_options = config_lib.as_json(run.predictor.config.eval)
    axes = "NCHW" if first else "NHWC"
    return {
        "format": form,
        "input": {
            "dtype": "float32", "axes": axes, "shape": program.shape,
            "channels": channel_names(config),
            "normalization": normalization_of(config),
            "size": size_text(config),
        },
        "output": {
            "dtype": "float32", "axes": axes,
            "channels": derived.output_names(config.data), "target": config.data.target,
            "meaning": _meaning(config),
        },
        "decode": {key: eval_options[key] for key in derived.decode_keys(config)},
        **_tuned(run),
        **({"opset": OPSET} if first else {"platforms": stablehlo.PLATFORMS}),
        "parity": {"largest_difference": difference, "allowed": LIMIT, "images": run.source},
        "run": {
            "identity": config_lib.identity(read_config(run.predictor.workdir)),
            "model": config.model.to_dict(), "data": config.data.name,
            "checkpoint_step": int(run.predictor.step), "commit": provenance.commit(),
        },
        "notes": _fixed_sizes(config.model.name, program.shape, first),
    }


def channel_names(config) -> tuple[str, ...]:
    """Of the input: those that were chosen, or colours."""
    return chosen_channels(config.data.channel_index) or CHANNEL_NAMES[config.data.channels]


def normalization_of(config) -> dict:
    """How an image is normalised, in words."""
    range_ = range_of(config.data.normalize, config.data.percentiles)
    about = {"name": config.data.normalize, "formula": FORMULA, "low and high": range_.words}
    if config.data.channel_index:
        about["low and high"] += "; here each channel has its own"
    elif config.data.channels == "rgba" and range_.alpha_apart:
        about["alpha"] = "its low and high are 0 and the largest value of the integer type"
    return about


def _fixed_sizes(model: str, shape, first: bool) -> list[str]:
    """A note for each size that should be open and is not."""
    notes = []
    height, width = shape[2:] if first else shape[1:3]
    if isinstance(shape[0], int):
        notes.append(f"{model} cannot be exported with an open batch: one image a call")
    if not first and isinstance(height, int):
        notes.append(f"{model} cannot be exported with open sizes: {height} x {width} "
                     "pixels (--tile chooses others)")
    return notes


def _tuned(run: ExportedRun) -> dict:
    """The decode options that predict --tune found for this checkpoint, if it did."""
    found = tune.found(run.predictor)
    return {"decode_tuned": {key.removeprefix("eval."): value
                             for key, value in found["options"].items()}} if found else {}


def _meaning(config) -> str:
    """What the outputs are, in words."""
    probabilities = "a probability in [0, 1] per pixel and channel, each a sigmoid of its own"
    count = derived.num_probabilities(config)
    if count == derived.num_outputs(config):
        return probabilities
    return f"the first {count}: {probabilities}; the others are what their names say"


def size_text(config) -> str:
    """How an image of any size becomes input of the network, in words."""
    height, width = config.data.size
    if config.data.fit == "resize":
        text = (f"the whole image is resized to {height} x {width} pixels, bilinearly between "
                "pixel centres, without anti-aliasing; probabilities are resized back")
        cells = config.data.grid
        return text + (f"; the network sees {cells} x {cells} patches of it" if cells > 1 else "")
    before = "the image stays at its own scale"
    if config.data.diameter:
        before = ("the image is first rescaled so that its median cell has a diameter of "
                  f"{config.data.diameter:g} pixels")
    if config.data.pixel_size:
        before = f"the image is first rescaled to pixels of {config.data.pixel_size:g} um"
    return (f"{before}; images larger than the input go through in tiles "
            f"that overlap by {config.eval.overlap:g} of their size")
