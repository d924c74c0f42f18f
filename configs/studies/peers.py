"""Flows of our classic U-Net beside StarDist, each trained for half an hour of CPU time.

Question: are nuclei told apart better than by StarDist, given the same images and the same time?
Run: first StarDist on each split, see benchmarks/peers/README.md: for SEED = 0 to 4 export the
    split of this config with --config.data.split_seed=SEED and train with --seed=SEED into
    runs/peers/stardist_SEED; then
    python -m cellseg_jax.study --study=configs/studies/peers.py --workdir=runs/peers_study
    --config.data.root=DIR
Published: nothing comparable, see instances.py. StarDist has 30 CPU minutes on one thread; 1,400
steps of ours took 28 there, and 18 with the extra cpu.
Result: docs/results/peers.md.
"""

import pathlib

from cellseg_jax import config, studies
from cellseg_jax.studies import Claim, rows

INSTANCES = studies.load(pathlib.Path(__file__).with_name("instances.py"))

TITLE = "Nuclei told apart: flows of a classic U-Net beside StarDist"
BASE = config.changed(INSTANCES.base, {
    "data.strata": ("fluorescence",), "data.channels": "gray", "data.threads": 1,
    "train.steps": 1400})
ROWS = {"flow": {}, "stardist": {"labels": "runs/peers/stardist_{seed}/test"}}
BASELINE = "stardist"
CLAIMS = (Claim("Flows tell more nuclei apart than StarDist", "flow", "stardist"),)
REPEATS, VARIES, SMOKE = 5, INSTANCES.varies, INSTANCES.smoke
METRICS = ("ap50", "ap", "ap50_image_mean", "merge_rate", "split_rate", "count_error")

get_config = rows(BASE, ROWS)
