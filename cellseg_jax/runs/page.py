"""One self-contained HTML page per run: scores, curves, pictures, and how to run it again.

The scores of a run on other data than it was trained on have a page of their own.
A page is made of what lies in the run folder and leaves out what is not there yet. It loads
nothing from anywhere, so it opens offline, in a mail, and in ten years.
"""

import pathlib
import re

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.files import interpreting, read_csv, read_json, read_jsonl, write_atomic
from cellseg_jax.report import charts, document, embedded, row_charts, svg
from cellseg_jax.report.document import Cell, number
from cellseg_jax.runs import rerun
from cellseg_jax.runs.folder import (
    ENVIRONMENT_FILE,
    EVAL,
    METRICS_LOG,
    TIMING_LOG,
    images_file,
    page_file,
    pictures_folder,
    read_config,
    scores_file,
)
from cellseg_jax.runs.score_table import DECODING_SCORES

PICTURE_NAME = re.compile(r"\d+_(worst|median|best)_dice([\d.]+|nan)_(.*)\.png")
# Of eval_options, what scores follow from.
SHOWN_OPTIONS = ("decode", "watershed_h", "threshold", "min_size", "overlap")
MAX_ROWS = 100  # of the table of images
# Kinds of metrics.ErrorKinds of true objects, and their colours (Okabe and Ito).
KINDS = {"correct": "#009e73", "merged": "#cc79a7", "split": "#56b4e9", "inexact": "#e69f00",
         "missed": "#d55e00"}
FALSE_KINDS = ("spurious", "fragments")  # of predictions; older scores have the first alone
STRATUM_SCORES = ("ap50", "ap", "ap50_image_mean", "ap_coco", "f1", "f1_small", "f1_medium",
                  "f1_large", "pq", "merge_rate", "split_rate", "count_error")
CARDS = (("metrics", "dice_mean", "Dice, network size"),
         ("metrics_original_size", "dice_mean", "Dice, original size"),
         ("metrics_original_size", "iou_mean", "IoU, original size"),
         ("metrics_original_size", "ap50", "AP at IoU 0.5"),
         ("metrics_original_size", "pq", "PQ"), ("metrics_original_size", "seg", "SEG"))


def write_run_page(folder: pathlib.Path, name: str = "test") -> pathlib.Path:
    """Write the page of a run from what lies in its folder; returns its path.

    Args:
      name: of the scores in eval/ that it shows. Those of the run's own splits make report.html;
        other data (see evaluate.result_name) have pages of their own, report_<name>.html.

    Raises: InputError if there is no run in the folder.
    """
    folder = pathlib.Path(folder)
    with interpreting(folder):
        path, page = _page(folder, name)
    write_atomic(path, page)
    return path


def _page(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, str]:
    """(path, HTML) of the page."""
    config = read_config(folder)
    scores = read_json(scores_file(folder, name), None)
    own = scores is None or "data" not in scores
    if own and name != "test":
        name, scores = "test", read_json(scores_file(folder), None)
    values = _of_run(folder, config, scores, own)
    values |= _of_scores(folder, name, config, scores) if scores else {
        "pictures": [], "images": None, "classes": None, "strata": None, "objects": None,
        "decodings": [], "object_strata": [],
        "calibration": None}
    path = page_file(folder, "" if own else name)
    return path, document.render("runs/page.html.jinja", config=config, scores=scores, **values)


def _of_run(folder, config, scores, own) -> dict:
    """What the page shows of the run itself."""
    log = read_jsonl(folder / METRICS_LOG, [])
    environment = read_json(folder / ENVIRONMENT_FILE, {})
    run = folder.resolve().name
    return {
        "decoding_scores": DECODING_SCORES, "stratum_scores": STRATUM_SCORES,
        "title": run if own else f"{run} on {scores['data']['name']}",
        "classical": derived.is_classical(config),
        "size": "{}x{}".format(*config.data.size),
        "steps": log[-1]["step"] if log else None,
        "curves": _curves(log, scores, config) if own else [],
        "others": _other_scores(folder / EVAL) if own else [],
        "changes": _changes(config),
        "whole_config": config_lib.to_json(config),
        "environment": _environment(environment, scores, folder),
        "again": rerun.again(config, scores, environment, folder) if own else
        rerun.scoring(config, scores, folder),
        "dirty": own and environment.get("commit", "").endswith("+"),
        "use": "" if derived.is_labels(config) else rerun.use(folder),
    }


