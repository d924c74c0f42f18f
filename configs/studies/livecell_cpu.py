"""Report 4's choices at a size that a CPU ends in half an hour: windows, 6 to 96 channels.

Question: which of report 4's expectations hold on a few images, and which are noise?
Run: python -m cellseg_jax.study --study=configs/studies/livecell_cpu.py --workdir=runs/livecell_cpu
    --config.data.root=DIR
Published: as livecell.py, at 333x434 with 64 to 1,024 channels and LIVECell's own split. Here
windows of 128x128 native pixels, other ones in each epoch, whole images in the test, and random
splits of all images with cells, because a part of LIVECell may be all that there is.
Result: docs/results/livecell.md.
"""

import pathlib

from cellseg_jax import augment, config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("livecell.py"))

SIZE = (128, 128)
AUGMENT = {f"augment.{name}": value for name, value in augment.preset("livecell", SIZE).items()}

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    **AUGMENT, "data.size": SIZE, "data.split": (0.6, 0.2, 0.2), "eval.overlap": 0.0,
    "model.channels": (6, 12, 24, 48, 96), "optimizer.lr": 1e-3})
ROWS = {row: changes for row, changes in FULL.rows.items() if row != "exponential"}
REFERENCE, CLAIMS, REPEATS = FULL.reference, studies.claims_about(FULL.claims, ROWS), 5
VARIES, METRICS = ("seed", "data.split_seed"), FULL.metrics
BASELINE, SMOKE = FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
