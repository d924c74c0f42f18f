"""The residual encoder U-Net in plain torch, written from its paper; parts are named as ours."""

import torch
from torch import nn
from torch.nn import functional


class TorchConvNorm(nn.Module):
    def __init__(self, inputs, features, size=3, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, size, stride, size // 2, bias=False)
        self.norm = nn.InstanceNorm2d(features, affine=True)

    def forward(self, x):
        return self.norm(self.conv(x))


class TorchResidual(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv_1 = TorchConvNorm(inputs, features, stride=stride)
        self.conv_2 = TorchConvNorm(features, features)
        if inputs != features:
            self.skip = TorchConvNorm(inputs, features, size=1)
        self.stride = stride

    def forward(self, x):
        skip = functional.avg_pool2d(x, self.stride)
        skip = self.skip(skip) if hasattr(self, "skip") else skip
        x = self.conv_2(functional.leaky_relu(self.conv_1(x), 0.01))
        return functional.leaky_relu(x + skip, 0.01)


class TorchResEncUNet(nn.Module):
    """Returns all logits, of full size first; sizes must divide."""

    def __init__(self, inputs, outputs, features, blocks):
        super().__init__()
        self.features, self.blocks = features, blocks
        self.stem = TorchConvNorm(inputs, features[0])
        below = features[0]
        for level, (width, count) in enumerate(zip(features, blocks, strict=True)):
            for index in range(count):
                stride = 2 if level and not index else 1
                block = TorchResidual(below, width, stride)
                self.add_module(f"down_{level}_{index}", block)
                below = width
        for level in reversed(range(len(features) - 1)):
            width = features[level]
            self.add_module(f"up_{level}", nn.ConvTranspose2d(below, width, 2, 2))
            self.add_module(f"merge_{level}", TorchConvNorm(2 * width, width))
            if level == 0 or level < len(features) - 2:
                self.add_module(f"out_{level}", nn.Conv2d(width, outputs, 1))
            below = width

    def forward(self, x):
        part, skips, logits = dict(self.named_children()), [], []
        x = functional.leaky_relu(self.stem(x), 0.01)
        for level, count in enumerate(self.blocks):
            for index in range(count):
                x = part[f"down_{level}_{index}"](x)
            skips.append(x)
        for level in reversed(range(len(self.features) - 1)):
            x = torch.cat([part[f"up_{level}"](x), skips[level]], 1)
            x = functional.leaky_relu(part[f"merge_{level}"](x), 0.01)
            if f"out_{level}" in part:
                logits.insert(0, part[f"out_{level}"](x))
        return logits
