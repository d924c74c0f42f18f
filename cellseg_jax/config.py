"""The config of a run: every key with its unit and meaning, the rules, and what differs.

A config file is a Python file whose `get_config()` changes a few keys of `default()`. The
options of the chosen model and dataset join their sections in `complete`, so that they can be
overridden like any other key. A complete config is locked: `check` has passed and no key can
be added.
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import json
import pathlib
import traceback

import ml_collections
from ml_collections import ConfigDict

from cellseg_jax import augment, data, losses, models, rules
from cellseg_jax.errors import InputError, nearest, pick

# Values, not structure: runs that differ in these alone train together in one compiled program.
VALUE_KEYS = (
    "seed",
    "data.split",
    "data.split_seed",
    "data.train_fraction",
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
    "train.prune",
    "train.prune_iterations",
    "train.prune_how",
    "train.early_stopping",
    "train.early_stopping_mode",
    *(f"loss.{name}" for name in losses.LOSSES),
    *(f"augment.{name}" for name in (*augment.AUGMENTATIONS, *augment.OPTIONS)),
)
# A run may be continued with other values of these: they do not change what it computes.
FREE_KEYS = ("data.root", "data.cache", "data.threads", "data.residence", "eval.",
             "train.checkpoint_minutes")


# What users of other frameworks call our keys.
SYNONYMS = {"learning_rate": "lr", "beta1": "b1", "beta2": "b2", "num_epochs": "epochs"}


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
        # Share of the training images that is used: 0.5 for a learning curve. Smaller shares lie
        # within larger ones.
        train_fraction=1.0,
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
        # To start from: a file of PyTorch weights (.pt, .npz, .safetensors) or the folder of a run.
        weights="",
        # Of the weights of the convolutions that it starts from, some are set to 0 and stay 0: the
        # share of what remains that each of prune_iterations takes, as `analyze --analysis=pruning`
        # prunes. 0.25 and 10 leave 0.75 ** 10 = 6 %; whole weights or filters, so small layers
        # keep more.
        prune=0.0,
        prune_iterations=1,
        prune_how="l1_layers",  # which weights: sparsity.METHODS; random ones are those of seed
        remat=False,  # keep less of the forward pass for the backward pass: less memory, slower
        log_gradients=False,  # gradients.jsonl: mean absolute gradient of each layer and epoch
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
        # Also Hausdorff distance, surface Dice, Rand error and variation of information, which take
        # long: the tolerance of surface Dice in pixels; 0 = none of them.
        surface=0.0,
        panels=12,  # pictures of test predictions: a third each the worst, the median, the best
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
    out = _filled(config)
    check(out)
    return out


def changed(config: ConfigDict, changes: dict) -> ConfigDict:
    """A complete copy of `config` with {dotted key: value}, checked once, at the end.

    Another model or dataset than that of `config` starts from its own defaults.
    """
    out = _filled(_switched(config, changes))
    for key, value in changes.items():
        set_value(out, key, _tuples(value))
    check(out)
    return out


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
    with blame(file):
        config = run_file(file).get_config(*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise InputError(f"{file}: get_config() returned {type(config).__name__}; expected "
                             "the ConfigDict that cellseg_jax.config.default() gives")
    return override(config, overrides)


def run_file(file: str):
    """The module that a config or study file is; run it `with blame(file)`."""
    spec = importlib.util.spec_from_file_location("cellseg_jax_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def blame(file: str):
    """Whatever a user's file does wrong becomes an InputError with its name, and its line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line, text = frames[-1].lineno if frames else "?", " ".join(str(error).split())
        if isinstance(error, SyntaxError) and not frames:  # of the file itself, not of an import
            line, text = error.lineno, error.msg
        raise InputError(f"{file} line {line}: {text or type(error).__name__}") from error


def override(config: ConfigDict, overrides) -> ConfigDict:
    """A complete copy of `config` with [(dotted key, text), ...] applied, checked at the end.

    Another model or dataset than that of `config` starts from its own defaults.
    """
    overrides = dict(overrides)
    out = _filled(_switched(config, overrides))
    for key, text in overrides.items():
        set_value(out, key, _parse(out, key, text))
    check(out)
    return out


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


def program_key(config) -> str:
    """What configs must share to train in one program: everything but values."""
    shared = {k: v for k, v in flatten(config).items() if k not in VALUE_KEYS}
    # Averaged weights are a part of the state, which must not depend on who else trains along.
    shared["optimizer.ema"] = config.optimizer.ema > 0
    return repr(sorted(shared.items()))


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
        example = ("(probability, strength)" if pair else
                   "('bbbc039:DIR',)" if key == "data.mix" else repr(old))
        raise InputError(f"config.{key}: got {value!r}; expected {_kind(old)} such as {example}")
    if node[leaf] != value:  # unlocking is slow, and most keys of a study's rows stay
        with node.unlocked():
            node[leaf] = value


def check(config: ConfigDict) -> None:
    """Raises InputError at the first rule that the config breaks."""
    rules.check(config, _standard())


@functools.cache
def _standard() -> ConfigDict:
    """default(), to read only."""
    return default()


def _filled(config) -> ConfigDict:
    """A locked copy with every key present, whatever the rules say."""
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
    return reference


def _switched(config, changes) -> ConfigDict:
    """A copy without the options of a model or dataset that `changes` replaces."""
    config = config.copy_and_resolve_references().unlock()
    for section in ("model", "data"):
        name = changes.get(f"{section}.name", config[section].name)
        if name != config[section].name:
            shared = _standard()[section]
            config[section] = {k: v for k, v in config[section].items() if k in shared}
            config[section].name = name
    return config


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
    inside = [k.rpartition(".")[2] for k in flat if k.startswith(f"{key}.")]
    if inside:
        return f": it is a section, with {', '.join(inside)}"
    section, _, leaf = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in flat if k.rpartition(".")[0] == section}
    beside |= {word: beside[leaf] for word, leaf in SYNONYMS.items() if leaf in beside}
    everywhere = {k.rpartition(".")[2]: k for k in flat}
    for leaves in (beside, everywhere):
        close = difflib.get_close_matches(leaf, leaves, 1, 0.7)
        if close:
            return f"; did you mean config.{leaves[close[0]]}?"
    if beside:
        leaves = [k.rpartition(".")[2] for k in dict.fromkeys(beside.values())]
        return f"; config.{section} has {', '.join(leaves)}" if section else ""
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
