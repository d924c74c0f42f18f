"""One training step of our networks and of MONAI's on this machine, in turns.

    python benchmarks/train_step.py --cases=unet_128,unet_512

A step is forward, Dice-focal loss, gradient and Adam, with dropout 0.2, in float32. Both sides
run one step after the other, so that other load on the machine meets both; medians are printed.
torch gets as many threads as there are cores.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from monai.losses import DiceFocalLoss
from monai.networks.nets import UNETR, UNet

from cellseg_jax import models

# case: (network, image size, batch size)
CASES = {
    "unet_128": ("unet", 128, 16),
    "unet_512": ("unet", 512, 4),
    "unetr_128": ("unetr", 128, 4),  # MONAI's needs einops
}


def dice_focal(logits, target):
    """Mean over the images of 1 - Dice, plus focal loss with gamma 2: MONAI's defaults."""
    probs = jax.nn.sigmoid(logits)
    overlap, total = ((probs * target).sum((1, 2)), (probs + target).sum((1, 2)))
    dice = 1 - (2 * overlap + 1e-5) / (total + 1e-5)
    signed = logits * (2 * target - 1)
    focal = jax.nn.sigmoid(-signed) ** 2 * -jax.nn.log_sigmoid(signed)
    return dice.mean() + focal.mean()


def our_step(name, size, image, target):
    """A function of nothing that trains one step and waits for it."""
    options = {"image_size": size} if name == "unetr" else {}
    module = models.make(name, num_outputs=1, **options)
    tx = optax.chain(optax.add_decayed_weights(3e-5), optax.adam(5e-3))

    def init(key):
        variables = module.init(key, jnp.asarray(image[:1]), train=False)
        return variables, tx.init(variables["params"])

    def step(state, image, target, key):
        variables, moments = state

        def loss(params):
            logits, updates = module.apply(
                {**variables, "params": params}, image, train=True,
                mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            return dice_focal(logits, target), updates

        params = variables["params"]
        (value, updates), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        changes, moments = tx.update(gradients, moments, params)
        return ({"params": optax.apply_updates(params, changes), **updates}, moments), value

    compiled = jax.jit(step, donate_argnums=0)
    state = jax.jit(init)(jax.random.key(0))
    arrays = jnp.asarray(image), jnp.asarray(target)
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def run():
        nonlocal state
        state, value = compiled(state, *arrays, next(keys))
        jax.block_until_ready(state)
        return float(value)

    return run


def monai_step(name, size, image, target):
    """The same of MONAI's network."""
    if name == "unet":
        network = UNet(
            spatial_dims=2, in_channels=4, out_channels=1, channels=(16, 32, 64, 128, 256, 512),
            strides=(2,) * 5, act="LEAKYRELU", norm="BATCH", dropout=0.2,
        )  # fmt: skip
    else:
        network = UNETR(
            in_channels=4, out_channels=1, img_size=size, norm_name="batch", dropout_rate=0.2,
            spatial_dims=2,
        )  # fmt: skip
    network.train()
    loss_fn = DiceFocalLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)
    tensors = [torch.tensor(array).permute(0, 3, 1, 2).contiguous() for array in (image, target)]

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
        image = rng.uniform(size=(batch, size, size, 4)).astype(np.float32)
        target = (image[..., :1] > 0.5).astype(np.float32)
        runs = [build(name, size, image, target) for build in (our_step, monai_step)]
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
