"""Report 0's table at a size that a CPU ends within the hour: 96x96, a small UNETR, 10 epochs.

Question: what of report 0's table can be seen without a GPU, and how much of it is noise?
Run: python -m cellseg_jax.study --study=configs/studies/nuclei_cpu.py --config.data.root=DIR
Published: as nuclei.py, at 512x512 and with a UNETR of 85 million parameters; here it has 2.
Result: 65 minutes on two busy cores. Adam is ahead of SGD for the U-Net (0.858 against 0.799, the
published 0.82 and 0.82); the small UNETR is level with the U-Net or ahead (0.883, published 0.72).
One claim contradicted, five undecided; runs of one config differ by 0.010.
Table in docs/benchmarks.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("nuclei.py"))
SMALL_UNETR = {"model.hidden_size": 192, "model.mlp_dim": 768, "model.num_heads": 6,
               "model.num_layers": 6, "model.feature_size": 8, "train.batch_size": 16}

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {"data.size": (96, 96), "train.epochs": 10})
ROWS = {row: {**changes, **(SMALL_UNETR if row.startswith("unetr") else {})}
        for row, changes in FULL.rows.items()}
REFERENCE, CLAIMS, REPEATS = FULL.reference, FULL.claims, FULL.repeats
VARIES, METRICS, BASELINE, SMOKE = FULL.varies, FULL.metrics, FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
