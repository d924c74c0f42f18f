"""Write a trained run as a file that runs elsewhere, once it is shown to compute the same.

    python -m cellseg_jax.export --workdir=runs/NAME --format=stablehlo|onnx|bioimageio
        [--out=DIR] [--checkpoint=best|last] [--tile=H,W] [--author='NAME; NAME']
        [--license=CC-BY-4.0] [--config.eval.threshold=0.5 ...]

What is exported maps a normalised float32 image to probabilities, in float32 whatever the run
trained in. Beside it, export.json says how to make the one and read the other.

  stablehlo    model.stablehlo for CPU, CUDA and TPU: JAX alone runs it. (N, H, W, C), where N,
               and H and W as far as the network allows, are open.
  onnx         model.onnx, opset 17, (N, C, H, W) with H and W those of --tile.
  bioimageio   a package for bioimage.io: the ONNX weights, normalisation included where its
               format can say it, tensors to test with, a sample, a cover, documentation.

The exported program must agree with the run on 16 images to 1e-4, else nothing is written.
--tile is the run's own input size unless given. --out is RUN/export/FORMAT unless given; an
earlier export there is replaced. Needs `pip install cellseg_jax[export]`. Exit codes: 0 done,
1 the program cannot be exported or differs, 2 bad input.
"""

import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags

from cellseg_jax.cli import run_command
from cellseg_jax.errors import InputError, pick, print_error

LIMIT = 1e-4  # on the largest difference of a probability
IMAGES = 16  # that it is taken over
PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime"),
            "bioimageio": ("onnx", "onnxruntime")}
CHECKPOINTS = {"best": "best", "last": "last"}
CHANNEL_NAMES = {"gray": ("intensity",), "rgb": ("red", "green", "blue"),
                 "rgba": ("red", "green", "blue", "alpha")}
OUTPUT_NAMES = {"foreground": ("cell",), "boundary": ("cell",),
                "contour": ("background", "nucleus", "contour")}
