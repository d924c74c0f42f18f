"""The rules for a complete config, section by section; `check` names the first broken one."""

import math

from cellseg_jax import augment, data, losses, normalize, optim, pruning, targets
from cellseg_jax.config.derived import (
    VALIDATION_METRICS,
    augmented_size,
    channels,
    has_cells,
    has_ignored,
    has_part,
    input_size,
    is_classical,
    is_labels,
    model_options,
    num_outputs,
    num_probabilities,
)
from cellseg_jax.data import folds, resize
from cellseg_jax.data.colours import NUM_CHANNELS
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError, pick, refuse_urls, shortened

# Options of networks that count layers one after another, and the most that are built: of more, not
# even the shapes would be known in time.
LAYER_COUNTS = ("num_res_units", "num_layers", "blocks", "depths", "convs", "blocks_per_stage")
MOST_LAYERS = 1000
OF_OBJECTS = tuple(name for name, target in targets.TARGETS.items() if target.of_objects)


def check(config, default) -> None:
    """InputError at the first rule that a complete config breaks; `default` is config.default()."""
    flat = {f"{section}.{key}": value for section, keys in config.items()
            if hasattr(keys, "items") for key, value in keys.items()} | {"seed": config.seed}

    def rule(ok, key, expected):
        if not ok:
            raise InputError(f"config.{key}: got {shortened(flat[key])}; expected {expected}")

    for key, value in flat.items():
        refuse_urls(value, f"config.{key}")
        if isinstance(value, float):
            rule(math.isfinite(value), key, "a finite number")
        for number in value if isinstance(value, tuple) else (value,):
            rule(not isinstance(number, int) or key == "seed" or abs(number) < 2**31, key,
                 "integers from -2**31 + 1 to 2**31 - 1")
    rule(0 <= config.seed < 2**32, "seed", "an integer from 0 to 2**32 - 1")
    for section in (_data, _scale, _augment, _model, _loss, _train, _eval):
        section(config, rule)
    _optimizer(config, rule, default.optimizer)


def _one_of(config, section, key, choices):
    pick(dict.fromkeys(choices), config[section][key], f"config.{section}.{key}")


