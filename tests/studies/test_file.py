"""Study files: what they may say, what is wrong with them in one line, grids, and tiny twins."""

import itertools
import time

import pytest
from helpers import ROOT

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError
from cellseg_jax.studies import Claim, Grid
from cellseg_jax.studies.check import ROW_NAME
from cellseg_jax.studies.row_families import families as families_
from cellseg_jax.studies.smoke import prepare_smoke
from cellseg_jax.studies.study import representatives

HEAD = """
from cellseg_jax.config import default
from cellseg_jax.studies import Claim, Grid, rows
TITLE = "a table"
BASE = default()
"""
TABLE = """
ROWS = {"base": {}, "slow": {"optimizer.lr": 1e-3},
        "transformer": {"model.name": "unetr", "model.dropout": 0.1},
        "own_images": {"data.name": "folder"}}
"""
GRID = """
GRID = {"optimizer.name": ("adam", "sgd"), "optimizer.lr": (1e-2, 5e-5),
        "model.dropout": (0.3, 0.5), "data.keep_blank": (False, True),
        "model": {"plain": {}, "conv": {"model.name": "simple_conv"}},
        "train.batch_size": {"small": 4, "large": 44}}
"""
END = "get_config = rows(BASE, {})\n"


@pytest.fixture
def study_file(tmp_path):
    def write(*lines, table=TABLE):
        path = tmp_path / "own.py"
        end = END.format("Grid(GRID)" if "GRID" in table else "ROWS")
        path.write_text("\n".join([HEAD, table, *lines, end]))
        return path
    return write


def test_a_study_is_what_its_file_says(study_file):
    study = studies.load(study_file(
        'REFERENCE = {"slow": {"dice_mean": 0.8, "train_seconds": 60}}',
        'CLAIMS = [Claim("slow is better", "slow", ("base",))]', "REPEATS = 2",
        'VARIES = ("seed", "data.split_seed")', 'BASELINE = "slow"',
        'SMOKE = {"train.steps": 2}'))
    assert study.name == "own" and study.title == "a table" and study.baseline == "slow"
    assert list(study.rows) == ["base", "slow", "transformer", "own_images"]
    assert study.claims == (Claim("slow is better", ("slow",), ("base",)),)
    assert study.reference["slow"] == {"dice_mean": 0.8, "train_seconds": 60}
    assert study.base.is_locked and study.repeats == 2 and study.smoke == {"train.steps": 2}


def test_only_what_is_needed_must_be_said(study_file):
    study = studies.load(study_file())
    assert study.metrics == ("dice_mean", "iou_mean") and study.repeats == 3
    assert study.varies == ("seed",) and study.baseline == "base" and study.claims == ()


def test_a_row_is_a_config_argument_and_takes_overrides(study_file):
    path = str(study_file())
    config = config_lib.load(path + ":slow", [("train.epochs", "7")])
    assert (config.optimizer.lr, config.train.epochs) == (1e-3, 7)
    assert config_lib.load(path) == config_lib.complete(config_lib.default())
    with pytest.raises(InputError, match=r"own\.py: there is no row 'slwo'; did you mean slow\?"):
        config_lib.load(path + ":slwo")


def test_another_model_or_dataset_has_its_own_options(study_file):
    study = studies.load(study_file())
    transformer, own = (studies.config_of(study, row, 0) for row in ("transformer", "own_images"))
    assert transformer.model.dropout == 0.1 and "channels" not in transformer.model
    assert "solution" in study.base.data and "solution" not in own.data


def test_repeats_add_their_number_to_what_varies(study_file):
    study = studies.load(study_file('VARIES = ("seed", "data.split_seed")'),
                           [("seed", "5"), ("optimizer.lr", "0.1")])
    configs = [studies.config_of(study, "slow", repeat) for repeat in range(3)]
    assert [c.seed for c in configs] == [5, 6, 7]
    assert [c.data.split_seed for c in configs] == [0, 1, 2]
    assert configs[0].optimizer.lr == 1e-3, "a row rules over --config"
    assert configs[1] == studies.config_of(study, "slow", 1)


def test_smoke_is_a_value_or_a_function_and_skips_what_other_models_have(study_file):
    study = studies.load(study_file(
        'SMOKE = {"train.batch_size": lambda n: min(n, 4), "model.hidden_size": 24,',
        '         "model.channels": lambda c: tuple(n // 4 for n in c[:2]), "train.steps": 2}'))
    base, transformer = (studies.config_of(study, row, 1, smoke=True)
                         for row in ("base", "transformer"))
    assert base.model.channels == (4, 8) and "hidden_size" not in base.model
    assert transformer.model.hidden_size == 24 and "channels" not in transformer.model
    assert base.train.batch_size == 4 and base.train.steps == 2 and base.seed == 1
    assert studies.config_of(study, "base", 0).train.steps == 0


