"""SegNet and MedT in plain torch, written from their papers; parts are named as ours are."""

import torch
from torch import nn
from torch.nn import functional as F


class TorchSegNet(nn.Module):
    def __init__(self, inputs, outputs, channels, convs):
        super().__init__()
        self.convs, before = convs, inputs
        for stage, (features, count) in enumerate(zip(channels, convs, strict=True)):
            for place in range(count):
                self.add(f"down_{stage}_{place}", before, features)
                before = features
                if place > 0:
                    self.add(f"up_{stage}_{place}", features, features)
            if stage > 0:
                self.add(f"up_{stage}_0", features, channels[stage - 1])
        self.out = nn.Conv2d(channels[0], outputs, 3, padding=1)

    def add(self, name, inputs, features):
        setattr(self, f"conv_{name}", nn.Conv2d(inputs, features, 3, padding=1))
        setattr(self, f"norm_{name}", nn.BatchNorm2d(features))

    def block(self, name, x):
        return F.relu(getattr(self, f"norm_{name}")(getattr(self, f"conv_{name}")(x)))

    def forward(self, x):
        indices = []
        for stage, count in enumerate(self.convs):
            for place in range(count):
                x = self.block(f"down_{stage}_{place}", x)
            x, index = F.max_pool2d(x, 2, return_indices=True)
            indices.append(index)
        for stage, count in reversed(list(enumerate(self.convs))):
            x = F.max_unpool2d(x, indices[stage], 2)
            for place in reversed(range(count)):
                if (stage, place) != (0, 0):
                    x = self.block(f"up_{stage}_{place}", x)
        return self.out(x)


class TorchAxialAttention(nn.Module):
    """Every score and norm spelled out, on (B, C, L); `positions` 0 has none and no gates."""

    def __init__(self, inputs, features, heads, positions, gates):
        super().__init__()
        self.heads, self.width = heads, features // heads
        self.positions, self.mode = positions, gates
        self.qkv = nn.Linear(inputs, 2 * features, bias=False)
        self.norm_qkv = nn.BatchNorm1d(2 * features)
        self.norm_content, self.norm_value = nn.BatchNorm2d(heads), nn.BatchNorm1d(features)
        if positions:
            self.norm_query, self.norm_key = nn.BatchNorm2d(heads), nn.BatchNorm2d(heads)
            self.norm_position = nn.BatchNorm1d(features)
            self.relative = nn.Parameter(torch.randn(2 * positions - 1, 2 * self.width))
            if gates != "none":
                self.gates = nn.Parameter(torch.ones(4))

    def gated(self, norm, gate, x):
        return gate * norm(x) if self.mode == "after_norm" else norm(gate * x)

    def forward(self, x):
        rows, _, length = x.shape
        joint = self.norm_qkv(self.qkv(x.transpose(1, 2)).transpose(1, 2))
        joint = joint.reshape(rows, self.heads, 2 * self.width, length)
        half = self.width // 2
        q, k, v = joint[:, :, :half], joint[:, :, half : self.width], joint[:, :, self.width :]
        scores = self.norm_content(torch.einsum("bhci,bhcj->bhij", q, k))
        if not self.positions:
            weights = scores.softmax(-1)
            mixed = torch.einsum("bhij,bhcj->bhci", weights, v)
            return self.norm_value(mixed.reshape(rows, -1, length))
        gates = self.gates if self.mode != "none" else torch.ones(4)
        place = torch.arange(length)
        r = self.relative[place[:, None] - place[None] + length - 1]
        rq, rk, rv = r[..., :half], r[..., half : self.width], r[..., self.width :]
        of_query = torch.einsum("bhci,ijc->bhij", q, rq)
        of_key = torch.einsum("bhcj,jic->bhij", k, rk)
        scores = scores + self.gated(self.norm_query, gates[0], of_query)
        weights = (scores + self.gated(self.norm_key, gates[1], of_key)).softmax(-1)
        content = torch.einsum("bhij,bhcj->bhci", weights, v).reshape(rows, -1, length)
        placed = torch.einsum("bhij,ijc->bhci", weights, rv).reshape(rows, -1, length)
        content = self.gated(self.norm_value, gates[2], content)
        return content + self.gated(self.norm_position, gates[3], placed)