def _data(c, rule):
    pick(resize.FITS, c.data.fit, "config.data.fit")
    pick(NUM_CHANNELS, c.data.channels, "config.data.channels")
    _reading(c, rule)
    pick(normalize.RANGES, c.data.normalize, "config.data.normalize")
    low, high = c.data.percentiles if len(c.data.percentiles) == 2 else (1, 0)
    rule(0 <= low < high <= 100, "data.percentiles", "(low, high), from 0 to 100")
    rule(c.data.normalize == "percentile" or (low, high) == normalize.PERCENTILES,
         "data.percentiles", f"{normalize.PERCENTILES}, the default, since only "
         "data.normalize='percentile' reads it")
    pick(targets.TARGETS, c.data.target, "config.data.target")
    _one_of(c, "data", "residence", ("auto", "device", "host"))
    _one_of(c, "data", "split_by", ("group", "image"))
    rule(len(c.data.size) == 2 and min(c.data.size) > 0, "data.size", "(height, width) in pixels")
    if folds.is_fold(c.data.split):
        folds.parse(c.data.split)
    elif isinstance(c.data.split, str):
        rule(c.data.split, "data.split", "fractions, 'official', or a file such as split.json")
    else:
        rule(len(c.data.split) == 3 and min(c.data.split) >= 0 and sum(c.data.split) < 1 + 1e-6,
             "data.split", "three fractions (train, validation, test) that sum to at most 1")
        rule(c.data.split[0] > 0, "data.split", "a training fraction above 0")
    rule(c.data.split_seed >= 0, "data.split_seed", "at least 0")
    rule(0 < c.data.train_fraction <= 1, "data.train_fraction", "a share above 0, at most 1")
    rule(c.data.grid >= 1, "data.grid", "at least 1 patch per side")
    rule(all(n % c.data.grid == 0 for n in c.data.size), "data.grid",
         f"a divisor of data.size {c.data.size}")
    rule(c.data.grid == 1 or c.data.fit != "random_crop", "data.grid",
         "1 with data.fit='random_crop'")
    rule(not c.data.augment_before_grid or any(c.augment[k][0] for k in augment.GEOMETRIC),
         "data.augment_before_grid", "False without a geometric augmentation (augment.*)")
    rule(c.data.contour_width >= 1, "data.contour_width", "at least 1 pixel")
    rule(c.data.num_rays >= 3, "data.num_rays", "at least 3 rays")
    rule(c.data.weight_w0 >= 0, "data.weight_w0", "at least 0")
    rule(c.data.weight_sigma > 0, "data.weight_sigma", "above 0 pixels")
    rule(0 <= c.data.oversample <= 1, "data.oversample", "a share from 0 to 1")
    rule(c.data.windows == 1 or (c.data.windows > 1 and c.data.fit == "random_crop"),
         "data.windows", "1, or more with data.fit='random_crop'")
    rule(c.data.copies >= 0, "data.copies", "at least 0")
    rule(not c.data.copies or any(c.augment[name][0] for name in augment.AUGMENTATIONS),
         "data.copies", "0 without an augmentation (augment.*) that makes the copies differ")
    rule(len(c.data.only_size) in (0, 2) and min(c.data.only_size, default=1) > 0,
         "data.only_size", "() or (height, width) in pixels")
    rule(c.data.mix_copies or (c.data.mix and c.data.copies), "data.mix_copies",
         "True, the default, since nothing reads it without data.mix and data.copies")
    rule(all(isinstance(name, str) for name in c.data.strata), "data.strata",
         "() or names of strata, such as ('fluorescence',)")
    rule(c.data.blank_images >= 0, "data.blank_images", "at least 0")
    rule(c.data.blank_images == 0 or c.data.keep_blank, "data.blank_images",
         "0 with data.keep_blank=False, which leaves out what has no foreground")
    for text in c.data.mix:
        pick(data.DATASETS, str(text).partition(":")[0], "config.data.mix")
    kind = c.data.get("labels", "instances")
    if c.data.target == "classes" and kind != "classes":
        raise InputError(f"config.data.target: got 'classes' where the labels of {c.data.name} "
                         f"are {kind}; expected 'foreground', or a dataset whose masks hold "
                         "classes (data.labels=classes of ebhi_seg or folder)")
    rule(kind == "instances" or c.data.target not in OF_OBJECTS, "data.target",
         f"'foreground' or another one than {', '.join(OF_OBJECTS)}, which are of single objects, "
         f"where the labels of {c.data.name} are {kind}: all cells would be one")
    rule(c.data.num_classes >= 2, "data.num_classes", "at least 2, background included")
    rule(c.data.threads >= 1, "data.threads", "at least 1")


def _reading(c, rule):
    ReadOptions.of(c.data).check()
    names = {c.data.name, *(str(text).partition(":")[0] for text in c.data.mix)}
    for key in ("channel_index", "z"):
        fixed = sorted(name for name in names if key not in data.options(name))
        rule(not c.data[key] or not fixed, f"data.{key}",
             f"'' with the files of {', '.join(fixed)}, which are what they are")
    rule(not c.data.channel_index or c.data.blank_images == 0, "data.channel_index",
         "'' with data.blank_images, which are gray")


def _scale(c, rule):
    for key in ("diameter", "pixel_size"):
        rule(c.data[key] >= 0, f"data.{key}", "0 (off) or above")
        rule(not c.data[key] or c.data.fit != "resize", f"data.{key}", "0 with data.fit='resize', "
             "which brings every image to data.size; use random_crop, center_crop or pad")
    rule(not (c.data.diameter and c.data.pixel_size), "data.diameter",
         "0 with data.pixel_size: one of the two decides the scale")
    kind = c.data.get("labels", "instances")
    rule(not c.data.diameter or (kind == "instances" and c.data.target != "classes"),
         "data.diameter", f"0 where labels are {kind}: only instances have a diameter; "
         "data.pixel_size works with all")


