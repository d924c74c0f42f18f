"""Every config file: loads, locks, passes check, builds; every default key is read somewhere."""

import ast
import collections
import pathlib

import jax
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax import losses
from cellseg_jax.config import derived
from cellseg_jax.config.defaults import TRACED
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state
from cellseg_jax.targets import TARGETS

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
NUCLEI = {f"{model}_{optimizer}{schedule}" for model in ("unet", "unetr")
          for optimizer in ("adam", "sgd") for schedule in ("", "_poly")}


def test_the_promised_configs_exist():
    studies = {"small_unet", "ebhi_unet", "em_unet", "livecell_unet"}
    assert {f.stem for f in FILES} >= NUCLEI | studies | {"quickstart"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_config_loads_locked_and_builds(file):
    config = config_lib.load(str(file))
    assert config.is_locked
    spec = make_spec([config])
    values = traced_values(config, spec, 10)
    shape = (*derived.input_size(config), derived.channels(config))
    state = jax.eval_shape(lambda v: init_state(spec, v, shape), values)
    assert len(jax.tree.leaves(state.params)) > 10
    assert f"configs/{file.name}" in file.read_text(), "the docstring says how to run it"


@pytest.mark.parametrize("name", sorted(NUCLEI))
def test_nuclei_config_is_the_cell_of_the_table_that_it_names(name):
    config = config_lib.load(str(ROOT / "configs" / f"{name}.py"))
    model, optimizer, *schedule = name.split("_")
    assert config.model.name == model and config.model.dropout == 0.2
    assert config.optimizer.name == optimizer
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (5e-3, 3e-5)
    assert config.optimizer.nesterov == (optimizer == "sgd")
    assert config.optimizer.momentum == (0.99 if optimizer == "sgd" else 0)
    assert config.optimizer.schedule == ("polynomial" if schedule else "constant")
    assert config.data.size == (512, 512) and config.data.channels == "rgba"


KEYS = set(config_lib.flatten(config_lib.default()))
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
LEAVES = collections.Counter(key.rpartition(".")[2] for key in KEYS)
NOT_READERS = {"defaults.py", "rules.py", "unread_keys.py"}  # of config/: they name every key


def keys_read(text):
    """Keys of the config that a module reads.

    Found are config.train.epochs, data_config["size"], options.lr after options =
    config.optimizer, and, for a name that only one key has, any attribute or string of that name.
    """
    tree, aliases = ast.parse(text), {f"{section}_config": section for section in SECTIONS}

    def section_of(node):
        if isinstance(node, ast.Attribute):
            return node.attr if node.attr in SECTIONS else None
        return aliases.get(node.id) if isinstance(node, ast.Name) else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            for target in node.targets:
                if isinstance(target, ast.Name) and section_of(node.value):
                    aliases[target.id] = node.value.attr
    only = {key.rpartition(".")[2]: key for key in KEYS}
    only = {leaf: key for leaf, key in only.items() if LEAVES[leaf] == 1 and "_" in leaf}
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "value", None)
        if isinstance(node, (ast.Attribute, ast.Constant)) and isinstance(name, str):
            yield only.get(name, name)
        if isinstance(node, ast.Attribute):
            yield f"{section_of(node.value)}.{node.attr}"
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield f"{section_of(node.value)}.{node.slice.value}"


@pytest.mark.parametrize("text, expected", [
    ("config.train.epochs + self.config.data.size", {"train.epochs", "data.size"}),
    ("data_config['name']", {"data.name"}), ("name = size = fit = steps = 'every'", set()),
    ("o = config.optimizer; o.lr", {"optimizer.lr"}), ("options.early_stopping_mode",
                                                     {"train.early_stopping_mode"})])
def test_keys_read_are_those_of_their_section(text, expected):
    assert set(keys_read(text)) & KEYS == expected


def test_every_default_key_is_read_somewhere():
    read = set(TRACED)  # hyperparameters() reads them by this table
    read |= {f"loss.{option}" for name in losses.LOSSES for option in losses.options(name)}
    for target in TARGETS.values():  # derived.target_options and decode_options read these
        read |= {f"data.{name}" for name in target.encode_options}
        read |= {f"eval.{derived.DECODE_KEYS.get(name, name)}" for name in target.decode_options}
    for path in (ROOT / "cellseg_jax").rglob("*.py"):
        if path.parent.name != "config" or path.name not in NOT_READERS:
            read |= set(keys_read(path.read_text()))
    assert sorted(KEYS - read) == []
