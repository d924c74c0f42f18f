"""The config of a run: every key with its unit and meaning, the rules, and what differs.

A config file is a Python file whose `get_config()` changes a few keys of `default()`. The
options of the chosen model and dataset join their sections in `complete`, so that they can be
overridden like any other key. A complete config is locked: `check` has passed and no key can
be added.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import pathlib
import traceback

import ml_collections
from ml_collections import ConfigDict

from cellseg_jax import augment, classical, data, losses, models, optim, targets
from cellseg_jax.data import ranges, resize
from cellseg_jax.errors import InputError, nearest, pick

# Values, not structure: runs that differ in these alone train together in one compiled program.
VALUE_KEYS = (
    "seed",
    "data.split",
    "data.split_seed",
    "data.keep_blank",
    "data.balance",
    "data.oversample",
    "model.dropout",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.b1",
    "optimizer.b2",
    *(f"optimizer.{name}" for name in (
        "rms_decay", "schedule_power", "schedule_gamma", "schedule_every", "warmup",
        "plateau_metric", "plateau_factor", "plateau_patience", "plateau_cooldown",
        "plateau_min_lr", "clip", "ema")),
    "train.epochs",
    "train.steps",
    "train.weights",
    "train.early_stopping",
    "train.early_stopping_mode",
    *(f"loss.{name}" for name in losses.LOSSES),
    *(f"augment.{name}" for name in (*augment.AUGMENTATIONS, *augment.OPTIONS)),
)
# A run may be continued with other values of these: they do not change what it computes.
FREE_KEYS = ("data.root", "data.cache", "data.threads", "data.residence", "eval.",
             "train.checkpoint_minutes")
CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}


def default() -> ConfigDict:
    """The default run: report 0's U-Net with Adam. Model and dataset options join in `complete`."""
    config = ConfigDict(type_safe=False)  # `complete` compares types, and says the key
    config.seed = 0  # of everything random in training: weights, data order, augmentation, dropout
    config.data = dict(
        name="dsb2018",
        root="",  # the unpacked dataset
        size=(512, 512),  # height, width of what the network sees (grid = 1), pixels
        fit="resize",  # how an image comes to that size: resize | center_crop | random_crop | pad
        grid=1,  # patches per side that the fitted image is cut into, without overlap
        keep_blank=True,  # train on patches and images without foreground too
        channels="rgba",  # gray | rgb | rgba
        normalize="minmax",  # which range of the whole image becomes [0, 1]
        target="foreground",  # what the network learns from the label
        num_classes=2,  # with target="classes": classes, background included
        contour_width=2,  # with target="contour": pixels of a cell's rim
        weight_w0=10.0,  # with target="boundary": how much a gap between touching cells weighs more
        weight_sigma=5.0,  # with target="boundary": width of such gaps, pixels
        # Fractions (train, validation, test); or "official", the dataset's own; or a file with
        # the names of each part, such as another run's split.json.
        split=(0.8, 0.1, 0.1),
        split_seed=0,
        balance=False,  # train on every stratum (class, modality) equally often
        oversample=0.0,  # share of training rows that are sure to hold foreground
        copies=0,  # augmented variants of each training sample, always the same ones; 0 = online
        mix=(),  # other datasets to train on too, as "bbbc039:DIR"
        cache="",  # folder of decoded images; "" = the user's cache folder
        threads=2,  # reader threads of the streamed path
        residence="auto",  # device | host: where the decoded images lie; auto = device if they fit
    )
    # Every augmentation as (probability, strength); then what some of them share.
    config.augment = {name: (0.0, 1.0) for name in augment.AUGMENTATIONS} | augment.OPTIONS
    config.model = dict(name="unet")
    # Every loss as a weight, 0 = off; then the options of the losses.
    config.loss = {name: 0.0 for name in losses.LOSSES}
    for name in losses.LOSSES:
        config.loss.update(losses.options(name))
    config.loss.dice = config.loss.focal = 1.0
    config.optimizer = dict(
        name="adam",
        lr=5e-3,
        weight_decay=3e-5,  # added to the gradient (coupled), as torch does; adamw: decoupled
        momentum=0.0,  # sgd, rmsprop
        nesterov=False,  # sgd
        b1=0.9,  # adam, adamw, adamax
        b2=0.999,  # adam, adamw, adamax
        amsgrad=False,  # adam, adamw: keep the largest second moment
        rms_decay=0.99,  # rmsprop: of the squared gradient (torch's alpha)
        schedule="constant",  # constant | polynomial | cosine | exponential | step | plateau
        schedule_power=0.9,  # polynomial: lr * (1 - progress) ** power
        schedule_gamma=0.9,  # exponential: factor each epoch (or step); step: each schedule_every
        schedule_every=30,  # step: epochs (or steps) between two cuts by schedule_gamma
        schedule_per="epoch",  # epoch | step: how often the rate changes, unit of warmup and every
        warmup=0,  # first epochs (or steps) of a linearly rising rate; then the schedule begins
        plateau_metric=("loss", "min"),  # schedule="plateau": validation metric that must improve
        plateau_factor=0.1,  # what the rate is multiplied by when it does not
        plateau_patience=10,  # validations without improvement that are borne
        plateau_cooldown=0,  # validations after a cut that do not count
        plateau_min_lr=0.0,  # the rate is not cut below
        clip=0.0,  # largest norm of the gradient over all parameters; 0 = no limit
        accumulate=1,  # micro-batches that a batch is split into, to save memory
        ema=0.0,  # decay of the averaged weights that are validated and predict; 0 = no averaging
    )
    config.train = dict(
        epochs=100,  # passes over the training images
        steps=0,  # optimiser steps; 0 = epochs decide
        batch_size=16,  # images per step, over all devices
        precision="float32",  # float32 | bfloat16 compute; float64 (with JAX_ENABLE_X64) for proofs
        best=("dice_mean", "max"),  # validation metric that chooses the best checkpoint
        early_stopping=0,  # 0 = never, else as early_stopping_mode says
        # patience: that many validations without a better score end the run. minimum: after that
        # many epochs the first validation loss that is not below the one before does.
        early_stopping_mode="patience",
        checkpoint_minutes=10.0,  # between timed saves
        # To start from: a file of PyTorch weights (.pt, .npz, .safetensors) or another run's folder.
        weights="",
    )
    config.eval = dict(
        every=1,  # epochs between validations
        batch_size=16,
        threshold=0.5,  # of the probability
        decode="watershed",  # how a mask becomes instances: components | watershed
        watershed_h=1.0,  # pixels a neck must be thinner than a cell to be cut; larger cuts less
        min_size=0,  # pixels; smaller instances are dropped
        overlap=0.25,  # of neighbouring tiles, as a fraction of the tile
        report_compat=False,  # also report 2's scores with its mistakes, labelled; one output only
        panels=12,  # pictures of test predictions: half the worst, half around the median
    )
    config.lock()
    config.data.unlock()  # the options of dataset and model are not known yet
    config.model.unlock()
    return config


