"""Config: overrides, types, rules, and messages that save the search."""

import json

import jax
import numpy as np
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax import data, losses, models, targets
from cellseg_jax.config import compare
from cellseg_jax.errors import InputError

QUICKSTART = """
from cellseg_jax.config import default


def get_config(arg="40"):
    config = default()
    config.data = dict(name="synthetic", size=(128, 128))
    config.train.epochs = int(arg)
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "quick.py"
    path.write_text(QUICKSTART)
    return str(path)


def test_override_takes_the_type_of_the_key(file):
    config = config_lib.load(file, [("optimizer.lr", "1e-4"), ("data.size", "(64, 96)"),
                                    ("optimizer.nesterov", "false"), ("data.root", "123"),
                                    ("train.epochs", "3"), ("augment.turn", "(1, 3)")])
    assert config.optimizer.lr == 1e-4 and config.data.size == (64, 96)
    assert config.data.root == "123" and config.train.epochs == 3
    assert config.augment.turn == (1.0, 3.0)


def test_argument_reaches_get_config(file):
    assert config_lib.load(file + ":7").train.epochs == 7


def test_another_model_brings_its_own_options(file):
    config = config_lib.load(file, [("model.name", "unetr"), ("model.num_heads", "4")])
    assert config.model.num_heads == 4 and "channels" not in config.model


def test_another_target_brings_its_own_losses(file):
    used = lambda config: {
        name: config.loss[name] for name in ("dice", "bce", "mae") if config.loss[name]}
    config = config_lib.load(file, [("data.target", "star")])  # the file names no target
    assert used(config) == {"bce": 1.0, "mae": 0.2}
    assert used(config_lib.load(file)) == {"dice": 1.0}


@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize("before", ["foreground", "distance", "star", "flow"])
@pytest.mark.parametrize("after", ["foreground", "distance", "star", "flow"])
def test_the_losses_of_a_target_do_not_stay_when_it_is_replaced(before, after, completed):
    def config(target):
        out = config_lib.default()
        out.data = dict(name="synthetic", size=(128, 128), target=target)
        return out

    start = config_lib.complete(config(before)) if completed else config(before)
    switched = config_lib.override(start, [("data.target", after)])
    assert switched.loss == config_lib.complete(config(after)).loss
    chosen = config_lib.override(start, [("loss.bce", "0.5"), ("data.target", after)])
    assert chosen.loss.bce == 0.5


def test_json_roundtrip(file):
    config = config_lib.load(file)
    assert config_lib.diff(config, config_lib.from_json(config_lib.to_json(config))) == {}


def test_a_dotted_name_in_a_runs_config_is_one_line():
    with pytest.raises(InputError, match="^config: a name of a key has a dot in it; expected"):
        config_lib.from_json('{"data": {".": null}}')


def test_identity_ignores_where_the_data_lies_and_nothing_else(file):
    base = config_lib.identity(config_lib.load(file))
    assert config_lib.identity(config_lib.load(file, [("data.cache", "elsewhere")])) == base
    assert config_lib.identity(config_lib.load(file, [("seed", "1")])) != base


def test_identity_of_a_run_made_before_a_key_came_is_that_of_its_default(file):
    config = config_lib.load(file)
    before = config_lib.flatten(config)
    for key, value in compare.LATER_KEYS.items():
        if key in before:  # options of other networks are not
            assert before.pop(key) == value
    assert config_lib.identity(before) == config_lib.identity(config)
    stored = json.loads(config_lib.to_json(config))  # where tuples are lists
    assert config_lib.identity(stored) == config_lib.identity(config)
    by_image = config_lib.load(file, [("data.split_by", "image")])
    assert config_lib.identity(by_image) != config_lib.identity(config)
    with pytest.raises(InputError, match="config.data.split_by"):
        config_lib.load(file, [("data.split_by", "case")])


@pytest.mark.parametrize("override,words", [
    (("optimizer.lerning_rate", "1"), ["config.optimizer.lerning_rate", "no such key",
                                       "did you mean config.optimizer.lr?"]),
    (("optimizer.xyz", "1"), ["config.optimizer.xyz", "config.optimizer has", " lr, "]),
    (("optimizer.weigth_decay", "1"), ["did you mean config.optimizer.weight_decay?"]),
    (("optimiser.lr", "1"), ["no such key", "did you mean config.optimizer.lr?"]),
    (("optimizer.lr", "1e-3,"), ["config.optimizer.lr", "stray comma"]),
    (("train.steps", "{[]: 1}"), ["config.train.steps", "got '{[]: 1}'"]),
    (("optimizer.lr", "abc"), ["config.optimizer.lr", "'abc'", "a number"]),
    (("train.epochs", "1.5"), ["config.train.epochs", "1.5", "an integer"]),
    (("optimizer.name", "adm"), ["config.optimizer.name", "adam, sgd, adamax", "mean adam"]),
    (("model", "otsu"), ["config.model: no such key: it is a section, with", "name"]),
    (("model.name", "unett"), ["config.model.name", "unet"]),
    (("model.chanels", "(1, 2)"), ["config.model.chanels", "config.model.channels"]),
    (("data.size", "64"), ["config.data.size", "a tuple"]),
    (("data.size", "('a', 'b')"), ["config.data.size", "a tuple"]),
    (("data.split", "(0.8, 0.3, 0.1)"), ["config.data.split", "sum to at most 1"]),
    (("model.dropout", "1.2"), ["config.model.dropout", "below 1"]),
    (("optimizer.lr", "-1"), ["config.optimizer.lr", "above 0"]),
    (("eval.batch_size", str(2**31)), ["config.eval.batch_size: got 2147483648", "to 2**31 - 1"]),
    (("model.channels", str((4, -(2**40)))), ["config.model.channels: got (4, -1099", "2**31"]),
    (("model.num_res_units", "1001"), ["config.model.num_res_units: got 1001", "at most 1000"]),
    (("model.channels", str((4,) * 1001)), ["model.channels: got (4, 4", "at most 1000 values",
                                            "... (3003 characters)"]),
    (("optimizer.lr", "1e999"), ["config.optimizer.lr", "finite"]),
    (("train.batch_size", "0"), ["config.train.batch_size", "at least 1"]),
    (("augment.turn", "(2, 1)"), ["config.augment.turn", "probability"]),
    (("optimizer.nesterov", "True"), ["config.optimizer.nesterov"]),
    (("optimizer.schedule", "plato"), ["config.optimizer.schedule", "plateau"]),
    (("optimizer.plateau_patience", "3"), ["config.optimizer.plateau_patience", "10, the default",
                                           "optimizer.schedule='plateau'"]),
    (("optimizer.schedule_gamma", "0.5"), ["schedule_gamma", "'exponential' or 'step'"]),
    (("optimizer.rms_decay", "0.9"), ["config.optimizer.rms_decay", "optimizer.name='rmsprop'"]),
    (("optimizer.momentum", "0.9"), ["config.optimizer.momentum", "'sgd' or 'rmsprop'"]),
    (("optimizer.warmup", "100000"), ["config.optimizer.warmup", "epochs of the run"]),
    (("optimizer.clip", "-1"), ["config.optimizer.clip", "0 = no limit"]),
    (("optimizer.ema", "1"), ["config.optimizer.ema", "below 1"]),
    (("optimizer.accumulate", "5"), ["config.optimizer.accumulate", "divisor"]),
    (("train.early_stopping_mode", "minimum"), ["early_stopping_mode", "early_stopping above 0"]),
    (("data.percentiles", "(99, 1)"), ["config.data.percentiles", "(low, high), from 0 to 100"]),
    (("data.percentiles", "(1, 2, 3)"), ["config.data.percentiles", "(low, high)"]),
    (("data.percentiles", "(3, 97)"), ["data.percentiles", "only data.normalize='percentile'"]),
    (("data.split_seed", "-1"), ["config.data.split_seed: got -1", "at least 0"]),
    (("augment.flip", "(0.5, 1)"), ["augment.flip_horizontal or config.augment.flip_vertical?"]),
    (("data.strata", "fluorescence"), ["such as ('fluorescence',); in a shell",
                                       "--config.data.strata=\"('fluorescence',)\""]),
    (("model.channels", "(16, 0)"), ["model.channels: got (16, 0)", "at least 1, one or more"]),
    (("model.channels", "()"), ["model.channels: got ()", "at least 1, one or more"]),
    (("model.num_res_units", "-1"), ["config.model.num_res_units: got -1", "at least 0"]),
    (("train.early_stopping_mode", "median"), ["early_stopping_mode", "patience, minimum"]),
])
def test_bad_override_is_one_line_with_key_value_and_choices(file, override, words):
    with pytest.raises(InputError) as caught:
        config_lib.load(file, [override])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model, key, value, expected", [
    ("segformer", "depths", ("a",), "a tuple such as (2, 2, 2, 2)"),
    ("unet_plan", "blocks_per_stage", (1.5, 2.5), "a tuple such as (1, 3, 4)"),
    ("unet_classic", "drop_skips", ("0",), "a tuple such as (0, 1)"),
    ("unet_classic", "groups", 0, "at least 1"),
    ("unetr", "num_layers", 0, "at least 1"),
    ("medt", "stem_features", 0, "at least 1"),
    ("segformer", "decoder_width", -1, "at least 0"),
    ("segformer", "drop_path", 1.5, "a rate from 0 to below 1"),
    ("segformer", "drop_path", -0.5, "a rate from 0 to below 1"),
])
def test_options_of_networks_are_named_where_they_are_wrong(model, key, value, expected):
    with pytest.raises(InputError) as caught:
        config_lib.changed(config_lib.default(), {"model.name": model, f"model.{key}": value})
    assert str(caught.value) == f"config.model.{key}: got {value!r}; expected {expected}"


@pytest.mark.parametrize("changes, why", [
    ({"data.contour_width": 5}, {"data.contour_width": "data.target is 'foreground'"}),
    ({"data.contour_width": 5, "data.target": "contour"}, {}),
    ({"data.weight_w0": 3.0}, {"data.weight_w0": "data.target is 'foreground'"}),
    ({"data.num_classes": 4}, {"data.num_classes": "data.target is 'foreground'"}),
    ({"data.name": "folder", "data.labels": "classes", "data.num_classes": 4}, {}),
    ({"data.root": "x"}, {}),
    ({"data.name": "synthetic", "data.root": "x"}, {
        "data.root": "data.name is 'synthetic', whose images are drawn"}),
    ({"loss.gamma": 3.0}, {}),
    ({"loss.gamma": 3.0, "loss.focal": 0.0}, {"loss.gamma": "the weight of focal is 0"}),
    ({"loss.tversky_beta": 0.7}, {"loss.tversky_beta": "the weight of tversky is 0"}),
    ({"optimizer.name": "sgd", "optimizer.b1": 0.8}, {"optimizer.b1": "optimizer.name is 'sgd'"}),
    ({"augment.elastic_sigma": 4.0}, {"augment.elastic_sigma": "augment.elastic is off"}),
    ({"augment.rotation": (0.5, 0.0)}, {"augment.rotation": "a strength of 0 changes nothing"}),
    ({"augment.turn": (0.5, 1.0), "data.augment_before_grid": True},
     {"data.augment_before_grid": "data.grid is 1"}),
    ({"eval.decode": "components", "eval.watershed_h": 2.0},
     {"eval.watershed_h": "eval.decode is 'components'"}),
])
def test_keys_that_change_nothing_are_known(changes, why):
    assert config_lib.unread(config_lib.changed(config_lib.default(), changes)) == why


def test_strengths_are_checked_by_the_size_of_what_is_augmented():
    """Patches are cut after their image was warped, but before it is blurred."""
    changes = {"data.size": (64, 64), "data.grid": 4, "data.augment_before_grid": True,
               "augment.elastic": (0.5, 9.0), "augment.elastic_sigma": 16.0}
    config_lib.changed(config_lib.default(), changes | {"augment.blur": (0.5, 4.0)})
    with pytest.raises(InputError, match=r"config.augment.blur: got \(0.5, 5.0\).* to 4 \(pixels"):
        config_lib.changed(config_lib.default(), changes | {"augment.blur": (0.5, 5.0)})


@pytest.mark.parametrize("loss", losses.OF_MASKS)
def test_losses_of_masks_are_refused_where_probabilities_are_shares(loss):
    base = config_lib.changed(config_lib.default(), {"data.target": "star"})
    with pytest.raises(InputError, match=f"config.loss.{loss}: got 1.0; expected 0: it is of mas"):
        config_lib.changed(base, {f"loss.{loss}": 1.0})


def test_whole_numbers_of_a_file_give_way_to_fractions():
    config = config_lib.default()
    config.data.target, config.loss.class_weights = "contour", (1, 2, 2)
    changed = config_lib.override(config_lib.complete(config), [
        ("loss.class_weights", "(0.5, 1.0, 1.0)")])
    assert changed.loss.class_weights == (0.5, 1.0, 1.0)


@pytest.mark.parametrize("values", [
    {"loss.class_weights": (0.0,)}, {"loss.tversky": 1.0, "loss.tversky_alpha": 0.0,
                                     "loss.tversky_beta": 0.0}])
def test_losses_without_a_gradient_are_refused(values):
    with pytest.raises(InputError, match="above 0, or nothing is learned"):
        config_lib.changed(config_lib.default(), values)


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_targets_whose_probabilities_are_shares_are_known(name):
    label = np.zeros((1, 16, 16), np.int32)
    label[0, 2:14, 3:12] = 1
    target = targets.TARGETS[name]
    values = np.unique(target.encode(label)[..., : target.num_binary])
    assert (set(values.tolist()) <= {0, 1}) == (not target.is_share)


@pytest.mark.parametrize("name, key, before, after, by, other", [
    ("unet_classic", "groups", 4, 2, {"norm": "batch"}, {"norm": "group"}),
    ("unet_classic", "drop_skips", (), (0,), {"skip": "none"}, {}),
    ("unet_classic", "odd", "pad_input", "pad_up", {"padding": "valid"}, {}),
    ("unet_plan", "image_size", 16, 32, {"features_per_stage": (4, 8)}, {}),
    ("segformer", "variant", "b0", "b1",
     {"widths": (2, 4, 10, 16), "depths": (1, 1, 1, 1), "decoder_width": 8}, {}),
])
def test_options_of_a_network_that_change_nothing_are_known(
        name, key, before, after, by, other):
    """The program of the network is the same by these options, and not by the other ones."""
    small = {"channels": (4, 8)} if name == "unet_classic" else {}

    def told(options):
        config = config_lib.default()
        config.model = dict(name=name, **small, **options)
        return list(config_lib.unread(config_lib.complete(config)))

    def program(options):
        network = models.make(name, num_outputs=1, **small, **options)
        image = np.zeros((1, 21, 30, 1), np.float32)
        return str(jax.make_jaxpr(lambda x: network.init_with_output(
            jax.random.key(0), x, train=False))(image))

    assert told({**by, key: after}) == [f"model.{key}"] and not told({**other, key: after})
    assert program({**by, key: before}) == program({**by, key: after})
    assert key == "variant" or program({**other, key: before}) != program({**other, key: after})


@pytest.mark.parametrize("target", ["distance", "star", "flow"])
def test_targets_of_single_objects_need_labels_of_single_objects(target):
    changes = {"data.name": "folder", "data.target": target}
    config_lib.changed(config_lib.default(), changes)
    with pytest.raises(InputError, match=f"config.data.target: got '{target}'.* are binary"):
        config_lib.changed(config_lib.default(), changes | {"data.labels": "binary"})


@pytest.mark.parametrize("overrides,words", [
    ({"plateau_factor": "1.0"}, ["config.optimizer.plateau_factor", "between 0 and 1"]),
    ({"plateau_min_lr": "0.01", "lr": "0.01"}, ["config.optimizer.plateau_min_lr", "lr 0.01"]),
    ({"plateau_cooldown": "-1"}, ["config.optimizer.plateau_cooldown", "at least 0"]),
    ({"plateau_metric": "('dice', 'max')"}, ["config.optimizer.plateau_metric", "dice_mean"]),
    ({"plateau_metric": "('loss', 'least')"}, ["config.optimizer.plateau_metric", "'min'"]),
    ({"schedule": "step", "schedule_every": "0"}, ["optimizer.schedule_every", "at least 1"]),
    ({"schedule": "exponential", "schedule_gamma": "1.5"}, ["schedule_gamma", "at most 1"]),
])
def test_options_of_schedules_are_checked(file, overrides, words):
    overrides = {"optimizer.schedule": "plateau"} | {
        f"optimizer.{k}": v for k, v in overrides.items()}
    with pytest.raises(InputError) as caught:
        config_lib.load(file, overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_plateau_needs_validation_images(file):
    with pytest.raises(InputError, match="config.optimizer.schedule.*validation split"):
        config_lib.load(file, {"optimizer.schedule": "plateau", "data.split": "(0.9, 0.0, 0.1)"})


@pytest.mark.parametrize("text,words", [
    ("def get_config():\n    return 1 / 0\n", ["line 2", "division"]),
    ("def get_config(:\n", ["broken.py line 1: "]),
    (QUICKSTART.replace("train.epochs", "train.epoch"), ["line 8", "epoch"]),
    ("get_config = 3", ["broken.py: get_config is missing"]),
    (QUICKSTART.replace("size=", "sise="), ["config.data.sise", "config.data.size"]),
])
def test_bad_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        config_lib.load(str(path))
    for word in words:
        assert word in str(caught.value)
    assert "(broken.py, line" not in str(caught.value)  # Python's own words say it once more


def test_a_row_of_a_file_without_rows_is_one_line(tmp_path):
    file = tmp_path / "quick.py"
    file.write_text("def get_config():\n    return 1\n")
    with pytest.raises(InputError, match="got :unet, but the file is no study.*pass --config="):
        config_lib.load(f"{file}:unet")


def test_missing_file_names_the_nearest(monkeypatch, tmp_path, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "unet_adam.py").write_text(QUICKSTART)
    with pytest.raises(InputError, match="did you mean configs/unet_adam.py"):
        config_lib.load("configs/unet_adm.py")


@pytest.mark.parametrize("name, identity, cache", [
    ("bbbc039", "8bb03d3088af", "5f8878d00cd2"), ("ctc", "b7c212c79a85", "59f7a179f6f9"),
    ("dsb2018", "9eda0898463d", "de29bc60b7ab"), ("ebhi_seg", "ed0c62141284", "aab9737eca82"),
    ("folder", "37afe02032f6", "4e9b030dba43"), ("isbi2012", "369fe8cc293c", "4c21d556596f"),
    ("livecell", "5a687014fad3", "dabaf6a1aa35"), ("synthetic", "5f8bb1631bb0", "2f0656bdfc8e")])
def test_keys_that_came_later_leave_the_hashes_of_runs_and_caches(name, identity, cache):
    config = config_lib.changed(config_lib.default(), {"data.name": name})
    assert config_lib.identity(config).startswith(identity)
    assert data.cache_options(config.data).key("f").startswith(cache)