# What low and high of the normalisation are: in words, in Python, in percentiles for bioimage.io.
RANGES = {
    "minmax": ("the smallest and the largest value of the whole image, over its colour channels",
               "colour.min(), colour.max()", (0.0, 100.0)),
    "minmax_joint": ("the smallest and the largest value of the whole image, over all channels",
                     "image.min(), image.max()", (0.0, 100.0)),
    "percentile": ("percentiles 1 and 99.8 of the whole image, over its colour channels",
                   "np.percentile(colour, (1, 99.8))", (1.0, 99.8)),
    "dtype": ("0 and the largest value that the image's integer type can hold",
              "0, np.iinfo(image.dtype).max", None),
}
FORMULA = "(image - low) / (high - low), not clipped; 0 where high <= low"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    text = lambda name, default, help_: flags.DEFINE_string(name, default, help_,
                                                            flag_values=values)
    text("workdir", "", "the folder of a trained run")
    text("format", "", " | ".join(PACKAGES))
    text("out", "", "the folder to write; default RUN/export/FORMAT")
    text("checkpoint", "best", "best | last")
    text("tile", "", "H,W in pixels, where sizes are fixed; default the run's input size")
    text("author", "", "with bioimageio: who made the model, separated by ';'")
    text("license", "CC-BY-4.0", "with bioimageio: SPDX name of the licence of the weights")


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One export; returns the exit code."""
    needed = pick(PACKAGES, args.format, "--format")
    pick(CHECKPOINTS, args.checkpoint, "--checkpoint")
    if not args.workdir:
        raise InputError("--workdir: missing; pass --workdir=DIR")
    if args.config:
        raise InputError("--config: a trained run brings its own; pass --workdir alone")
    for package in needed:
        try:
            __import__(package)
        except ImportError:
            raise InputError(f"--format={args.format}: needs {package}; "
                             "install cellseg_jax[export]") from None
    out = pathlib.Path(args.out or pathlib.Path(args.workdir, "export", args.format))
    if out.exists() and not (out / "export.json").is_file() and (
            not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} holds something else than an export; choose another "
                         "folder or delete it")
    run = _open(args, overrides)

    from cellseg_jax.report import terminal

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        program = _program(run, args.format)
        compute = _runner(args.format, program.data)
        difference = _difference(run, compute, args.format)
        if not difference <= LIMIT:
            print_error(f"--format={args.format}: the exported program differs from the run by "
                 f"{difference:.1e} on {IMAGES} images, {LIMIT:.0e} is allowed; nothing is written")
            return 1
        about = describe(run, args.format, program, difference)
        write = _write_bioimageio if args.format == "bioimageio" else _write_program
        write(partial, run, program, about, args)
        (partial / "export.json").write_text(json.dumps(about, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        partial.chmod(0o755)  # mkdtemp's is for its owner alone
        partial.rename(out)
    except NotImplementedError as error:
        print_error(f"--format={args.format}: {run.config.model.name} has no such form: {error}")
        return 1
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for text in about["notes"]:
        terminal.log(text)
    print(f"exported to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}; largest "
          f"difference on {IMAGES} images {difference:.1e}")
    return 0


class Run(NamedTuple):
    """A trained run and the images that its export is compared on."""

    config: Any
    predictor: Any  # predictor.Predictor, in float32
    tile: tuple[int, int]
    images: Any  # (n, H, W, C) uint8 or uint16 of the size of a tile
    ranges: Any  # (n, C, 2)
    source: str  # where the images are from


def _open(args, overrides) -> Run:
    """The run that is to be exported; InputError for one that cannot be."""
    from cellseg_jax import config as config_lib
    from cellseg_jax.config import derived
    from cellseg_jax.inference import predictor
    from cellseg_jax.runs.folder import read_config

    config = read_config(args.workdir)
    if derived.is_classical(config):
        raise InputError(f"--workdir: {config.model.name} is a classical method, which has no "
                         "network to export; call cellseg_jax.classical, or export a trained run")
    for key, _ in overrides:
        if not key.startswith("eval."):
            raise InputError(f"config.{key}: is fixed by the training; only config.eval.* can "
                             "change")
    config = config_lib.override(config, overrides)
    exact = config_lib.override(config, [("train.precision", "float32")])
    tile = _tile(args.tile) if args.tile else derived.input_size(config)
    images, ranges, source = _images(config, tile)
    return Run(config, predictor.Predictor(args.workdir, exact, args.checkpoint), tile,
               images, ranges, source)


def _tile(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.strip("()").split(","))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"--tile: got {text!r}; expected height and width in pixels, as 256,256")
    return height, width


def _images(config, tile):
    """IMAGES images of the size of a tile, their ranges, and where they are from.

    Of the validation split, else of test or training; noise where they do not suffice.
    """
    import numpy as np

    from cellseg_jax import data
    from cellseg_jax.config import derived
    from cellseg_jax.crops import mirrored

    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, *tile, derived.channels(config)))
    images = noise.astype(np.uint8)
    ranges = np.full((IMAGES, images.shape[-1], 2), (0, 255), np.float32)
    try:
        arrays = data.load(config.data)
    except InputError:
        return images, ranges, f"{IMAGES} images of noise, since the run's data is not at hand"
    parts = data.split_of(config.data, arrays)
    split = next(name for name in ("val", "test", "train") if len(parts[name]))
    chosen = parts[split]
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, IMAGES).astype(int))]
    y, x = (mirrored(np.arange(n), length) for n, length in zip(tile, arrays.image.shape[1:3]))
    images = images.astype(arrays.image.dtype)
    images[: len(chosen)] = arrays.image[chosen][:, y[:, None], x]
    ranges[: len(chosen)] = arrays.tables[config.data.normalize][chosen // arrays.grid**2]
    noise = f" and {IMAGES - len(chosen)} of noise" * (len(chosen) < IMAGES)
    return images, ranges, f"{len(chosen)} images of the {split} split{noise}"


def _program(run: Run, form: str):
    """models_out.Program of the run: image to probabilities in the layout of the format."""
    import jax

    from cellseg_jax import targets
    from cellseg_jax.interop import onnx, stablehlo

    module = run.predictor.network.spec.module({})
    variables = jax.device_get(run.predictor.network.variables)
    to_probs = targets.TARGETS[run.config.data.target].probs

    def channels_last(image):
        return to_probs(module.apply(variables, image, train=False))

    channels = run.images.shape[-1]
    if form == "stablehlo":
        return stablehlo.to_stablehlo(channels_last, (1, *run.tile, channels))
    channels_first = lambda image: channels_last(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return onnx.to_onnx(channels_first, (1, channels, *run.tile),
                              names=("image", "probabilities"))


def _runner(form: str, data: bytes):
    """The exported program, run by its own runtime, with its own layout."""
    if form == "stablehlo":
        import jax

        return jax.jit(jax.export.deserialize(bytearray(data)).call)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def _difference(run: Run, compute, form: str) -> float:
    """The largest difference of a probability between program and run; nan where one is."""
    import numpy as np

    from cellseg_jax.normalize import normalize

    wanted = run.predictor.network(run.images, run.ranges)
    images = normalize(run.images, run.ranges, np.dtype(np.float32))
    found = []
    for image in images:
        if form == "stablehlo":
            found.append(np.asarray(compute(image[None]))[0])
        else:
            found.append(np.moveaxis(compute(np.moveaxis(image, -1, 0)[None])[0], 0, -1))
    return float(np.abs(np.stack(found) - wanted).max())


def describe(run: Run, form: str, program, difference: float) -> dict:
    """export.json: what goes in, what comes out, what made it."""
    from cellseg_jax import config as config_lib
    from cellseg_jax.interop.onnx import OPSET
    from cellseg_jax.interop.stablehlo import PLATFORMS
    from cellseg_jax.runs import provenance
    from cellseg_jax.runs.folder import read_config

    config, first = run.config, form != "stablehlo"
    height, width = program.shape[2:] if first else program.shape[1:3]
    notes = []
    if isinstance(program.shape[0], int):
        notes.append(f"{config.model.name} cannot be exported with an open batch: one image a call")
    if not first and isinstance(height, int):
        notes.append(f"{config.model.name} cannot be exported with open sizes: {height} x {width} "
                     "pixels (--tile chooses others)")
    eval_options = json.loads(config.eval.to_json())
    return {
        "format": form,
        "input": {
            "dtype": "float32", "axes": "NCHW" if first else "NHWC", "shape": program.shape,
            "channels": CHANNEL_NAMES[config.data.channels],
            "normalization": {
                "name": config.data.normalize, "formula": FORMULA,
                "low and high": RANGES[config.data.normalize][0],
                **({"alpha": "its low and high are 0 and the largest value of the integer type"}
                   if config.data.channels == "rgba" and config.data.normalize != "minmax_joint"
                   else {}),
            },
            "size": _size_text(config),
        },
        "output": {
            "dtype": "float32", "axes": "NCHW" if first else "NHWC",
            "channels": _output_names(run), "target": config.data.target,
            "meaning": "a probability in [0, 1] per pixel and channel, each a sigmoid of its own",
        },
        "decode": {k: eval_options[k] for k in ("threshold", "decode", "min_size", "watershed_h")},
        **_tuned(run),
        **({"opset": OPSET} if first else {"platforms": PLATFORMS}),
        "parity": {"largest_difference": difference, "allowed": LIMIT, "images": run.source},
        "run": {
            "identity": config_lib.identity(read_config(run.predictor.workdir)),
            "model": config.model.to_dict(), "data": config.data.name,
            "checkpoint_step": int(run.predictor.step), "commit": provenance.commit(),
        },
        "notes": notes,
    }


def _tuned(run: Run) -> dict:
    """The decode options that predict --tune found for this checkpoint, if it did."""
    from cellseg_jax.inference import tune
    from cellseg_jax.runs.folder import read_config

    workdir = run.predictor.workdir
    try:
        found = tune.read(workdir, read_config(workdir), run.predictor.step)["options"]
    except InputError:
        return {}
    return {"decode_tuned": {key.removeprefix("eval."): value for key, value in found.items()}}


def _output_names(run: Run) -> tuple[str, ...]:
    config = run.config
    if config.data.target == "classes":
        return ("background", *(f"class {k}" for k in range(1, config.data.num_classes)))
    return OUTPUT_NAMES[config.data.target]


def _size_text(config) -> str:
    height, width = config.data.size
    if config.data.fit == "resize":
        text = (f"the whole image is resized to {height} x {width} pixels, bilinearly between "
                "pixel centres, without anti-aliasing; probabilities are resized back")
        cells = config.data.grid
        return text + (f"; the network sees {cells} x {cells} patches of it" if cells > 1 else "")
    return ("the image stays at its own scale; images larger than the input go through in tiles "
            f"that overlap by {config.eval.overlap:g} of their size")


# --- stablehlo and onnx --------------------------------------------------------------------------

USAGE = '''"""Probabilities of one image: python usage.py IMAGE OUT.npy

