"""Complete, checked copies of configs with some keys changed."""

import functools

from ml_collections import ConfigDict

from cellseg_jax import data, targets
from cellseg_jax.config import rules, unread_keys
from cellseg_jax.config.compare import flatten
from cellseg_jax.config.defaults import default
from cellseg_jax.config.derived import default_losses, model_options
from cellseg_jax.config.values import as_tuples, parse, set_value
from cellseg_jax.errors import InputError, pick


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

    Raises: InputError as `complete`.
    """
    out = _filled(_switched(config, changes))
    for key, value in changes.items():
        set_value(out, key, as_tuples(value))
    check(out)
    return out


def override(config: ConfigDict, overrides) -> ConfigDict:
    """A complete copy of `config` with [(dotted key, text), ...] applied, checked at the end.

    Another model or dataset than that of `config` starts from its own defaults.

    Raises: InputError as `complete`.
    """
    overrides = dict(overrides)
    out = _filled(_switched(config, overrides))
    for key, text in overrides.items():
        set_value(out, key, parse(out, key, text))
    check(out)
    return out


def check(config: ConfigDict) -> None:
    """InputError at the first rule that the config breaks."""
    rules.check(config, _standard())


def unread(config: ConfigDict) -> dict[str, str]:
    """{dotted key: why nothing reads it} of the keys that a complete config changes in vain."""
    return unread_keys.unread(config, _standard())


@functools.cache
def _standard() -> ConfigDict:
    """default(), made once; not to be changed."""
    return default()


def _filled(config) -> ConfigDict:
    """A locked copy with every key present; the rules are not checked."""
    given, standard = as_tuples(config.to_dict()), _standard()
    for section in standard:
        if section not in given:
            raise InputError(f"config.{section}: missing; expected what config.default() has")
        _check_form(section, given[section], standard[section])
    out = _with_options(given["model"].get("name", ""), given["data"].get("name", "")
                        ).copy_and_resolve_references()
    target = given["data"].get("target", standard.data.target)
    if target in targets.TARGETS and _has_default_losses(given, standard.data.target):
        given["loss"].update(default_losses(target))
    flat = flatten(out)
    for key, value in flatten(given).items():
        if repr(flat.get(key)) != repr(value):  # which tells 1 from 1.0 too; to set takes longer
            set_value(out, key, value)
    return out


@functools.lru_cache(maxsize=64)
def _with_options(model: str, dataset: str) -> ConfigDict:
    """default() with the options of a model and a dataset, locked; not to be changed."""
    out = default()
    out.model.update(model_options(model))
    pick(data.DATASETS, dataset, "config.data.name")
    out.data.update({k: v for k, v in data.options(dataset).items() if k not in out.data})
    return out.lock()


def _check_form(section: str, given, reference) -> None:
    """InputError for a value where a section should be, or a section where a value should be."""
    if isinstance(reference, ConfigDict) and not isinstance(given, dict):
        raise InputError(f"config.{section}: got {given!r}; expected a section of keys")
    for key, value in given.items() if isinstance(given, dict) else ():
        if isinstance(value, dict) and not isinstance(reference.get(key), ConfigDict):
            raise InputError(f"config.{section}.{key}: got {value!r}; expected a value")


def _has_default_losses(config, target: str) -> bool:
    """Whether the losses have the weights that are the defaults of a target."""
    return all(config["loss"].get(name, weight) == weight
               for name, weight in default_losses(target).items())


def _switched(config, changes) -> ConfigDict:
    """A copy without the options of a model or dataset, and the losses of a target, replaced."""
    config = config.copy_and_resolve_references().unlock()
    for section in ("model", "data"):
        name = changes.get(f"{section}.name", config[section].name)
        if name != config[section].name:
            shared = _standard()[section]
            config[section] = {k: v for k, v in config[section].items() if k in shared}
            config[section].name = name
    standard = _standard().data.target
    target = config.data.get("target", standard)
    # Of a complete config, or of one that `_filled` has not seen.
    if "data.target" in changes and target in targets.TARGETS and (
            _has_default_losses(config, target) or _has_default_losses(config, standard)):
        config.data.target = changes["data.target"]
        config.loss.update(default_losses(standard))  # for `_filled` to replace
    return config
