"""From a 16-bit TIFF to files of cells: `predict` beside MONAI's windows, scipy and scikit-image.

    python benchmarks/run.py whole_image [--sides=1024,4096] [--rounds=3]

The network is report 0's U-Net, which is MONAI's: ours, trained for 150 steps on synthetic nuclei,
and MONAI's of the same channels with random weights, whose outputs are computed and then replaced
by ours, so that both sides decode the same map. Windows of 256 pixels overlap by the same share.
The peer is written as its libraries' documentation does it: sliding_window_inference, distances of
scipy, h_maxima and watershed of scikit-image on the whole image, a compressed label and a PNG with
outlines. Both read the file, start Python, and write the same two files.
"""

import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import tifffile

from benchmarks.measuring import Result, Sample, Table, in_turns, median, times_faster
from cellseg_jax import config, train
from cellseg_jax.data import synthetic

WINDOW, OVERLAP, FIELD = 256, 0.25, 1024
OPTIONS = {"sides": ([1024, 4096], "heights and widths of the images, multiples of 1,024"),
           "rounds": (3, "turns"), "steps": (150, "of training")}


def measure(options) -> Result:
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        trained(folder / "run", options.steps)
        for side in options.sides:
            image = folder / f"{side}.tif"
            tifffile.imwrite(image, field(side))
            predict = [sys.executable, "-m", "cellseg_jax.predict", f"--workdir={folder / 'run'}",
                       f"--images={image}"]
            finished([*predict, "--format=probability"], folder / "maps")
            maps = folder / "maps" / f"{side}_probability.tif"
            peer = [sys.executable, "-m", "benchmarks.whole_image", image, maps]
            ways = {"ours": (predict, folder / "ours"), "peer": (peer, folder / "peer")}
            seconds = in_turns(ways, options.rounds, warm=1, clock=lambda way: finished(*way))
            cells, theirs = (int(tifffile.imread(folder / way / f"{side}_label.tif").max())
                             for way in seconds)
            found[side] = seconds
            rows.append([side, cells, theirs, *(
                median(seconds[way], clock) for clock in Sample._fields for way in seconds),
                *(times_faster(seconds["ours"], seconds["peer"], clock)
                  for clock in Sample._fields),
                1e6 * median(seconds["ours"], "cpu") / side**2])
    head = ["side", "cells, ours", "cells, peer", "ours, s", "peer, s", "ours, CPU s",
            "peer, CPU s", "times as fast", "by CPU time", "ours, CPU s per million pixels"]
    return Result([Table(head, rows)], data=found)


def trained(workdir, steps: int) -> None:
    """A run of report 0's U-Net on synthetic nuclei."""
    train.train([config.complete(config.changed(config.default(), {
        "data.name": "synthetic", "data.looks": ("fluorescence",), "data.channels": "gray",
        "data.image_size": (WINDOW, WINDOW), "data.size": (WINDOW, WINDOW), "data.count": 40,
        "data.fit": "random_crop", "data.normalize": "percentile", "model.name": "unet",
        "eval.decode": "watershed", "eval.overlap": OVERLAP, "train.steps": steps,
        "train.batch_size": 4}))], [workdir])


def field(side: int) -> np.ndarray:
    """(side, side) uint16, synthetic nuclei: one field of 1,024 x 1,024, repeated."""
    record, = synthetic.records(1, (FIELD, FIELD), seed=1, looks=("fluorescence",))
    return np.tile(record.read().image[..., 0].astype(np.uint16) * 200, (side // FIELD,) * 2)


def finished(command, out: pathlib.Path) -> Sample:
    """Seconds of a process that writes into a new folder, from its start to its end."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    cpu, wall = used(), time.perf_counter()
    subprocess.run([*command, f"--out={out}"], check=True, stdout=subprocess.DEVNULL)
    return Sample(time.perf_counter() - wall, used() - cpu)


def peer(path: pathlib.Path, maps: pathlib.Path, out: pathlib.Path) -> None:
    """The peer's process: the label and the outlines of an image, in the folder `out`."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import UNet
    from PIL import Image
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label
    from skimage.morphology import h_maxima
    from skimage.segmentation import find_boundaries, watershed

    image = tifffile.imread(path).astype(np.float32)
    low, high = np.percentile(image, (1, 99.8)).astype(np.float32)
    image = (image - low) / (high - low)
    network = UNet(spatial_dims=2, in_channels=1, out_channels=1, strides=(2,) * 5,
                   channels=(16, 32, 64, 128, 256, 512), norm="BATCH").eval()
    with torch.inference_mode():
        torch.sigmoid(sliding_window_inference(
            torch.from_numpy(image)[None, None], (WINDOW, WINDOW), 8, network, overlap=OVERLAP))
    mask = tifffile.imread(maps) > 0.5
    distance = distance_transform_edt(mask)
    markers = label(h_maxima(distance, 1))
    cells = watershed(-distance, markers, mask=mask)
    tifffile.imwrite(out / f"{path.stem}_label.tif", cells.astype(np.uint16), compression="zlib")
    picture = np.repeat((image.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, -1)
    picture[find_boundaries(cells)] = 255, 255, 0
    Image.fromarray(picture).save(out / f"{path.stem}_overlay.png")


if __name__ == "__main__":  # the peer's process
    peer(*(pathlib.Path(text.removeprefix("--out=")) for text in sys.argv[1:]))
