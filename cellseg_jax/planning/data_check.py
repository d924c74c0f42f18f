"""A config against its data, before anything is trained."""

import time

import jax

from cellseg_jax import data, models
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.data.order import check_batch_size
from cellseg_jax.data.quality import checks, examine
from cellseg_jax.data.quality.report import Report, gather
from cellseg_jax.data.records import Finding
from cellseg_jax.errors import InputError
from cellseg_jax.planning import target_survival
from cellseg_jax.step.programs import check_model
from cellseg_jax.step.spec import make_spec

FEW_STEPS = 50  # from one validation to the next
SQUASHED = 1.25  # a change of the ratio of height to width from which shapes are not those of cells


def check(config, progress=None) -> Report:
    """Reads the data of a complete config once and checks it, and the config against it.

    Args:
      progress: called with (samples done, samples in all).
    Raises: InputError where there is nothing to read, such as a root that does not exist.
    """
    start = time.monotonic()
    examination = examine.examine(config.data, progress)
    findings = [*examination.findings, *_of_config(config, examination)]
    if not any(finding.level == "error" for finding in findings):
        findings += _of_target(config)
    findings.sort(key=lambda finding: checks.LEVELS.index(finding.level))
    return Report(config, examination, gather(findings), time.monotonic() - start)


def _of_config(config, examination):
    """Findings on batches and on the network at the size of its input."""
    try:
        check_model(config)
    except InputError as error:
        yield examine.finding_of(error)
        return
    if derived.is_classical(config):  # nothing is trained
        return
    key, batch_size = "config.train.batch_size", config.train.batch_size
    if examination.parts:
        yield from _of_epoch(config, len(examination.parts["train"]))
    stride, batch_norm = stride_and_norm(config)
    if batch_size == 1 and batch_norm:
        yield Finding("warning", key, "batch normalisation with 1 has the statistics of a single "
                      "image; expected 2 at least")
    yield from _of_size(config, stride)
    yield from _squashed(config.data, examination.facts)


def _of_epoch(config, images: int):
    """Findings on the steps of an epoch, given the number of training images."""
    options, batch_size = config.data, config.train.batch_size
    samples = images * options.grid**2 * (options.copies + 1)
    cropped = options.fit == "random_crop"
    try:
        check_batch_size(batch_size, samples, options.windows, cropped)
    except InputError as error:
        yield examine.finding_of(error)
        return
    steps = samples * options.windows // batch_size
    if cropped and steps * config.eval.every < FEW_STEPS:
        more = -(-FEW_STEPS * batch_size // samples)
        yield Finding("note", "config.data.windows", f"got {options.windows}: the run is validated "
                      f"after every {steps * config.eval.every} steps, which may take most of its "
                      f"time; data.windows={more} makes epochs of {FEW_STEPS} steps")


def _of_size(config, stride: int):
    """Findings on the size of the network's input, given its stride."""
    height, width = derived.input_size(config)
    padded = tuple(round_up(n, stride) for n in (height, width))
    small = f"got {height}x{width}; {config.model.name} reduces it down to 1/{stride}"
    if min(padded) < 2 * stride:
        yield Finding("warning", "config.data.size", f"{small}, which leaves "
                      f"{padded[0] // stride}x{padded[1] // stride} pixels at its bottom; set at "
                      f"least {2 * stride}x{2 * stride}, or fewer levels in config.model")
    elif padded != (height, width):
        yield Finding("note", "config.data.size", f"{small}, so the network pads to "
                      f"{padded[0]}x{padded[1]} and cuts back")


def _squashed(data_config, facts):
    """A finding on images whose cells resizing makes longer or flatter."""
    if data_config.fit != "resize" or not facts:
        return
    height, width = data_config.size
    ratios = [one.size[0] * width / (one.size[1] * height) for one in facts]
    squashed = [max(ratio, 1 / ratio) for ratio in ratios]
    count, worst = sum(ratio > SQUASHED for ratio in squashed), max(squashed)
    if count:
        size = facts[squashed.index(worst)].size
        yield Finding("warning", "config.data.fit", f"resizing to {height}x{width} changes the "
                      f"shape of cells in {count} of {len(facts)} images, by {worst:.2g} times in "
                      f"those of {size[0]}x{size[1]}; config.data.fit=random_crop or pad keeps "
                      "it, or a config.data.size of another shape")


def _of_target(config):
    """Findings on what the target loses of a few labels; of cells, where labels tell them apart."""
    told_apart = config.data.get("labels", "instances") == "instances"
    if derived.is_classical(config) or config.data.target == "classes" or not told_apart:
        return ()
    found = target_survival.survival(config, data.load_few(config.data))
    return target_survival.findings(config, found)


def stride_and_norm(config) -> tuple[int, bool]:
    """(stride, whether there is batch normalisation) of a network, without computing anything.

    The stride of an unpadded network counts as 1: it pads images by a rule of its own.
    """
    module, channels = make_spec([config]).module({}), derived.channels(config)
    image = jax.ShapeDtypeStruct((1, *derived.input_size(config), channels), "float32")
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    unpadded = config.model.get("padding") == "valid"
    return 1 if unpadded else models.stride(module, channels), "batch_stats" in variables