def _of_scores(folder, name, config, scores) -> dict:
    """What the page shows of eval/<name>.json and the files beside it."""
    images = read_csv(images_file(folder, name), [])
    names = derived.output_names(config.data)
    return {
        "cards": [(scores[where][key], text, _interval(scores, where, key))
                  for where, key, text in CARDS if scores[where].get(key) is not None],
        "score_rows": _score_rows(scores),
        "options": _options(scores),
        "classes": _classes(scores, names), "strata": _strata(scores, images),
        "decodings": _decodings(scores), "object_strata": _object_strata(scores),
        "objects": _objects(scores), "calibration": _calibration(scores, names),
        "pictures": _pictures(pictures_folder(folder, name)), "images": _images(images),
    }


def _curves(log, scores, config) -> list[tuple[str, str]]:
    """(title, chart) of training, those without a point left out."""
    if not log:
        return []
    x_key = "epoch" if all("epoch" in line for line in log) else "step"
    get = lambda key, name: charts.Series(
        name, [s[x_key] for s in log], [_finite(s.get(key)) for s in log])
    best = [s[x_key] for s in log if scores and s["step"] == scores["checkpoint_step"]]
    mark = (best[-1], "checkpoint scored") if best else None
    shown = {
        "Loss": [get("train_loss", "train"), get("val_loss", "validation")],
        "Validation Dice": [get("val_dice_mean", "mean of images"),
                            get("val_dice_pooled", "pooled pixels")],
        "Validation accuracy, precision and recall": [
            get(f"val_{name}_mean", name) for name in ("accuracy", "precision", "recall")],
        f"Learning rate ({config.optimizer.schedule})": [get("lr", "learning rate")],
    }
    drawn = [(title, charts.curves(title, x_key, series, mark)) for title, series in shown.items()]
    return [(title, chart) for title, chart in drawn if chart]


def _score_rows(scores) -> list[tuple]:
    small = scores["metrics"] | scores.get("report2", {})
    large, definitions = scores["metrics_original_size"], scores.get("definitions", {})
    cell = lambda where, values, key: Cell(
        number(values.get(key)), below=(_interval(scores, where, key),))
    return [(key, cell("metrics", small, key), cell("metrics_original_size", large, key),
             definitions.get(key, "")) for key in {**small, **large}]


def _classes(scores, outputs) -> dict | None:
    classes = scores.get("per_class", {})
    if len(classes) < 2:
        return None
    classes = dict(zip(_named(outputs, classes), classes.values(), strict=True))
    names = [name for name in next(iter(classes.values())) if name != "intervals"]
    bars = [row_charts.Bar(c, v["dice_mean"], [], _range(v)) for c, v in classes.items()]
    return {"names": names, "chart": row_charts.bars("Mean Dice by class", bars),
            "rows": [(c, *(number(v.get(n)) for n in names)) for c, v in classes.items()]}


def _named(outputs, numbers) -> list[str]:
    """Names of the outputs that were scored: their meaning, or else "output 3"."""
    numbers = list(numbers)
    return [outputs[n] if len(numbers) <= len(outputs) else f"output {number}"
            for n, number in enumerate(numbers)]


def _strata(scores, images) -> str:
    strata = scores.get("per_stratum", {})
    if len(strata) < 2:
        return ""
    dice = {}
    for row in images:
        dice.setdefault(row["stratum"], []).append(_float(row["dice"]))
    return row_charts.bars("Mean Dice by stratum", [
        row_charts.Bar(f"{name} (n = {value['n']})", value["dice_mean"], dice.get(name, []),
                       _range(value)) for name, value in strata.items()])


def _objects(scores) -> dict | None:
    """Which error, if any, was made on every true object."""
    if "errors" not in scores:
        return None
    errors = scores["errors"]
    kinds = [*KINDS, *(kind for kind in FALSE_KINDS if kind in errors)]
    return {
        "total": sum(errors[kind] for kind in KINDS), "kinds": kinds,
        "chart": row_charts.shares("Errors of the true objects", [
            (kind, errors[kind], colour) for kind, colour in KINDS.items()]),
        "strata": [(name, *(f"{value['errors'][kind]:,}" for kind in kinds))
                   for name, value in scores["per_stratum"].items() if "errors" in value]}


def _decodings(scores) -> list[tuple]:
    """(name, options, scores ...) of each decoding; none where there is but one."""
    found = [(one["name"], ", ".join(f"{k} {document.plain(v)}" for k, v in one["options"].items()),
              *(number(one[key]) for key in DECODING_SCORES)) for one in scores.get("decoding", ())]
    return found if len(found) > 1 else []


def _object_strata(scores) -> list[tuple]:
    """(stratum, scores of its objects ...), where there are several."""
    found = [(name, *(number(value.get(key)) for key in STRATUM_SCORES))
             for name, value in scores.get("per_stratum", {}).items() if "ap50" in value]
    return found if len(found) > 1 else []


