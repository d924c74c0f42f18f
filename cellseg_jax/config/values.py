"""Values of config keys: set with their type checked, read from a command line, looked up by name.

ConfigDict's own type check is not used: it does not name the key and refuses an int for a float.
"""

import ast
import difflib

from ml_collections import ConfigDict

from cellseg_jax import augment
from cellseg_jax.config.compare import flatten
from cellseg_jax.errors import InputError

# What users of other frameworks call our keys.
SYNONYMS = {"learning_rate": "lr", "beta1": "b1", "beta2": "b2", "num_epochs": "epochs"}

# Entries, by type, and examples of keys whose default is an empty tuple.
ENTRIES = {"loss.class_weights": (1, 1.0), "data.mix": ("",), "data.only_size": (1,),
           "data.strata": ("",), "data.classes": ("",), "model.widths": (1,), "model.depths": (1,),
           "model.features_per_stage": (1,), "model.blocks_per_stage": (1,),
           "model.drop_skips": (1,)}
EXAMPLES = {"loss.class_weights": "(0.5, 1.0)", "data.mix": "('bbbc039:DIR',)",
            "data.only_size": "(512, 640)", "data.strata": "('fluorescence',)",
            "data.classes": "('tumour', 'stroma')", "model.widths": "(32, 64, 160, 256)",
            "model.depths": "(2, 2, 2, 2)", "model.features_per_stage": "(32, 64, 128)",
            "model.blocks_per_stage": "(1, 3, 4)", "model.drop_skips": "(0, 1)"}


def set_value(config: ConfigDict, key: str, value) -> None:
    """config.<key> = value.

    Raises: InputError for an unknown key, with the nearest one, or a value of another type.
    """
    *sections, leaf = key.split(".")
    node = config
    for section in sections:
        node = node.get(section) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or leaf not in node or isinstance(node[leaf], ConfigDict):
        raise InputError(f"config.{key}: no such key{nearest_key(key, config)}")
    old = node[leaf]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = _float(value, key)
    if isinstance(old, tuple) and isinstance(value, (tuple, list)):
        # Of a user's file the entries may be whole numbers where any are meant.
        value = _floats_as_in(ENTRIES.get(key) or old, value, key)
    if key == "data.split" and isinstance(value, str):
        old = value  # "official" or a file, in place of fractions
    elif key == "data.split" and isinstance(value, tuple) and isinstance(old, str):
        old = value = _floats_as_in((0.0,), value, key)
    if type(value) is not type(old) or (
            isinstance(old, tuple) and not _same_types(ENTRIES.get(key) or old, value)):
        pair = key.removeprefix("augment.") in augment.AUGMENTATIONS
        example = ("(probability, strength)" if pair else EXAMPLES.get(key, repr(old)))
        in_shell = (f"; in a shell with quotes: --config.{key}=\"{example}\""
                    if isinstance(old, tuple) and isinstance(value, str) else "")
        raise InputError(f"config.{key}: got {value!r}; expected {_type_text(old)} such as "
                         f"{example}{in_shell}")
    if node[leaf] != value:  # unlocking is slow, and most keys of a study's rows stay
        with node.unlocked():
            node[leaf] = value


def parse(config: ConfigDict, key: str, text: str):
    """The text of a command-line override as a value of the key's own type. Raises InputError."""
    flat = flatten(config)
    if key not in flat:
        raise InputError(f"config.{key}: no such key{nearest_key(key, config)}")
    old = flat[key]
    if isinstance(old, str) and key != "data.split":
        return text
    try:
        value = ast.literal_eval(text.strip() if text.lower() not in ("true", "false")
                                 else text.title())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # see its docs
        value = text
    if isinstance(value, tuple) and isinstance(old, (int, float)):
        raise InputError(f"config.{key}: got {text!r}; expected {_type_text(old)} (stray comma?)")
    return value


def nearest_key(key: str, config: ConfigDict) -> str:
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
        longer = [key for name, key in leaves.items() if name.startswith(f"{leaf}_")]
        if longer:
            return f"; did you mean {' or '.join(f'config.{key}' for key in longer[:3])}?"
    if beside:
        leaves = [k.rpartition(".")[2] for k in dict.fromkeys(beside.values())]
        return f"; config.{section} has {', '.join(leaves)}" if section else ""
    close = difflib.get_close_matches(section, config, 1, 0.5)
    if close:
        return f"; did you mean config.{close[0]}?"
    return f"; the sections are {', '.join(config)}"


def as_tuples(value):
    """Lists become tuples, at any depth: a list cannot be overridden whole."""
    if isinstance(value, (dict, ConfigDict)):
        return {k: as_tuples(v) for k, v in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _float(value: int, key: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"config.{key}: got an integer of {len(str(value))} digits; expected "
                         "a number below 1e308") from None


def _floats_as_in(old: tuple, value, key: str) -> tuple:
    """`value` as a tuple, its ints made floats where the old one holds floats."""
    value = tuple(value)
    if old and all(isinstance(v, float) for v in old):
        value = tuple(_float(v, key) if isinstance(v, int) else v for v in value)
    return value


def _same_types(old: tuple, value: tuple) -> bool:
    """Whether the entries of `value` have types that occur in `old`; any where that is empty."""
    return not old or {type(v) for v in value} <= {type(v) for v in old}


def _type_text(value) -> str:
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a text",
             tuple: "a tuple"}
    return names[type(value)]
