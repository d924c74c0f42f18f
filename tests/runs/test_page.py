"""The page of a run: self-contained, well formed, escaped, and whole only where the run is."""

import json
import math
import re
import xml.dom.minidom

import browser
import fake_run
import pytest
from html_checker import Checker

from cellseg_jax.errors import InputError
from cellseg_jax.report import svg
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
    assert tags.count("img") == 4 and tags.count("svg") == 6
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
    assert tags.count("svg") == 3 and "img" not in tags and "Scores" not in shown
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


def test_curves_one_point_gap_and_empty():
    assert svg.curves("t", "x", [svg.Series("a", [1, 2], [None, math.nan])]) == ""
    one = svg.curves("t", "x", [svg.Series("a", [1], [0.5])])
    gap = svg.curves("t", "x", [svg.Series("<a>", [1, 2, 3, 4], [0.5, 0.6, math.inf, 0.8])],
                     mark=(2, "best"))
    for picture in (one, gap):
        xml.dom.minidom.parseString(picture)
    path = re.search(r' d="([^"]*)"', gap)[1]
    assert path.count("M") == 2 and path.count("L") == 1


def test_curves_joins_values_across_epochs_without_validation():
    text = svg.curves("t", "x", [svg.Series("val", [1, 2, 3], [0.5, None, 0.7])])
    assert re.search(r' d="([^"]*)"', text)[1].count("L") == 1


def test_curves_of_a_very_long_log_stay_small():
    n = 100_000
    text = svg.curves("t", "x", [svg.Series("a", list(range(n)), [i / n for i in range(n)])])
    assert len(text) < 20_000


@pytest.mark.parametrize("low, high", [(0, 1), (0.5, 0.5), (0, 0), (-3, 1e-9), (1e-6, 2e-3),
                                       (0.912, 0.913), (1, 12345)])
def test_ticks_span_the_values_with_round_steps(low, high):
    ticks = svg.ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high - 1e-6 * (high - low) and 2 <= len(ticks) <= 7


def test_bars_missing_mean_and_values():
    text = svg.bars("t", [svg.Bar("a & b", None), svg.Bar("c", 0.5, [0.4, None, 0.6], (0.4, 0.6))])
    xml.dom.minidom.parseString(text)
    assert text.count("<circle") == 2 and text.count("<rect") == 1
    assert text.count('class="range"') == 1 and "c 0.500 (0.400 to 0.600)" in text


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_page_says_how_scores_were_made_and_shows_other_splits(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    test = tmp_path / "eval/test.json"
    assert "threshold" not in read(tmp_path)[1].split("Whole config")[0]  # not in old files
    edit(test, eval_options={"decode": "watershed", "threshold": 0.4, "panels": 3})
    (tmp_path / "eval/val.json").write_text(test.read_text())
    edit(tmp_path / "eval/val.json", split="val", n_images=31)
    _, shown, _ = read(tmp_path)
    assert "checkpoint of step 1188, decode watershed, threshold 0.4. One run" in shown
    assert "The val split" in shown and "31 images" in shown and "panels 3" not in shown


def test_page_explains_class_0_and_leaves_out_a_lone_stratum(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    assert "Dice by stratum" in read(tmp_path)[1] and "Class 0" not in read(tmp_path)[1]
    edit(tmp_path / "eval/test.json", per_class={k: {"dice_mean": 0.5} for k in "012"},
         per_stratum={"all": {"n": 67, "dice_mean": 0.5, "iou_mean": 0.4}})
    _, shown, _ = read(tmp_path)
    assert "Dice by stratum" not in shown and "Class 0 is background and left out" in shown


def test_curves_name_the_mark_above_every_curve():
    text = svg.curves("t", "x", [svg.Series("a", [1, 2, 3], [0.0, 1.0, 1.0])], mark=(2, "best"))
    mark = float(re.search(r'y="([\d.]+)"[^>]*>best<', text)[1])
    curve = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", text)]
    assert 18 < mark < min(curve)  # below the legend


def test_bars_keep_close_dots_apart():
    text = svg.bars("t", [svg.Bar("a", 0.97, [0.97] * 5)])
    assert len(set(re.findall(r'cy="([\d.]+)"', text))) == 5


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


def test_many_classes_have_bars_and_one_calibration_curve(tmp_path):
    fake_run.make(tmp_path, pictures=0)
    bins = json.loads((tmp_path / "eval/test.json").read_text())["calibration"]
    score = {"dice_mean": 0.5, "intervals": {"dice_mean": [0.4, 0.6]}}
    edit(tmp_path / "eval/test.json", per_class=dict.fromkeys("01234", score),
         calibration={key: value * 5 for key, value in bins.items()})
    text, shown, _ = read(tmp_path)
    assert "class 4" in shown and "all outputs" in shown and "Scores by class" in text


def test_reliability_leaves_out_empty_bins():
    text = svg.reliability("t", [("a", [0.1, 0.5, 0.9], [0.0, 0.5, 1.0], [0.9, 0.0, 0.1])])
    xml.dom.minidom.parseString(text)
    assert text.count("<circle") == 2 and "0.50 true" not in text


def test_shares_of_nothing():
    xml.dom.minidom.parseString(svg.shares("t", [("a", 0, "#000"), ("<b>", 0, "#fff")]))


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