Needs numpy, Pillow and {needs}. OUT.npy is (height, width, {outputs}) float32.
"""

import pathlib
import sys

import numpy as np
{imports}

here = pathlib.Path(__file__).parent
{load}


def resized(image, size):
    """Bilinear between pixel centres, without anti-aliasing."""
    for axis, new in enumerate(size):
        old = image.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        below = place.astype(int)
        weight = (place - below).reshape(-1, *[1] * (image.ndim - axis - 1))
        above = image.take(np.minimum(below + 1, old - 1), axis)
        image = image.take(below, axis) * (1 - weight) + above * weight
    return image


image = np.asarray(Image.open(sys.argv[1]))
image = image.reshape(*image.shape[:2], -1)
if image.shape[2] != {channels}:
    sys.exit(f"{{sys.argv[1]}} has {{image.shape[2]}} channels; expected {channels}; "
             "8 bit: Image.open(IN).convert({mode!r}).save(OUT) makes it so")
size = image.shape[:2]

# What the network sees is normalised by the range of the whole image.
colour = image[..., :3]
low, high = (np.full({channels}, float(bound)) for bound in ({range}))
{alpha}scale = np.where(high > low, 1 / np.where(high > low, high - low, 1), 0)
{resize}image = ((image - low) * scale).astype(np.float32)

seen = image.shape[:2]
{pad}{call}
probs = probs[: seen[0], : seen[1]]
np.save(sys.argv[2], resized(probs, size).astype(np.float32))
'''
PAD = """rows, columns = {}, {}
{}image = np.pad(image, ((0, rows), (0, columns), (0, 0)))
"""
TOO_LARGE = """if min(rows, columns) < 0:
    sys.exit(f"{seen} pixels are more than the program takes: cut the image into tiles")
