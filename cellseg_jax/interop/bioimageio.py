"""A model as a package for bioimage.io: weights, description, test tensors, sample, cover."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import tifffile
import yaml

from cellseg_jax.config import derived
from cellseg_jax.data.colours import has_alpha
from cellseg_jax.data.records import some
from cellseg_jax.files import read_json
from cellseg_jax.normalize import image_ranges, normalize, range_of
from cellseg_jax.report import panels
from cellseg_jax.runs.folder import scores_file

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
{scores} To validate on your own
images, compare labels with Dice, average precision at IoU 0.5 and panoptic quality.
"""


def write_package(folder, run, program, about: dict, options) -> list[str]:
    """Write model.zip into the folder; returns notes for the user.

    Args:
      folder: pathlib.Path.
      run: exporting.ExportedRun.
      program: of it, as ONNX.
      about: export.json.
      options: exporting.ExportOptions.
    """
    package = folder / "package"
    package.mkdir()
    (package / "weights.onnx").write_bytes(program.data)
    steps = preprocessing(run.config, run.images.dtype)
    image = _write_tensors(package, run, steps)
    name = f"cellseg_jax {run.config.model.name} on {run.config.data.name}"
    description = _description(run.config, about["output"]["channels"])
    (package / "README.md").write_text(_readme(run, about, name, description, bool(steps)))
    rdf = {
        "format_version": FORMAT_VERSION, "type": "model", "name": name,
        "description": description,
        "authors": [{"name": author} for author in options.authors or ["unknown"]],
        "license": options.license, "documentation": _file(package, "README.md"),
        "covers": [_file(package, "cover.png")],
        "tags": ["segmentation", "cells", "2d", run.config.model.name, run.config.data.name,
                 "cellseg_jax"],
        **_tensors(package, run, program, about, steps, image.dtype),
        "weights": {"onnx": {**_file(package, "weights.onnx"), "opset_version": about["opset"]}},
        "config": {"cellseg_jax": {k: about[k] for k in ("run", "decode", "parity")}},
    }
    (package / "rdf.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(rdf)), sort_keys=False))
    shutil.make_archive(str(folder / "model"), "zip", package)
    shutil.rmtree(package)
    return [] if options.authors else [
        "no --author: the package names 'unknown'; give one before uploading"]


def preprocessing(config, dtype) -> list[dict] | None:
    """The normalisation as steps of bioimage.io's format; None where it cannot express it.

    Args:
      dtype: of the run's images.
    """
    range_ = range_of(config.data.normalize, config.data.percentiles)
    each = bool(config.data.channel_index)
    apart = has_alpha(config.data.channels, config.data.channel_index) and range_.alpha_apart
    if range_.percentiles is None:  # the same factor and summand for every image of the dtype
        low, high = range_.bounds([], dtype)
        if apart and low != 0:  # alpha begins at 0
            return None
        gain = 1 / (high - low)
        offset = {"offset": -low * gain} if low else {}
        return [{"id": "scale_linear", "kwargs": {"gain": gain, **offset}}]
    if apart:
        return None
    low, high = range_.percentiles
    axes = ["y", "x"] if each else ["channel", "y", "x"]
    return [{"id": "scale_range", "kwargs": {
        "axes": axes, "min_percentile": low, "max_percentile": high}}]


def _write_tensors(package, run, steps) -> np.ndarray:
    """Write test tensors, samples and cover; returns the image that they show."""
    config = run.config
    # A consumer sees the test tensor alone: its range is its own.
    ranges = np.stack([image_ranges(image, config.data.normalize, config.data.percentiles,
                                    each=bool(config.data.channel_index))
                       for image in run.images])
    probs = run.predictor.network(run.images, ranges)
    best = int(probs.reshape(len(probs), -1).std(1).argmax())
    image, probs = run.images[best], probs[best]
    raw = image if steps else normalize(image, ranges[best], np.dtype(np.float32))
    for kind, array in (("input", raw), ("output", probs)):
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0)[None], np.float32)
        np.save(package / f"test_{kind}.npy", array)
        tifffile.imwrite(package / f"sample_{kind}.tif", array[0], photometric="minisblack")
    panels.write_png(package / "cover.png", _cover(image, run.predictor.decode(probs)))
    return image