def _augment(c, rule):
    size = augmented_size(c)
    for name in augment.AUGMENTATIONS:
        value = c.augment[name]
        rule(len(value) == 2 and 0 <= value[0] <= 1, f"augment.{name}",
             "(probability from 0 to 1, strength)")
        seen = size if name in augment.GEOMETRIC else input_size(c)
        expected = augment.check(name, value[1], seen) if value[0] else ""
        rule(not expected, f"augment.{name}", expected)
    used = [name for name in augment.INTENSITY if c.augment[name][0]]
    rule(c.data.normalize != "symmetric" or not used, "data.normalize",
         f"another range with augment.{''.join(used[:1])}, which takes pixels of about 0 to 1")
    if c.augment.elastic[0]:
        expected = augment.check("elastic_sigma", c.augment.elastic_sigma, size)
        rule(not expected, "augment.elastic_sigma", expected)


def _model(c, rule):
    if is_labels(c):
        rule(c.data.target != "classes" and c.data.get("labels", "instances") == "instances",
             "data.target", "instances, which labels made elsewhere are scored by")
    elif is_classical(c):
        rule(c.data.target in ("foreground", "boundary"), "data.target",
             f"'foreground' or 'boundary', which is what {c.model.name} finds")
        rule(not c.data.channel_index or channels(c) in (1, 3), "data.channel_index",
             f"one channel or three, of which {c.model.name} makes gray")
    for key, value in c.model.items():
        numbers = value if isinstance(value, tuple) else (value,)
        rule(len(numbers) <= MOST_LAYERS, f"model.{key}", f"at most {MOST_LAYERS} values")
        rule(key not in LAYER_COUNTS or max(numbers, default=0) <= MOST_LAYERS, f"model.{key}",
             f"at most {MOST_LAYERS}: each layer is compiled")
    for key in ("dropout", "drop_path"):
        rule(0 <= c.model.get(key, 0) < 1, f"model.{key}", "a rate from 0 to below 1")
    if not is_classical(c):
        _sizes(c, rule)


def _sizes(c, rule):
    """Whole numbers of a network are sizes and counts; 0 is one where it is the default."""
    for key, standard in model_options(c.model.name).items():
        value = c.model[key]
        if type(standard) is int:
            least = 0 if standard == 0 or key == "image_size" else 1
            rule(value >= least, f"model.{key}", f"at least {least}")
        elif isinstance(standard, tuple) and {*map(type, value or standard)} == {int}:
            least = 0 if key == "drop_skips" else 1
            rule(min(value, default=1) >= least and (value or not standard), f"model.{key}",
                 f"numbers of at least {least}{', one or more' * bool(standard)}")


def _loss(c, rule):
    outputs, used = num_probabilities(c), [name for name in losses.LOSSES if c.loss[name]]
    regressed = num_outputs(c) - outputs
    for key, value in c.loss.items():
        if isinstance(value, float):
            rule(value >= 0, f"loss.{key}", "at least 0")
    rule(used, "loss.dice", f"a weight above 0 of one loss among {', '.join(losses.LOSSES)}")
    rule(set(used) - set(losses.ZERO_ON_EMPTY), "loss.dice",
         f"another loss beside {' and '.join(losses.ZERO_ON_EMPTY)}, which are 0 on empty images")
    rule(len(c.loss.class_weights) in (0, outputs) and min(c.loss.class_weights, default=0) >= 0,
         "loss.class_weights", f"() or {outputs} numbers of at least 0, one per output of "
         f"data.target={c.data.target!r}")
    rule(not c.loss.class_weights or max(c.loss.class_weights) > 0, "loss.class_weights",
         "one of them above 0, or nothing is learned")
    rule(not c.loss.tversky or c.loss.tversky_alpha + c.loss.tversky_beta > 0,
         "loss.tversky_alpha", "it or loss.tversky_beta above 0, or nothing is learned")
    for name in ("cross_entropy", "lovasz_softmax"):
        rule(not c.loss[name] or outputs >= 2, f"loss.{name}",
             "none with one output; data.target='contour' or 'classes' have more")
    for name in losses.OF_MASKS:
        rule(not c.loss[name] or not targets.TARGETS[c.data.target].is_share, f"loss.{name}",
             f"0: it is of masks, and probabilities of data.target={c.data.target!r} lie between "
             "0 and 1")
    wanted = " and ".join(name for name in targets.TARGETS[c.data.target].losses
                          if name in losses.REGRESSION)
    for name in losses.REGRESSION:
        rule(not c.loss[name] or regressed, f"loss.{name}", f"0: data.target={c.data.target!r} "
             "has probabilities alone, and nothing that is regressed")
    used = [name for name in losses.REGRESSION if c.loss[name]]
    rule(used or not regressed, f"loss.{wanted or 'mae'}", "above 0, since the "
         f"{regressed} regressed outputs of data.target={c.data.target!r} have no loss else")
    rule(c.loss.cldice_iterations >= 1, "loss.cldice_iterations", "at least 1 erosion")