"""


def usage(about: dict, config) -> str:
    """A script that runs the export on an image, without this package."""
    first, shape = about["format"] == "onnx", about["input"]["shape"]
    channels = len(about["input"]["channels"])
    if first:
        needs = "onnxruntime"
        imports = "import onnxruntime\nfrom PIL import Image"
        load = 'session = onnxruntime.InferenceSession(here / "model.onnx")'
        call = ("image = np.moveaxis(image, -1, 0)[None]\n"
                'probs = np.moveaxis(session.run(None, {"image": image})[0][0], 0, -1)')
    else:
        needs = "jax"
        imports = "from jax import export, jit\nfrom PIL import Image"
        load = ('data = bytearray((here / "model.stablehlo").read_bytes())\n'
                "program = jit(export.deserialize(data).call)")
        call = "probs = np.asarray(program(image[None]))[0]"
    height, width = shape[2:] if first else shape[1:3]
    if isinstance(height, int):
        pad = PAD.format(f"{height} - seen[0]", f"{width} - seen[1]", TOO_LARGE)
    elif "*" in height:
        pad = PAD.format(*(f"-seen[{n}] % {height.split('*')[0]}" for n in (0, 1)), "")
    else:
        pad = ""
    alpha = "low[3], high[3] = 0, np.iinfo(image.dtype).max\n"
    has_alpha = channels == 4 and config.data.normalize != "minmax_joint"
    resize = (f"image = np.rint(resized(image, {tuple(config.data.size)}))\n"
              if config.data.fit == "resize" else "")
    return USAGE.format(
        needs=needs, imports=imports, load=load, channels=channels,
        mode={1: "L", 3: "RGB", 4: "RGBA"}[channels],
        outputs=len(about["output"]["channels"]), range=RANGES[config.data.normalize][1],
        alpha=alpha if has_alpha else "", resize=resize, pad=pad, call=call)


def _write_program(folder, run, program, about, args) -> None:
    (folder / f"model.{args.format}").write_bytes(program.data)
    if run.config.data.grid == 1:
        (folder / "usage.py").write_text(usage(about, run.config))


# --- bioimage.io ---------------------------------------------------------------------------------

FORMAT_VERSION = "0.5.4"  # of the description of a model

README = """# {name}

