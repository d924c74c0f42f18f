"""The networks against MONAI's, with its weights: outputs, running statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import interop, models

torch = pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")

SMALL_UNETR = dict(feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2)
CHANNELS = (16, 32, 64, 128, 256, 512)


def monai_unet(channels=CHANNELS, num_res_units=0, dropout=0.2):
    return nets.UNet(
        spatial_dims=2, in_channels=4, out_channels=1, channels=channels,
        strides=(2,) * (len(channels) - 1), kernel_size=3, up_kernel_size=3, act="LEAKYRELU",
        norm="BATCH", dropout=dropout, num_res_units=num_res_units,
    )


def monai_unetr(image_size=512, dropout=0.2, **sizes):
    pytest.importorskip("einops")  # MONAI's UNETR needs it
    sizes = {"feature_size": 16, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12, **sizes}
    return nets.UNETR(
        in_channels=4, out_channels=1, img_size=image_size, norm_name="batch", res_block=True,
        conv_block=True, proj_type="conv", dropout_rate=dropout, spatial_dims=2, **sizes,
    )


def randomise(network):
    """Weights and running statistics that no default hides; gradients stay of order 1."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and (".N." in name or "norm" in name):
            tensor.uniform_(0.5, 1.5)
    return network


def picture(n, height, width, dtype=np.float32):
    return np.random.default_rng(1).uniform(size=(n, height, width, 4)).astype(dtype)


def padded_logits(network, image, multiple):
    """MONAI's logits on the image padded below and to the right with zeros, cropped back."""
    height, width = image.shape[1:3]
    tensor = torch.tensor(image).permute(0, 3, 1, 2)
    pad = (0, -width % multiple, 0, -height % multiple)
    with torch.no_grad():
        logits = network.eval()(torch.nn.functional.pad(tensor, pad))
    return logits.permute(0, 2, 3, 1)[:, :height, :width].numpy()


def our_logits(name, variables, image, **options):
    module = models.make(name, num_outputs=1, **options)
    return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)


@pytest.mark.parametrize("num_res_units", [0, 2])
def test_unet_matches_monai(num_res_units):
    network = randomise(monai_unet(num_res_units=num_res_units))
    options = dict(num_res_units=num_res_units)
    variables = interop.from_torch("monai_unet", network.state_dict(), **options)
    for size in ((96, 160), (61, 47), (512, 512)):
        image = picture(1, *size)
        want = padded_logits(network, image, 32)
        assert want.std() > 0.05
        np.testing.assert_allclose(our_logits("unet", variables, image, **options), want, atol=1e-4)


@pytest.mark.parametrize("image_size", [64, (64, 96)])
def test_small_unetr_matches_monai(image_size):
    network = randomise(monai_unetr(image_size, **SMALL_UNETR))
    options = dict(image_size=image_size, **SMALL_UNETR)
    variables = interop.from_torch("monai_unetr", network.state_dict(), **options)
    height, width = np.broadcast_to(image_size, 2)
    for size in ((height, width), (height - 3, width - 15)):
        image = picture(2, *size)
        want = padded_logits(network, image, 16)
        assert want.std() > 0.05
        got = our_logits("unetr", variables, image, **options)
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
def test_unetr_matches_monai_at_512():
    network = randomise(monai_unetr())
    variables = interop.from_torch("monai_unetr", network.state_dict())
    image = picture(1, 512, 512)
    want = padded_logits(network, image, 16)
    np.testing.assert_allclose(our_logits("unetr", variables, image), want, atol=1e-4)


CASES = {
    "unet": ("unet", lambda: monai_unet((4, 8, 16), 0, 0.0), dict(channels=(4, 8, 16))),
    "residual unet": (
        "unet",
        lambda: monai_unet((4, 8, 16), 2, 0.0),
        dict(channels=(4, 8, 16), num_res_units=2),
    ),
    "unetr": (
        "unetr",
        lambda: monai_unetr(32, 0.0, **SMALL_UNETR),
        dict(image_size=32, **SMALL_UNETR),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_training_step_matches_monai_in_float64(case):
    """Logits, running statistics and gradients of a batch in training mode, without dropout."""
    name, build, options = CASES[case]
    network = randomise(build()).double().train()
    source = f"monai_{name}"
    with jax.enable_x64(True):
        variables = interop.from_torch(source, network.state_dict(), **options)
        image = picture(3, 32, 32, np.float64)
        module = models.make(name, num_outputs=1, **{**options, "dropout": 0.0})

        def loss(params):
            logits, updates = module.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return jnp.sin(logits).sum(), (logits, updates["batch_stats"])

        got = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        (value, (logits, batch_stats)), gradients = got
        assert logits.dtype == jnp.float64

        want_logits = network(torch.tensor(image).permute(0, 3, 1, 2))
        want_value = torch.sin(want_logits).sum()
        want_value.backward()
        slopes = {
            key: value.grad if value.grad is not None else torch.zeros_like(value)
            for key, value in network.named_parameters()
        }
        after = interop.from_torch(source, network.state_dict(), **options)
        want = interop.from_torch(source, {**network.state_dict(), **slopes}, **options)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)  # noqa: E731
        close(value, want_value.item())
        close(logits, want_logits.detach().permute(0, 2, 3, 1).numpy())
        jax.tree.map(close, batch_stats, after["batch_stats"])
        jax.tree.map(close, gradients, want["params"])


@pytest.mark.parametrize("num_res_units", [0, 2])
def test_unet_parameter_count_is_monais(num_res_units):
    module = models.make("unet", num_outputs=1, num_res_units=num_res_units)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 4)), train=False)
    )
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    network = monai_unet(num_res_units=num_res_units)
    assert ours == sum(tensor.numel() for tensor in network.parameters())