def plain(config) -> ConfigDict:
    """The default config with the same model and dataset: what a config is compared with."""
    out = default()
    out.model.name, out.data.name = config.model.name, config.data.name
    return complete(out)


def complete(config: ConfigDict) -> ConfigDict:
    """A locked, checked copy of `config` with every key present.

    Raises: InputError for an unknown key, a value of a wrong type, or a broken rule.
    """
    reference = default()
    given = ConfigDict(_tuples(config.to_dict()))
    for section in reference:
        if section not in given:
            raise InputError(f"config.{section}: missing; expected what config.default() has")
    reference.model.update(models.options(given.model.get("name", "")))
    pick(data.DATASETS, given.data.get("name", ""), "config.data.name")
    reference.data.update(
        {k: v for k, v in data.options(given.data.name).items() if k not in reference.data})
    reference.lock()
    for key, value in flatten(given).items():
        set_value(reference, key, value)
    check(reference)
    return reference


def load(path: str, overrides=()) -> ConfigDict:
    """The complete config of a file, after overrides [(dotted key, text), ...].

    `path` may carry an argument for get_config: "configs/studies/ebhi.py:unet_13_1".
    """
    file, _, argument = path.partition(":")
    if not pathlib.Path(file).is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        raise InputError(f"--config: no file {file!r} in {pathlib.Path.cwd()}"
                         f"{nearest(file, known)}; expected a Python file with get_config()")
    if not file.endswith(".py"):
        raise InputError(f"--config: got {file!r}; expected a Python file (.py) with get_config()")
    spec = importlib.util.spec_from_file_location("cellseg_jax_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise InputError(f"{file}: get_config() returned {type(config).__name__}; expected "
                             "the ConfigDict that cellseg_jax.config.default() gives")
    except InputError:
        raise
    except Exception as error:  # whatever the user's file does wrong, named by its line
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} line {line}: {text}") from error
    overrides = dict(overrides)
    for section in ("model", "data"):  # another model or dataset starts from its own defaults
        name = overrides.get(f"{section}.name", config[section].name)
        if name != config[section].name:
            shared = default()[section]
            config[section] = {k: v for k, v in config[section].items() if k in shared}
            config[section].name = name
    return override(complete(config), overrides)


