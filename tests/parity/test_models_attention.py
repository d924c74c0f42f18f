"""SegNet and MedT against plain torch: outputs, statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import models
from cellseg_jax.models import medt
from cellseg_jax.models.segnet import max_pool_with_index, max_unpool

torch = pytest.importorskip("torch")
F = torch.nn.functional
reference = pytest.importorskip("reference.torch_attention")

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
    for gradient, tensor in zip(gradients, tensors, strict=True):
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


@pytest.mark.parametrize("convs", [(1, 1), pytest.param((2, 1, 3), marks=pytest.mark.slow)])
def test_segnet_training_step_matches_torch_in_float64(convs):
    options = dict(channels=(4, 6, 8)[: len(convs)], convs=convs)
    module = models.make("segnet", num_outputs=2, **options)
    network = randomise(reference.TorchSegNet(3, 2, **options))
    check_training_step(module, network, picture(2, 7, 10, 3), padded(2 ** len(convs)))


@pytest.mark.weekly
def test_segnet_matches_torch_at_its_own_widths():
    """In float64: in float32 rounding decides a few of the indices, and moves logits by 1e-3."""
    options = dict(channels=(64, 128, 256, 512, 512), convs=(2, 2, 3, 3, 3))
    module = models.make("segnet", num_outputs=2)
    network = randomise(reference.TorchSegNet(3, 2, **options))
    check_evaluation(module, network, picture(1, 33, 45, 3), padded(32), atol=1e-9)


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
    network = randomise(reference.TorchAxialAttention(5, 8, 2, 6, gates))
    module = medt.AxialAttention(8, 2, 6, gates, None, None)
    rows = lambda x: reference.along(network, x, 3)  # noqa: E731
    run = lambda network, x: channels_first(rows, x)  # noqa: E731
    check_training_step(module, network, picture(2, 4, 6, 5), run)


MEDT = dict(features=4, stem_features=6, num_heads=2, patch_grid=2)


def test_medt_matches_torch():
    options = dict(**MEDT, blocks=(1, 1), gates="before_norm")
    network = randomise(reference.TorchMedT(24, **options))
    module = models.make("medt", num_outputs=2, image_size=20, **options)  # padded to 24
    check_evaluation(module, network, picture(2, 21, 24, 3, dtype=np.float32), padded(24))


@pytest.mark.slow
def test_medt_training_step_matches_torch_in_float64():
    options = dict(**MEDT, blocks=(1, 2, 1), gates="after_norm")
    network = randomise(reference.TorchMedT(32, **options))
    module = models.make("medt", num_outputs=2, image_size=32, **options)
    check_training_step(module, network, picture(2, 31, 32, 3), padded(32))


@pytest.mark.weekly
def test_medt_matches_torch_at_its_own_widths():
    options = dict(
        features=16, stem_features=128, num_heads=8, blocks=(1, 2, 4, 1), patch_grid=4,
        gates="before_norm",
    )
    network = randomise(reference.TorchMedT(128, **options))
    module = models.make("medt", num_outputs=2)
    check_evaluation(module, network, picture(1, 128, 128, 3, dtype=np.float32), padded(64))
