"""The planned residual U-Net and SegFormer against torch, written here from their papers.

The torch networks name their parts as ours do, so that one function carries weights, statistics
and gradients over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import models
from cellseg_jax.models import resenc_unet

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


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
        for level, (width, count) in enumerate(zip(features, blocks)):
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


def carried(shapes, network, value):
    """Our tree of `shapes`, of value(tensor) for each of the network's tensors, transposed."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())

    def one(path, leaf):
        _, *parts, last = (entry.key for entry in path)
        owner = ".".join(parts)
        name = {"kernel": "weight", "scale": "weight", "mean": "running_mean",
                "var": "running_var"}.get(last, last)
        if owner.startswith("perceptron") and len(parts) == 1:
            owner += ".depthwise"
        array = value(tensors[f"{owner}.{name}"]).detach().numpy()
        if array.ndim == 2:
            array = array.T
        elif array.ndim == 4 and owner.startswith("up_"):
            array = array[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        return array.reshape(leaf.shape).copy()

    return jax.tree_util.tree_map_with_path(one, shapes)


QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # a third of the time
WIDTHS = dict(widths=(2, 4, 10, 16), depths=(1, 1, 1, 1), decoder_width=6)
STAGES = dict(features_per_stage=(3, 4, 4, 5), blocks_per_stage=(1, 2, 1, 1))
CASES = {
    "unet_plan": (
        STAGES, lambda: TorchResEncUNet(3, 2, *STAGES.values()), (2, 16, 24)),
    "segformer": (
        dict(drop_path=0.0, dropout=0.0, **WIDTHS), lambda: TorchSegFormer(3, 2, *WIDTHS.values()),
        (2, 37, 21)),
}


@pytest.mark.parametrize(
    ("name", "with_gradients"),
    [
        ("unet_plan", True),
        ("segformer", False),
        pytest.param("segformer", True, marks=pytest.mark.slow),
    ],
)
def test_training_step_matches_torch_in_float64(name, with_gradients):
    """All logits, running statistics, and the gradient of every weight."""
    options, build, size = CASES[name]
    torch.manual_seed(0)
    network = build().double().train()
    for key, tensor in network.named_parameters():
        if tensor.ndim == 1 or "embed" in key:  # norms and biases that no default hides
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    image = np.random.default_rng(1).uniform(size=(*size, 3))
    with jax.enable_x64(True):
        module = models.make(name, num_outputs=2, **options)
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), train=False))
        carry = lambda value: carried(shapes, network, value)  # noqa: E731
        variables = carry(lambda tensor: tensor)

        def loss(params):
            logits, updated = module.apply(
                {**variables, "params": params}, image, train=True,
                mutable=["batch_stats", "intermediates"])
            sown = updated.pop("intermediates", {}).get("deep_supervision", ())
            weights = resenc_unet.supervision_weights(1 + len(sown))
            total = sum(w * jnp.sin(x).sum() for w, x in zip(weights, (logits, *sown)))
            return total, ((logits, *sown), updated)

        step = jax.value_and_grad(loss, has_aux=True) if with_gradients else (
            lambda params: (loss(params), None))
        (_, (logits, updated)), gradients = jax.jit(step, compiler_options=QUICK_COMPILE)(
            variables["params"])
        assert logits[0].dtype == jnp.float64

    wanted = network(torch.tensor(image).permute(0, 3, 1, 2))
    assert len(logits) == len(wanted) == (2 if name == "unet_plan" else 1)
    assert wanted[0].std() > 0.05
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)  # noqa: E731
    for got, want in zip(logits, wanted):
        close(got, want.detach().permute(0, 2, 3, 1))
    after = carry(lambda tensor: tensor)
    jax.tree.map(close, updated, {k: after[k] for k in updated})
    if with_gradients:
        weights = [0.5**level for level in range(len(wanted))]
        (sum(w * x.sin().sum() for w, x in zip(weights, wanted)) / sum(weights)).backward()
        slopes = carried({"params": shapes["params"]}, network, lambda tensor: tensor.grad)
        jax.tree.map(close, gradients, slopes["params"])
