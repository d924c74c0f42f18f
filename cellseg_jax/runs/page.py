"""One self-contained HTML page per run: scores, curves, pictures, and how to run it again.

The scores of a run on other data than it was trained on have a page of their own.
A page is made of what lies in the run folder and leaves out what is not there yet. It loads
nothing from anywhere, so it opens offline, in a mail, and in ten years.
"""

import base64
import io
import json
import pathlib
import re
import shlex
from html import escape

import numpy as np
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.files import read_csv, read_json, read_jsonl, write_atomic
from cellseg_jax.report import document, svg
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

PICTURE_WIDTH = 1200  # pixels; wider panels are reduced, or the page could not be mailed
PICTURE_NAME = re.compile(r"\d+_(worst|median|best)_dice([\d.]+|nan)_(.*)\.png")
# Of eval_options, what scores follow from.
HOW = ("decode", "watershed_h", "threshold", "min_size", "overlap")
MAX_ROWS = 100  # of the table of images
# Kinds of metrics.ErrorKinds: colour (Okabe and Ito) and meaning.
KINDS = {
    "correct": ("#009e73", "matched at IoU 0.5 or more"),
    "merged": ("#cc79a7", "a prediction covers more than half of it and of another true object"),
    "split": ("#56b4e9", "several predictions lie mostly in it"),
    "inexact": ("#e69f00", "a prediction lies mostly in it or covers most of it, at a lower IoU"),
    "missed": ("#d55e00", "none of these"),
    "spurious": ("", "a prediction that lies mostly in no true object and covers most of none"),
}


