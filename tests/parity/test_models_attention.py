"""SegNet and MedT against plain torch, written from the papers: outputs, statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import models
from cellseg_jax.models import medt
from cellseg_jax.models.segnet import max_pool_with_index, max_unpool

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def variables_from(state, shapes):
    """Our variables from the torch tensors of the same names."""

    def take(path, leaf):
        *names, last = (key.key for key in path[1:])
        tensor = state[".".join([*names, LEAVES.get(last, last)])].detach().numpy()
        if last == "kernel":
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        assert tensor.shape == leaf.shape, path
        return jnp.asarray(tensor)

    return jax.tree_util.tree_map_with_path(take, shapes)


def randomise(network):
    """Weights and statistics that no default hides."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("gates"):
            tensor.uniform_(0.3, 1.2)
    return network.double()


def check_training_step(module, network, image, run_torch):
    """Logits, gradients and running statistics of a batch in training mode, in float64."""
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
        variables = variables_from(network.state_dict(), shapes)

        def loss(params, image):
            logits, updates = module.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return jnp.sin(3 * logits).sum(), (logits, updates["batch_stats"])

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, (logits, batch_stats)), gradients = step(variables["params"], image)
        assert logits.dtype == jnp.float64

        tensor = torch.tensor(image, requires_grad=True)
        want = run_torch(network.train(), tensor)
        torch.sin(3 * want).sum().backward()
        slopes = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in network.named_parameters()
        }
        after = variables_from({**network.state_dict(), **slopes}, shapes)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)  # noqa: E731
        assert want.std() > 0.02
        close(logits, want.detach().numpy())
        close(gradients[1], tensor.grad.numpy())
        jax.tree.map(close, batch_stats, after["batch_stats"])
        jax.tree.map(close, gradients[0], after["params"])


def check_evaluation(module, network, image, run_torch, atol=1e-4):
    """Logits in the precision of the image."""
    network = network.to(torch.tensor(image).dtype).eval()
    with jax.enable_x64(image.dtype == np.float64):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
        variables = variables_from(network.state_dict(), shapes)
        got = jax.jit(module.apply, static_argnames="train")(variables, image, train=False)
    with torch.no_grad():
        want = run_torch(network, torch.tensor(image)).numpy()
    assert want.std() > 0.02 and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, atol=atol)


def picture(*shape, dtype=np.float64):
    return np.random.default_rng(1).uniform(size=shape).astype(dtype)


