"""torch's side of train_step: its networks by the names of CASES, and one step of them."""

import os
import pathlib
import sys

import numpy as np
import torch
from monai.losses import DiceFocalLoss
from monai.networks.nets import UNETR, UNet

from cellseg_jax.models import resenc_unet

# Some packages install a `tests` of their own, which comes before a folder without __init__.py.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from reference.torch_attention import TorchMedT, TorchSegNet  # noqa: E402
from reference.torch_resenc_unet import TorchResEncUNet  # noqa: E402
from reference.torch_segformer import TorchSegFormer  # noqa: E402
from reference.torch_unets import TorchSimpleConv, TorchSmallUNet, TorchUNet  # noqa: E402


def monai_unet():
    return UNet(spatial_dims=2, in_channels=3, out_channels=1, strides=(2,) * 5, act="LEAKYRELU",
                channels=(16, 32, 64, 128, 256, 512), norm="BATCH", dropout=0.2)


def monai_unetr():  # needs einops
    return UNETR(in_channels=3, out_channels=1, img_size=128, norm_name="batch",
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


def resenc_128():
    stages = resenc_unet.encoder_stages((128, 128))
    return First(TorchResEncUNet(3, 1, *zip(*stages, strict=True)))


MEDT = dict(features=16, stem_features=128, num_heads=8, blocks=(1, 2, 4, 1), patch_grid=4,
            gates="before_norm")
NETWORKS = {
    "unet_128": monai_unet,
    "unet_512": monai_unet,
    "unetr_128": monai_unetr,
    "unet_classic_128": TorchUNet,
    "small_unet_64": lambda: TorchSmallUNet(3, 1),
    "unet_add_64": lambda: TorchSmallUNet(3, 1, (16, 32, 64, 128, 256)),
    "simple_conv_64": lambda: TorchSimpleConv(3, 1),
    "segnet_128": lambda: TorchSegNet(3, 1, (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)),
    "medt_128": lambda: First(TorchMedT(128, **MEDT)),
    "unet_plan_128": resenc_128,
    "segformer_128": lambda: First(
        TorchSegFormer(3, 1, (32, 64, 160, 256), (2, 2, 2, 2), 256)),
}


def torch_step(name: str, image: np.ndarray, label: np.ndarray, *, bfloat16: bool = False,
               compiled: bool = False):
    """A function that trains so many steps and waits for the last; its loss.

    On a GPU where torch sees one, with TF32.

    Args:
      image: (N, H, W, 3) uint8; normalised beforehand.
      label: (N, H, W), 0 or 1.
      bfloat16: by autocast.
      compiled: by torch.compile, channels last.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if compiled else torch.contiguous_format
    network = NETWORKS[name]().to(device, memory_format=layout)
    network.train()
    loss_fn = DiceFocalLoss(sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)
    arrays = image.astype(np.float32) / 255, label[..., None].astype(np.float32)
    image, mask = (torch.tensor(array).permute(0, 3, 1, 2).to(device).contiguous(
        memory_format=layout) for array in arrays)

    def loss_of(image, mask):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = network(image)
        return loss_fn(logits.float(), mask)

    forward = torch.compile(loss_of) if compiled else loss_of

    def run(steps: int = 1) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = forward(image, mask)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run
