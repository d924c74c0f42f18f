"""Writes models_monai.npz: weights and logits of tiny MONAI networks.

Run it where torch and MONAI are: python tests/golden/models_monai.py
"""

import pathlib

import numpy as np
import torch
from monai.networks.nets import UNETR, UNet


def main():
    torch.manual_seed(0)
    networks = {
        "monai_unet": UNet(
            spatial_dims=2, in_channels=1, out_channels=2, channels=(2, 3, 4), strides=(2, 2),
            act="LEAKYRELU", norm="BATCH", dropout=0.2,
        ),
        "monai_unet_residual": UNet(
            spatial_dims=2, in_channels=1, out_channels=2, channels=(2, 3, 4), strides=(2, 2),
            act="LEAKYRELU", norm="BATCH", dropout=0.2, num_res_units=2,
        ),
        "monai_unetr": UNETR(
            in_channels=1, out_channels=2, img_size=32, feature_size=2, hidden_size=4, mlp_dim=4,
            num_heads=2, norm_name="batch", dropout_rate=0.2, spatial_dims=2,
        ),
    }
    image = torch.rand(1, 1, 32, 32)
    arrays = {"image": image.permute(0, 2, 3, 1).numpy()}
    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            if "num_batches" not in key:
                arrays[f"{name}/{key}"] = tensor.numpy()
        with torch.no_grad():
            arrays[f"{name}/logits"] = network.eval()(image).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
