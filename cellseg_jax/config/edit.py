"""Complete, checked copies of configs with some keys changed."""

import ast
import difflib
import functools

import ml_collections
from ml_collections import ConfigDict

from cellseg_jax import augment, data
from cellseg_jax.config import rules
from cellseg_jax.config.compare import flatten
from cellseg_jax.config.defaults import default
from cellseg_jax.config.derived import model_options
from cellseg_jax.errors import InputError, pick

# What users of other frameworks call our keys.
SYNONYMS = {"learning_rate": "lr", "beta1": "b1", "beta2": "b2", "num_epochs": "epochs"}


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
    reference.model.update(model_options(given.model.get("name", "")))
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
