"""A study's folder as its runs leave it behind, made without training: for tables and pages."""

import csv
import json
import math
import shutil

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.runs import provenance
from cellseg_jax.runs.resources import RESOURCES

ROWS = {
    "unet_adam": {},
    "unet_sgd": {"optimizer.name": "sgd", "optimizer.lr": 5e-3},
    "unet_wide": {"model.channels": (8, 16)},
    "unet_no_augment": {"augment.flip_horizontal": (0.0, 0.0)},
    "otsu": {"model.name": "otsu"},
}
EFFECTS = {"unet_sgd": -0.002, "unet_wide": 0.02, "unet_no_augment": -0.03,
           "otsu": -0.25}  # against unet_adam
STRATA = {"fluorescence": 0.04, "stain <dark>": -0.08}
STEPS, EPOCHS = 12, 10  # per epoch
POOL, FRACTIONS = 200, (0.8, 0.1)  # images, shares of train and test
# A study for many processes.
SHARED_STUDY = """
from cellseg_jax.config import default
from cellseg_jax.studies import rows

TITLE = "shared by many"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=40)
BASE.model = dict(name="simple_conv")
BASE.train.epochs = 15
BASE.train.batch_size = 8
BASE.eval.batch_size = 8
BASE.eval.panels = 0
ROWS = {
    "base": {},
    "slow": {"optimizer.lr": 1e-4},
    "wide": {"model.name": "unet", "model.channels": (4, 8)},
    "second": {"train.weights": "row:base"},
    "otsu": {"model.name": "otsu"},
}
VARIES = ("seed", "data.split_seed")
get_config = rows(BASE, ROWS)
"""
SHARED_STEPS = list(range(4, 61, 4))  # that each of its networks logs


def make_study(**changes) -> studies.Study:
    """A study of four small networks and Otsu on synthetic cells; `changes` are of its fields."""
    base = config_lib.default()
    base.data = dict(name="synthetic", size=(32, 32), count=120)
    base.model = dict(name="unet", channels=(4, 8), dropout=0.1)
    base.augment.flip_horizontal = (0.5, 1.0)
    study = studies.Study(
        name="optimisers", title="Optimisers, width & augmentation",
        base=config_lib.complete(base), rows=ROWS,
        reference={"unet_adam": {"dice_mean": 0.82, "iou_mean": 0.73},
                   "unet_sgd": {"dice_mean": 0.82}, "otsu": {"dice_mean": 0.59}},
        claims=(
            studies.Claim("augmentation helps", ("unet_adam", "unet_sgd"), ("unet_no_augment",)),
            studies.Claim("SGD is better than Adam", ("unet_sgd",), ("unet_adam",)),
            studies.Claim("Otsu is best", ("otsu",), ("unet_adam",)),
            studies.Claim("the optimiser does not matter", ("unet_sgd",), ("unet_adam",),
                            "iou_mean", 0.02)),
        repeats=5, varies=("seed",), metrics=("dice_mean", "iou_mean", "seg"),
        baseline="unet_adam", smoke={"train.epochs": 1})
    return study._replace(**changes)


def write_study(folder, study=None, *, effects=EFFECTS, run_sd=0.004, image_sd=0.05, images=24,
                seed=0) -> studies.Study:
    """Write every run of `study` (default: make_study()) into `folder`/<row>/<repeat>.

    Args:
      effects: {row: true difference of dice_mean from the others}.
      run_sd: of the luck of a run; image_sd: of what a row has of its own on an image.
      images: in the test split; 10 % of all. Each repeat draws its own, if the study varies the
        split seed.
    """
    study = study or make_study()
    pool = 10 * images
    rng = np.random.default_rng(seed)
    strata = rng.choice(list(STRATA), pool, p=(0.7, 0.3))
    difficulty = 0.8 + np.array([STRATA[s] for s in strata]) + rng.normal(0, 0.06, pool)
    own = {row: effects.get(row, 0.0) + rng.normal(0, image_sd, pool) for row in study.rows}
    for row in own:  # the effect is what it says on the images of a fixed split
        own[row] -= own[row][:images].mean() - effects.get(row, 0.0)
    for repeat in range(study.repeats):
        order = (rng.permutation(pool) if "data.split_seed" in study.varies else np.arange(pool))
        for row in study.rows:
            config = studies.config_of(study, row, repeat)
            luck = 0.0 if config.model.name == "otsu" else rng.normal(0, run_sd)
            dice = np.clip(difficulty + own[row] + luck, 0, 0.999)
            write_run(folder / row / str(repeat), config, dice, strata, order, images, rng)
    return study