def override(config: ConfigDict, overrides) -> ConfigDict:
    """A complete config with [(dotted key, text), ...] applied, checked again."""
    config = config.copy_and_resolve_references()
    for key, text in dict(overrides).items():
        set_value(config, key, _parse(config, key, text))
    config.lock()
    check(config)
    return config


def flatten(config) -> dict:
    """{dotted key: value} of all leaves."""
    out = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            out.update({f"{key}.{k}": v for k, v in flatten(value).items()})
        else:
            out[key] = value
    return out


def diff(config, other) -> dict:
    """{dotted key: (value here, value there)} of what differs; a missing key is None."""
    a, b = flatten(config), flatten(other)
    return {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}


def to_json(config) -> str:
    return json.dumps(config.to_dict(), indent=1)


def identity(config) -> str:
    """A hash of all that decides what a run computes."""
    kept = {k: v for k, v in flatten(config).items() if not k.startswith(FREE_KEYS)}
    text = json.dumps(sorted(kept.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def from_json(text: str) -> ConfigDict:
    """The inverse of to_json; lists become tuples again."""
    return complete(ConfigDict(_tuples(json.loads(text))))


def set_value(config: ConfigDict, key: str, value) -> None:
    """config.<key> = value, if the key exists and the type fits what stands there."""
    *sections, leaf = key.split(".")
    node = config
    for section in sections:
        node = node.get(section) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or leaf not in node or isinstance(node[leaf], ConfigDict):
        raise InputError(f"config.{key}: no such key{_nearest_key(key, config)}")
    old = node[leaf]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, (tuple, list)):
        value = _like(old, value)
    if key == "data.split" and isinstance(value, str):
        old = value  # "official" or a file, in place of fractions
    elif key == "data.split" and isinstance(value, tuple) and isinstance(old, str):
        old = value = _like((0.0,), value)
    if type(value) is not type(old) or (old and isinstance(old, tuple) and not _same(old, value)):
        pair = key.removeprefix("augment.") in augment.AUGMENTATIONS
        example = "(probability, strength)" if pair else repr(old)
        raise InputError(f"config.{key}: got {value!r}; expected {_kind(old)} such as {example}")
    with node.unlocked():
        node[leaf] = value


def check(config: ConfigDict) -> None:
    """Raises InputError at the first rule that the config breaks."""
    c = config

    def rule(ok, key, expected):
        if not ok:
            raise InputError(f"config.{key}: got {flatten(c)[key]!r}; expected {expected}")

    pick(resize.FITS, c.data.fit, "config.data.fit")
    pick(CHANNELS, c.data.channels, "config.data.channels")
    pick(ranges.RANGES, c.data.normalize, "config.data.normalize")
    pick(targets.TARGETS, c.data.target, "config.data.target")
    pick(optim.OPTIMIZERS, c.optimizer.name, "config.optimizer.name")
    pick(optim.SCHEDULES, c.optimizer.schedule, "config.optimizer.schedule")
    for key, choices in (("data.residence", ("auto", "device", "host")),
                         ("optimizer.schedule_per", ("epoch", "step")),
                         ("train.precision", ("float32", "bfloat16", "float64")),
                         ("train.early_stopping_mode", ("patience", "minimum")),
                         ("eval.decode", ("components", "watershed"))):
        pick(dict.fromkeys(choices), flatten(c)[key], f"config.{key}")
    for key, value in flatten(c).items():
        if isinstance(value, float):
            rule(math.isfinite(value), key, "a finite number")
    rule(0 <= c.seed < 2**32, "seed", "an integer from 0 to 2**32 - 1")
    rule(len(c.data.size) == 2 and min(c.data.size) > 0, "data.size", "(height, width) in pixels")
    if isinstance(c.data.split, str):
        rule(c.data.split, "data.split", "fractions, 'official', or a file such as split.json")
    else:
        rule(len(c.data.split) == 3 and min(c.data.split) >= 0 and sum(c.data.split) < 1 + 1e-6,
             "data.split", "three fractions (train, validation, test) that sum to at most 1")
        rule(c.data.split[0] > 0, "data.split", "a training fraction above 0")
    rule(c.data.grid >= 1, "data.grid", "at least 1 patch per side")
    rule(all(n % c.data.grid == 0 for n in c.data.size), "data.grid",
         f"a divisor of data.size {c.data.size}")
    rule(c.data.grid == 1 or c.data.fit != "random_crop", "data.grid",
         "1 with data.fit='random_crop'")
    rule(c.data.contour_width >= 1, "data.contour_width", "at least 1 pixel")
    rule(c.data.weight_w0 >= 0, "data.weight_w0", "at least 0")
    rule(c.data.weight_sigma > 0, "data.weight_sigma", "above 0 pixels")
    rule(0 <= c.data.oversample <= 1, "data.oversample", "a share from 0 to 1")
    rule(c.data.copies >= 0, "data.copies", "at least 0")
    rule(not c.data.copies or any(c.augment[name][0] for name in augment.AUGMENTATIONS),
         "data.copies", "0 without an augmentation (augment.*) that makes the copies differ")
    for text in c.data.mix:
        pick(data.DATASETS, str(text).partition(":")[0], "config.data.mix")
    if c.data.target == "classes":
        kind = c.data.get("labels", "instances")
        if kind != "classes":
            raise InputError(f"config.data.target: got 'classes' where the labels of {c.data.name} "
                             f"are {kind}; expected 'foreground', or a dataset whose masks hold "
                             "classes (data.name=folder with data.labels=classes)")
    if is_classical(c):
        rule(c.data.target in ("foreground", "boundary"), "data.target",
             f"'foreground' or 'boundary', which is what {c.model.name} finds")
    rule(c.data.num_classes >= 2, "data.num_classes", "at least 2, background included")
    rule(c.data.threads >= 1, "data.threads", "at least 1")
    for name in augment.AUGMENTATIONS:
        value = c.augment[name]
        ok = len(value) == 2 and 0 <= value[0] <= 1
        rule(ok, f"augment.{name}", "(probability from 0 to 1, strength)")
        expected = augment.check(name, value[1], input_size(c)) if value[0] else ""
        rule(not expected, f"augment.{name}", expected)
    if c.augment.elastic[0]:
        expected = augment.check("elastic_sigma", c.augment.elastic_sigma, input_size(c))
        rule(not expected, "augment.elastic_sigma", expected)
    for name in losses.LOSSES:
        rule(c.loss[name] >= 0, f"loss.{name}", "a weight of at least 0")
    rule(sum(c.loss[name] for name in losses.LOSSES) > 0, "loss.dice",
         f"at least one loss weight above 0 among {', '.join(losses.LOSSES)}")
    rule(any(c.loss[name] for name in losses.LOSSES if name not in losses.BLIND), "loss.dice",
         f"another loss beside {' and '.join(losses.BLIND)}, which cost nothing on empty images")
    outputs = num_outputs(c)
    rule(len(c.loss.class_weights) in (0, outputs) and min(c.loss.class_weights, default=0) >= 0,
         "loss.class_weights", f"() or {outputs} numbers of at least 0, one per output of "
         f"data.target={c.data.target!r}")
    for name in ("cross_entropy", "lovasz_softmax"):
        rule(not c.loss[name] or outputs >= 2, f"loss.{name}",
             "none with one output; data.target='contour' or 'classes' have more")
    rule(c.loss.cldice_iterations >= 1, "loss.cldice_iterations", "at least 1 erosion")
    if "dropout" in c.model:
        rule(0 <= c.model.dropout < 1, "model.dropout", "a rate from 0 to below 1")
    rule(c.optimizer.lr > 0, "optimizer.lr", "a learning rate above 0")
    rule(c.optimizer.weight_decay >= 0, "optimizer.weight_decay", "at least 0")
    for name in ("momentum", "b1", "b2", "rms_decay", "ema"):
        rule(0 <= c.optimizer[name] < 1, f"optimizer.{name}", "from 0 to below 1")
    if c.optimizer.nesterov:
        rule(c.optimizer.name == "sgd", "optimizer.nesterov", "False, or optimizer.name='sgd'")
        rule(c.optimizer.momentum > 0, "optimizer.momentum", "above 0 with nesterov")
    if c.optimizer.name not in ("sgd", "rmsprop"):
        rule(c.optimizer.momentum == 0, "optimizer.momentum",
             "0, or optimizer.name='sgd' or 'rmsprop'")
    if c.optimizer.name not in ("adam", "adamw"):
        rule(not c.optimizer.amsgrad, "optimizer.amsgrad",
             "False, or optimizer.name='adam' or 'adamw'")
    standard = default().optimizer
    for start, key, names in (("rms_decay", "name", ("rmsprop",)),
                              ("schedule_power", "schedule", ("polynomial",)),
                              ("schedule_gamma", "schedule", ("exponential", "step")),
                              ("schedule_every", "schedule", ("step",)),
                              ("plateau_", "schedule", ("plateau",))):
        for option in (o for o in standard if o.startswith(start)):
            rule(c.optimizer[key] in names or c.optimizer[option] == standard[option],
                 f"optimizer.{option}", f"{standard[option]!r}, the default, which is not read "
                 f"without optimizer.{key}={' or '.join(map(repr, names))}")
    rule(c.optimizer.schedule_power > 0, "optimizer.schedule_power", "above 0")
    rule(0 < c.optimizer.schedule_gamma <= 1, "optimizer.schedule_gamma", "above 0, at most 1")
    rule(c.optimizer.schedule_every >= 1, "optimizer.schedule_every", "at least 1")
    rule(c.optimizer.warmup >= 0, "optimizer.warmup", "at least 0")
    length = c.train.steps if c.optimizer.schedule_per == "step" else (
        0 if c.train.steps else c.train.epochs)  # 0: not known before the data are
    rule(not length or c.optimizer.warmup < length, "optimizer.warmup",
         f"fewer than the {length} {c.optimizer.schedule_per}s of the run")
    rule(c.optimizer.schedule != "plateau" or has_part(c, "val"), "optimizer.schedule",
         "another one than 'plateau' without a validation split (data.split)")
    rule(0 < c.optimizer.plateau_factor < 1, "optimizer.plateau_factor", "between 0 and 1")
    rule(c.optimizer.plateau_patience >= 0, "optimizer.plateau_patience", "at least 0")
    rule(c.optimizer.plateau_cooldown >= 0, "optimizer.plateau_cooldown", "at least 0")
    rule(0 <= c.optimizer.plateau_min_lr < c.optimizer.lr, "optimizer.plateau_min_lr",
         f"from 0 to below optimizer.lr {c.optimizer.lr:g}")
    rule(c.optimizer.clip >= 0, "optimizer.clip", "at least 0 (0 = no limit)")
    rule(c.optimizer.accumulate >= 1 and c.train.batch_size % c.optimizer.accumulate == 0,
         "optimizer.accumulate", f"a divisor of train.batch_size {c.train.batch_size}")
    for key in set(c.loss) - set(losses.LOSSES):
        if isinstance(c.loss[key], float):
            rule(c.loss[key] >= 0, f"loss.{key}", "at least 0")
    rule(c.train.early_stopping == 0 or has_part(c, "val"), "train.early_stopping",
         "0 without a validation split (data.split)")
    rule(c.train.steps >= 0, "train.steps", "at least 0 (0 = train.epochs decides)")
    rule(c.train.epochs >= 1 or c.train.steps, "train.epochs", "at least 1")
    rule(c.train.batch_size >= 1, "train.batch_size", "at least 1")
    for key, metric in (("train.best", c.train.best),
                        ("optimizer.plateau_metric", c.optimizer.plateau_metric)):
        rule(len(metric) == 2 and metric[1] in ("max", "min"), key,
             "(validation metric, 'max' or 'min')")
        rule(metric[0] in VALIDATION_METRICS, key,
             f"a metric among {', '.join(VALIDATION_METRICS)}")
    rule(c.train.early_stopping >= 0, "train.early_stopping", "at least 0 (0 = never)")
    rule(c.train.early_stopping or c.train.early_stopping_mode == "patience",
         "train.early_stopping_mode", "'patience', or train.early_stopping above 0")
    rule(c.train.checkpoint_minutes > 0, "train.checkpoint_minutes", "above 0")
    rule(c.eval.every >= 1, "eval.every", "at least 1 epoch")
    rule(c.eval.batch_size >= 1, "eval.batch_size", "at least 1")
    rule(0 < c.eval.threshold < 1, "eval.threshold", "between 0 and 1")
    rule(c.eval.watershed_h >= 0, "eval.watershed_h", "at least 0 pixels")
    rule(c.eval.min_size >= 0, "eval.min_size", "at least 0 pixels")
    rule(0 <= c.eval.overlap < 1, "eval.overlap", "from 0 to below 1")
    rule(c.eval.panels >= 0, "eval.panels", "at least 0")
    rule(not c.eval.report_compat or num_outputs(c) == 1, "eval.report_compat",
         "False with more than one output: report 2 had one")


# What a validation measures; train.best and optimizer.plateau_metric name one of them.
VALIDATION_METRICS = ("dice_mean", "iou_mean", "dice_pooled", "iou_pooled", "loss")


def is_classical(config) -> bool:
    """Whether the model is a method of classical.py, which learns nothing and has no checkpoint."""
    return config.model.name in classical.CLASSICAL


def channels(config) -> int:
    """Image channels of a config."""
    return CHANNELS[config.data.channels]


def input_size(config) -> tuple[int, int]:
    """Height and width of what the network sees."""
    return tuple(n // config.data.grid for n in config.data.size)


def target_options(config) -> dict:
    """What targets.TARGETS[...].encode reads beside the label."""
    return {"num_classes": config.data.num_classes, "contour_width": config.data.contour_width}


def has_part(config, part: str) -> bool:
    """Whether the split may have "val" or "test" images."""
    split = config.data.split
    return isinstance(split, str) or split[("train", "val", "test").index(part)] > 0


def num_outputs(config) -> int:
    """Output channels of the network."""
    return targets.TARGETS[config.data.target].num_outputs(config.data.num_classes)


def num_steps(config, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def _parse(config, key, text):
    """The text of a command-line override as a value of the key's own type."""
    flat = flatten(config)
    if key not in flat:
        raise InputError(f"config.{key}: no such key{_nearest_key(key, config)}")
    old = flat[key]
    if isinstance(old, str) and key != "data.split":
        return text
    try:
        value = ast.literal_eval(text.strip() if text.lower() not in ("true", "false")
                                 else text.title())
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, tuple) and isinstance(old, (int, float)):
        raise InputError(f"config.{key}: got {text!r}; expected {_kind(old)} (stray comma?)")
    return value


def _nearest_key(key, config):
    """'; did you mean <full key>?', or the keys of its section, or the sections."""
    flat = flatten(config)
    section, _, leaf = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in flat if k.rpartition(".")[0] == section}
    everywhere = {k.rpartition(".")[2]: k for k in flat}
    for leaves in (beside, everywhere):
        close = difflib.get_close_matches(leaf, leaves, 1, 0.7)
        if close:
            return f"; did you mean config.{leaves[close[0]]}?"
    if beside:
        return f"; config.{section} has {', '.join(beside)}" if section else ""
    close = difflib.get_close_matches(section, config, 1, 0.5)
    if close:
        return f"; did you mean config.{close[0]}?"
    return f"; the sections are {', '.join(config)}"


def _like(old: tuple, value) -> tuple:
    """A tuple with ints made floats where the old one holds floats."""
    value = tuple(value)
    if old and all(isinstance(v, float) for v in old):
        value = tuple(float(v) if isinstance(v, int) else v for v in value)
    return value


def _same(old: tuple, value: tuple) -> bool:
    """Whether the entries of `value` have types that occur in `old`."""
    return {type(v) for v in value} <= {type(v) for v in old}


def _kind(value) -> str:
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a text",
             tuple: "a tuple"}
    return names[type(value)]


def _tuples(value):
    """Lists become tuples, at any depth: a list cannot be overridden whole."""
    if isinstance(value, (dict, ml_collections.ConfigDict)):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