def _optimizer(c, rule, standard):
    optimizer = c.optimizer
    reads = pick(optim.OPTIMIZERS, optimizer.name, "config.optimizer.name")
    pick(optim.SCHEDULES, optimizer.schedule, "config.optimizer.schedule")
    _one_of(c, "optimizer", "schedule_per", ("epoch", "step"))
    rule(optimizer.lr > 0, "optimizer.lr", "a learning rate above 0")
    rule(optimizer.weight_decay >= 0, "optimizer.weight_decay", "at least 0")
    for name in ("momentum", "b1", "b2", "rms_decay", "ema"):
        rule(0 <= optimizer[name] < 1, f"optimizer.{name}", "from 0 to below 1")
    readers = {option: tuple(name for name, options in optim.OPTIMIZERS.items()
                             if option in options)
               for option in ("nesterov", "momentum", "amsgrad", "rms_decay")}
    for option, off in (("nesterov", False), ("momentum", 0), ("amsgrad", False)):
        rule(optimizer[option] == off or option in reads, f"optimizer.{option}",
             f"{off}, or optimizer.name={' or '.join(map(repr, readers[option]))}")
    rule(optimizer.momentum > 0 or not optimizer.nesterov, "optimizer.momentum",
         "above 0 with nesterov")
    for start, key, names in (("rms_decay", "name", readers["rms_decay"]),
                              ("schedule_power", "schedule", ("polynomial",)),
                              ("schedule_gamma", "schedule", ("exponential", "step")),
                              ("schedule_every", "schedule", ("step",)),
                              ("plateau_", "schedule", ("plateau",))):
        for option in (o for o in standard if o.startswith(start)):
            rule(optimizer[key] in names or optimizer[option] == standard[option],
                 f"optimizer.{option}", f"{standard[option]!r}, the default, since nothing reads "
                 f"it without optimizer.{key}={' or '.join(map(repr, names))}")
    rule(optimizer.schedule_power > 0, "optimizer.schedule_power", "above 0")
    rule(0 < optimizer.schedule_gamma <= 1, "optimizer.schedule_gamma", "above 0, at most 1")
    rule(optimizer.schedule_every >= 1, "optimizer.schedule_every", "at least 1")
    rule(optimizer.warmup >= 0, "optimizer.warmup", "at least 0")
    length = c.train.steps if optimizer.schedule_per == "step" else (
        0 if c.train.steps else c.train.epochs)  # 0: not known before the data are
    rule(not length or optimizer.warmup < length, "optimizer.warmup",
         f"fewer than the {length} {optimizer.schedule_per}s of the run")
    rule(optimizer.schedule != "plateau" or has_part(c, "val"), "optimizer.schedule",
         "another one than 'plateau' without a validation split (data.split)")
    _validation_metric(c, rule, "optimizer", "plateau_metric")
    rule(0 < optimizer.plateau_factor < 1, "optimizer.plateau_factor", "between 0 and 1")
    rule(optimizer.plateau_patience >= 0, "optimizer.plateau_patience", "at least 0")
    rule(optimizer.plateau_cooldown >= 0, "optimizer.plateau_cooldown", "at least 0")
    rule(0 <= optimizer.plateau_min_lr < optimizer.lr, "optimizer.plateau_min_lr",
         f"from 0 to below optimizer.lr {optimizer.lr:g}")
    rule(optimizer.clip >= 0, "optimizer.clip", "at least 0 (0 = no limit)")
    rule(optimizer.accumulate >= 1 and c.train.batch_size % optimizer.accumulate == 0,
         "optimizer.accumulate", f"a divisor of train.batch_size {c.train.batch_size}")


