"""What follows from a config: sizes, outputs, lengths."""

from cellseg_jax import classical, data, losses, models, targets
from cellseg_jax.data import folds
from cellseg_jax.data.colours import num_channels
from cellseg_jax.data.split import PARTS
from cellseg_jax.errors import pick

# What a validation measures; train.best and optimizer.plateau_metric name one of them.
VALIDATION_METRICS = ("dice_mean", "iou_mean", "dice_pooled", "iou_pooled", "loss",
                      "accuracy_mean", "precision_mean", "recall_mean")
# model.name of labels made elsewhere (inference.label_folder), and its options.
LABELS = "labels"
LABEL_OPTIONS = {"folder": ""}
# Models that learn nothing and have no checkpoint.
UNTRAINED = (*classical.CLASSICAL, LABELS)
# Options of decode that config.eval has by another name.
DECODE_KEYS = {"method": "decode", "h": "watershed_h"}


def first_row(config) -> str:
    """The row of a study whose run of the same repeat train.weights names, "row:NAME"; else ""."""
    kind, _, name = config.train.weights.partition(":")
    return name if kind == "row" else ""


def is_classical(config) -> bool:
    """Whether the model learns nothing: a method of classical.py, or labels made elsewhere."""
    return config.model.name in UNTRAINED


def is_labels(config) -> bool:
    """Whether the model is a folder of labels made elsewhere."""
    return config.model.name == LABELS


def model_options(name: str) -> dict:
    """The keyword options of a network or a classical method, with their defaults.

    Raises: InputError for an unknown name; it lists both kinds.
    """
    if name == LABELS:
        return dict(LABEL_OPTIONS)
    pick(models.MODELS | classical.CLASSICAL, name, "config.model.name")
    return (classical if name in classical.CLASSICAL else models).options(name)


def channels(config) -> int:
    """Image channels of a config."""
    return num_channels(config.data.channels, config.data.channel_index)


def input_size(config) -> tuple[int, int]:
    """Height and width of the network's input."""
    return tuple(n // config.data.grid for n in config.data.size)


def augmented_size(config) -> tuple[int, int]:
    """Height and width of what geometric augmentations move: the network's input, or an image."""
    return tuple(config.data.size) if config.data.augment_before_grid else input_size(config)


def target_options(config) -> dict:
    """The options of the target's encode, which are keys of config.data."""
    return {name: config.data[name]
            for name in targets.TARGETS[config.data.target].encode_options}


def decode_options(config, **changed) -> dict:
    """The options of the target's decode: those of config.eval, or as `changed`, by its keys."""
    names = targets.TARGETS[config.data.target].decode_options
    return {name: changed.get(key, config.eval[key])
            for name, key in zip(names, decode_keys(config), strict=True)}


def decode_keys(config) -> tuple[str, ...]:
    """The keys of config.eval that the target's decode reads."""
    return tuple(DECODE_KEYS.get(name, name)
                 for name in targets.TARGETS[config.data.target].decode_options)


def unread_decoding(config, keys) -> list[str]:
    """Those of some keys of config.eval that decide how others decode, and not this target."""
    known = {DECODE_KEYS.get(name, name) for target in targets.TARGETS.values()
             for name in target.decode_options}
    return [key for key in keys if key in known and key not in decode_keys(config)]


def has_ignored(config) -> bool:
    """Whether labels may be -1, where an image is not annotated."""
    return bool(config.data.get("ignore")) or config.data.get("partial") == "ignore"


def has_cells(config) -> bool:
    """Whether labels hold instances, of which the run learns something."""
    return label_kind(config) == "instances"


def label_kind(config) -> str:
    """What labels hold: instances | binary | classes."""
    if config.data.target == "classes":
        return "classes"
    return config.data.get("labels", "instances")


def has_part(config, part: str) -> bool:
    """Whether the split may have "val" or "test" images."""
    split = config.data.split
    if folds.is_fold(split):
        return part != "val" or folds.parse(split).val > 0
    return isinstance(split, str) or split[PARTS.index(part)] > 0


def num_outputs(config) -> int:
    """Output channels of the network."""
    return targets.TARGETS[config.data.target].num_outputs(**target_options(config))


def class_names(config) -> tuple[str, ...]:
    """Of classes 1, 2, ... of a run of classes; () where labels are instances."""
    return data.class_names(config.data) if config.data.target == "classes" else ()


def output_names(data_config) -> tuple[str, ...]:
    """What each output of the network is, in words; classes have the names that the data give.

    Args:
      data_config: config.data, or a mapping with its keys.
    """
    if data_config["target"] == "classes":
        return ("background", *data.class_names(data_config))
    target = targets.TARGETS[data_config["target"]]
    return target.names(**{name: data_config[name] for name in target.encode_options})


def num_probabilities(config) -> int:
    """Output channels that are probabilities; the others are regressed."""
    return targets.TARGETS[config.data.target].num_binary or num_outputs(config)


def default_losses(target: str) -> dict[str, float]:
    """{loss: weight} of all losses, where a config with this target chooses none."""
    chosen = targets.TARGETS[target].losses or {"dice": 1.0, "focal": 1.0}
    return {name: chosen.get(name, 0.0) for name in (*losses.LOSSES, *losses.REGRESSION)}


def num_steps(config, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def training_samples(config, count: int) -> int:
    """Training samples of an epoch if the dataset has `count` images; at least 1.

    An estimate: of an official split the share is not known, nor are blank samples left out.
    """
    split = config.data.split
    share = 0.8 if isinstance(split, str) else split[0]
    if folds.is_fold(split):
        share = folds.parse(split).training_share
    images = int(count * share * config.data.train_fraction + 1e-6)
    return max(images * config.data.grid**2 * (config.data.copies + 1) * config.data.windows, 1)


def classical_options(config) -> dict:
    """The keyword options of the classical method."""
    return {k: v for k, v in config.model.items() if k != "name"}
