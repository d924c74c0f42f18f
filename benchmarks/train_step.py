"""One training step of our networks and of torch's on this machine, in turns.

    python -m benchmarks.train_step --cases=unet_128,unet_512

A step is forward, Dice-focal loss, gradient and Adam, in float32; ours also gathers and normalises
the uint8 images, which torch's gets normalised. MONAI's networks stand beside unet and unetr; the
torch networks of tests/reference, written from the papers, beside the others. Dropout is 0.2 where
MONAI has it, else 0. Both sides run one step after the other, so that other load on the machine
meets both; medians are printed. torch gets as many threads as there are cores.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from monai.losses import DiceFocalLoss
from monai.networks.nets import UNETR, UNet

from cellseg_jax import config as config_lib
from cellseg_jax.models import resenc_unet
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state
from tests.reference.torch_attention import TorchMedT, TorchSegNet
from tests.reference.torch_resenc_unet import TorchResEncUNet
from tests.reference.torch_segformer import TorchSegFormer
from tests.reference.torch_unets import TorchSimpleConv, TorchSmallUNet, TorchUNet


class Case(NamedTuple):
    """A network of ours, an image size, and torch's network of that size."""

    model: dict
    size: int
    batch: int
    torch: Callable


def monai_unet(size):
    return UNet(spatial_dims=2, in_channels=3, out_channels=1, strides=(2,) * 5, act="LEAKYRELU",
                channels=(16, 32, 64, 128, 256, 512), norm="BATCH", dropout=0.2)


def monai_unetr(size):  # needs einops
    return UNETR(in_channels=3, out_channels=1, img_size=size, norm_name="batch",
                 dropout_rate=0.2, spatial_dims=2)


class First(torch.nn.Module):
    """The first output, and of it the first channel, of a network that has more."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        """(N, C, H, W) -> (N, 1, H, W)."""
        out = self.network(x)
        return (out[0] if isinstance(out, (tuple, list)) else out)[:, :1]


def torch_plan(size):
    stages = resenc_unet.encoder_stages((size, size))
    return First(TorchResEncUNet(3, 1, *zip(*stages, strict=True)))


MEDT = dict(features=16, stem_features=128, num_heads=8, blocks=(1, 2, 4, 1), patch_grid=4,
            gates="before_norm")
CASES = {
    "unet_128": Case(dict(name="unet"), 128, 16, monai_unet),
    "unet_512": Case(dict(name="unet"), 512, 4, monai_unet),
    "unetr_128": Case(dict(name="unetr", image_size=0), 128, 4, monai_unetr),
    "unet_classic_128": Case(dict(name="unet_classic"), 128, 4, lambda _: TorchUNet()),
    "small_unet_64": Case(dict(name="small_unet", dropout=0.0), 64, 44,
                          lambda _: TorchSmallUNet(3, 1)),
    "unet_add_64": Case(dict(name="unet_add", dropout=0.0), 64, 16,
                        lambda _: TorchSmallUNet(3, 1, (16, 32, 64, 128, 256))),
    "simple_conv_64": Case(dict(name="simple_conv"), 64, 16, lambda _: TorchSimpleConv(3, 1)),
    "segnet_128": Case(dict(name="segnet"), 128, 4, lambda _: TorchSegNet(
        3, 1, (64, 128, 256, 512, 512), (2, 2, 3, 3, 3))),
    "medt_128": Case(dict(name="medt"), 128, 2, lambda size: First(TorchMedT(size, **MEDT))),
    "unet_plan_128": Case(dict(name="unet_plan", deep_supervision=False), 128, 2, torch_plan),
    "segformer_128": Case(dict(name="segformer", drop_path=0.0, dropout=0.0), 128, 8,
                          lambda _: First(
                              TorchSegFormer(3, 1, (32, 64, 160, 256), (2, 2, 2, 2), 256))),
}


def our_step(case, image, label):
    """A function of nothing that trains one step and waits for it: the step of every run."""
    config = config_lib.default()
    config.data.size = (case.size, case.size)
    config.data.channels = "rgb"
    config.model = case.model
    config = config_lib.complete(config)
    spec = make_spec([config])
    values = traced_values(config, spec, 100)
    mesh = default_mesh(1, len(image))
    rows = NamedSharding(mesh, P("member", "data"))
    state = jax.jit(lambda v: init_state(spec, v, image.shape[1:]))(values)
    state = jax.device_put(jax.tree.map(lambda x: x[None], state), NamedSharding(mesh, P("member")))
    range_ = np.broadcast_to(np.array([0, 255], np.float32), (len(image), 3, 2))
    source = {"image": image, "label": label, "range": range_}
    source = jax.device_put(source, NamedSharding(mesh, P()))
    index = jax.device_put({"id": np.arange(len(image), dtype=np.int32)[None]}, rows)
    compiled = map_train(spec, mesh, "unroll")

    def run():
        nonlocal state
        state, out = compiled(state, source, index)
        jax.block_until_ready(state)
        return float(out["loss"][0])

    return run


def torch_step(case, image, label):
    """The same of torch's network, on images that are normalised beforehand."""
    network = case.torch(case.size)
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
    for name in args.cases.split(","):
        case = CASES[name]
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (case.batch, case.size, case.size, 3)).astype(np.uint8)
        label = (image[..., 0] > 127).astype(np.uint16)
        runs = [build(case, image, label) for build in (our_step, torch_step)]
        for run in runs * 2:  # compile, allocate
            run()
        seconds = [[], []]
        for _ in range(args.steps):
            for run, times in zip(runs, seconds, strict=True):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
        ours, theirs = (case.batch / np.median(times) for times in seconds)
        print(
            f"{name}: ours {ours:.2f}, torch {theirs:.2f} images/s, ratio {ours / theirs:.2f} "
            f"(batch {case.batch}, {jax.default_backend()}, load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