@pytest.mark.parametrize(("lines", "message"), [
    ('ROWS["x"] = {"optimizer.learning": 1.0}', r"own\.py: ROWS\['x'\]: config\.optimizer\.lear"),
    ('ROWS["x"] = {"optimizer.lr": "fast"}', r"ROWS\['x'\]: config\.optimizer\.lr: got 'fast'"),
    ('ROWS["x"] = {"optimizer.lr": -1.0}', r"ROWS\['x'\]: config\.optimizer\.lr: got -1\.0"),
    ('ROWS["x"] = {"model.hidden_size": 8}', r"ROWS\['x'\]: config\.model\.hidden_size: no such"),
    ('ROWS["x"] = 3', r"ROWS\['x'\]: got 3; expected \{dotted key: value\}"),
    ('ROWS["a/b"] = {}', r"ROWS\['a/b'\]: a row names a folder"),
    ('ROWS["x."] = {}', r"ROWS\['x\.'\]: a row names a folder"),
    ('ROWS["Base"] = {}', r"ROWS\['Base'\]: differs from 'base' in capitals alone"),
    ("ROWS = {}", "ROWS: expected .* at least one row"),
    ("GRID = {}", "either ROWS or GRID"),
    ("del TITLE", "TITLE is missing"),
    ("BASE.train.epochs = 0", r"BASE: config\.train\.epochs: got 0"),
    ("REPEATS = 0", "REPEATS: got 0"),
    ('REPEATS = "fold:5"', r"REPEATS: got 'fold:5'; expected .* or folds\(5\) of cellseg_jax.st"),
    ("REPEAT = 2", "REPEAT: nothing reads it; did you mean REPEATS"),
    ('VARIES = ("optimizer.lr",)', r"VARIES: got 'optimizer\.lr'"),
    ("METRICS = ()", "METRICS: got"),
    ('METRICS = ("ap50")', "METRICS: got 'ap50'; expected .\"dice_mean\",."),
    ('METRICS = ("dice_mean", "dice_men")', "METRICS: there is no metric 'dice_men'; did you mean"),
    ('METRICS = ("dice_mean[",)', "METRICS: there is no metric 'dice_mean.'"),
    ('VARIES = "seed"', "VARIES: got 'seed'; expected ."),
    ("VARIES = ()", "VARIES: got .., with which all repeats of a row are one and the same run"),
    ("BASELINE = 0", "BASELINE: got 0; expected"),
    ("SMOKE = 3", "SMOKE: got 3; expected"),
    ('BASE = "configs/unet_adam.py"', "BASE: got 'configs/unet_adam.py'; expected config.load"),
    ('ROWS["x"] = {3: 1}', r"ROWS\['x'\]: got {3: 1}; expected"),
    ('REFERENCE = {"slow": 0.8}', r"REFERENCE\['slow'\]: got 0.8; expected {metric: number}"),
    ('CLAIMS = (Claim("t", "slow", "base"))', "CLAIMS: got Claim.*; expected .Claim.*,.$"),
    ('CLAIMS = (Claim("t", "slow", "slow"),)', r"CLAIMS\[0\]: compares a row with itself"),
    ('CLAIMS = (Claim("t", ("slow", "base"), "base", every=True),)', "a row with itself"),
    ('BASELINE = "bas"', r"BASELINE: there is no row 'bas'; did you mean base\?"),
    ('REFERENCE = {"slwo": {}}', r"REFERENCE: there is no row 'slwo'; did you mean slow\?"),
    ('REFERENCE = {"slow": {"dice": 1.0}}', "'dice' is no column; did you mean dice_mean"),
    ('REFERENCE = {"slow": {"dice_mean": "0.8"}}', "dice_mean is '0.8'; expected a number"),
    ('CLAIMS = ("slow is better",)', "expected Claim"),
    ('CLAIMS = (Claim("t", "slow", "bse"),)', r"CLAIMS\[0\]: there is no row 'bse'"),
    ('CLAIMS = (Claim("t", "slow", "base", "dice"),)', r"CLAIMS\[0\]: there is no metric 'dice'"),
    ('CLAIMS = (Claim("t", "slow", "base", every=True, matched=True),)', "expected one of the two"),
    ('CLAIMS = (Claim("t", ("slow", "base"), "base", matched=True),)', "there are 2 and 1"),
    ('CLAIMS = (Claim("t", "slow", "base", worse_metric="epochs_to"),)',
     "no metric 'epochs_to'; did you mean epochs_to_95"),
    ('CLAIMS = (Claim("t", "slow", "base", equal_within="0.01"),)',
     r"CLAIMS\[0\]: got equal_within='0.01'; expected a number"),
    ('CLAIMS = (Claim("t", "slow", "base", every="no"),)', "got every='no'; expected True or"),
    ('CLAIMS = (Claim("t", 3, "base"),)', "got better=3; expected"),
    ('CLAIMS = (Claim("t", "slow", "base", 3),)', "got metric=3; expected"),
    ('CLAIMS = (Claim("t", "slow", ()),)', r"CLAIMS\[0\]: expected rows on both sides"),
    ('ROWS["b"] = {"train.weights": "row:bse"}', r"ROWS\['b'\]: train.weights: there is no row "
     "'bse'; did you mean base"),
    ('ROWS |= {"b": {"train.weights": "row:c"}, "c": {"train.weights": "row:base"}}',
     r"ROWS\['b'\]: train.weights: 'c' starts from another row itself"),
    ('SMOKE = {"train.stps": 2}', r"SMOKE of row 'base': config\.train\.stps: no such key"),
    ('SMOKE = {"model.hiden_size": lambda n: 2}', r"SMOKE of row 'base': config\.model\.hiden"),
    ("1 / 0", r"own\.py line \d+: division by zero"),
])
def test_a_wrong_study_is_said_in_one_line(study_file, lines, message):
    with pytest.raises(InputError, match=message) as error:
        studies.load(study_file(lines))
    assert "\n" not in str(error.value) and str(error.value).count("own.py") == 1


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"--study: no file '.*none\.py'"):
        studies.load(tmp_path / "none.py")


