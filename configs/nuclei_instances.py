"""The best we know for nuclei told apart: flows, native windows, 2018 Data Science Bowl.

Question: how far does a run of an hour on two CPU cores come?
Run: python -m cellseg_jax.main --config=configs/nuclei_instances.py --config.data.root=DIR
Fluorescence alone: --config.data.strata="('fluorescence',)" --config.data.channels=gray
Reaches: all modalities, 3,000 steps (86 CPU minutes, one run), AP at IoU 0.5 of 0.771 and Dice
0.917 on the 56 test images; fluorescence alone, as it is (76 CPU minutes, one run), 0.831 and 0.935
on 46; after 1,400 steps (18 CPU minutes with the extra cpu), over five splits, 0.832, where
StarDist trained beside it for 30 minutes has 0.747. See docs/benchmarks.md, docs/results/peers.md.
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(
        name="dsb2018", size=(160, 160), fit="random_crop", channels="rgb",
        normalize="percentile", oversample=0.7, target="flow")
    config.augment.flip_horizontal = config.augment.flip_vertical = (0.5, 1.0)
    config.augment.turn = (1.0, 1.0)
    config.augment.zoom = (0.3, 0.3)
    config.augment.brightness = (0.3, 0.1)
    config.augment.contrast = (0.3, 0.2)
    config.augment.gamma = (0.3, 0.3)
    config.augment.noise = (0.3, 0.05)
    config.augment.blur = (0.2, 1.0)
    config.model = dict(name="unet_classic", channels=(16, 32, 64, 128, 256), norm="batch")
    config.optimizer = dict(
        name="adamw", lr=1e-3, weight_decay=1e-4, schedule="cosine", schedule_per="step",
        warmup=50, clip=1.0, ema=0.99)
    config.train.batch_size = 8
    config.train.steps = 4000
    config.train.best = ("loss", "min")
    config.eval.every = 5
    config.eval.min_size = 10
    return config
