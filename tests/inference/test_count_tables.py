"""Every score of a run's page, computed again in plain Python from the files beside it alone."""

import csv
import json

import numpy as np
import pytest
from helpers import tiny_config
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import train
from cellseg_jax.inference import evaluate

IOUS = range(50, 100, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classical run with objects, surfaces and strata."""
    folder = tmp_path_factory.mktemp("counts")
    config = tiny_config(data__cache=str(folder), data__split=(0.4, 0.0, 0.6), data__count=20)
    config = config_lib.changed(config, {"model.name": "otsu", "eval.surface": 2.0})
    train.train([config], [folder / "run"])
    evaluate.evaluate(config, folder / "run")
    return folder / "run/eval"


def read(file):
    numbers = lambda row: {k: v if k in ("name", "image", "stratum", "group") else float(v or "nan")
                           for k, v in row.items()}
    return [numbers(row) for row in csv.DictReader(file.open())]


def of_pixels(rows, prefix):
    """Means of images, pooled scores and means of strata of the only output."""
    part = lambda row: [row[f"{prefix}_0_{key}"] for key in ("tp", "fp", "fn", "tn")]
    def scores(tp, fp, fn, tn):
        either = tp + fp + fn == 0
        return {"dice": 1 if either else 2 * tp / (2 * tp + fp + fn),
                "iou": 1 if either else tp / (tp + fp + fn),
                "precision": tp / (tp + fp) if tp + fp else float(fn == 0),
                "recall": tp / (tp + fn) if tp + fn else float(fp == 0),
                "accuracy": (tp + tn) / (tp + fp + fn + tn)}
    each = [scores(*part(row)) for row in rows]
    pooled = [sum(values) for values in zip(*map(part, rows), strict=True)]
    out = {f"{name}_pooled": scores(*pooled)[name] for name in ("dice", "iou")}
    if pooled[0]:
        out["conformity_pooled"] = 1 - (pooled[1] + pooled[2]) / pooled[0]
    soft = {key.removesuffix("_0"): [row[key] for row in rows] for key in rows[0]
            if key.startswith("soft_") and prefix != "original"}
    columns = {name: [one[name] for one in each] for name in each[0]} | soft
    strata = {row["stratum"] for row in rows}
    for name, values in columns.items():
        out[f"{name}_mean"] = np.mean(values)
        out[f"{name}_macro"] = np.mean([np.mean([
            v for v, row in zip(values, rows, strict=True) if row["stratum"] == stratum])
            for stratum in strata])
    return out


def of_objects(rows):
    total = {key: sum(row[key] for row in rows) for key in rows[0]
             if key not in ("name", "stratum", "group")}
    def ap(row, t):
        union = row["n_true"] + row["n_pred"] - row[f"matched_{t}"]
        return row[f"matched_{t}"] / union if union else 1.0
    true, both = total["n_true"], total["n_true"] + total["n_pred"]
    error = [abs(row["n_true"] - row["n_pred"]) for row in rows]
    cost = 5 * total["splits"] + 10 * total["missed"] + total["spurious"]
    out = {"f1": 2 * total["matched_50"] / both, "pq": 2 * total["matched_iou_50"] / both,
           "seg": total["covered_iou"] / true, "det": max(0, 1 - cost / (10 * true)),
           "aji": total["intersection"] / total["union"], "count_error": np.mean(error),
           "count_error_relative": sum(error) / true, "merge_rate": total["kind_merged"] / true,
           "split_rate": total["kind_split"] / true}
    out |= {f"f1_{size}": 2 * total[f"matched_{size}"] / total[f"objects_{size}"]
            for size in ("small", "medium", "large") if total[f"objects_{size}"]}
    for end, of in (("", lambda t: ap(total, t)),
                    ("_image_mean", lambda t: np.mean([ap(row, t) for row in rows]))):
        out |= {f"ap50{end}": of(50), f"ap75{end}": of(75), f"ap{end}": np.mean([*map(of, IOUS)])}
    return out


def of_coco(objects, n_true):
    """Mean precision at 101 recalls, predictions ranked by score."""
    ranked = sorted(objects, key=lambda row: -row["score"])  # stable
    def ap(t):
        found, precision, recall = 0, [], []
        for n, row in enumerate(ranked, 1):
            found += row[f"correct_{t}"]
            precision.append(found / n)
            recall.append(found / n_true)
        return np.mean([max((p for p, r in zip(precision, recall, strict=True) if r >= wanted),
                            default=0) for wanted in np.linspace(0, 1, 101)])
    return {"ap_coco": np.mean([*map(ap, IOUS)]), "ap50_coco": ap(50), "ap75_coco": ap(75)}


def of_images(rows):
    known = lambda key: [row[key] for row in rows if np.isfinite(row[key])]
    return {key: np.mean(known(key)) for key in (
        "hausdorff95", "surface_dice", "rand_error", "information_error",
        "variation_of_information", "loss") if key in rows[0] and known(key)}


def assert_same(scores, again):
    """All scores of a part of eval/test.json."""
    assert set(again) <= set(scores)
    for name, value in scores.items():
        if value is not None:
            assert again[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_every_score_follows_from_the_files_beside_it(folder):
    test = json.loads((folder / "test.json").read_text())
    rows, objects = read(folder / "test_counts.csv"), read(folder / "test_objects.csv")
    images = read(folder / "test_images.csv")
    assert [row["name"] for row in rows] == [row["name"] for row in images]
    assert len(rows) == 12 and len(objects) == sum(row["n_pred"] for row in rows) > 20
    n_true = sum(row["n_true"] for row in rows)
    assert_same(test["metrics"], of_pixels(rows, "seen"))
    surfaces = {k: v for k, v in of_images(images).items() if k != "loss"}
    assert len(surfaces) == 5
    assert_same(test["metrics_original_size"], of_pixels(rows, "original") | of_objects(rows)
                | of_coco(objects, n_true) | surfaces)
    without_macro = lambda scores: {k: v for k, v in scores.items() if "_macro" not in k}
    assert_same({k: v for k, v in test["per_class"]["0"].items() if k != "intervals"},
                without_macro(of_pixels(rows, "class")))
    for stratum, found in test["per_stratum"].items():
        mine = [row for row in rows if row["stratum"] == stratum]
        names = {row["name"] for row in mine}
        assert found["n"] == len(mine)
        assert found["errors"] == {kind: sum(row[f"kind_{kind}"] for row in mine)
                                   for kind in found["errors"]}
        assert_same({k: v for k, v in found.items() if k not in ("n", "intervals", "errors")},
                    without_macro(of_pixels(mine, "seen")) | of_objects(mine) | of_coco(
                        [one for one in objects if one["image"] in names],
                        sum(row["n_true"] for row in mine)))
    assert test["errors"] == {kind: sum(row[f"kind_{kind}"] for row in rows)
                              for kind in test["errors"]}


@pytest.mark.slow
def test_loss_and_calibration_of_a_network_follow_too(tmp_path):
    config = tiny_config(train__steps=4, data__cache=str(tmp_path))
    train.train([config], [tmp_path / "run"])
    test = evaluate.evaluate(config, tmp_path / "run")
    folder = tmp_path / "run/eval"
    bins = test["calibration"]
    off = np.abs(np.array(bins["probs"]) - bins["true"]).sum(1) / np.sum(bins["pixels"], 1)
    assert_same(test["metrics"], of_pixels(read(folder / "test_counts.csv"), "seen")
                | {"loss": of_images(read(folder / "test_images.csv"))["loss"],
                   "ece": off.mean()})


def test_labels_without_objects_have_no_table_of_them(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for n in range(5):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:9, 3 + n : 10] = 1
        Image.fromarray(mask).save(tmp_path / f"masks/{n}.png")
        Image.fromarray(mask * 200 + rng.integers(0, 20, mask.shape, np.uint8)).save(
            tmp_path / f"images/{n}.png")
    config = config_lib.default()
    config.data.update(name="folder", root=str(tmp_path), size=(16, 16), cache=str(tmp_path),
                       channels="gray", split=(0.4, 0.0, 0.6), labels="binary")
    config = config_lib.complete(config_lib.changed(config, {"model.name": "otsu"}))
    train.train([config], [tmp_path / "run"])
    scores = evaluate.evaluate(config, tmp_path / "run")
    rows = read(tmp_path / "run/eval/test_counts.csv")
    assert len(rows) == 3 and not (tmp_path / "run/eval/test_objects.csv").exists()
    assert of_pixels(rows, "seen")["dice_mean"] == pytest.approx(scores["metrics"]["dice_mean"])