def test_a_grid_has_every_combination_once_under_a_name_that_says_it(study_file):
    study = studies.load(study_file(table=GRID))
    assert len(study.rows) == 2**6 == len(set(study.rows))
    assert study.baseline == "adam-lr0.01-dropout0.3-no_keep_blank-plain-small"
    assert "sgd-lr0.00005-dropout0.5-keep_blank-conv-large" in study.rows
    assert all(ROW_NAME.fullmatch(row) for row in study.rows)
    reference = itertools.product(("adam", "sgd"), (1e-2, 5e-5), (0.3, 0.5), (False, True),
                                  ("unet", "simple_conv"), (4, 44))
    for row, expected in zip(study.rows, reference, strict=True):
        if "lr0.01" in row:  # half of them, for time
            continue
        config = studies.config_of(study, row, 0)
        found = (config.optimizer.name, config.optimizer.lr,
                 config.model.get("dropout", expected[2]), config.data.keep_blank,
                 config.model.name, config.train.batch_size)
        assert found == expected


def test_a_grid_says_which_row_it_lacks():
    table = Grid({"optimizer.lr": (0.1, 0.2), "train.epochs": (3, 4)})
    for name in ("lr0.1", "lr0.1-epochs5", "epochs3-lr0.1", "", 3):
        assert name not in table
    assert table["lr0.2-epochs3"] == {"optimizer.lr": 0.2, "train.epochs": 3}


@pytest.mark.parametrize(("choices", "message"), [
    ({"optimizer.lr": (0.1, 0.1)}, "a choice is there twice"),
    ({"data.split": ("a/b",)}, "label 'a/b' cannot be part"),
    ({"optimizer.name": ()}, "has no choices"),
    ({}, r"got {}; expected {key: choices}"),
    ([1, 2], r"got \[1, 2\]; expected {key: choices}"),
    ({"optimizer.lr": 1e-3}, "got 0.001; expected choices of a config key"),
    ({"optimizer.name": "adam"}, "got 'adam'; expected choices of a config key"),
    ({3: (1, 2)}, r"3.: got \(1, 2\); expected choices of a config key"),
    ({"optimizer.lr": (1e-14, 2e-14)}, r"a choice is there twice, by its label \(lr0\)"),
    ({"model": {"a-b": {}}}, "label 'a-b' cannot be part"),
])
def test_a_wrong_factor_is_said(choices, message):
    with pytest.raises(InputError, match=f"GRID.*{message}"):
        Grid(choices)