def write_run_page(folder: pathlib.Path, name: str = "test") -> pathlib.Path:
    """Write the page of a run from what lies in its folder; returns its path.

    Args:
      name: of the scores in eval/ that it shows. Those of the run's own splits make report.html;
        other data (see evaluate.result_name) have pages of their own, report_<name>.html.

    Raises: InputError if there is no run in the folder.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    scores = read_json(scores_file(folder, name), None)
    own = scores is None or "data" not in scores
    if own and name != "test":
        name, scores = "test", read_json(scores_file(folder), None)
    environment = read_json(folder / ENVIRONMENT_FILE, None)
    log = read_jsonl(folder / METRICS_LOG, [])
    images = read_csv(images_file(folder, name), []) if scores else []
    title = folder.resolve().name if own else f"{folder.resolve().name} on {scores['data']['name']}"
    sections = [
        f"<h1>{escape(title)}</h1><p>{escape(_sentence(config, scores, log))}</p>",
        _caution(scores),
        _cards(scores),
        document.NAV,
        _curves(log, scores, config) if own else "",
        _scores(scores, config),
        _classes(scores, config),
        _strata(scores, images),
        _objects(scores),
        _calibration(scores),
        _pictures(pictures_folder(folder, name)) if scores else "",
        _images(images),
        _other_scores(folder / EVAL, config) if own else "",
        _config(config),
        _environment(environment, scores, folder),
        _rerun(environment, folder) if own else _score_again(config, scores, folder),
        _use(folder) if scores else "",
    ]
    path = page_file(folder, "" if own else name)
    write_atomic(path, document.document(title, sections))
    return path


# --- sections ------------------------------------------------------------------------------------


def _sentence(config, scores, log) -> str:
    height, width = config.data.size
    steps = f" for {log[-1]['step']} steps" if log else ""
    training = (", which learns nothing," if derived.is_classical(config) else
                f" trained with {config.optimizer.name} (learning rate {config.optimizer.lr:g})")
    text = f"{config.model.name}{training} on {config.data.name} at {height}x{width}{steps}"
    if scores:
        split = "all images" if scores["split"] == "all" else f"the {scores['split']} split"
        small, large = (scores[where].get("dice_mean") for where in (
            "metrics", "metrics_original_size"))
        where = scores.get("data", config.data)["name"]
        text += (f": on {split} of {where}, Dice {_number(small)} at {height}x{width} and "
                 f"{_number(large)} at the original size, mean of {scores['n_images']} images")
    return text + "."


def _caution(scores) -> str:
    known = scores.get("names_of_training_images", 0) if scores else 0
    if not known:
        return ""
    return (f'<p class="warning"><b>{known} of {scores["n_images"]} images have the names of '
            "images that the run was trained on: these scores say nothing on new images.</b></p>")


def _cards(scores) -> str:
    if not scores:
        return ""
    shown = (("metrics", "dice_mean", "Dice, network size"),
             ("metrics_original_size", "dice_mean", "Dice, original size"),
             ("metrics_original_size", "iou_mean", "IoU, original size"),
             ("metrics_original_size", "ap50", "AP at IoU 0.5"),
             ("metrics_original_size", "pq", "PQ"), ("metrics_original_size", "seg", "SEG"))
    cards = [f'<div class="card"><b>{_number(scores[where][key])}</b>{escape(text)}'
             f'<span class="small">{_interval(scores, where, key)}</span></div>'
             for where, key, text in shown if scores[where].get(key) is not None]
    return f'<div class="cards">{"".join(cards)}</div>{_what_intervals_are(scores)}'


def _what_intervals_are(scores) -> str:
    if not scores.get("intervals"):
        return ""
    count, images = scores["n_groups"], scores["n_images"]
    of = f"{images} images" if count == images else f"{count} cases with {images} images"
    return (f'<p class="small">Below each score its interval: {escape(_definition(scores))}. '
            f"{of} here.</p>")


def _definition(scores) -> str:
    return scores.get("definitions", {}).get("interval", "95 % bootstrap interval")


def _curves(log, scores, config) -> str:
    if not log:
        return ""
    x_key = "epoch" if all("epoch" in line for line in log) else "step"
    get = lambda key, name: svg.Series(
        name, [s[x_key] for s in log], [_finite(s.get(key)) for s in log])
    best = [s[x_key] for s in log if scores and s["step"] == scores["checkpoint_step"]]
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
    return f'{document.heading("Training")}<div class="grid3">{"".join(figures)}</div>'


def _scores(scores, config) -> str:
    if not scores:
        return ""
    small = scores["metrics"] | scores.get("report2", {})
    large, definitions = scores["metrics_original_size"], scores.get("definitions", {})
    cell = lambda where, values, key: document.Html(
        f'{_number(values.get(key))}<br><span class="small">{_interval(scores, where, key)}</span>')
    rows = [(key, cell("metrics", small, key), cell("metrics_original_size", large, key),
             definitions.get(key, "")) for key in {**small, **large}]
    height, width = config.data.size
    head = ("score", f"{height}x{width}", "original size", "definition")
    title = "all images" if scores["split"] == "all" else f"the {scores['split']} split"
    return (document.heading(f"Scores of {title}")
            + f'<p class="small">{_what(scores, config)}</p>'
            + document.table(head, rows, {1, 2}, {3}, sortable=True, name="Scores"))


def _classes(scores, config) -> str:
    classes = scores.get("per_class", {}) if scores else {}
    if len(classes) < 2:
        return ""
    meaning = ("Background, nucleus and contour; the means above are of cell or not."
               if config.data.target == "contour" else
               "Class 0 is background and left out of the means above.")
    names = [name for name in next(iter(classes.values())) if name != "intervals"]
    table = document.table(
        ("class", *names), [(c, *(_number(v.get(n)) for n in names)) for c, v in classes.items()],
        range(1, len(names) + 1), sortable=True, name="Scores by class")
    return (f'{document.heading("Classes")}<p class="small">{meaning}</p>'
            + _bars("Mean Dice by class", [svg.Bar(f"class {c}", v["dice_mean"], [], _range(v))
                                           for c, v in classes.items()]) + table)


def _strata(scores, images) -> str:
    strata = scores.get("per_stratum", {}) if scores else {}
    if len(strata) < 2:
        return ""
    dice = {}
    for row in images:
        dice.setdefault(row["stratum"], []).append(_float(row["dice"]))
    rows = [svg.Bar(f"{name} (n = {value['n']})", value["dice_mean"], dice.get(name, []),
                    _range(value)) for name, value in strata.items()]
    return document.heading("Dice by stratum") + _bars("Mean Dice by stratum", rows)


def _bars(title, rows) -> str:
    dots = " Dot: one image." if any(row.points for row in rows) else ""
    line = " Line: 95 % interval." if any(row.interval for row in rows) else ""
    return (f"<figure>{svg.bars(title, rows)}<figcaption>Bar and number: mean of images at the "
            f"network's size.{dots}{line}</figcaption></figure>")


def _objects(scores) -> str:
    """What became of every true object."""
    if not scores or "errors" not in scores:
        return ""
    errors = scores["errors"]
    total = sum(errors[kind] for kind in KINDS if kind != "spurious")
    chart = svg.shares("What became of the true objects", [
        (kind, errors[kind], colour) for kind, (colour, _) in KINDS.items() if colour])
    meaning = document.table(
        ("kind", "meaning, the first that applies"),
        [(kind, text) for kind, (_, text) in KINDS.items()], wide={1}, name="Kinds of errors")
    strata = {name: value["errors"] for name, value in scores["per_stratum"].items()
              if "errors" in value}
    table = "" if len(strata) < 2 else document.table(("stratum", *KINDS), [
        (name, *(f"{value[kind]:,}" for kind in KINDS)) for name, value in strata.items()],
        range(1, len(KINDS) + 1), sortable=True, name="Errors by stratum")
    return (f'{document.heading("Errors by object")}<p>{total:,} true objects at the original '
            f"size, and {errors['spurious']:,} spurious ones.</p><figure>{chart}</figure>"
            + meaning + table)


def _calibration(scores) -> str:
    """Reliability diagram, of each output or of all of them where they are many."""
    counts = scores.get("calibration") if scores else None
    if not counts:
        return ""
    outputs = [np.array(one) for one in zip(*(counts[k] for k in ("pixels", "probs", "true")))]
    names = {1: ("cell",), 3: ("0", "1", "2")}.get(len(outputs), [""] * len(outputs))
    if len(outputs) > len(svg.STYLES):
        outputs, names = [np.sum(outputs, 0)], ("all outputs",)
    curves = [(name or f"output {n}", *_reliability(*one))
              for n, (name, one) in enumerate(zip(names, outputs, strict=True))]
    return (f'{document.heading("Calibration")}<figure style="max-width:420px">'
            + svg.reliability("Share of pixels that are true by predicted probability", curves)
            + "<figcaption>Pixels at the network's size in 15 bins of their probability; larger "
            f"dots hold more. Expected calibration error {_number(scores['metrics'].get('ece'))}. "
            "Above the dashed line the network is less sure than it might be, below it is too sure."
            "</figcaption></figure>")


def _reliability(pixels, probs, true):
    """(mean probability, share that is true, share of pixels) of bins, as lists."""
    whole = np.maximum(pixels, 1)
    return [x.tolist() for x in (probs / whole, true / whole, pixels / max(pixels.sum(), 1))]


def _other_scores(folder, config) -> str:
    """A small table for every other split, or other data, that was scored."""
    height, width = config.data.size
    out = ""
    for path in sorted(folder.glob("*.json")):
        other = read_json(path)
        if path.stem == "test" or "metrics_original_size" not in other:
            continue
        rows = [(key, _number(other["metrics"].get(key)),
                 _number(other["metrics_original_size"].get(key)))
                for key in {**other["metrics"], **other["metrics_original_size"]}]
        title, note = f"The {other['split']} split", ""
        if "data" in other:
            title = f"Other data: {other['data']['name']}, {other['split']}"
            note = f" More in report_{path.stem}.html."
        out += (f"<details><summary>{escape(title)}: Dice "
                f"{_number(other['metrics_original_size'].get('dice_mean'))} at the original size, "
                f"{other['n_images']} images</summary>"
                f'<p class="small">{_what(other, config)}{escape(note)}</p>')
        out += document.table(("score", f"{height}x{width}", "original size"), rows, {1, 2},
                              name=title) + "</details>"
    return out and document.heading("Other scores") + out


def _pictures(folder) -> str:
    found = [(PICTURE_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.png"))]
    out = ""
    for kind in ("worst", "median", "best"):
        chosen = [(m, path) for m, path in found if m and m[1] == kind]
        out += document.heading(f"{kind.title()} predictions") if chosen else ""
        for match, path in chosen:
            text = escape(f"{match[3]}, Dice {match[2]}")
            picture, width = encoded(path)
            out += (f'<figure><figcaption>{text}</figcaption><div class="picture" tabindex="0" '
                    f'role="region" aria-label="{text}"><img alt="{text}: '
                    f'image, truth, prediction and error side by side" style="max-width:{width}px" '
                    f'src="data:image/png;base64,{picture}"></div></figure>')
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
    title = f"The {len(rows)} worst of {len(images)}" if len(rows) < len(images) else "All"
    table = document.table(keys, cells, range(len(numbers)), sortable=True, name="Images")
    return (f"{document.heading('Images')}<details><summary>{title} images, by Dice</summary>"
            f"{table}</details>")


def _config(config) -> str:
    changed = {f"{s}.name": (config[s].name, config_lib.default()[s].name)
               for s in ("data", "model")}
    changed = {k: v for k, v in changed.items() if v[0] != v[1]}
    changed |= config_lib.diff(config, config_lib.plain(config))
    rows = [(key, repr(now), repr(before)) for key, (now, before) in changed.items()]
    table = document.table(("key", "this run", "default"), rows) if rows else "<p>None.</p>"
    return (f"{document.heading('Config: what differs from the default')}{table}<details>"
            f"<summary>Whole config</summary><pre>{escape(config_lib.to_json(config))}</pre>"
            "</details>")


def _environment(environment, scores, folder) -> str:
    if not environment:
        return ""
    rows = [(k, _plain(v)) for k, v in environment.items() if v not in ("", None)
            and k != "command"]  # which ends the page
    timing = folder / TIMING_LOG
    speed = [s["images_per_second"] for s in read_jsonl(timing, [])
             if s.get("images_per_second")]
    if speed:
        rows.append(("training speed", f"{sorted(speed)[len(speed) // 2]:.4g} images/s (median)"))
    if scores:
        rows.append(("evaluation", f"{scores['seconds']:.1f} s, {scores['images_per_second']:.4g} "
                                   f"images/s, peak memory {scores['peak_rss'] / 2**30:.2f} GiB"))
    return document.heading("Environment") + document.table(("what", "value"), rows, wide={1})


def _rerun(environment, folder) -> str:
    command = environment.get("command", "") if environment else ""
    if not command:
        return ""
    script, *words = shlex.split(command)
    package = pathlib.Path(__file__).parents[1]
    if (package / script).is_file():
        script = f"python -m {package.name}.{script.removesuffix('.py')}"
    elif script.endswith(".py"):
        script = f"python {shlex.quote(script)}"
    commit = environment.get("commit", "")
    checkout = f"git checkout {commit.rstrip('+')}\n" if commit else ""
    note = ("<p>The tree had changes that are not in this commit.</p>"
            if commit.endswith("+") else "")
    return (f"{document.heading('Run it again')}{note}"
            f"<pre>{escape(checkout + _command(script, *words))}</pre>")


def _score_again(config, scores, folder) -> str:
    before = data.options(scores["data"]["name"]) | config.data.to_dict()
    before = json.loads(json.dumps(before))  # as the scores were written: tuples are lists
    changed = {k: v for k, v in scores["data"].items()
               if before.get(k) != v and k not in ("cache", "threads", "residence")}
    text = lambda v: v if isinstance(v, str) else repr(tuple(v) if isinstance(v, list) else v)
    return document.heading("Run it again") + "<pre>" + escape(_command(
        "python -m cellseg_jax.main", "--mode=eval", f"--workdir={folder}",
        f"--split={scores['split']}", *(f"--config.data.{k}={text(v)}" for k, v in changed.items())
    )) + "</pre>"


def _use(folder) -> str:
    workdir = f"--workdir={folder}"
    labels = _command("python -m cellseg_jax.predict", workdir, "--images=DIR", "--out=labels")
    scores = _command("python -m cellseg_jax.main", "--mode=eval", workdir, "--split=all",
                      "--config.data.name=folder", "--config.data.root=DIR")
    return (f"{document.heading('Use it')}<p>Labels for other images, and scores on other data "
            f"with labels:</p><pre>{escape(labels)}\n{escape(scores)}</pre>")


def _command(program, *words) -> str:
    return " \\\n    ".join([program, *map(shlex.quote, words)])


# --- parts ---------------------------------------------------------------------------------------


def encoded(path) -> tuple[str, int]:
    """(base64, width) of a PNG, reduced to PICTURE_WIDTH."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    if image.width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    png = io.BytesIO()
    image.save(png, format="PNG", optimize=True)
    return base64.b64encode(png.getvalue()).decode(), image.width


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


def _interval(scores, where, key) -> str:
    """The interval of a score in words, or nothing."""
    both = scores.get(where.replace("metrics", "intervals"), {}).get(key)
    text = lambda value: f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{text(both[0])}–{text(both[1])}" if both else ""


def _range(part):
    """The interval of the mean Dice of a class or stratum."""
    return part.get("intervals", {}).get("dice_mean")


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
