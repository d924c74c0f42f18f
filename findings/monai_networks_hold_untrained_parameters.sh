#!/usr/bin/env bash
# MONAI 1.6.1: four networks for segmentation hold parameters that no output depends on.
#
# Their gradient is None after loss.backward(), however they are trained: of ViT and UNETR the layer
# norms of a cross attention that neither has (with_cross_attention is off), of FlexibleUNet the
# classification head of its encoder and the last convolution before it, of BasicUNetPlusPlus without
# deep supervision the three heads of the shallower decoders. Published counts of parameters include
# them, and DistributedDataParallel with its default options ends in the second step, until
# find_unused_parameters=True is set, which costs time in each step.
#
# Seen: parameters without gradient / all, in tensors: ViT of 12 blocks 24 tensors; UNETR the same;
# FlexibleUNet with efficientnet-b0 5 tensors, 1,693,160 of its parameters; BasicUNetPlusPlus 6.
# UNet, DynUNet and SwinUNETR have none. DistributedDataParallel trains UNet; with UNETR it raises.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "monai==1.6.1" "torch==2.13.0" "einops==0.8.1" "numpy<3"
OMP_NUM_THREADS=1 "$folder/env/bin/python" -W ignore - <<'PY'
import tempfile

import torch
from monai.networks import nets
from torch.nn.parallel import DistributedDataParallel

transformer = dict(img_size=(32, 32), hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=2)
NETWORKS = {  # name: (network, channels, side, tensors without a gradient)
    "ViT": (nets.ViT(1, patch_size=(16, 16), **transformer), 1, 32, 24),
    "UNETR": (nets.UNETR(1, 1, feature_size=4, **transformer), 1, 32, 24),
    "FlexibleUNet": (nets.FlexibleUNet(3, 1, "efficientnet-b0", spatial_dims=2), 3, 64, 5),
    "BasicUNetPlusPlus": (nets.BasicUNetPlusPlus(2, 1, 1, features=(4, 4, 8, 8, 8, 4)), 1, 32, 6),
    "UNet": (nets.UNet(2, 1, 1, (4, 8, 16), (2, 2), num_res_units=2), 1, 32, 0),
    "DynUNet": (nets.DynUNet(2, 1, 1, [3, 3, 3], [1, 2, 2], [2, 2]), 1, 32, 0),
    "SwinUNETR": (nets.SwinUNETR(1, 1, feature_size=12, spatial_dims=2), 1, 64, 0),
}


def step(network, channels, side):
    """One backward pass from everything that the network returns."""
    out = network(torch.rand(2, channels, side, side))
    outputs = [out] if torch.is_tensor(out) else [x for x in out if torch.is_tensor(x)]
    sum(x.square().sum() for x in outputs).backward()


for name, (network, channels, side, expected) in NETWORKS.items():
    step(network, channels, side)
    without = [p for p in network.parameters() if p.grad is None]
    print(f"{name}: {len(without)} tensors without a gradient, {sum(p.numel() for p in without):,} "
          f"of {sum(p.numel() for p in network.parameters()):,} parameters")
    assert len(without) == expected, f"{name} behaves otherwise now"

with tempfile.NamedTemporaryFile() as file:
    torch.distributed.init_process_group("gloo", f"file://{file.name}", rank=0, world_size=1)
    for name in ("UNet", "UNETR"):
        network, channels, side, _ = NETWORKS[name]
        parallel = DistributedDataParallel(network)
        try:
            for _ in range(2):
                step(parallel, channels, side)
            ended = "two steps"
        except RuntimeError as error:
            ended = str(error).split(".")[0]
        print(f"{name} under DistributedDataParallel: {ended}")
        assert ended.startswith({"UNet": "two steps", "UNETR": "Expected to have finished"}[name])
    torch.distributed.destroy_process_group()
PY