def test_one_row_stands_for_those_that_share_its_program(study_file):
    study = studies.load(study_file(table=GRID))
    counted = representatives(study)
    keys = {row: config_lib.program_key(studies.config_of(study, row, 0)) for row in study.rows}
    assert len(counted) == len({keys[row] for row in counted}) == len(set(keys.values())) == 8
    assert set(counted.values()) == {8}
    table = studies.load(study_file())
    assert representatives(table) == dict.fromkeys(table.rows, 1)


def test_a_large_grid_costs_nothing_to_hold():
    table = Grid({f"section.key{i}": tuple(range(8)) for i in range(20)})
    started = time.process_time()
    assert len(table) == 8**20
    assert len(table["-".join(f"key{i}{i % 8}" for i in range(20))]) == 20
    assert len(list(itertools.islice(table, 1000))) == 1000
    assert time.process_time() - started < 1


def test_smoke_reads_twins_that_are_written_once(study_file, tmp_path):
    path = study_file(
        'ROWS = {"base": {}, "more": {"data.mix": ("bbbc039:DIR",)}}',
        'SMOKE = {"data.size": (32, 40), "data.channels": "gray"}')
    folder = tmp_path / "twins"
    study = prepare_smoke(studies.load(path), folder)
    base, more = (studies.config_of(study, row, 1, smoke=True) for row in study.rows)
    assert base.data.root == str(folder / "dsb2018") == more.data.root
    assert base.data.mix == () and more.data.mix == (f"bbbc039:{folder / 'bbbc039'}",)
    assert {p.name for p in folder.iterdir()} == {"dsb2018", "bbbc039"}
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    prepare_smoke(studies.load(path), folder)
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert studies.config_of(study, "base", 1).data.root == ""


def test_what_has_no_twin_is_synthetic_or_said(study_file, tmp_path, monkeypatch):
    study = studies.load(study_file('SMOKE = {"data.name": "synthetic", "data.size": (32, 32)}'))
    study = prepare_smoke(study, tmp_path / "none")
    assert studies.config_of(study, "base", 0, smoke=True).data.root == ""
    assert not (tmp_path / "none").exists()
    monkeypatch.delitem(twins.TWINS, "dsb2018")
    with pytest.raises(InputError, match="dsb2018"):
        prepare_smoke(studies.load(study_file('SMOKE = {"train.steps": 2}')), tmp_path / "none")


def test_smoke_needs_overrides_and_leaves_out_labels_made_elsewhere(study_file, tmp_path, capsys):
    with pytest.raises(InputError, match="has no SMOKE; expected overrides"):
        prepare_smoke(studies.load(study_file()), tmp_path / "none")
    study = prepare_smoke(studies.load(study_file(
        'ROWS = {"peer": {"labels": "DIR"}, "ours": {}}', 'BASELINE = "peer"',
        'import cellseg_jax.studies as s; CLAIMS = [s.Claim("ahead", "ours", "peer")]',
        'SMOKE = {"data.name": "synthetic"}')), tmp_path / "none")
    assert (*study.rows,) == ("ours",) and study.baseline == "ours" and study.claims == ()
    assert "leaves out rows of labels made elsewhere: peer" in capsys.readouterr().err


SHARES = """
from cellseg_jax.studies import fractions
ROWS = {"otsu": {"model.name": "otsu"},
        **fractions({"unet_13_1": {}, "slow": {"optimizer.lr": 1e-3}}, (1 / 4, 1 / 2, 1))}
"""
def test_margins_are_read(study_file):
    assert studies.load(study_file('MARGIN = {"dice_mean": 0.01, "train_seconds": 60}')).margin == {
        "dice_mean": 0.01, "train_seconds": 60}


@pytest.mark.parametrize("line, message", [
    ("MARGIN = 0.01", r"MARGIN: got 0.01; expected {'dice_mean': 0.01}"),
    ('MARGIN = {"dice": 0.01}', "MARGIN: metric 'dice' is no column; did you mean dice_mean"),
    ('MARGIN = {"dice_mean": 0}', "MARGIN: got .*; expected the largest difference in dice_mean"),
    ('MARGIN = {"dice_mean": True}', "expected the largest difference in dice_mean"),
    ('METRICS = ("dice_mean", "iou_mean", "dice_mean")', "METRICS: 'dice_mean' is there twice"),
])
def test_wrong_margins_and_columns_are_one_line(study_file, line, message):
    with pytest.raises(InputError, match=message):
        studies.load(study_file(line))


