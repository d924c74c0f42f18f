"""Keys that were changed and that nothing reads beside the others: the run is that of the default.

They are told and not refused: a study sets some keys for all of its rows, and runs that were made
so can still be used. Those of a schedule and the like are refused, see rules.
"""

from cellseg_jax import augment, losses, optim, targets
from cellseg_jax.config import derived
from cellseg_jax.config.compare import flatten

ALL_LOSSES = (*losses.LOSSES, *losses.REGRESSION)


def unread(config, default) -> dict[str, str]:
    """{dotted key: why nothing reads it} of a complete config.

    Args:
      default: config.default().
    """
    standard, values = flatten(default), flatten(config)
    standard |= {f"model.{key}": value
                 for key, value in derived.model_options(config.model.name).items()}
    changed = {key for key, value in values.items() if key in standard and value != standard[key]}
    found = (_of_target(config) | _of_losses(config) | _of_augmentations(config)
             | _of_model(config.model))
    reads = optim.OPTIMIZERS[config.optimizer.name]
    found |= {f"optimizer.{key}": f"optimizer.name is {config.optimizer.name!r}"
              for key in ("b1", "b2") if key not in reads}
    if config.data.grid == 1:
        found["data.augment_before_grid"] = "data.grid is 1"
    if config.data.name == "synthetic":
        found["data.root"] = "data.name is 'synthetic', whose images are drawn"
    if config.train.steps:
        found["train.epochs"] = "train.steps decides the length"
    if optim.SCHEDULES[config.optimizer.schedule] is optim.SCHEDULES["constant"] and (
            not config.optimizer.warmup):
        found["optimizer.schedule_per"] = (
            f"optimizer.schedule is {config.optimizer.schedule!r} and there is no warm-up")
    if not derived.has_part(config, "val"):
        found |= dict.fromkeys(("train.best", "eval.every"), "data.split has no validation images")
    return {key: why for key, why in found.items() if key in changed}


def _of_target(config) -> dict[str, str]:
    target, why = targets.TARGETS[config.data.target], f"data.target is {config.data.target!r}"
    keys = {f"data.{name}" for one in targets.TARGETS.values() for name in one.encode_options}
    keys -= {f"data.{name}" for name in target.encode_options}
    if config.data.get("labels") == "classes":
        keys.discard("data.num_classes")  # which masks may hold
    if target.pixel_weight is None:
        keys |= {"data.weight_w0", "data.weight_sigma"}
    found = dict.fromkeys(sorted(keys), why)
    found |= {f"eval.{key}": why for key in derived.unread_decoding(config, config.eval)}
    if config.eval.decode == "components":
        found.setdefault("eval.watershed_h", "eval.decode is 'components'")
    return found


def _of_model(model) -> dict[str, str]:
    found = {}
    if model.name == "unet_classic":
        if not model.norm.endswith("group"):
            found["model.groups"] = f"model.norm is {model.norm!r}"
        if model.skip == "none":
            found["model.drop_skips"] = "model.skip is 'none'"
        if model.padding == "valid":
            found["model.odd"] = "model.padding is 'valid'"
    if model.name == "unet_plan" and model.features_per_stage:
        found["model.image_size"] = "model.features_per_stage is given"
    if model.name == "segformer" and model.widths and model.depths and model.decoder_width:
        found["model.variant"] = "model.widths, depths and decoder_width are given"
    return found


def _of_losses(config) -> dict[str, str]:
    readers = {}
    for name in ALL_LOSSES:
        for option in losses.options(name):
            readers.setdefault(option, []).append(name)
    return {f"loss.{option}": f"the weight of {' and '.join(names)} is 0"
            for option, names in readers.items() if not any(config.loss[name] for name in names)}


def _of_augmentations(config) -> dict[str, str]:
    found = {f"augment.{name}": "a strength of 0 changes nothing"
             for name in augment.AUGMENTATIONS if config.augment[name][0] > 0
             and config.augment[name][1] == 0}
    if not config.augment.elastic[0]:
        found["augment.elastic_sigma"] = "augment.elastic is off"
    return found
