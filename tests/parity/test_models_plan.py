"""The residual encoder U-Net and SegFormer against torch, written from their papers.

The torch networks name their parts as ours do, so that one function carries weights, statistics
and gradients over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import losses, models

torch = pytest.importorskip("torch")
torch_resenc_unet = pytest.importorskip("reference.torch_resenc_unet")
torch_segformer = pytest.importorskip("reference.torch_segformer")


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
        STAGES, lambda: torch_resenc_unet.TorchResEncUNet(3, 2, *STAGES.values()), (2, 16, 24)),
    "segformer": (
        dict(drop_path=0.0, dropout=0.0, **WIDTHS),
        lambda: torch_segformer.TorchSegFormer(3, 2, *WIDTHS.values()), (2, 37, 21)),
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
            weights = losses.supervision_weights(1 + len(sown))
            total = sum(w * jnp.sin(x).sum() for w, x in zip(weights, (logits, *sown), strict=True))
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
    for got, want in zip(logits, wanted, strict=True):
        close(got, want.detach().permute(0, 2, 3, 1))
    after = carry(lambda tensor: tensor)
    jax.tree.map(close, updated, {k: after[k] for k in updated})
    if with_gradients:
        weights = [0.5**level for level in range(len(wanted))]
        total = sum(w * x.sin().sum() for w, x in zip(weights, wanted, strict=True))
        (total / sum(weights)).backward()
        slopes = carried({"params": shapes["params"]}, network, lambda tensor: tensor.grad)
        jax.tree.map(close, gradients, slopes["params"])