def _tensors(package, run, program, about, steps, dtype) -> dict:
    """The description's "inputs" and "outputs"."""
    batch = {"type": "batch"} if isinstance(program.shape[0], str) else {"type": "batch", "size": 1}

    def tensor(kind, id_, space, data, **more):
        axes = [batch, {"type": "channel", "channel_names": list(about[kind]["channels"])}]
        axes += [{"type": "space", **axis} for axis in space]
        return {"id": id_, "axes": axes, "data": {"type": "float32", "range": data},
                "test_tensor": _file(package, f"test_{kind}.npy"),
                "sample_tensor": _file(package, f"sample_{kind}.tif"), **more}

    bounds = [0.0, float(np.iinfo(dtype).max)] if steps else [None, None]
    read = [{"id": axis, "size": size} for axis, size in zip("yx", run.tile, strict=True)]
    # Sizes of the output that refer to the input, and a halo, let a consumer put an image of any
    # size together from blocks: by fixed sizes it gets the first block alone.
    made = [{"id": axis, "size": {"tensor_id": "image", "axis_id": axis},
             "halo": int(run.config.eval.overlap * size / 2)}
            for axis, size in zip("yx", run.tile, strict=True)]
    regressed = run.predictor.target.num_binary is not None
    return {"inputs": [tensor("input", "image", read, bounds, preprocessing=steps or [])],
            "outputs": [tensor("output", "probabilities", made,
                               [None, None] if regressed else [0.0, 1.0])]}


def _description(config, outputs) -> str:
    """A sentence of less than 1024 characters, as many as are allowed: of many rays their number.

    Args:
      outputs: their names, which the README has all.
    """
    count = derived.num_probabilities(config)
    others = f"; and {len(outputs) - count} outputs that are none" if len(outputs) > count else ""
    return (f"Cell segmentation: {config.model.name}, trained on {config.data.name}, gives per "
            f"pixel as probabilities: {some(outputs[:count])}{others}.")


def _file(package: pathlib.Path, name: str) -> dict:
    digest = hashlib.sha256((package / name).read_bytes()).hexdigest()
    return {"source": name, "sha256": digest}


def _readme(run, about, name: str, description: str, normalises: bool) -> str:
    normalization = about["input"]["normalization"]
    found = read_json(scores_file(run.predictor.workdir), {})
    dice = found.get("metrics", {}).get("dice_mean")
    scored = dice is not None and found.get("checkpoint_step") == about["run"]["checkpoint_step"]
    return README.format(
        name=name, description=description, data=run.config.data.name,
        model=json.dumps(about["run"]["model"]),
        step=about["run"]["checkpoint_step"], identity=about["run"]["identity"],
        channels=", ".join(about["input"]["channels"]), formula=normalization["formula"],
        range=normalization["low and high"], size=about["input"]["size"],
        preprocessing="The package does this itself." if normalises else
        "The format cannot express this: normalise before.", decode=json.dumps(about["decode"]),
        outputs=", ".join(about["output"]["channels"]),
        meaning=about["output"]["meaning"].capitalize(),
        images=run.source, difference=about["parity"]["largest_difference"],
        scores=f"Scores on the test split are in `eval/test.json` of the run; dice_mean {dice:.3f}."
        if scored else "These weights were not scored on the test split.")


def _cover(image, label) -> np.ndarray:
    """(2 n, n) pixels: the image and the same with its labels outlined, enlarged to be seen."""
    times = max(1, 400 // max(image.shape[:2]))
    large = lambda array: array.repeat(times, 0).repeat(times, 1)
    return np.concatenate([panels.stretch(large(image)), panels.overlay(large(image),
                                                                        large(label))], 1)
