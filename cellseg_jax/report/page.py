"""One self-contained HTML page per run: scores, curves, pictures, and how to run it again.

The page is made of what lies in the run folder and leaves out what is not there yet. It loads
nothing from anywhere, so it opens offline, in a mail, and in ten years.
"""

import base64
import csv
import io
import json
import pathlib
import re
import shlex
from html import escape

from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import derived
from cellseg_jax.report import document, svg
from cellseg_jax.rundir import read_config, read_jsonl, write_atomic

PICTURE_WIDTH = 1200  # pixels; wider panels are reduced, or the page could not be mailed
PICTURE_NAME = re.compile(r"\d+_(worst|median)_dice([\d.]+|nan)_(.*)\.png")
# Of eval_options, what scores follow from.
HOW = ("decode", "watershed_h", "threshold", "min_size", "overlap")
MAX_ROWS = 100  # of the table of images


def write_run_page(folder: pathlib.Path) -> None:
    """Write folder/report.html from what lies in the run folder.

    Raises: InputError if there is no run in the folder.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    test = _read_json(folder / "eval/test.json")
    environment = _read_json(folder / "environment.json")
    log = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    images = _read_csv(folder / "eval/test_images.csv") if test else []
    name = folder.resolve().name
    sections = [
        f"<h1>{escape(name)}</h1><p>{escape(_sentence(config, test, log))}</p>",
        _cards(test),
        _curves(log, test, config),
        _scores(test, config),
        _other_splits(folder / "eval", config) if test else "",
        _strata(test, images),
        _pictures(folder / "eval/test_predictions") if test else "",
        _images(images),
        _config(config),
        _environment(environment, test, folder),
        _rerun(environment),
    ]
    write_atomic(folder / "report.html", document.document(name, sections))


# --- sections ------------------------------------------------------------------------------------


def _sentence(config, test, log) -> str:
    height, width = config.data.size
    steps = f" for {log[-1]['step']} steps" if log else ""
    training = (", which learns nothing," if derived.is_classical(config) else
                f" trained with {config.optimizer.name} (learning rate {config.optimizer.lr:g})")
    text = f"{config.model.name}{training} on {config.data.name} at {height}x{width}{steps}"
    if test:
        text += (f": test Dice {_number(test['metrics'].get('dice_mean'))} at {height}x{width} and "
                 f"{_number(test['metrics_original_size'].get('dice_mean'))} at the original size, "
                 f"mean of {test['n_images']} images")
    return text + "."


def _cards(test) -> str:
    if not test:
        return ""
    original = test["metrics_original_size"]
    shown = [("Dice, network size", test["metrics"].get("dice_mean")),
             ("Dice, original size", original.get("dice_mean")),
             ("IoU, original size", original.get("iou_mean"))]
    shown += [(text, original[key]) for key, text in (("ap50", "AP at IoU 0.5"), ("seg", "SEG"))
              if key in original]
    cards = [f'<div class="card"><b>{_number(value)}</b>{escape(text)}</div>'
             for text, value in shown if value is not None]
    return f'<div class="cards">{"".join(cards)}</div>'


def _curves(log, test, config) -> str:
    if not log:
        return ""
    x_key = "epoch" if all("epoch" in line for line in log) else "step"
    get = lambda key, name: svg.Series(
        name, [s[x_key] for s in log], [_finite(s.get(key)) for s in log])
    best = [s[x_key] for s in log if test and s["step"] == test["checkpoint_step"]]
    mark = (best[-1], "checkpoint scored") if best else None
    charts = {
        "Loss": [get("train_loss", "train"), get("val_loss", "validation")],
        "Validation Dice": [get("val_dice_mean", "mean of images"),
                            get("val_dice_pooled", "pooled pixels")],
        f"Learning rate ({config.optimizer.schedule})": [get("lr", "learning rate")],
    }
    drawn = [(title, svg.curves(title, x_key, series, mark)) for title, series in charts.items()]
    figures = [f"<figure><h3>{escape(title)}</h3>{chart}</figure>"
               for title, chart in drawn if chart]
    return f'<h2>Training</h2><div class="grid3">{"".join(figures)}</div>'


def _scores(test, config) -> str:
    if not test:
        return ""
    small, original = test["metrics"] | test.get("report2", {}), test["metrics_original_size"]
    definitions = test.get("definitions", {})
    rows = [(key, _number(small.get(key)), _number(original.get(key)), definitions.get(key, ""))
            for key in {**small, **original}]
    height, width = config.data.size
    out = (f"<h2>Scores of the {escape(test['split'])} split</h2>"
           f'<p class="small">{_what(test, config)}</p>')
    head = ("score", f"{height}x{width}", "original size", "definition")
    out += document.table(head, rows, numeric={1, 2}, wide={3})
    classes = test.get("per_class", {})
    if len(classes) > 1:
        names = list(next(iter(classes.values())))
        meaning = ("Background, nucleus and contour; the means above are of cell or not."
                   if config.data.target == "contour" else
                   "Class 0 is background and left out of the means above.")
        out += f'<h3>By class</h3><p class="small">{meaning}</p>'
        out += document.table(
            ("class", *names), [(c, *(_number(v.get(n)) for n in names))
                                for c, v in classes.items()], range(1, len(names) + 1))
    return out


def _other_splits(folder, config) -> str:
    """A small table for every other split that was scored."""
    height, width = config.data.size
    out = ""
    for path in sorted(folder.glob("*.json")):
        other = _read_json(path)
        if path.stem == "test" or "metrics_original_size" not in other:
            continue
        small, original = other["metrics"], other["metrics_original_size"]
        rows = [(key, _number(small.get(key)), _number(original.get(key)))
                for key in {**small, **original}]
        out += (f"<h3>The {escape(other['split'])} split</h3>"
                f'<p class="small">{_what(other, config)}</p>')
        out += document.table(("score", f"{height}x{width}", "original size"), rows, {1, 2})
    return out


def _strata(test, images) -> str:
    strata = test.get("per_stratum", {}) if test else {}
    if len(strata) < 2:
        return ""
    dice = {}
    for row in images:
        dice.setdefault(row["stratum"], []).append(_float(row["dice"]))
    rows = [(f"{name} (n = {value['n']})", value["dice_mean"], dice.get(name, []))
            for name, value in strata.items()]
    return ("<h2>Dice by stratum</h2><figure>" + svg.bars("Mean Dice by stratum", rows)
            + "<figcaption>Bar and number: mean of images at the network's size. "
            "Dot: one image.</figcaption></figure>")


def _pictures(folder) -> str:
    found = [(PICTURE_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.png"))]
    out = ""
    for kind, title in (("worst", "Worst predictions"), ("median", "Median predictions")):
        chosen = [(m, path) for m, path in found if m and m[1] == kind]
        out += f"<h2>{title}</h2>" if chosen else ""
        for match, path in chosen:
            text = escape(f"{match[3]}, Dice {match[2]}")
            data, width = _picture(path)
            out += (f'<figure><figcaption>{text}</figcaption><div class="picture">'
                    f'<img alt="{text}: '
                    f'image, truth, prediction and error side by side" style="max-width:{width}px" '
                    f'src="data:image/png;base64,{data}"></div></figure>')
    return out


def _images(images) -> str:
    if not images:
        return ""
    rows = sorted(images, key=lambda row: _float(row["dice"]) or 0)[:MAX_ROWS]
    texts = ("stratum", "name")  # last, because they can be long
    if any(row["group"] != row["name"] for row in images):
        texts += ("group",)
    numbers = [k for k in images[0] if k not in ("stratum", "name", "group")]
    keys = sorted(numbers, key=lambda k: k != "dice") + list(texts)
    cells = [[_short(row[k]) if k in numbers else row[k] for k in keys] for row in rows]
    numeric = range(len(numbers))
    title = f"The {len(rows)} worst of {len(images)}" if len(rows) < len(images) else "All"
    return (f"<h2>Images</h2><details><summary>{title} images, by Dice</summary>"
            f"{document.table(keys, cells, numeric)}</details>")


def _config(config) -> str:
    changed = {f"{s}.name": (config[s].name, config_lib.default()[s].name)
               for s in ("data", "model")}
    changed = {k: v for k, v in changed.items() if v[0] != v[1]}
    changed |= config_lib.diff(config, config_lib.plain(config))
    rows = [(key, repr(now), repr(before)) for key, (now, before) in changed.items()]
    table = document.table(("key", "this run", "default"), rows) if rows else "<p>None.</p>"
    return (f"<h2>Config: what differs from the default</h2>{table}<details><summary>Whole config"
            f"</summary><pre>{escape(config_lib.to_json(config))}</pre></details>")


def _environment(environment, test, folder) -> str:
    if not environment:
        return ""
    rows = [(k, _plain(v)) for k, v in environment.items() if v not in ("", None)
            and k != "command"]  # which ends the page
    timing = folder / "timing.jsonl"
    speed = [s["images_per_second"] for s in (read_jsonl(timing) if timing.exists() else [])
             if s.get("images_per_second")]
    if speed:
        rows.append(("training speed", f"{sorted(speed)[len(speed) // 2]:.4g} images/s (median)"))
    if test:
        rows.append(("evaluation", f"{test['seconds']:.1f} s, {test['images_per_second']:.4g} "
                                   f"images/s, peak memory {test['peak_rss'] / 2**30:.2f} GiB"))
    return "<h2>Environment</h2>" + document.table(("what", "value"), rows)


def _rerun(environment) -> str:
    command = environment.get("command", "") if environment else ""
    if not command:
        return ""
    script, *words = shlex.split(command)
    package = pathlib.Path(__file__).parents[1]
    if (package / script).is_file():
        script = f"python -m {package.name}.{script.removesuffix('.py')}"
    elif script.endswith(".py"):
        script = f"python {shlex.quote(script)}"
    command = " \\\n    ".join([script, *map(shlex.quote, words)])
    commit = environment.get("commit", "")
    lines = [f"git checkout {commit.rstrip('+')}"] if commit else []
    note = ("<p>The tree had changes that are not in this commit.</p>"
            if commit.endswith("+") else "")
    return f"<h2>Run it again</h2>{note}<pre>{escape(chr(10).join([*lines, command]))}</pre>"


# --- parts ---------------------------------------------------------------------------------------


def _picture(path) -> tuple[str, int]:
    """(base64, width) of a PNG, reduced to PICTURE_WIDTH."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    if image.width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode(), image.width


def _what(scores, config) -> str:
    """What was scored: how many images, which checkpoint, and how far one run can be trusted."""
    if derived.is_classical(config):
        return f"{scores['n_images']} images{_how(scores)}."
    return (f"{scores['n_images']} images, checkpoint of step {scores['checkpoint_step']}"
            f"{_how(scores)}. One run: the spread over seeds is not known from it.")


def _how(scores) -> str:
    """The eval options that scores follow from, as words after a comma."""
    options = scores.get("eval_options") or {}
    return "".join(escape(f", {key} {_plain(options[key])}") for key in HOW if key in options)


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _number(value) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(text: str) -> str:
    """A cell of the image table: four decimals, and a dash where there is nothing to measure."""
    if text == "nan":
        return "–"
    return f"{float(text):.4f}" if "." in text else text


def _float(text: str) -> float | None:
    return float(text) if text and text != "nan" else None


def _finite(value):
    return value if isinstance(value, (int, float)) else None


def _read_json(path):
    return json.loads(path.read_text()) if path.is_file() else None


def _read_csv(path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []
