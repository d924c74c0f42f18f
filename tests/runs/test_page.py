"""The page of a run: self-contained, well formed, escaped, and whole only where the run is."""

import json
import re
import shlex

import browser
import fake_run
import numpy as np
import pytest
from html_checker import HOSTILE, HOSTILE_FILE, Checker, assert_only_text

from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_csv, write_csv
from cellseg_jax.report import panels
from cellseg_jax.runs import page


def read(folder):
    page.write_run_page(folder)
    text = (folder / "report.html").read_text()
    checker = Checker(text)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert "//" not in without_pictures and "@import" not in text and "url(" not in text
    return text, " ".join(checker.texts), checker.tags


def test_page_holds_all_of_a_finished_run(tmp_path):
    fake_run.make(tmp_path / "unet_adam")
    text, shown, tags = read(tmp_path / "unet_adam")
    assert tags.count("img") == 4 and tags.count("svg") == 7
    for part in ("unet_adam", "unet trained with adam", "learning rate 0.001", "Worst predictions",
                 "Median predictions", "Best predictions", "1,005", "spurious", "draws whole cases",
                 "Expected calibration error", "python -m cellseg_jax.predict", "0.680–0.740",
                 "stain <dark> background", "optimizer.schedule",
                 "jax 0.10.2", "python -m cellseg_jax.main \\\n    --config=configs/unet_adam.py",
                 "git checkout 0123456789abcdef0123456789abcdef01234567\n",
                 "2TP/(2TP+FP+FN) per image", "mean of 67 images"):
        assert part in shown, part
    assert "'--config.data.root=data/a & <b>'" in shown  # what a shell needs, letter by letter
    assert [p.name for p in (tmp_path / "unet_adam").glob("*.tmp")] == []


def test_page_before_evaluation_and_before_training(tmp_path):
    fake_run.make(tmp_path / "a", evaluated=False)
    _, shown, tags = read(tmp_path / "a")
    assert tags.count("svg") == 4 and "img" not in tags and "Scores" not in shown
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.json").write_text((tmp_path / "a/config.json").read_text())
    _, shown, tags = read(tmp_path / "b")
    assert "svg" not in tags and "Training" not in shown and "Run it again" not in shown


def test_page_of_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no run"):
        page.write_run_page(tmp_path)


def test_page_escapes_names(tmp_path):
    folder = tmp_path / "<b>run & co"
    fake_run.make(folder, pictures=0)
    text, shown, _ = read(folder)
    assert "<b>run & co" in shown and "<b>run" not in text


