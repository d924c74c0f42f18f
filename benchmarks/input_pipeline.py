"""Images/s of the input path against torch's DataLoader with albumentations, on the same files.

    python benchmarks/run.py input_pipeline --root=DIR [--count=96] [--size=256] [--epochs=4]

DIR is stage1_train of the 2018 Data Science Bowl. Needs torch, albumentations and OpenCV beside
the package. Every path reads the same files with the same reader, resizes them, applies the same
operations (flip, rotation, elastic deformation, brightness; image and mask warped together) and
ends in normalised float32 batches. Peers have two worker processes, albumentations on one thread
each; "cached" keeps decoded and resized arrays in memory. Ours decodes into its cache and has the
compiled program gather and augment. CPU seconds are of all processes.
"""

import argparse
import os
import pathlib
import tempfile
import time

import albumentations
import cv2
import jax
import numpy as np
import torch
from absl import flags

from benchmarks.measuring import Result, Sample, Table, in_turns, median
from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.data import order
from cellseg_jax.data.colours import to_channels
from cellseg_jax.step import inputs
from cellseg_jax.step.batches import resident_source
from cellseg_jax.step.mapped import gather
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import make_spec, traced_values

OPERATIONS = {"flip_horizontal": (0.5, 1.0), "rotation": (1.0, 30.0), "elastic": (1.0, 100.0),
              "brightness": (1.0, 0.2)}
OPTIONS = {
    "root": (pathlib.Path, "stage1_train"),
    "count": (96, "images"),
    "size": (256, "pixels per side"),
    "epochs": (5, "turns, the first included"),
    "batch_size": (16, "images"),
}


def make_config(args, cache):
    config = config_lib.default()
    config.data.root, config.data.cache = str(args.root), str(cache)
    config.data.size = (args.size, args.size)
    config.data.split = (1.0, 0.0, 0.0)
    config.train.batch_size = args.batch_size
    config = config_lib.complete(config)
    for name, value in OPERATIONS.items():
        config_lib.set_value(config, f"augment.{name}", value)
    return config


def ours(args, cache):
    """Yields the seconds of one epoch after the other; the first one decodes."""
    config = make_config(args, cache)
    spec = make_spec([config])
    values = spec.hparams(traced_values(config, spec))

    @jax.jit
    def batch_of(source, index, key):
        batch = gather(source, index, None)
        return inputs.augmented(spec, values, key, batch, np.arange(args.batch_size))

    resident = read = None
    for epoch in range(args.epochs):
        started = time.perf_counter()
        if resident is None:
            arrays = data.load(config.data)
            mesh = default_mesh(1, args.batch_size)
            resident = resident_source(config, arrays, mesh)
            read = order.order_of(config, arrays, np.arange(len(arrays.names)))
        for n in range(epoch * read.steps_per_epoch, (epoch + 1) * read.steps_per_epoch):
            batch = batch_of(resident.train, read.rows(n), inputs.step_keys(0, n)[0])
        jax.block_until_ready(batch)
        yield time.perf_counter() - started


class Peer(torch.utils.data.Dataset):
    """What a user of albumentations writes."""

    def __init__(self, args, cached):
        self.records = data.records_of(make_config(args, "unused").data)
        self.size = (args.size, args.size)
        self.kept = [self.read(i) for i in range(len(self.records))] if cached else None
        self.transform = albumentations.Compose([
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Rotate(30, border_mode=cv2.BORDER_REFLECT_101, p=1.0),
            albumentations.ElasticTransform(alpha=100, sigma=8, border_mode=cv2.BORDER_REFLECT_101,
                                            p=1.0),
            albumentations.RandomBrightnessContrast(0.2, 0.0, p=1.0),
        ])

    def read(self, i):
        """(image, mask, lowest value, highest colour value) of the i-th image, resized."""
        sample = self.records[i].read()
        image = cv2.resize(to_channels(sample.image, "rgba"), self.size)
        mask = cv2.resize(sample.label.astype(np.float32), self.size,
                          interpolation=cv2.INTER_NEAREST)
        return image, mask, image.min(), image[..., :3].max()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        image, mask, low, high = self.kept[i] if self.kept else self.read(i)
        made = self.transform(image=image, mask=mask)
        image = (made["image"].astype(np.float32) - low) / max(float(high) - low, 1.0)
        return torch.from_numpy(image), torch.from_numpy(made["mask"] > 0)


def peer(args, cached):
    """Yields the seconds of one epoch after the other; the first one of a cached peer fills it."""
    loader = None
    for _ in range(args.epochs):
        started = time.perf_counter()
        if loader is None:
            loader = torch.utils.data.DataLoader(
                Peer(args, cached), args.batch_size, shuffle=True, drop_last=True, num_workers=2,
                persistent_workers=True, worker_init_fn=lambda _: cv2.setNumThreads(1))
        for batch in loader:
            batch[0].sum()
        yield time.perf_counter() - started


def cpu_seconds():
    """Of this process and all its children, living ones too."""
    ticks = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if stat.parent.name == str(os.getpid()) or fields[1] == str(os.getpid()):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def clock(path) -> Sample:
    """Seconds of an epoch, the CPU's of all processes."""
    before = cpu_seconds()
    return Sample(next(path), cpu_seconds() - before)


def measure(options) -> Result:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads them
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as part:
        for folder in sorted(options.root.iterdir())[: options.count]:  # the same for all paths
            pathlib.Path(part, folder.name).symlink_to(folder.resolve())
        args = argparse.Namespace(**vars(options) | {"root": part})
        # Workers are forked: before JAX starts its threads.
        paths = {"albumentations": peer(args, False), "albumentations, cached": peer(args, True),
                 "cellseg_jax": ours(args, cache)}
        seconds = in_turns(paths, options.epochs, warm=0, clock=clock)
    images = options.count // options.batch_size * options.batch_size
    cached = median(seconds["albumentations, cached"][1:])
    rows = [[name, images / first.wall, images / median(later),
             1000 * median(later, "cpu") / images, cached / median(later)]
            for name, (first, *later) in seconds.items()]
    return Result([Table(["path", "first epoch, images/s", "later epochs, images/s",
                          "CPU s per 1,000 images, later", "times the cached peer, later"], rows)],
                  [f"{options.count} images to {options.size}x{options.size}, batches of "
                   f"{options.batch_size}."])
