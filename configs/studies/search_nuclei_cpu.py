"""A search around report 0's U-Net with Adam, at the size of nuclei_cpu.py: what beats the default?

Question: does any rate, schedule, decay, dropout, augmentation, loss or batch do better on nuclei
than the report's, and by how much when it is trained anew?
Run: python -m cellseg_jax.study --study=configs/studies/search_nuclei_cpu.py
    --workdir=runs/search_nuclei_cpu --config.data.root=DIR --search=halving
Published: nothing; the report has one rate for each optimiser.
81 trials in the steps of 21 whole runs: all of them train 2 of 18 epochs, 27 go on to 6, 9 to the
end; then the best one and the default, 10 repeats each with seeds and splits of their own. On two
cores that are otherwise idle about half an hour. --search=random has 21 whole trials instead.
Result: not distinguishable from the default: docs/benchmarks.md, "Searches".
"""

import pathlib

from cellseg_jax import config
from cellseg_jax.studies import choice, load, log, rows, uniform

SMALL = load(pathlib.Path(__file__).with_name("nuclei_cpu.py"))
FLIPS = {"augment.flip_horizontal": (0.5, 1.0), "augment.flip_vertical": (0.5, 1.0),
         "augment.turn": (0.75, 3.0)}

TITLE = "U-Net on nuclei: a search around the default"
BASE = config.changed(SMALL.base, {"train.epochs": 18})
ROWS = {"unet_adam": SMALL.rows["unet_adam"]}
SEARCH = {
    "space": {
        "optimizer.lr": log(5e-4, 5e-2),
        "optimizer.weight_decay": log(1e-6, 1e-3),
        "optimizer.schedule": choice("constant", "polynomial"),
        "model.dropout": uniform(0.0, 0.3),
        "train.batch_size": choice(4, 8),
        "augment": choice({
            "augment_none": {}, "augment_flips": FLIPS,
            "augment_flips_gamma": {**FLIPS, "augment.gamma": (0.5, 0.3)}}),
        "loss": choice({
            "dice_focal": {}, "dice_bce": {"loss.focal": 0.0, "loss.bce": 1.0},
            "dice_alone": {"loss.focal": 0.0}}),
    },
    "trials": 81, "eta": 3, "rungs": 3}
REPEATS, VARIES, METRICS, SMOKE = 10, SMALL.varies, SMALL.metrics, SMALL.smoke

get_config = rows(BASE, ROWS)