def write_run(folder, config, dice, strata, order, images, rng) -> None:
    """The files of one run, of which figures and tables are made; see DESIGN 6."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    names = [f"field_{i:04d}.png" for i in range(len(order))]
    write = lambda name, content: (folder / name).write_text(json.dumps(content))
    learned = config.model.name != "otsu"
    write("config.json", config.to_dict())
    write("environment.json", {
        "command": f"study.py --study=optimisers.py --rows={folder.parent.name}",
        "python": "3.11.2", "packages": {"jax": "0.10.2"}, "commit": "0123456789" * 4,
        "code": provenance.code_hash(), "devices": ["cpu cpu"],
        "program": {"members": 5, "how": "unroll"} if learned else {"method": "otsu"},
        "data_fingerprint": "ab" * 16})
    write("split.json", {part: [names[i] for i in chosen] for part, chosen in (
        ("test", order[:images]), ("val", order[images : 2 * images]),
        ("train", order[2 * images :]))})
    seconds = 60 * math.prod(config.model.get("channels", (1, 1))) / 32
    lines = []
    for epoch in range(1, EPOCHS + 1) if learned else ():
        fall = math.exp(-epoch / 3)
        lines.append(({"step": STEPS * epoch, "epoch": float(epoch), "lr": config.optimizer.lr,
                       "train_loss": 0.15 + fall + 0.01 * rng.normal(),
                       "val_loss": 0.2 + fall + 0.01 * rng.normal(),
                       "val_dice_mean": float(dice.mean() - 0.5 * fall)},
                      {"step": STEPS * epoch, "seconds": seconds * (1 + 0.05 * rng.normal()),
                       "cpu_seconds": seconds * (1.8 + 0.1 * rng.normal()), "members": 5,
                       "images_per_second": 192.0,
                       "peak_memory_gib": 0.9 + seconds / 600 + 0.01 * rng.random()}))
    for name, part in (("metrics.jsonl", 0), ("timing.jsonl", 1)) if learned else ():
        (folder / name).write_text("".join(json.dumps(line[part]) + "\n" for line in lines))
    share = lambda key: sum(timing[key] / 5 for _, timing in lines)
    write("result.json", {
        "status": "done", "step": STEPS * len(lines), "num_steps": STEPS * len(lines),
        "train_seconds": share("seconds"), "cpu_seconds": share("cpu_seconds"), "members": 5,
        "peak_memory_gib": max((t["peak_memory_gib"] for _, t in lines), default=0.0),
        "metrics": lines[-1][0] if lines else {}})
    rows = [{"name": names[i], "stratum": strata[i], "group": f"case_{i // 2}", "height": 64,
             "width": 80, "loss": 1 - dice[i], "dice": dice[i], "iou": dice[i] / (2 - dice[i]),
             "dice_original": dice[i] - 0.01, "iou_original": dice[i] / (2 - dice[i]) - 0.01,
             "seg": math.nan if i % 11 == 10 else dice[i] - 0.15, "n_true": 18, "n_pred": 16}
            for i in order[:images]]
    with open(folder / "eval/test_images.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    mean = lambda key, chosen=rows: float(np.nanmean([r[key] for r in chosen]))
    by_stratum = {s: [r for r in rows if r["stratum"] == s] for s in STRATA}
    write("eval/test.json", {
        "split": "test", "n_images": images,
        "metrics": {"dice_mean": mean("dice"), "iou_mean": mean("iou"), "loss": mean("loss")},
        "metrics_original_size": {"dice_mean": mean("dice_original"), "seg": mean("seg"),
                                  "ap50": None},
        "per_class": {"0": {"dice_mean": mean("dice"), "iou_mean": mean("iou")}},
        "per_stratum": {s: {"n": len(chosen), "dice_mean": mean("dice", chosen),
                            "iou_mean": mean("iou", chosen)}
                        for s, chosen in by_stratum.items() if chosen},
        "definitions": {"dice_mean": "2TP/(2TP+FP+FN) per image, 1 where truth and prediction are "
                                     "empty; mean of images",
                        "iou_mean": "TP/(TP+FP+FN) per image; mean of images",
                        "seg": "Cell Tracking Challenge SEG: mean over the true objects & images"},
        "config_hash": config_lib.identity(config), "checkpoint_step": STEPS * len(lines),
        "eval_options": config_lib.as_json(config.eval), "data_fingerprint": "ab" * 16,
        "code_hash": provenance.code_hash(), "seconds": 2.0, "cpu_seconds": 4.0,
        "peak_rss": 2**30, "images_per_second": 12.0,
        "ms_per_image": seconds / 6 + mean("dice")})


def damage(folder, what) -> None:
    """Spoil a run's folder: "gone", "unfinished", "non-finite", "truncated", "code" or "data"."""
    change = lambda name, **values: (folder / name).write_text(json.dumps(
        json.loads((folder / name).read_text()) | values))
    if what == "gone":
        shutil.rmtree(folder)
    elif what == "unfinished":
        (folder / "result.json").unlink()
        (folder / "eval/test.json").unlink()
    elif what == "non-finite":
        change("result.json", status="non-finite", step=31)
    elif what == "truncated":
        text = (folder / "eval/test.json").read_text()
        (folder / "eval/test.json").write_text(text[: len(text) // 2])
    elif what == "code":
        change("environment.json", code="0" * 32)
        change("eval/test.json", code_hash="0" * 32)
    elif what == "data":
        change("environment.json", data_fingerprint="cd" * 16)
    else:
        raise ValueError(what)


def twin_tables(rng, tables, rows, repeats, *, run_sd, image_sd, resampled):
    """(tables, rows, repeats) scores of one method under many names.

    Each name's score of an image has a part of its own (image_sd: rows disagree on images, and
    over all images in the world on none), each run its luck (run_sd), each image a difficulty
    that all share. Repeat r tests every name on the same images of the pool, or on all of them.
    """
    count = round(POOL * FRACTIONS[1])
    difficulty = rng.normal(0.8, 0.1, (tables, 1, POOL))
    image = difficulty + rng.normal(0, image_sd, (tables, rows, POOL))
    if resampled:
        order = np.argsort(rng.random((tables, repeats, POOL)), -1)[..., :count]
        tested = np.zeros((tables, repeats, POOL))
        np.put_along_axis(tested, order, 1 / count, -1)
        scores = image @ tested.swapaxes(1, 2)
    else:  # rows that disagree on the images of a fixed test set do differ on that set
        scores = np.broadcast_to(difficulty.mean(-1, keepdims=True), (tables, rows, repeats))
    return scores + rng.normal(0, run_sd, (tables, rows, repeats))


def logged_steps(run) -> list[int]:
    """The steps of a run's metrics.jsonl."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def table_without_costs(folder) -> list[dict]:
    """The lines of table.csv but for those on what a run costs, and the advice, which quotes it."""
    with open(folder / "table.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] not in RESOURCES]
    return [{key: value for key, value in row.items() if key != "next_step"} for row in rows]
