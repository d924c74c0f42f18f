"""The networks against torch's, with their weights: outputs, running statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import interop, models

torch = pytest.importorskip("torch")
nets = pytest.importorskip("monai.networks.nets")
torch_unets = pytest.importorskip("reference.torch_unets")

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


@pytest.mark.weekly
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


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c == "unetr" else c for c in CASES]
)
def test_training_step_matches_monai_in_float64(case):
    """Logits, running statistics and gradients of a batch in training mode, without dropout."""
    name, build, options = CASES[case]
    network = randomise(build()).double().train()
    convert = lambda state: interop.from_torch(f"monai_{name}", state, **options)  # noqa: E731
    with jax.enable_x64(True):
        module = models.make(name, num_outputs=1, **{**options, "dropout": 0.0})
        check_training_step(module, network, convert, picture(3, 32, 32, np.float64))


def check_training_step(module, network, convert, image, outside=lambda network: network):
    """A batch in training mode through both; `convert` makes variables of a state dict.

    `outside` wraps the torch network in the padding that ours does inside.
    """
    variables = convert(network.state_dict())

    def loss(params):
        logits, updates = module.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return jnp.sin(logits).sum(), (logits, updates.get("batch_stats", {}))

    got = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    (value, (logits, batch_stats)), gradients = got
    assert logits.dtype == jnp.float64

    want_logits = outside(network)(torch.tensor(image).permute(0, 3, 1, 2))
    want_value = torch.sin(want_logits).sum()
    want_value.backward()
    slopes = {
        key: value.grad if value.grad is not None else torch.zeros_like(value)
        for key, value in network.named_parameters()
    }
    after = convert(network.state_dict())
    want = convert({**network.state_dict(), **slopes})
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)  # noqa: E731
    close(value, want_value.item())
    close(logits, want_logits.detach().permute(0, 2, 3, 1).numpy())
    jax.tree.map(close, batch_stats, after.get("batch_stats", {}))
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


CHANNELS_CLASSIC = (4, 8, 16)
CLASSIC = {
    "default": {},
    "none": dict(norm="none"),
    "batch": dict(norm="batch"),
    "instance": dict(norm="instance"),
    "double instance": dict(norm="double_instance"),
    "double group": dict(norm="double_group", groups=2),
    "layer": dict(norm="layer"),
    "bias": dict(norm="group", groups=4, bias="always"),
    "add": dict(skip="add"),
    "no skip": dict(skip="none"),
    "dropped skip": dict(drop_skips=(1,)),
    "valid": dict(padding="valid", norm="none"),
    "bilinear": dict(up="bilinear"),
    "bilinear valid": dict(up="bilinear", padding="valid"),
    "pad up": dict(odd="pad_up"),
    "resize up": dict(odd="resize_up"),
    "bilinear resize up": dict(up="bilinear", odd="resize_up", skip="add"),
}
QUICK = ("default", "instance")


def valid_output(size, depth):
    """Pixels that valid convolutions leave of `size`, or 0 where a pooling meets an odd size."""
    sizes = []
    for _ in range(depth):
        size -= 4
        if size < 1 or size % 2:
            return 0
        sizes.append(size)
        size //= 2
    size -= 4
    for _ in range(depth):
        size = 2 * size - 4
    return max(size, 0)


def padded_outside(network, padding="same", odd="pad_input", depth=2, **_):
    """The torch network behind the padding that our network does by itself."""

    def run(x):
        height, width = x.shape[2:]
        if padding == "valid":
            pads = []
            for size in (width, height):
                full = next(n for n in range(size, 2000) if valid_output(n, depth) >= size)
                low = (full - valid_output(full, depth)) // 2
                pads += [low, full - low - size]
            x = torch.nn.functional.pad(x, pads, mode="reflect")
        elif odd == "pad_input":
            x = torch.nn.functional.pad(x, (0, -width % 2**depth, 0, -height % 2**depth))
        return network(x)[:, :, :height, :width]

    return run


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.weekly) for c in CLASSIC]
)
def test_classic_unet_training_step_matches_torch_in_float64(case):
    """Odd sizes: 33 and 45 are odd at the first pooling, 26 at the second."""
    options = dict(channels=CHANNELS_CLASSIC, **CLASSIC[case])
    sizes = [(33, 45)] if case in QUICK else [(33, 45), (26, 32)]
    for size in sizes:
        network = torch_unets.TorchUNet(4, 2, **options)
        network = torch_unets.randomise(network).double().train()
        convert = lambda state: interop.from_torch(  # noqa: E731
            "milesial_unet", state, **{"odd": "pad_input", **options}
        )
        with jax.enable_x64(True):
            module = models.make("unet_classic", num_outputs=2, **options)
            image = picture(2, *size, np.float64)
            outside = lambda network: padded_outside(network, **options)  # noqa: E731
            check_training_step(module, network, convert, image, outside)


@pytest.mark.weekly
@pytest.mark.parametrize("case", CLASSIC)
def test_classic_unet_matches_torch(case):
    """Evaluation in float32, from weights and statistics that no default hides."""
    options = dict(channels=CHANNELS_CLASSIC, **CLASSIC[case])
    network = torch_unets.randomise(torch_unets.TorchUNet(4, 1, **options)).eval()
    variables = interop.from_torch(
        "milesial_unet", network.state_dict(), **{"odd": "pad_input", **options}
    )
    for size in ((33, 45), (64, 64), (26, 35)):
        image = picture(1, *size)
        with torch.no_grad():
            want = padded_outside(network, **options)(torch.tensor(image).permute(0, 3, 1, 2))
        assert want.std() > 0.02
        got = our_logits("unet_classic", variables, image, **options)
        np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), atol=1e-4)


@pytest.mark.weekly
def test_valid_unet_takes_572_pixels_for_388():
    """The sizes of the paper's figure 1, and the numbers at them."""
    options = dict(channels=(2, 2, 2, 2, 2), norm="none", padding="valid")
    assert valid_output(572, 4) == 388 and valid_output(571, 4) == valid_output(573, 4) == 0
    network = torch_unets.TorchUNet(4, 1, **options).eval()
    variables = interop.from_torch("milesial_unet", network.state_dict(), **options)
    image = picture(1, 388, 388)
    mirrored = torch.tensor(np.pad(image, ((0, 0), (92, 92), (92, 92), (0, 0)), "reflect"))
    with torch.no_grad():
        want = network(mirrored.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got = our_logits("unet_classic", variables, image, **options)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.weekly
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_milesial_unet_matches_torch_at_its_own_widths(up):
    network = torch_unets.randomise(torch_unets.TorchUNet(4, 1, up=up)).eval()
    count = sum(tensor.numel() for tensor in network.parameters())
    # Published for three channels of input.
    assert count - 9 * 64 == {"transposed": 31037633, "bilinear": 17262977}[up]
    variables = interop.from_torch("milesial_unet", network.state_dict(), up=up)
    image = picture(1, 45, 33)
    with torch.no_grad():
        want = network(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got = our_logits("unet_classic", variables, image, odd="pad_up", up=up)
    assert want.std() > 0.02
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("features", [4, pytest.param(32, marks=pytest.mark.weekly)])
def test_brain_unet_matches_torch(features):
    network = torch_unets.randomise(torch_unets.TorchBrainUNet(4, features=features)).eval()
    options = dict(channels=tuple(features * 2**level for level in range(5)))
    variables = interop.from_torch("brain_unet", network.state_dict(), **options)
    image = picture(1, 64, 48)
    with torch.no_grad():
        want = network(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got = our_logits("unet_classic", variables, image, **options)
    assert want.std() > 0.02
    np.testing.assert_allclose(got, want, atol=1e-4)


KERAS = {
    "small_unet": (torch_unets.TorchSmallUNet, {}, {}),
    "small_unet without dense": (torch_unets.TorchSmallUNet, {}, dict(dense=False)),
    "unet_add": (torch_unets.TorchSmallUNet, dict(channels=(16, 32, 64, 128, 256)), {}),
    "simple_conv": (torch_unets.TorchSimpleConv, {}, {}),
}


@pytest.mark.parametrize("case", ["small_unet", "simple_conv", *(
    pytest.param(case, marks=pytest.mark.weekly)
    for case in ("small_unet without dense", "unet_add"))])
def test_networks_of_report_1_match_torch_in_float64(case):
    build, widths, options = KERAS[case]
    name = case.split()[0]
    network = torch_unets.randomise(build(4, 3, **widths, **options)).double().train()
    with jax.enable_x64(True):
        dropout = {} if name == "simple_conv" else dict(dropout=0.0)
        module = models.make(name, num_outputs=3, **options, **dropout)
        convert = lambda state: torch_unets.keras_variables(name, state)  # noqa: E731
        check_training_step(module, network, convert, picture(2, 32, 48, np.float64))
