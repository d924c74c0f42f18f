"""What a run starts from: another run's weights or a PyTorch network's, or its own; pruned ones."""

import pathlib

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from cellseg_jax import interop, models, pruning
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.interop import torch_weights
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import CHECKPOINTS, no_checkpoint, read_config
from cellseg_jax.step.memory import check_fits
from cellseg_jax.step.mesh import put
from cellseg_jax.step.spec import make_spec
from cellseg_jax.step.state import TrainState

KEY = "config.train.weights"


def weights_path(config, workdir) -> pathlib.Path:
    """The file or folder of train.weights.

    "row:NAME" is another row's run of the same repeat: workdir is STUDY/<row>/<repeat>.
    """
    if row := derived.first_row(config):
        workdir = pathlib.Path(workdir)
        return workdir.parent.parent / row / workdir.name
    return pathlib.Path(config.train.weights).expanduser()


def read(config, wanted: dict, workdir) -> dict:
    """{"params", "batch_stats"} of numpy arrays with the shapes of `wanted`.

    A run's folder gives the weights that it would be scored with (its best checkpoint). A file
    is one that interop.load_weights reads, from a network that interop.SOURCES knows; the options
    of config.model must describe that network.

    Args:
      workdir: of the run, see `weights_path`.
    Raises: InputError where a weight is missing or has another shape.
    """
    path = weights_path(config, workdir)
    if path.is_dir():
        found = _of_run(path, config)
    elif path.is_file():
        state_dict = interop.load_weights(path)
        model = make_spec([config]).model
        options = {k: v for k, v in model.items() if k not in ("name", "num_outputs", "dtype")}
        found = interop.from_torch(
            torch_weights.source_of(state_dict, config.model.name), state_dict, **options)
    else:
        raise InputError(f"{KEY}: no file or folder {str(path)!r}; expected .pt, .npz or "
                         ".safetensors, the folder of a run, or in a study row:NAME of another "
                         "row, which is run first")
    found.setdefault("batch_stats", {})
    there, here = (dict(_leaves(tree)) for tree in (found, wanted))
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise InputError(f"{KEY}: {name} has shape {there.get(name)} in {path}, but "
                             f"{here.get(name)} in this run; expected the same config.model, "
                             "channels and outputs")
    return found


def apply(config, state: TrainState, sharding, workdir) -> TrainState:
    """A fresh state with the weights of train.weights in place of random ones, pruned.

    Raises: InputError as `read`.
    """
    if not config.train.weights and not config.train.prune:
        return state
    found = wanted = {"params": state.params, "batch_stats": state.batch_stats}
    if config.train.weights:
        found = read(config, wanted, workdir)
    found = {**found, "params": pruned(config, found["params"])}
    found = jax.tree.map(lambda old, new: put(np.asarray(new, old.dtype), sharding), wanted, found)
    ema = found["params"] if state.weights == "ema" else state.ema
    return state.replace(**found, ema=ema)


def layers_of(config) -> list[models.Layer]:
    """The layers of the config's network that have kernels, as models.kernel_layers."""
    return models.kernel_layers(make_spec([config]).module({}),
                                (*derived.input_size(config), derived.channels(config)))


def pruned(config, params: dict) -> dict:
    """The parameters that a run starts from, with zeros as train.prune* say.

    Only kernels of convolutions are pruned; random masks are those of config.seed. So they are
    the masks of the pruning analysis at that iteration.
    """
    if not config.train.prune:
        return params
    params = jax.tree.map(np.asarray, params)
    flat = traverse_util.flatten_dict(params)
    kernels = {layer.kernel: flat[layer.kernel] for layer in layers_of(config)
               if layer.kind == "conv"}
    method = config.train.prune_how
    return pruning.prune(
        params, pruning.ranks(kernels, method, config.seed),
        {path: pruning.counts(total, config.train.prune, config.train.prune_iterations)[-1]
         for path, total in pruning.units(kernels, method).items()})


def _of_run(path, config) -> dict:
    other = read_config(path, KEY)
    if other.model.name != config.model.name:
        raise InputError(f"{KEY}: {path} is a run of {other.model.name}, this is one of "
                         f"{config.model.name}; expected the same network")
    saved = checkpoint.saved_steps(path / CHECKPOINTS)
    if not saved:
        raise InputError(f"{KEY}: {no_checkpoint(path)}")
    cpu = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

    def weights(shapes):
        part = {k: shapes[k] for k in ("ema" if shapes.get("ema") else "params", "batch_stats")
                if shapes.get(k)}
        check_fits(part, f"{KEY}: {path}: the network")
        return checkpoint.abstract(part, cpu)

    _, loaded = checkpoint.load_first(
        path / CHECKPOINTS, (saved["best"], *saved.values()), weights)
    loaded = jax.tree.map(np.asarray, loaded)
    return {"params": loaded.get("ema") or loaded["params"],
            "batch_stats": loaded.get("batch_stats", {})}


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(str(entry.key) for entry in path), tuple(np.shape(leaf))
