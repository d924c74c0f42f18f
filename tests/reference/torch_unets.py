"""The U-Nets of the reports in plain torch, written from their descriptions, as references."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


def norm_layer(kind, channels, groups):
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.GroupNorm(groups if kind == "group" else 1, channels)


class DoubleConv(nn.Module):
    """In milesial's layout, `double_conv`: 0, 3 convolutions, 1, 4 norms, 2, 5 ReLU."""

    def __init__(self, inputs, features, middle, norm, groups, padding, bias):
        super().__init__()
        kind = norm.removeprefix("double_")
        use_bias = {"auto": kind == "none", "always": True, "never": False}[bias]
        pad = 1 if padding == "same" else 0
        layers = [
            nn.Conv2d(inputs, middle, 3, padding=pad, bias=use_bias),
            norm_layer(kind, middle, groups) if norm.startswith("double_") else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(middle, features, 3, padding=pad, bias=use_bias),
            norm_layer(kind, features, groups) if kind != "none" else nn.Identity(),
            nn.ReLU(),
        ]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), block)

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, below, features, up, block):
        super().__init__()
        if up == "bilinear":
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(below, features, 2, stride=2)
        self.conv = block


class Out(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.conv = nn.Conv2d(features, outputs, 1)


class TorchUNet(nn.Module):
    """The options of unet_classic, with the names of milesial's Pytorch-UNet.

    Sizes are the caller's: for padding="valid" and odd="pad_input" it pads the image first.
    """

    def __init__(
        self, inputs=3, outputs=1, channels=(64, 128, 256, 512, 1024), norm="double_batch",
        groups=8, skip="concat", drop_skips=(), padding="same", up="transposed", odd="pad_up",
        bias="auto",
    ):
        super().__init__()
        self.skip, self.drop_skips, self.padding, self.odd = skip, drop_skips, padding, odd
        shared = (norm, groups, padding, bias)
        *levels, bottom = channels
        self.depth = len(levels)
        half = 2 if up == "bilinear" else 1
        self.inc = DoubleConv(inputs, levels[0], levels[0], *shared)
        for index, features in enumerate([*levels[1:], bottom // half], 1):
            block = DoubleConv(levels[index - 1], features, features, *shared)
            setattr(self, f"down{index}", Down(block))
        for index, level in enumerate(reversed(range(self.depth)), 1):
            features, below = levels[level], channels[level + 1] // half
            arriving = below if up == "bilinear" else features
            joined = skip == "concat" and level not in drop_skips
            out = features // half if level else features
            inputs = arriving + features if joined else arriving
            block = DoubleConv(inputs, out, features, *shared)
            setattr(self, f"up{index}", Up(below, features, up, block))
        self.outc = Out(levels[0], outputs)

    def forward(self, x):
        maps = [self.inc(x)]
        for index in range(1, self.depth + 1):
            maps.append(getattr(self, f"down{index}")(maps[-1]))
        x = maps.pop()
        for index in range(1, self.depth + 1):
            layer, skip = getattr(self, f"up{index}"), maps.pop()
            x = layer.up(x)
            high, wide = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            if self.padding == "valid":
                rows = slice(high // 2, high // 2 + x.shape[2])
                skip = skip[:, :, rows, wide // 2 : wide // 2 + x.shape[3]]
            elif self.odd == "resize_up":
                x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            else:
                x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            if self.depth - index not in self.drop_skips:
                if self.skip == "concat":
                    x = torch.cat([skip, x], dim=1)
                elif self.skip == "add":
                    x = skip + x
            x = layer.conv(x)
        return self.outc.conv(x)


class TorchBrainUNet(nn.Module):
    """The brain U-Net with its own parameter names; without the sigmoid at its end."""

    def __init__(self, inputs=3, outputs=1, features=32):
        super().__init__()

        def block(inputs, features, name):
            layers = nn.Sequential()
            for index, arriving in ((1, inputs), (2, features)):
                conv = nn.Conv2d(arriving, features, 3, padding=1, bias=False)
                layers.add_module(f"{name}conv{index}", conv)
                layers.add_module(f"{name}norm{index}", nn.BatchNorm2d(features))
                layers.add_module(f"{name}relu{index}", nn.ReLU())
            return layers

        widths = [features * 2**level for level in range(5)]
        for level in range(4):
            arriving = widths[level - 1] if level else inputs
            name = f"enc{level + 1}"
            setattr(self, f"encoder{level + 1}", block(arriving, widths[level], name))
            up = nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
            setattr(self, f"upconv{level + 1}", up)
            name = f"dec{level + 1}"
            setattr(self, f"decoder{level + 1}", block(2 * widths[level], widths[level], name))
        self.bottleneck = block(widths[3], widths[4], "bottleneck")
        self.conv = nn.Conv2d(features, outputs, 1)

    def forward(self, x):
        skips = []
        for level in (1, 2, 3, 4):
            skips.append(getattr(self, f"encoder{level}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in (4, 3, 2, 1):
            x = torch.cat([getattr(self, f"upconv{level}")(x), skips.pop()], dim=1)
            x = getattr(self, f"decoder{level}")(x)
        return self.conv(x)


class TorchSmallUNet(nn.Module):
    """Report 1's U-Nets; Keras' "same" padding and batch norm spelt out in torch."""

    def __init__(self, inputs=1, outputs=3, channels=(16, 32, 32), dense=True):
        super().__init__()
        *levels, bottom = channels

        def block(inputs, features):
            layers = []
            for arriving in (inputs, features):
                conv = nn.Conv2d(arriving, features, 3, padding=1)
                norm = nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)
                layers += [conv, norm, nn.ReLU()]
            return nn.Sequential(*layers)

        arriving = [inputs, *levels]
        self.downs = nn.ModuleList(block(a, f) for a, f in itertools.pairwise(arriving))
        self.bottom = block(levels[-1], bottom)
        below = [*levels[1:], bottom]
        ups = [nn.ConvTranspose2d(b, f, 3, stride=2) for b, f in zip(below, levels, strict=True)]
        self.ups = nn.ModuleList(ups)
        self.merges = nn.ModuleList(block(f, f) for f in levels)
        widths = [levels[0], *((32, 64) if dense else ()), outputs]
        self.dense = nn.ModuleList(nn.Linear(a, f) for a, f in itertools.pairwise(widths))

    def forward(self, x):
        skips = []
        for down in self.downs:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up, merge in zip(reversed(self.ups), reversed(self.merges), strict=True):
            x = up(x)[:, :, :-1, :-1]  # TensorFlow's "same" cuts below and to the right
            x = merge(x + skips.pop())
        return pixel_dense(x, self.dense)


class TorchSimpleConv(nn.Module):
    """Report 1's conv model."""

    def __init__(self, inputs=1, outputs=3):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(inputs, 32, 4), nn.Conv2d(32, 64, 4)])
        widths = (64, 32, 64, outputs)
        self.dense = nn.ModuleList(nn.Linear(a, f) for a, f in itertools.pairwise(widths))

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(F.pad(x, (1, 2, 1, 2))))
        return pixel_dense(x, self.dense)


def pixel_dense(x, layers):
    """Linear layers on the channels of every pixel, with ReLU between them."""
    x = x.movedim(1, -1)
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    return layers[-1](x).movedim(-1, 1)


def randomise(network, seed=0):
    """Norms and running statistics that no default hides, and kernels that keep the signal."""
    torch.manual_seed(seed)
    norms = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_uniform_(module.weight)
        if isinstance(module, norms):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network


def keras_variables(name, state):
    """Variables of report 1's networks from the reference's state dict."""
    params, batch_stats = {}, {}
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        array = tensor.numpy()
        if leaf == "num_batches_tracked":
            continue
        if name == "simple_conv":
            place = {"convs": 0, "dense": 2}[path[0]] + int(path[1])
            names = [f"conv_{place}" if place < 4 else "out"]
        elif path[0] == "dense":
            last = len({k for k in state if k.startswith("dense")}) // 2 - 1
            names = ["out" if int(path[1]) == last else f"dense_{path[1]}"]
        elif path[0] == "ups":
            names = [f"up_{path[1]}"]
        else:
            *place, index = path
            block = {"downs": "down_{}", "merges": "merge_{}", "bottom": "bottom"}[place[0]]
            kind = "norm" if int(index) % 3 == 1 else "conv"
            names = [block.format(*place[1:]), f"{kind}_{int(index) // 3 + 1}"]
        if path[0] == "dense" and array.ndim == 2:
            array = array.T[None, None]
        elif path[0] == "ups" and array.ndim == 4:
            array = array.transpose(2, 3, 0, 1)[::-1, ::-1]
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        kind = "scale" if names[-1].startswith("norm") else "kernel"
        leaf = {"running_mean": "mean", "running_var": "var", "weight": kind}.get(leaf, leaf)
        node = batch_stats if leaf in ("mean", "var") else params
        for part in names:
            node = node.setdefault(part, {})
        node[leaf] = array
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