def test_page_survives_a_diverged_run(tmp_path):
    fake_run.make(tmp_path, evaluated=False, epochs=2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "epoch": 3.0, "lr": 0.1, "train_loss": NaN, '
                   '"val_loss": Infinity}\n')
    text, _, _ = read(tmp_path)
    assert ">nan<" not in text.lower() and "NaN L" not in text


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_page_shows_how_scores_were_made_and_shows_other_splits(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    test = tmp_path / "eval/test.json"
    assert "threshold" not in read(tmp_path)[1].split("Whole config")[0]  # not in old files
    edit(test, eval_options={"decode": "watershed", "threshold": 0.4, "panels": 3})
    (tmp_path / "eval/val.json").write_text(test.read_text())
    edit(tmp_path / "eval/val.json", split="val", n_images=31)
    _, shown, _ = read(tmp_path)
    assert "checkpoint of step 1188, decode watershed, threshold 0.4. One run" in shown
    assert "The val split" in shown and "31 images" in shown and "panels 3" not in shown


def with_target(folder, **data):
    """Make it a run with another config.data and three outputs; returns what its page shows."""
    config = config_lib.default()
    config.data = data
    (folder / "config.json").write_text(config_lib.to_json(config_lib.complete(config)))
    bins = json.loads((folder / "eval/test.json").read_text())["calibration"]
    edit(folder / "eval/test.json", per_class={k: {"dice_mean": 0.5} for k in "012"},
         per_stratum={"all": {"n": 67, "dice_mean": 0.5, "iou_mean": 0.4}},
         calibration={key: value[:1] * 3 for key, value in bins.items()})
    text, shown, _ = read(folder)
    return text, shown


def test_page_names_classes_and_leaves_out_a_lone_stratum(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    assert "Dice by stratum" in read(tmp_path)[1]
    text, shown = with_target(tmp_path, name="folder", target="classes", num_classes=3,
                              labels="classes", classes=("tumour", "stroma"))
    assert "Dice by stratum" not in shown and "The background is left out" in shown
    calibration = text[text.index('id="calibration"'):]
    for name in ("background", "tumour", "stroma"):  # bars, table, and legend of calibration
        assert f"{name} 0.500" in text and f"<td>{name}</td>" in text
        assert f">{name}</text>" in calibration
    text, shown = with_target(tmp_path, name="dsb2018", target="contour")
    assert "<td>nucleus</td>" in text and ">contour</text>" in text[text.index('"calibration"'):]


def test_other_data_have_a_page_of_their_own(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    name = "bbbc039-1a2b3c4d_all"
    for end in (".json", "_images.csv"):
        content = (tmp_path / f"eval/test{end}").read_text()
        (tmp_path / f"eval/{name}{end}").write_text(content)
    (tmp_path / f"eval/{name}_predictions").mkdir()
    data = json.loads((tmp_path / "config.json").read_text())["data"]
    edit(tmp_path / f"eval/{name}.json", name=name, split="all", names_of_training_images=3,
         data=data | {"name": "bbbc039", "root": "my data"})
    assert page.write_run_page(tmp_path, name) == tmp_path / f"report_{name}.html"
    shown = " ".join(Checker((tmp_path / f"report_{name}.html").read_text()).texts)
    for part in ("on bbbc039", "3 of 67 images have the names of images that the run was",
                 "--mode=eval", "--config.data.name=bbbc039", "'--config.data.root=my data'"):
        assert part in shown, part
    assert "Training" not in shown and "Config" in shown
    _, shown, _ = read(tmp_path)
    assert "Other data: bbbc039, all: Dice" in shown and f"More in report_{name}.html" in shown


def test_scores_by_other_options_of_eval_are_made_again_by_them(tmp_path):
    """Of --tuned or --config.eval.*: the command of the page gives the scores of the page."""
    fake_run.make(tmp_path, pictures=0)
    options = json.loads((tmp_path / "config.json").read_text())["eval"]
    edit(tmp_path / "eval/test.json", eval_options=options | {"batch_size": 99})
    assert "--config.eval." not in read(tmp_path)[1]  # it changes no score
    edit(tmp_path / "eval/test.json", eval_options=options | {"threshold": 0.37, "min_size": 12})
    wanted = "--config.eval.threshold=0.37", "--config.eval.min_size=12"
    shown = read(tmp_path)[1]
    assert all(part in shown for part in wanted) and "--config.data.size=256,256" in shown
    name = "bbbc039-1a2b3c4d_all"
    test = json.loads((tmp_path / "eval/test.json").read_text())
    data = json.loads((tmp_path / "config.json").read_text())["data"]
    (tmp_path / f"eval/{name}.json").write_text(json.dumps(test | {
        "name": name, "split": "all", "names_of_training_images": 0,
        "data": data | {"name": "bbbc039"}}))
    page.write_run_page(tmp_path, name)
    shown = " ".join(Checker((tmp_path / f"report_{name}.html").read_text()).texts)
    assert all(part in shown for part in (*wanted, "--config.data.name=bbbc039"))


def test_many_classes_have_bars_and_one_calibration_curve(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    bins = json.loads((tmp_path / "eval/test.json").read_text())["calibration"]
    score = {"dice_mean": 0.5, "intervals": {"dice_mean": [0.4, 0.6]}}
    edit(tmp_path / "eval/test.json", per_class=dict.fromkeys("01234", score),
         calibration={key: value * 5 for key, value in bins.items()})
    text, shown, _ = read(tmp_path)
    assert "output 4" in shown and "all outputs" in shown and "Scores by class" in text


def with_names(folder, word, file):
    """The page of a run whose every name and value is `word`, and of file names `file`."""
    folder = folder / file
    fake_run.make(folder, pictures=0)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["root"] = word  # other texts of a config are names out of tables
    (folder / "config.json").write_text(json.dumps(config))
    edit(folder / "environment.json", **{"command": shlex.join([word, word]), word: [word],
                                         "commit": word, "devices": [word]})
    picture = folder / f"eval/test_predictions/00_worst_dice0.5_{file}.png"
    panels.write_png(picture, np.zeros((20, 80, 3), np.uint8))
    images = read_csv(folder / "eval/test_images.csv")
    write_csv(folder / "eval/test_images.csv", [
        row | {"name": word + str(n), "group": word, "stratum": word}
        for n, row in enumerate(images)])
    score = {"dice_mean": 0.5, "iou_mean": 0.4, word: 0.1}
    test = json.loads((folder / "eval/test.json").read_text())
    stratum = next(iter(test["per_stratum"].values()))
    edit(folder / "eval/test.json", split=word, per_class={word: score, "1": score},
         per_stratum={word: stratum, "other": stratum}, eval_options={"decode": word},
         definitions={"dice_mean": word, "interval": word}, names_of_training_images=1,
         metrics=test["metrics"] | {word: 0.5})
    (folder / "eval/val.json").write_text((folder / "eval/test.json").read_text())
    edit(folder / "eval/val.json", data={"name": word})
    return page.write_run_page(folder).read_text()


def test_no_name_or_value_becomes_markup(tmp_path):
    hostile = with_names(tmp_path, HOSTILE, HOSTILE_FILE)
    assert_only_text(hostile, with_names(tmp_path, "word", "word"), 67 * 3 + 20)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(tmp_path, width):
    fake_run.make(tmp_path / "run")
    page.write_run_page(tmp_path / "run")
    with browser.opened(tmp_path / "run/report.html", width=width) as opened:
        assert opened.errors == [] and opened.requests == []
        assert opened.overflow() <= 0 and opened.broken_pictures() == []
        images = "table.sortable:below(:text('images, by Dice'))"
        opened.press("summary:has-text('images, by Dice')")
        opened.click(f"{images} >> th:nth-child(1) button")
        opened.click(f"{images} >> th:nth-child(1) button")
        dice = [float(text) for text in opened.column(1, images)]
        assert len(dice) == 67 and dice == sorted(dice, reverse=True) and dice[0] > dice[-1]
        assert opened.errors == []
        assert opened.page.locator("nav a").count() > 8
        opened.press("nav a:has-text('Calibration')")
        assert opened.page.url.endswith("#calibration")
