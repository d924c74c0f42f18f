"""The peer of our U-Net on nuclei: MONAI's, trained with the recipe of report 0.

    python benchmarks/run.py nuclei_monai --root=DIR --size=128 --epochs=40

`--root` is the 2018 Data Science Bowl's stage1_train: <id>/images/<id>.png, <id>/masks/*.png.
`--split` is a JSON file {"train": [ids], "val": [ids], "test": [ids]}, to train both codebases on
the same images; without it the ids are split 80/10/10 by --seed. The epoch with the best
validation Dice is tested.
"""

import copy
import json
import pathlib
import sys
import time

import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceFocalLoss
from monai.networks.nets import UNet

from benchmarks.measuring import Result, Table

NORMALIZE = ("minmax", "minmax_joint")
OPTIONS = {
    "root": (pathlib.Path, "stage1_train"),
    "split": ("", "split.json of a run"),
    "size": (128, "pixels per side"),
    "epochs": (40, "of training"),
    "batch_size": (16, "images"),
    "seed": (0, "of weights, order and split"),
    "normalize": (NORMALIZE[0], f"one of {', '.join(NORMALIZE)}"),
    "turns": (False, "random flips and right angles"),
}


def load(folder: pathlib.Path, size: int, normalize: str):
    """(image (4, size, size) float32 in [0, 1], mask (1, size, size)) of one id.

    Resized bilinearly (the mask: nearest) with half-pixel centres and no antialiasing. Scaled as
    cellseg_jax does: colours by their common extremes and alpha by 255 (minmax), or all four
    channels by their common extremes (minmax_joint).
    """
    pixels = imageio.imread(next((folder / "images").glob("*.png")))
    masks = [imageio.imread(path) > 0 for path in sorted((folder / "masks").glob("*.png"))]
    mask = np.any([m.any(-1) if m.ndim == 3 else m for m in masks], axis=0)
    image = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)
    values = image[:3] if normalize == "minmax" else image
    low, high = values.min(), values.max()
    alpha = image[3:] / 255
    image = (image - low) / (high - low).clamp(min=1)
    if normalize == "minmax":
        image[3:] = alpha
    image = F.interpolate(image[None], (size, size), mode="bilinear", align_corners=False)[0]
    mask = F.interpolate(torch.tensor(mask)[None, None].float(), (size, size), mode="nearest-exact")
    return image, mask[0]


def read_split(args) -> dict[str, list[str]]:
    """The ids of train, val and test."""
    if args.split:
        return json.loads(pathlib.Path(args.split).read_text())
    ids = sorted(path.name for path in args.root.iterdir() if (path / "masks").is_dir())
    ids = list(np.random.default_rng(args.seed).permutation(ids))
    first, second = int(0.8 * len(ids)), int(0.9 * len(ids))
    return {"train": ids[:first], "val": ids[first:second], "test": ids[second:]}


def turn(image, mask, generator):
    """Each pair flipped or not along both axes and turned by 0 to 3 right angles, at random."""
    pairs = []
    for pair in torch.cat([image, mask], 1):
        down, across, quarters = torch.randint(0, 4, (3,), generator=generator).tolist()
        axes = [axis for axis, draw in ((1, down), (2, across)) if draw % 2]
        pairs.append(torch.rot90(pair.flip(axes), quarters, (1, 2)))
    both = torch.stack(pairs)
    return both[:, :-1], both[:, -1:]


@torch.no_grad()
def score(network, images, masks, batch_size):
    """Mean over the images of Dice and IoU at probability 0.5; 1 where both masks are empty."""
    network.eval()
    logits = torch.cat([network(batch) for batch in images.split(batch_size)])
    pred, truth = logits.flatten(1) >= 0, masks.flatten(1) > 0
    both, either = (pred & truth).sum(1).double(), (pred | truth).sum(1).double()
    total = pred.sum(1) + truth.sum(1)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1)
    iou = torch.where(either > 0, both / either.clamp(min=1), 1)
    return dice.mean().item(), iou.mean().item()


def measure(args) -> Result:
    if args.normalize not in NORMALIZE:
        raise SystemExit(f"--normalize: got {args.normalize}; expected {' or '.join(NORMALIZE)}")
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    data = {}
    for part, ids in read_split(args).items():
        pairs = [load(args.root / name, args.size, args.normalize) for name in ids]
        data[part] = [torch.stack(arrays) for arrays in zip(*pairs, strict=True)]
    network = UNet(
        spatial_dims=2, in_channels=4, out_channels=1, channels=(16, 32, 64, 128, 256, 512),
        strides=(2,) * 5, act="LEAKYRELU", norm="BATCH", dropout=0.2,
    )
    loss_fn = DiceFocalLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)

    images, masks = data["train"]
    best, best_epoch, best_state = -1.0, 0, None
    start, training = time.perf_counter(), 0.0
    for epoch in range(1, args.epochs + 1):
        network.train()
        epoch_start, losses = time.perf_counter(), []
        order = torch.randperm(len(images), generator=generator)
        for index in order.split(args.batch_size)[: len(images) // args.batch_size]:
            image, mask = images[index], masks[index]
            if args.turns:
                image, mask = turn(image, mask, generator)
            optimizer.zero_grad()
            loss = loss_fn(network(image), mask)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        training += time.perf_counter() - epoch_start
        dice, _ = score(network, *data["val"], args.batch_size)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, validation Dice {dice:.4f}",
              file=sys.stderr)
        if dice > best:
            best, best_epoch, best_state = dice, epoch, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    dice, iou = score(network, *data["test"], args.batch_size)
    seconds = time.perf_counter() - start
    return Result(
        [Table(["test Dice", "test IoU", "best validation Dice", "epoch", "minutes",
                "minutes of training steps"],
               [[dice, iou, best, best_epoch, seconds / 60, training / 60]])],
        [f"{torch.get_num_threads()} threads."])
