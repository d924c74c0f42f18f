"""Every config file: loads, locks, passes check, builds; every default key is read somewhere."""

import inspect
import pathlib
import re

import jax
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived, rules
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state

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


def test_every_default_key_is_read_somewhere():
    sources = {p: p.read_text() for p in (ROOT / "cellseg_jax").rglob("*.py")}
    defaults = inspect.getsource(config_lib.default)
    text = "\n".join(sources.values()).replace(defaults, "")
    text = text.replace(inspect.getsource(rules), "")
    tables = ("loss.", "augment.")  # read as whole sections, name by name from their tables
    unread = [key for key in config_lib.flatten(config_lib.default())
              if not key.startswith(tables)
              and not re.search(rf"\b{key.rpartition('.')[2]}\b", text)]
    assert not unread