def channels_first(network, image):
    return network(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def padded(multiple):
    """torch's network behind the padding that ours does by itself."""

    def run(network, image):
        height, width = image.shape[1:3]
        image = F.pad(image, (0, 0, 0, -width % multiple, 0, -height % multiple))
        return channels_first(network, image)[:, :height, :width]

    return run


def test_pooling_and_unpooling_match_torch():
    """Few values, so that most windows have ties; NaN; gradients to the first of the largest."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 3, (2, 6, 8, 3)).astype(np.float32)
    below = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)

    def ours(image, below):
        pooled, index = max_pool_with_index(image)
        return (jnp.sin(pooled) * below).sum() + jnp.cos(max_unpool(below, index)).sum()

    tensors = [torch.tensor(array, requires_grad=True) for array in (image, below)]
    first, second = (tensor.permute(0, 3, 1, 2) for tensor in tensors)
    pooled, index = F.max_pool2d(first, 2, return_indices=True)
    unpooled = F.max_unpool2d(second, index, 2)
    ((torch.sin(pooled) * second).sum() + torch.cos(unpooled).sum()).backward()

    gradients = jax.jit(jax.grad(ours, (0, 1)))(image, below)
    for gradient, tensor in zip(gradients, tensors):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)
    got, place = max_pool_with_index(image)
    np.testing.assert_array_equal(got, pooled.detach().permute(0, 2, 3, 1).numpy())
    want = unpooled.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(max_unpool(below, place), want)

    image[0, 1, 2, 0] = image[0, 0, 3, 0] = np.nan
    got, place = max_pool_with_index(image)
    pooled, index = F.max_pool2d(torch.tensor(image).permute(0, 3, 1, 2), 2, return_indices=True)
    np.testing.assert_array_equal(got, pooled.permute(0, 2, 3, 1).numpy())
    rows, columns = np.divmod(index.permute(0, 2, 3, 1).numpy(), 8)
    np.testing.assert_array_equal(place, 2 * (rows % 2) + columns % 2)


class TorchSegNet(nn.Module):
    def __init__(self, inputs, outputs, channels, convs):
        super().__init__()
        self.convs, before = convs, inputs
        for stage, (features, count) in enumerate(zip(channels, convs)):
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


@pytest.mark.parametrize("convs", [(1, 1), pytest.param((2, 1, 3), marks=pytest.mark.slow)])
def test_segnet_training_step_matches_torch_in_float64(convs):
    options = dict(channels=(4, 6, 8)[: len(convs)], convs=convs)
    module = models.make("segnet", num_outputs=2, **options)
    network = randomise(TorchSegNet(3, 2, **options))
    check_training_step(module, network, picture(2, 7, 10, 3), padded(2 ** len(convs)))


@pytest.mark.weekly
def test_segnet_matches_torch_at_its_own_widths():
    """In float64: in float32 rounding decides a few of the indices, and moves logits by 1e-3."""
    options = dict(channels=(64, 128, 256, 512, 512), convs=(2, 2, 3, 3, 3))
    module = models.make("segnet", num_outputs=2)
    network = randomise(TorchSegNet(3, 2, **options))
    check_evaluation(module, network, picture(1, 33, 45, 3), padded(32), atol=1e-9)


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


@pytest.mark.parametrize(
    ("gates", "rows_at_once"),
    [
        ("before_norm", 3),
        pytest.param("after_norm", 8, marks=pytest.mark.slow),
        pytest.param("none", 8, marks=pytest.mark.slow),
    ],
)
def test_axial_attention_matches_torch_in_float64(gates, rows_at_once, monkeypatch):
    monkeypatch.setattr(medt, "PAIRS", rows_at_once * 2 * 6**2)
    network = randomise(TorchAxialAttention(5, 8, 2, 6, gates))
    module = medt.AxialAttention(8, 2, 6, gates, None, None)
    rows = lambda x: along(network, x, 3)  # noqa: E731
    run = lambda network, x: channels_first(rows, x)  # noqa: E731
    check_training_step(module, network, picture(2, 4, 6, 5), run)


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


MEDT = dict(features=4, stem_features=6, num_heads=2, patch_grid=2)


def test_medt_matches_torch():
    options = dict(**MEDT, blocks=(1, 1), gates="before_norm")
    network = randomise(TorchMedT(24, **options))
    module = models.make("medt", num_outputs=2, image_size=20, **options)  # padded to 24
    check_evaluation(module, network, picture(2, 21, 24, 3, dtype=np.float32), padded(24))


@pytest.mark.slow
def test_medt_training_step_matches_torch_in_float64():
    options = dict(**MEDT, blocks=(1, 2, 1), gates="after_norm")
    network = randomise(TorchMedT(32, **options))
    module = models.make("medt", num_outputs=2, image_size=32, **options)
    check_training_step(module, network, picture(2, 31, 32, 3), padded(32))


@pytest.mark.weekly
def test_medt_matches_torch_at_its_own_widths():
    options = dict(
        features=16, stem_features=128, num_heads=8, blocks=(1, 2, 4, 1), patch_grid=4,
        gates="before_norm",
    )
    network = randomise(TorchMedT(128, **options))
    module = models.make("medt", num_outputs=2)
    check_evaluation(module, network, picture(1, 128, 128, 3, dtype=np.float32), padded(64))