def test_a_claim_of_neighbours_is_no_claim_of_a_row_about_itself(study_file):
    table = 'ROWS = {"a": {}, "b": {"optimizer.lr": 1e-3}, "c": {"optimizer.lr": 1e-2}}'
    line = 'CLAIMS = (Claim("more is better", ("b", "c"), ("a", "b"), matched=True),)'
    assert len(studies.load(study_file(line, table=table)).claims) == 1


@pytest.mark.parametrize("table, line", [
    ('ROWS = {"base": {}, "slow": {"optimizer.lr": 1e-3},\n        "slow": {}}', "line 8: 'slow'"),
    ('ROWS = {"a": {"optimizer.lr": 1e-3, "optimizer.lr": 1e-2}}', "line 7: 'optimizer.lr'")])
def test_a_key_that_is_there_twice_is_not_lost(study_file, table, line):
    with pytest.raises(InputError, match=f"{line} is there twice in one .*the first would be lost"):
        studies.load(study_file(table=table))


WANTED = 'LEARNING_CURVE = {"metric": "dice_mean", "targets": (0.85, 0.9)}'


def test_fractions_make_rows_that_form_curves(study_file):
    study = studies.load(study_file(WANTED, table=SHARES))
    assert list(study.rows) == ["otsu", "unet_13_1_0.25", "unet_13_1_0.5", "unet_13_1_1",
                                "slow_0.25", "slow_0.5", "slow_1"]
    config = studies.config_of(study, "slow_0.25", 1)
    assert config.data.train_fraction == 0.25 and config.optimizer.lr == 1e-3
    assert families_(study, study.rows) == {
        "unet_13_1": ["unet_13_1_0.25", "unet_13_1_0.5", "unet_13_1_1"],
        "slow": ["slow_0.25", "slow_0.5", "slow_1"]}
    assert families_(study, ["otsu", "slow_1"]) == {}
    assert study.learning_curve == {"metric": "dice_mean", "targets": (0.85, 0.9)}


def test_families_of_a_grid_are_called_what_their_rows_share(study_file):
    grid = ('GRID = {"optimizer.name": ("adam", "sgd"), "data.train_fraction": (0.25, 0.5, 1.0), '
            '"model.dropout": (0.1, 0.2)}')
    study = studies.load(study_file(WANTED, table=grid))
    families = families_(study, study.rows)
    assert list(families) == ["adam-train-dropout0.1", "adam-train-dropout0.2",
                              "sgd-train-dropout0.1", "sgd-train-dropout0.2"]
    assert families["sgd-train-dropout0.1"][0] == "sgd-train_fraction0.25-dropout0.1"


@pytest.mark.parametrize(("line", "message"), [
    ("LEARNING_CURVE = (0.9,)", "got .*; expected {'metric': 'dice_mean', 'targets'"),
    ('LEARNING_CURVE = {"metric": "dice_mean"}', "got .*; expected {'metric'"),
    ('LEARNING_CURVE = {"metric": "dice", "targets": (1,)}', "'dice' is no score of METRICS; did "
                                                             "you mean dice_mean"),
    ('LEARNING_CURVE = {"metric": "dice_mean", "targets": 0.9}', "expected targets as numbers"),
    ('LEARNING_CURVE = {"metric": "dice_mean", "targets": ()}', "expected targets as numbers"),
])
def test_wrong_learning_curves_are_named(study_file, line, message):
    with pytest.raises(InputError, match=f"LEARNING_CURVE: .*{message}"):
        studies.load(study_file(line, table=SHARES))


def test_a_learning_curve_needs_rows_at_three_fractions(study_file):
    with pytest.raises(InputError, match="no rows differ in data.train_fraction alone at three"):
        studies.load(study_file(WANTED))
    two = SHARES.replace("(1 / 4, 1 / 2, 1)", "(1 / 2, 1)")
    with pytest.raises(InputError, match="LEARNING_CURVE: no rows differ"):
        studies.load(study_file(WANTED, table=two))


def test_the_shipped_learning_curve_takes_as_many_steps_at_each_fraction():
    study = studies.load(ROOT / "configs/studies/learning_curve.py")
    configs = [studies.config_of(study, row, 0) for row in study.rows]
    assert {config.train.steps for config in configs} == {400}
    assert [config.data.train_fraction for config in configs] == [1 / 64, 1 / 32, 1 / 16, 1 / 4, 1]
    assert len({config_lib.program_key(config) for config in configs}) == 1
    assert families_(study, study.rows) == {"unet": list(study.rows)}
