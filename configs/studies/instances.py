"""Cells one by one: the ways of the field to tell them apart, with four networks, at three scales.

Question: mask and watershed, contours, distances, stars or flows: which target tells touching
nuclei apart, does the answer depend on the network, and what does the scale of the images do?
Run: python -m cellseg_jax.study --study=configs/studies/instances.py --workdir=runs/instances
    --config.data.root=DIR
Fluorescence alone: --config.data.strata="('fluorescence',)" --config.data.channels=gray
Own data: --config.data.name=folder with images/ and masks/ in DIR; it has no modalities.
Other data: --config.data.name=livecell --config.data.split=official, or --config.data.name=ctc
    --config.data.partial=ignore with DIR the folder of one dataset, both with
    --config.data.channels=gray.
Tools beside us: a row {"labels": DIR} scores label images of the test images made by anything; see
    benchmarks/peers/README.md for StarDist, Cellpose and torch-em on the same split.
Published: the papers of StarDist and Cellpose compare whole tools, each with its own network, crops
and length, one run each. Here they share network, data, steps, repeats and tests.
Result: docs/results/instances.md, of instances_cpu.py, its small sister; not at this size.
"""

import pathlib

from cellseg_jax import config
from cellseg_jax.studies import Claim, rows

TARGETS = ("foreground", "contour", "distance", "star", "flow")
NETWORKS = {
    "unet_classic": {},
    "unet": {"model.name": "unet", "model.channels": (32, 64, 128, 256, 256),
             "model.dropout": 0.0},
    "unet_plan": {"model.name": "unet_plan"},
    "segformer": {"model.name": "segformer"},
}
SCALES = {
    "diameter": {"data.diameter": 30.0},  # Cellpose's, in pixels of the network
    "zoomed": {"augment.zoom": (1.0, 0.5)},
    "resized": {"data.fit": "resize"},  # to data.size, as in the older studies
}

TITLE = "Cells one by one: targets, networks and scales"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "nuclei_instances.py"))
ROWS = {
    **{f"{network}_{target}": {"data.target": target, **changes}
       for network, changes in NETWORKS.items() for target in TARGETS},
    **{f"unet_classic_flow_{scale}": {"data.target": "flow", **changes}
       for scale, changes in SCALES.items()},
    "unet_classic_flow_minmax": {"data.target": "flow", "data.normalize": "minmax"},
}
BASELINE, BEST = "unet_classic_foreground", "unet_classic_flow"
CLAIMS = (
    *(Claim(f"{name} tell more cells apart than a mask and a watershed",
            tuple(f"{network}_{target}" for network in NETWORKS),
            tuple(f"{network}_foreground" for network in NETWORKS), matched=True)
      for name, target in (("Contours", "contour"), ("Distances", "distance"), ("Stars", "star"),
                           ("Flows", "flow"))),
    Claim("Flows tell more cells apart than any other target", BEST,
          tuple(f"unet_classic_{target}" for target in TARGETS if target != "flow"), every=True),
    Claim("Cells of one diameter are told apart better", f"{BEST}_diameter", BEST),
    Claim("Native pixels tell more cells apart than resized images", BEST, f"{BEST}_resized"),
    Claim("Percentiles are better than the whole range", BEST, f"{BEST}_minmax"),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("ap50", "ap", "ap50_image_mean", "dice_mean", "f1_small", "f1_large", "merge_rate",
           "split_rate")
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "data.diameter": lambda diameter: min(diameter, 12.0),
    "model.channels": (4, 8, 8),
    "model.features_per_stage": (4, 8, 8),
    "model.blocks_per_stage": (1, 1, 1),
    "model.widths": (4, 8, 8, 8),
    "model.depths": (1, 1, 1, 1),
    "model.decoder_width": 8,
    "optimizer.warmup": 0,
    "train.steps": 2,
    "train.batch_size": lambda n: min(n, 4),
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