def along(attention, x, axis):
    """Attention of (N, C, H, W) along height (2) or width (3)."""
    x = x.movedim(axis, 3).transpose(1, 2)  # N, other, C, L
    output = attention(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return output.transpose(1, 2).movedim(3, axis)


class TorchAxialBlock(nn.Module):
    def __init__(self, inputs, features, stride, heads, positions, gates):
        super().__init__()
        self.stride = stride
        self.conv_down = nn.Conv2d(inputs, features, 1, bias=False)
        self.norm_down = nn.BatchNorm2d(features)
        self.height = TorchAxialAttention(features, features, heads, positions, gates)
        self.width = TorchAxialAttention(features, features, heads, positions, gates)
        self.conv_up = nn.Conv2d(features, 2 * features, 1, bias=False)
        self.norm_up = nn.BatchNorm2d(2 * features)
        if stride > 1 or inputs != 2 * features:
            self.conv_skip = nn.Conv2d(inputs, 2 * features, 1, stride, bias=False)
            self.norm_skip = nn.BatchNorm2d(2 * features)

    def forward(self, x):
        y = F.relu(self.norm_down(self.conv_down(x)))
        y = along(self.width, along(self.height, y, 2), 3)
        y = F.relu(F.avg_pool2d(y, self.stride))
        skip = self.norm_skip(self.conv_skip(x)) if hasattr(self, "conv_skip") else x
        return F.relu(self.norm_up(self.conv_up(y)) + skip)


class TorchBranch(nn.Module):
    def __init__(self, inputs, stem, middle, features, blocks, heads, positions, gates, deeper):
        super().__init__()
        widths = (inputs, stem, middle, stem)
        for index in range(3):
            size, stride = ((7, 2), (3, 1), (3, 1))[index]
            conv = nn.Conv2d(*widths[index : index + 2], size, stride, size // 2, bias=False)
            setattr(self, f"stem_{index}", conv)
            setattr(self, f"stem_norm_{index}", nn.BatchNorm2d(widths[index + 1]))
        self.levels, self.deeper, before = blocks, deeper, stem
        for level, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if level and not index else 1
                wide = features * 2**level
                block = TorchAxialBlock(before, wide, stride, heads, positions, gates)
                setattr(self, f"block_{level}_{index}", block)
                before, positions = 2 * wide, positions // stride
            setattr(self, f"up_{level}", nn.Conv2d(before, wide, 3, padding=1))
        if deeper:
            self.bottom = nn.Conv2d(before, before, 3, 2, padding=1)

    def forward(self, x):
        for index in range(3):
            x = getattr(self, f"stem_norm_{index}")(getattr(self, f"stem_{index}")(x))
            x = F.relu(x)
        skips = []
        for level, count in enumerate(self.levels):
            for index in range(count):
                x = getattr(self, f"block_{level}_{index}")(x)
            skips.append(x)
        up = lambda x: F.relu(F.interpolate(x, scale_factor=2, mode="bilinear"))  # noqa: E731
        if self.deeper:
            x = up(self.bottom(x))[:, :, : x.shape[2], : x.shape[3]] + x
        x = up(getattr(self, f"up_{len(skips) - 1}")(x))
        for level in reversed(range(len(skips) - 1)):
            x = up(getattr(self, f"up_{level}")(x + skips[level]))
        return x


class TorchMedT(nn.Module):
    """All patches of the batch go through the local branch together."""

    def __init__(self, size, features, stem_features, num_heads, blocks, patch_grid, gates):
        super().__init__()
        self.grid = patch_grid
        shared = (num_heads, size // 2, gates, False)
        parts = {
            "global": TorchBranch(
                3, features // 2, stem_features, features, blocks[:2], *shared),
            "local": TorchBranch(
                3, 4 * features, stem_features, features, blocks, num_heads, 0, gates, True),
        }
        for name, part in parts.items():
            self.add_module(name, part)
        self.fuse = nn.Conv2d(features, features, 3, padding=1)
        self.out = nn.Conv2d(features, 2, 1)

    def forward(self, x):
        whole = getattr(self, "global")(x)
        patches = [p for row in x.chunk(self.grid, 2) for p in row.chunk(self.grid, 3)]
        maps = self.local(torch.cat(patches)).chunk(self.grid**2)
        rows = [
            torch.cat(maps[k : k + self.grid], 3) for k in range(0, self.grid**2, self.grid)
        ]
        return self.out(F.relu(self.fuse(whole + torch.cat(rows, 2))))
