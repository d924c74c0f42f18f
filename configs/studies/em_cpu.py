"""Report 3's comparisons at a size that a CPU ends in half an hour: windows, 6 to 96 channels.

Question: which of report 3's orderings hold on 24 slices, and which are noise?
Run: python -m cellseg_jax.study --study=configs/studies/em_cpu.py --workdir=runs/em_cpu
    --config.data.root=DIR
Published: as em.py, at 512x512 with 64 to 1,024 channels. Here windows of 96x96 native pixels,
other ones in each epoch, and whole slices in the test. Adam's suitable rate grows as a network
becomes narrower (Yang and Hu 2021): all rates are ten times those of em.py.
Result: docs/results/em.md.
"""

import pathlib

from cellseg_jax import augment, config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("em.py"))
SIZE = (96, 96)
DEPTH_3 = {"model.channels": (6, 12, 24, 48)}
LEFT_OUT = ("raw_dropout", "online")
AUGMENT = {f"augment.{name}": value for name, value in augment.preset("em", SIZE).items()}

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    **AUGMENT, "data.size": SIZE, "data.fit": "random_crop", "eval.overlap": 0.0,
    "model.channels": (6, 12, 24, 48, 96)})
ROWS = {row: {**changes, **(DEPTH_3 if "model.channels" in changes else {}),
              "optimizer.lr": 10 * changes.get("optimizer.lr", FULL.base.optimizer.lr)}
        for row, changes in FULL.rows.items() if row not in LEFT_OUT}
REFERENCE, CLAIMS, REPEATS = FULL.reference, studies.claims_about(FULL.claims, ROWS), 5
VARIES, METRICS, BASELINE, SMOKE = FULL.varies, FULL.metrics, FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