def _train(c, rule):
    _one_of(c, "train", "precision", ("float32", "bfloat16", "float64"))
    _one_of(c, "train", "early_stopping_mode", ("patience", "minimum"))
    rule(c.train.early_stopping == 0 or has_part(c, "val"), "train.early_stopping",
         "0 without a validation split (data.split)")
    rule(c.train.steps >= 0, "train.steps", "at least 0 (0 = train.epochs decides)")
    rule(c.train.epochs >= 1 or c.train.steps, "train.epochs", "at least 1")
    rule(c.train.batch_size >= 1, "train.batch_size", "at least 1")
    _validation_metric(c, rule, "train", "best")
    rule(c.train.early_stopping >= 0, "train.early_stopping", "at least 0 (0 = never)")
    rule(c.train.early_stopping or c.train.early_stopping_mode == "patience",
         "train.early_stopping_mode", "'patience', or train.early_stopping above 0")
    rule(c.train.checkpoint_minutes > 0, "train.checkpoint_minutes", "above 0")
    pick(pruning.METHODS, c.train.prune_how, "config.train.prune_how")
    rule(0 <= c.train.prune < 1, "train.prune", "a share from 0 to below 1")
    rule(c.train.prune or c.train.prune_how == "l1_layers", "train.prune_how",
         "'l1_layers', the default, since nothing reads it without train.prune above 0")
    rule(c.train.prune_iterations >= 1, "train.prune_iterations", "at least 1")
    rule(c.train.prune or c.train.prune_iterations == 1, "train.prune_iterations",
         "1, the default, since nothing reads it without train.prune above 0")


def _eval(c, rule):
    _one_of(c, "eval", "decode", ("components", "watershed"))
    rule(c.eval.every >= 1, "eval.every", "at least 1 epoch")
    rule(c.eval.batch_size >= 1, "eval.batch_size", "at least 1")
    rule(0 < c.eval.threshold < 1, "eval.threshold", "between 0 and 1")
    rule(c.eval.watershed_h >= 0, "eval.watershed_h", "at least 0 pixels")
    rule(c.eval.min_size >= -1, "eval.min_size", "at least 0 pixels, or -1 (from training cells)")
    rule(c.eval.min_size >= 0 or has_cells(c), "eval.min_size",
         "0 or more pixels, since labels that hold no instances have no areas of cells")
    rule(0 <= c.eval.nms <= 1, "eval.nms", "a share from 0 to 1")
    rule(c.eval.star_grid in (1, 2, 4), "eval.star_grid", "1, 2 or 4 pixels")
    rule(c.eval.flow_error >= 0, "eval.flow_error", "at least 0 (0 = keep all)")
    rule(c.eval.smooth >= 0, "eval.smooth", "at least 0 pixels")
    rule(0 <= c.eval.seed_depth <= 1, "eval.seed_depth", "from 0 to 1")
    rule(0 <= c.eval.overlap < 1, "eval.overlap", "from 0 to below 1")
    rule(c.eval.surface >= 0, "eval.surface", "at least 0 pixels")
    rule(c.eval.panels >= 0, "eval.panels", "at least 0")
    rule(not c.eval.report_compat or num_outputs(c) == 1, "eval.report_compat",
         "False with more than one output: report 2 had one")
    rule(not c.eval.report_compat or not has_ignored(c), "eval.report_compat",
         "False where pixels are not annotated (data.ignore, data.partial='ignore')")


def _validation_metric(c, rule, section, key):
    metric = c[section][key]
    rule(len(metric) == 2 and metric[1] in ("max", "min"), f"{section}.{key}",
         "(validation metric, 'max' or 'min')")
    rule(metric[0] in VALIDATION_METRICS, f"{section}.{key}",
         f"a metric among {', '.join(VALIDATION_METRICS)}")
