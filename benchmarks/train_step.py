"""One training step of our networks and of MONAI's on this machine, in turns.

    python benchmarks/train_step.py --cases=unet_128,unet_512

A step is forward, Dice-focal loss, gradient and Adam, with dropout 0.2, in float32; ours also
gathers and normalises the uint8 images, which MONAI's gets normalised. Both sides
run one step after the other, so that other load on the machine meets both; medians are printed.
torch gets as many threads as there are cores.
"""

import argparse
import os
import time

import jax
import numpy as np
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from monai.losses import DiceFocalLoss
from monai.networks.nets import UNETR, UNet

from cellseg_jax import config as config_lib
from cellseg_jax import feed, recipe, step

# case: (network, image size, batch size)
CASES = {
    "unet_128": ("unet", 128, 16),
    "unet_512": ("unet", 512, 4),
    "unetr_128": ("unetr", 128, 4),  # MONAI's needs einops
}


def our_step(name, size, image, label):
    """A function of nothing that trains one step and waits for it: the step of every run."""
    config = config_lib.default()
    config.data.size = (size, size)
    config.model = dict(name=name, image_size=0) if name == "unetr" else dict(name=name)
    config = config_lib.complete(config)
    shared = recipe.make_recipe([config])
    values = recipe.traced_values(config, 100, shared)
    mesh = feed.default_mesh(1, len(image))
    rows = NamedSharding(mesh, P("member", "data"))
    state = jax.jit(lambda v: step.init_state(shared, v, image.shape[1:]))(values)
    state = jax.device_put(jax.tree.map(lambda x: x[None], state), NamedSharding(mesh, P("member")))
    range_ = np.broadcast_to(np.array([0, 255], np.float32), (len(image), 4, 2))
    source = {"image": image, "label": label, "range": range_}
    source = jax.device_put(source, NamedSharding(mesh, P()))
    index = jax.device_put({"id": np.arange(len(image), dtype=np.int32)[None]}, rows)
    compiled = step.map_train(shared, mesh, "unroll")

    def run():
        nonlocal state
        state, out = compiled(state, source, index)
        jax.block_until_ready(state)
        return float(out["loss"][0])

    return run


def monai_step(name, size, image, label):
    """The same of MONAI's network, on images that are normalised beforehand."""
    if name == "unet":
        network = UNet(
            spatial_dims=2, in_channels=4, out_channels=1, channels=(16, 32, 64, 128, 256, 512),
            strides=(2,) * 5, act="LEAKYRELU", norm="BATCH", dropout=0.2,
        )
    else:
        network = UNETR(
            in_channels=4, out_channels=1, img_size=size, norm_name="batch", dropout_rate=0.2,
            spatial_dims=2,
        )
    network.train()
    loss_fn = DiceFocalLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)
    arrays = image.astype(np.float32) / 255, label[..., None].astype(np.float32)
    tensors = [torch.tensor(array).permute(0, 3, 1, 2).contiguous() for array in arrays]

    def run():
        optimizer.zero_grad()
        loss = loss_fn(network(tensors[0]), tensors[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    for case in args.cases.split(","):
        name, size, batch = CASES[case]
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (batch, size, size, 4)).astype(np.uint8)
        label = (image[..., 0] > 127).astype(np.uint16)
        runs = [build(name, size, image, label) for build in (our_step, monai_step)]
        for run in runs * 2:  # compile, allocate
            run()
        seconds = [[], []]
        for _ in range(args.steps):
            for run, times in zip(runs, seconds):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
        ours, monai = (batch / np.median(times) for times in seconds)
        print(
            f"{case}: ours {ours:.2f}, MONAI {monai:.2f} images/s, ratio {ours / monai:.2f} "
            f"(batch {batch}, {jax.default_backend()}, load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