{description}

## How it was made

Trained with cellseg_jax on the data set `{data}`; checkpoint of step {step}, run identity
`{identity}`. The model's options:

    {model}

## Input

Channels: {channels}. Each is normalised as `{formula}`, where low and high are
{range}. {preprocessing}
In training, {size}.

## Output

Channels: {outputs}. {meaning}.
The run turns them into labels with these options:

    {decode}

## Validation

On {images} the ONNX program differs from the run it came from by at most {difference:.1e}.
Scores on the test split are in `eval/test.json` of the run{scores}. To validate on your own
images, compare labels with Dice, average precision at IoU 0.5 and panoptic quality.
"""


def _preprocessing(run: Run) -> list[dict] | None:
    """The normalisation as bioimage.io says it; None where it cannot."""
    import numpy as np

    name, channels = run.config.data.normalize, run.config.data.channels
    if name == "dtype":
        return [{"id": "scale_linear", "kwargs": {"gain": 1 / np.iinfo(run.images.dtype).max}}]
    if channels == "rgba" and name != "minmax_joint":
        return None
    low, high = RANGES[name][2]
    return [{"id": "scale_range", "kwargs": {
        "axes": ["channel", "y", "x"], "min_percentile": low, "max_percentile": high}}]


def _write_bioimageio(folder, run, program, about, args) -> None:
    """The package, NAME.zip: weights, description, tensors, sample, cover, documentation."""
    import hashlib

    import numpy as np
    import tifffile
    import yaml

    from cellseg_jax.normalize import image_ranges, normalize
    from cellseg_jax.report import panels
    from cellseg_jax.runs.folder import scores_file

    config, workdir = run.config, run.predictor.workdir.resolve()
    # A consumer sees the test tensor alone: its range is its own.
    ranges = np.stack([image_ranges(image, config.data.normalize) for image in run.images])
    probs = run.predictor.network(run.images, ranges)
    best = int(probs.reshape(len(probs), -1).std(1).argmax())
    image, probs = run.images[best], probs[best]
    preprocessing = _preprocessing(run)
    raw = (image if preprocessing else normalize(image, ranges[best], np.dtype(np.float32)))
    first = lambda array: np.ascontiguousarray(np.moveaxis(array, -1, 0)[None], np.float32)
    package = folder / "package"
    package.mkdir()
    (package / "weights.onnx").write_bytes(program.data)
    np.save(package / "test_input.npy", first(raw))
    np.save(package / "test_output.npy", first(probs))
    tifffile.imwrite(package / "sample_input.tif", first(raw)[0], photometric="minisblack")
    tifffile.imwrite(package / "sample_output.tif", first(probs)[0], photometric="minisblack")
    panels.write_png(package / "cover.png", _cover(image, run.predictor.decode(probs)))

    authors = [name.strip() for name in args.author.split(";") if name.strip()]
    if not authors:
        about["notes"].append("no --author: the package says 'unknown'; give one before uploading")
    name = f"cellseg_jax {config.model.name} on {config.data.name}"
    description = (f"Cell segmentation: {config.model.name}, trained on {config.data.name}, gives "
                   f"the probability of {', '.join(about['output']['channels'])} per pixel.")
    test, normalization = scores_file(workdir), about["input"]["normalization"]
    scores = json.loads(test.read_text())["metrics"] if test.is_file() else {}
    (package / "README.md").write_text(README.format(
        name=name, description=description, data=config.data.name,
        model=json.dumps(about["run"]["model"]),
        step=about["run"]["checkpoint_step"], identity=about["run"]["identity"],
        channels=", ".join(about["input"]["channels"]), formula=normalization["formula"],
        range=normalization["low and high"], size=about["input"]["size"],
        preprocessing="The package does this itself." if preprocessing else
        "The format cannot say this: normalise before.", decode=json.dumps(about["decode"]),
        outputs=", ".join(about["output"]["channels"]),
        meaning=about["output"]["meaning"].capitalize(),
        images=run.source, difference=about["parity"]["largest_difference"],
        scores="".join(f"; {k} {v:.3f}" for k, v in scores.items() if k == "dice_mean")))

    def file(name):
        digest = hashlib.sha256((package / name).read_bytes()).hexdigest()
        return {"source": name, "sha256": digest}

    batch = {"type": "batch"} if isinstance(program.shape[0], str) else {"type": "batch", "size": 1}

    def tensor(kind, id_, channels, data, **more):
        space = [{"type": "space", "id": axis, "size": size}
                 for axis, size in zip("yx", run.tile, strict=True)]
        return {"id": id_, "axes": [batch, {"type": "channel", "channel_names": list(channels)},
                                    *space],
                "data": data, "test_tensor": file(f"test_{kind}.npy"),
                "sample_tensor": file(f"sample_{kind}.tif"), **more}

    bounds = [0.0, float(np.iinfo(image.dtype).max)] if preprocessing else [None, None]
    rdf = {
        "format_version": FORMAT_VERSION, "type": "model", "name": name,
        "description": description,
        "authors": [{"name": author} for author in authors or ["unknown"]],
        "license": args.license, "documentation": file("README.md"),
        "covers": [file("cover.png")],
        "tags": ["segmentation", "cells", "2d", config.model.name, config.data.name, "cellseg_jax"],
        "inputs": [tensor("input", "image", about["input"]["channels"],
                          {"type": "float32", "range": bounds},
                          preprocessing=preprocessing or [])],
        "outputs": [tensor("output", "probabilities", about["output"]["channels"],
                           {"type": "float32", "range": [0.0, 1.0]})],
        "weights": {"onnx": {**file("weights.onnx"), "opset_version": about["opset"]}},
        "config": {"cellseg_jax": {k: about[k] for k in ("run", "decode", "parity")}},
    }
    (package / "rdf.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(rdf)), sort_keys=False))
    shutil.make_archive(str(folder / "model"), "zip", package)
    shutil.rmtree(package)


def _cover(image, label):
    """(2 n, n) pixels: the image and the same with its labels outlined, enlarged to be seen."""
    import numpy as np

    from cellseg_jax.report import panels

    times = max(1, 400 // max(image.shape[:2]))
    large = lambda array: array.repeat(times, 0).repeat(times, 1)
    return np.concatenate([panels.stretch(large(image)), panels.overlay(large(image),
                                                                        large(label))], 1)


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
