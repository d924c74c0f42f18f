"""SegFormer in plain torch, written from its paper; parts are named as ours are."""

import torch
from torch import nn
from torch.nn import functional


class TorchAttention(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query, self.project = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        n, height, width, channels = x.shape
        reduced = x
        if self.reduction > 1:
            pads = (0, -width % self.reduction, 0, -height % self.reduction)
            reduced = self.reduce(functional.pad(x.permute(0, 3, 1, 2), pads)).permute(0, 2, 3, 1)
            reduced = self.norm(reduced)
        shape = (n, -1, self.heads, channels // self.heads)
        split = lambda y: y.reshape(shape).transpose(1, 2)  # noqa: E731
        key, value = self.key_value(reduced).chunk(2, -1)
        mixed = functional.scaled_dot_product_attention(
            split(self.query(x)), split(key), split(value))
        return self.project(mixed.transpose(1, 2).reshape(x.shape))


class TorchPerceptron(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)

    def forward(self, x):
        hidden = self.depthwise(self.expand(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.contract(functional.gelu(hidden))


class TorchSegFormer(nn.Module):
    def __init__(self, inputs, outputs, widths, depths, decoder_width):
        super().__init__()
        self.depths = depths
        norm = lambda width: nn.LayerNorm(width, eps=1e-6)  # noqa: E731
        for stage, width in enumerate(widths):
            size, stride = (7, 4) if stage == 0 else (3, 2)
            self.add_module(
                f"conv_{stage}_embed", nn.Conv2d(inputs, width, size, stride, size // 2))
            self.add_module(f"norm_{stage}_embed", norm(width))
            for index in range(depths[stage]):
                heads, reduction = (1, 2, 5, 8)[stage], (8, 4, 2, 1)[stage]
                self.add_module(
                    f"attention_{stage}_{index}", TorchAttention(width, heads, reduction))
                self.add_module(f"perceptron_{stage}_{index}", TorchPerceptron(width))
                self.add_module(f"norm_attention_{stage}_{index}", norm(width))
                self.add_module(f"norm_perceptron_{stage}_{index}", norm(width))
            self.add_module(f"norm_{stage}", norm(width))
            self.add_module(f"level_{stage}", nn.Linear(width, decoder_width))
            inputs = width
        self.fuse = nn.Conv2d(4 * decoder_width, decoder_width, 1, bias=False)
        self.norm_fuse = nn.BatchNorm2d(decoder_width)
        self.out = nn.Linear(decoder_width, outputs)

    def forward(self, image):
        part, maps, x = dict(self.named_children()), [], image
        for stage, depth in enumerate(self.depths):
            x = part[f"conv_{stage}_embed"](x).permute(0, 2, 3, 1)
            x = part[f"norm_{stage}_embed"](x)
            for index in range(depth):
                for kind in ("attention", "perceptron"):
                    place = f"{kind}_{stage}_{index}"
                    x = x + part[place](part[f"norm_{place}"](x))
            x = part[f"norm_{stage}"](x)
            maps.append(part[f"level_{stage}"](x).permute(0, 3, 1, 2))
            x = x.permute(0, 3, 1, 2)
        resize = lambda y, to: functional.interpolate(  # noqa: E731
            y, to.shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat([resize(level, maps[0]) for level in maps], 1)
        x = torch.relu(self.norm_fuse(self.fuse(x)))
        return [resize(self.out(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), image)]