def _calibration(scores, outputs) -> str:
    """Reliability diagram, of each output or of all of them where they are many."""
    counts = scores.get("calibration")
    if not counts:
        return ""
    bins = [np.array(one) for one in zip(*(counts[k] for k in ("pixels", "probs", "true")),
                                         strict=True)]
    names = _named(outputs, range(len(bins)))
    if len(bins) > len(svg.STYLES):
        bins, names = [np.sum(bins, 0)], ("all outputs",)
    return charts.reliability(
        "Fraction of positive pixels by predicted probability",
        [(name, *_reliability(*one)) for name, one in zip(names, bins, strict=True)])


def _reliability(pixels, probs, true):
    """(mean probability, fraction of positives, share of pixels) of bins, as lists."""
    whole = np.maximum(pixels, 1)
    return [x.tolist() for x in (probs / whole, true / whole, pixels / max(pixels.sum(), 1))]


def _other_scores(folder) -> list[dict]:
    """Every other split, or other data, that was scored."""
    found = []
    for path in sorted(folder.glob("*.json")):
        scores = read_json(path)
        if path.stem == "test" or "metrics_original_size" not in scores:
            continue
        small, large = scores["metrics"], scores["metrics_original_size"]
        found.append({"file": path.stem, "scores": scores, "options": _options(scores), "rows": [
            (key, number(small.get(key)), number(large.get(key))) for key in {**small, **large}]})
    return found


def _pictures(folder) -> list[tuple[str, list[dict]]]:
    """The pictures in a folder by kind."""
    found = [(PICTURE_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.png"))]
    return [(kind, [{"name": match[3], "dice": match[2], "picture": embedded.png(path)}
                    for match, path in found if match and match[1] == kind])
            for kind in ("worst", "median", "best")]


def _images(images) -> dict | None:
    """The table of images, the worst first; long columns last."""
    if not images:
        return None
    rows = sorted(images, key=lambda row: _float(row["dice"]) or 0)[:MAX_ROWS]
    texts = ["stratum", "name"]
    if any(row["group"] != row["name"] for row in images):
        texts.append("group")
    numbers = [k for k in images[0] if k not in ("stratum", "name", "group")]
    numbers.sort(key=lambda k: k != "dice")
    return {"total": len(images), "head": numbers + texts, "numbers": len(numbers),
            "rows": [[_short(row[k]) for k in numbers] + [row[k] for k in texts] for row in rows]}


def _changes(config) -> list[tuple[str, str, str]]:
    changed = {f"{s}.name": (config[s].name, config_lib.default()[s].name)
               for s in ("data", "model")}
    changed = {k: v for k, v in changed.items() if v[0] != v[1]}
    changed |= config_lib.diff(config, config_lib.plain(config))
    return [(key, repr(now), repr(before)) for key, (now, before) in changed.items()]


def _environment(environment, scores, folder) -> list[tuple[str, str]]:
    rows = [(k, document.plain(v)) for k, v in environment.items() if v not in ("", None)
            and k != "command"]  # which ends the page
    speed = [s["images_per_second"] for s in read_jsonl(folder / TIMING_LOG, [])
             if s.get("images_per_second")]
    if rows and speed:
        rows.append(("training speed", f"{sorted(speed)[len(speed) // 2]:.4g} images/s (median)"))
    if rows and scores and scores.get("ms_per_image"):  # not in runs scored before it was taken
        rows.append(("network", f"{scores['ms_per_image']:.4g} ms per test image"))
    if rows and scores:
        rows.append(("evaluation", f"{scores['seconds']:.1f} s, {scores['images_per_second']:.4g} "
                                   f"images/s, peak memory {scores['peak_rss'] / 2**30:.2f} GiB"))
    return rows


# --- values --------------------------------------------------------------------------------------


def _options(scores) -> list[tuple]:
    """The eval options that scores follow from; labels made elsewhere have none."""
    options = {} if "labels_content" in scores else scores.get("eval_options") or {}
    if "min_size" in scores:  # what -1 was
        options = options | {"min_size": scores["min_size"]}
    return [(key, options[key]) for key in SHOWN_OPTIONS if key in options]


def _interval(scores, where, key) -> str:
    """The interval of a score in words, or nothing."""
    both = scores.get(where.replace("metrics", "intervals"), {}).get(key)
    text = lambda value: f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{text(both[0])}–{text(both[1])}" if both else ""


def _range(part):
    """The interval of the mean Dice of a class or stratum."""
    return part.get("intervals", {}).get("dice_mean")


def _short(text: str) -> str:
    """A cell of the image table: four decimals, and a dash where there is nothing to measure."""
    if text == "nan":
        return document.NONE
    return f"{float(text):.4f}" if "." in text else text


def _float(text: str) -> float | None:
    return float(text) if text and text != "nan" else None


def _finite(value):
    return value if isinstance(value, (int, float)) else None
