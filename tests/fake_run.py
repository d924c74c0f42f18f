"""A run folder such as training and evaluation leave behind, made without either."""

import json
import math

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.report import panels

STRATA = {"fluorescence": 0.93, "brightfield_gray": 0.78, "stain <dark> background": 0.84,
          "stain_light_background": 0.71}


def blobs(rng, size=(96, 128), count=18):
    """(image, truth, pred): bright discs, and the same discs displaced, some left out."""
    image = rng.normal(20, 4, size)
    truth, pred = np.zeros(size, np.int32), np.zeros(size, np.int32)
    y, x = np.mgrid[: size[0], : size[1]]
    for n in range(1, count + 1):
        cy, cx, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(4, 10)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r**2
        truth[inside & (truth == 0)] = n
        image[inside] += rng.uniform(40, 120)
        if rng.random() < 0.85:
            pred[((y - cy) ** 2 + (x - cx - 1) ** 2 < (r * 1.05) ** 2) & (pred == 0)] = n
    return np.clip(image, 0, 255).astype(np.uint8)[..., None], truth, pred


def make(folder, *, epochs=40, evaluated=True, pictures=4, size=(96, 128)):
    """Write the run into `folder`."""
    rng = np.random.default_rng(0)
    config = config_lib.default()
    config.optimizer.lr, config.optimizer.schedule = 1e-3, "polynomial"
    config.data.size = (256, 256)
    config.data.root = "data/a & <b>"
    config = config_lib.complete(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config_lib.to_json(config))
    environment = {
        "command": "main.py --config=configs/unet_adam.py '--config.data.root=data/a & <b>' "
                   "--config.data.size=256,256 --config.optimizer.schedule=polynomial",
        "python": "3.11.2", "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "commit": "0123456789abcdef0123456789abcdef01234567+", "devices": ["gpu H200"] * 2,
        "processes": 1, "program": {"members": 1, "mesh": {"member": 1, "data": 2}},
        "data_fingerprint": "ab" * 16,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    metrics, timing = [], []
    for epoch in range(1, epochs + 1):
        line = {"step": 33 * epoch, "epoch": float(epoch), "lr": 1e-3 * (1 - epoch / 41) ** 0.9,
                "train_loss": 0.1 + math.exp(-epoch / 8) + 0.02 * rng.normal()}
        if epoch % 2 == 0:
            line["val_loss"] = 0.18 + math.exp(-epoch / 9) + 0.03 * rng.normal()
            line["val_dice_mean"] = 0.88 - 0.6 * math.exp(-epoch / 6) + 0.01 * rng.normal()
            line["val_dice_pooled"] = line["val_dice_mean"] + 0.03
            line |= {f"val_{name}_mean": line["val_dice_mean"] - 0.01 * n
                     for n, name in enumerate(("accuracy", "precision", "recall"))}
        metrics.append(line)
        timing.append({"step": 33 * epoch, "seconds": 2.5, "images_per_second": 210.0 + epoch})
    for name, lines in (("metrics.jsonl", metrics), ("timing.jsonl", timing)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        _write_evaluation(folder, rng, pictures, size)


def _write_evaluation(folder, rng, pictures, size):
    rows = []
    for n in range(67):
        stratum = list(STRATA)[min(3, int(rng.exponential(0.9)))]
        dice = float(np.clip(STRATA[stratum] + 0.06 * rng.normal(), 0, 0.99))
        rows.append({"name": f"{rng.bytes(20).hex()}", "stratum": stratum, "group": f"g{n}",
                     "height": 256, "width": 320, "loss": 1 - dice, "dice": dice,
                     "iou": dice / (2 - dice), "dice_original": dice - 0.01,
                     "iou_original": dice / (2 - dice) - 0.01, "ap50": dice - 0.1,
                     "seg": "nan" if n == 3 else dice - 0.15, "n_true": 18, "n_pred": 16,
                     "correct": 15, "merged": 1, "split": 0, "inexact": 1, "missed": 1,
                     "spurious": 0})
    (folder / "eval/test_predictions").mkdir(parents=True)
    (folder / "eval/test_images.csv").write_text("\n".join(
        [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    mean = lambda key, chosen=rows: float(np.mean([row[key] for row in chosen]))
    strata = {name: [row for row in rows if row["stratum"] == name] for name in STRATA}
    interval = lambda value, half=0.012: [value - half, value + half]
    errors = lambda n: {"correct": 15 * n, "merged": n, "split": n // 2, "inexact": n - n // 2,
                        "missed": n, "spurious": n // 3}
    probs = (np.arange(15) + 0.5) / 15
    pixels = 2e5 * (np.exp(-probs * 12) + 0.3 * np.exp((probs - 1) * 9))
    test = {
        "name": "test", "split": "test", "n_images": len(rows),
        "metrics": {"dice_mean": mean("dice"), "iou_mean": mean("iou"), "dice_pooled": 0.9,
                    "iou_pooled": 0.82, "precision_mean": 0.9, "recall_mean": None,
                    "accuracy_mean": 0.97, "loss": 0.2},
        "metrics_original_size": {"dice_mean": mean("dice_original"),
                                  "iou_mean": mean("iou_original"), "ap50": 0.71, "seg": None},
        "intervals": {"dice_mean": interval(mean("dice")), "iou_mean": interval(mean("iou"))},
        "intervals_original_size": {"dice_mean": interval(mean("dice_original")),
                                    "ap50": interval(0.71, 0.03)},
        "n_groups": len(rows), "errors": errors(len(rows)),
        "calibration": {"pixels": [pixels.tolist()], "probs": [(pixels * probs).tolist()],
                        "true": [(pixels * probs**1.4).tolist()]},
        "definitions": {"interval": "95 % percentile bootstrap that draws whole cases",
                        "dice_mean": "2TP/(2TP+FP+FN) per image, 1 where truth and prediction are "
                                     "empty; mean of images", "recall_mean": "TP/(TP+FN)"},
        "per_class": {"0": {"dice_mean": 0.9, "iou_mean": 0.8}},
        "per_stratum": {name: {"n": len(chosen), "dice_mean": mean("dice", chosen),
                               "iou_mean": mean("iou", chosen), "errors": errors(len(chosen)),
                               "intervals": {"dice_mean": interval(mean("dice", chosen), 0.03)}}
                        for name, chosen in strata.items() if chosen},
        "config_hash": "cd" * 16, "checkpoint_step": 33 * 36, "seconds": 12.0,
        "cpu_seconds": 20.0, "peak_rss": 2**31, "images_per_second": 5.6,
    }
    (folder / "eval/test.json").write_text(json.dumps(test))
    for n in range(pictures):
        kind = ("worst", "worst", "median", "best")[n % 4]
        name, dice = f"{rng.bytes(16).hex()}.png", 0.4 + 0.05 * n
        picture = panels.panel(*blobs(rng, size), f"{name}  fluorescence  Dice {dice:.3f}")
        panels.write_png(folder / f"eval/test_predictions/{n:02d}_{kind}_dice{dice:.3f}_{name}.png",
                         picture)
