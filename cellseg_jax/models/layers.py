"""Blocks shared by the networks: convolutions, norms, dropout, pooling, upsampling, padding.

Arrays are channel last: (N, H, W, C). Kernels are (height, width, in, out). Parameters start as
torch starts them, where nothing else is said. This is the one file that chooses a form of an
operation by platform.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cellseg_jax.errors import InputError, pick

LAYOUT = ("NHWC", "HWIO", "NHWC")  # the only order that XLA compiles to fast code on a CPU
CACHE_BYTES = 2**24  # gathered patches beyond this cost more memory traffic than they save
Pads = tuple[tuple[int, int], tuple[int, int]]


def _on_cpu(cpu_form: Callable, plain_form: Callable, *arrays):
    """cpu_form(*arrays) where the program is compiled for a CPU, plain_form(*arrays) elsewhere."""
    return lax.platform_dependent(*arrays, cpu=cpu_form, default=plain_form)


def plain_convolution(image, kernel, stride: int, dilation: int, pads: Pads):
    """The convolution as JAX writes it; its derived gradients are the reference for ours."""
    return lax.conv_general_dilated(
        image, kernel, (stride, stride), pads, (dilation, dilation), dimension_numbers=LAYOUT
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(image, kernel, stride, dilation, pads):
    return plain_convolution(image, kernel, stride, dilation, pads)


def _convolution_forward(image, kernel, stride, dilation, pads):
    return plain_convolution(image, kernel, stride, dilation, pads), (image, kernel)


def _convolution_backward(stride, dilation, pads, arrays, cotangent):
    def plain_form(image, kernel, cotangent):
        form = partial(plain_convolution, stride=stride, dilation=dilation, pads=pads)
        return jax.vjp(form, image, kernel)[1](cotangent)

    def cpu_form(image, kernel, cotangent):
        return (
            _image_gradient(image, kernel, cotangent, stride, dilation, pads),
            _kernel_gradient(image, kernel, cotangent, stride, dilation, pads),
        )

    return _on_cpu(cpu_form, plain_form, *arrays, cotangent)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _image_gradient(image, kernel, cotangent, stride, dilation, pads):
    """A forward convolution with the kernel turned over; stride and dilation change places."""
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    low = [size - 1 - pad for size, (pad, _) in zip(kernel.shape, pads)]
    high = [
        (image.shape[axis + 1] - 1) * dilation
        + kernel.shape[axis] - 1 - low[axis]
        - (cotangent.shape[axis + 1] - 1) * stride
        for axis in (0, 1)
    ]
    return plain_convolution(cotangent, turned, dilation, stride, tuple(zip(low, high)))


def _kernel_gradient(image, kernel, cotangent, stride, dilation, pads):
    """The gradient of the kernel in forms that stay fast inside a loop.

    JAX derives a convolution in another dimension order, which XLA rewrites for the CPU in the
    entry computation only: inside a scan it runs 10 to 25 times slower.
    """
    if dilation > 1:  # a transposed convolution: image and cotangent change places
        sizes = zip(kernel.shape, image.shape[1:3], cotangent.shape[1:3], pads)
        pads = tuple(
            (size - 1 - low, 1 + low - height + (length - 1) * dilation)
            for size, length, height, (low, _) in sizes
        )
        gradient = _correlate(cotangent, image, kernel.shape[:2], dilation, pads)
        return jnp.flip(gradient, (0, 1)).swapaxes(2, 3)
    pads = tuple(
        (low, size + (length - 1) * stride - height - low)
        for size, height, length, (low, _) in zip(
            kernel.shape, image.shape[1:3], cotangent.shape[1:3], pads
        )
    )
    return _correlate(image, cotangent, kernel.shape[:2], stride, pads)


def _correlate(image, cotangent, size, stride, pads):
    """sum over n, i, j of image[n, i * stride + u, j * stride + v, c] cotangent[n, i, j, k].

    Returns: (*size, C, K), for u, v below `size`. Three forms, each the fastest in its place:
    one matrix product over gathered patches where they stay small, one product per tap for many
    channels, else a convolution with the cotangent as kernel.
    """
    channels, features = image.shape[-1], cotangent.shape[-1]
    patches = cotangent.size // features * channels * math.prod(size) * image.dtype.itemsize
    gather = stride > 1 and (max(size) <= stride or (channels >= 16 and patches <= CACHE_BYTES))
    per_tap = stride == 1 and (max(size) == 1 or min(channels, features) >= 128)
    if not gather and not per_tap:
        # The barriers keep XLA from folding the transposes back into the slow order.
        turned = lax.optimization_barrier(image.transpose(3, 1, 2, 0))
        window = lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3))
        gradient = lax.conv_general_dilated(
            turned, window, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=LAYOUT
        )
        return lax.optimization_barrier(gradient).transpose(1, 2, 0, 3)
    borders = ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0))
    padded = lax.pad(image, jnp.zeros((), image.dtype), borders)
    n, height, width, _ = cotangent.shape
    taps = [
        lax.slice(
            padded,
            (0, u, v, 0),
            (n, u + (height - 1) * stride + 1, v + (width - 1) * stride + 1, padded.shape[-1]),
            (1, stride, stride, 1),
        )
        for u in range(size[0])
        for v in range(size[1])
    ]
    product = partial(jnp.einsum, "nhwc,nhwk->ck")
    if gather:
        gradient = product(lax.optimization_barrier(jnp.concatenate(taps, axis=-1)), cotangent)
    else:
        gradient = jnp.stack([product(tap, cotangent) for tap in taps])
    return gradient.reshape(*size, channels, features)


def convolution(image, kernel, *, stride: int = 1, dilation: int = 1, pads: Pads):
    """Convolve an image whose pixels lie `dilation` apart; dilation 2 is a transposed convolution.

    Equal to `lax.conv_general_dilated` in value and gradient, with a gradient that is fast on
    CPUs too. Works under jit, vmap, scan and shard_map.

    Args:
      image: (N, H, W, C).
      kernel: (height, width, C, K), correlated with the image (not turned over).
      pads: ((low, high), (low, high)) zeros around the dilated image.
    Returns: (N, H', W', K).
    """
    # Replicated parameters become varying out here, so that autodiff sums their gradients.
    image, kernel = vary_alike(image, kernel)
    return _convolution(image, kernel, stride, dilation, pads)


def vary_alike(*arrays):
    """The arrays, each cast to vary over all mesh axes that any of them varies over."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    axes = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(axes - own), to="varying") if axes - own else array
        for array, own in zip(arrays, varying)
    ]


def _uniform(bound: float) -> Callable:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_uniform(fan_in: int) -> Callable:
    """torch's default start of convolutions and linear layers: uniform +-1/sqrt(fan_in)."""
    return _uniform(1 / math.sqrt(fan_in))


# How a convolution starts: its fans to the initialisers of kernel and bias.
INITS = {
    "default": lambda fan_in, fan_out: (torch_uniform(fan_in), torch_uniform(fan_in)),
    "kaiming": lambda fan_in, fan_out: (_uniform(math.sqrt(6 / fan_in)), nn.initializers.zeros),
    "glorot": lambda fan_in, fan_out: (
        _uniform(math.sqrt(6 / (fan_in + fan_out))), nn.initializers.zeros
    ),
}


class Conv(nn.Module):
    """torch's Conv2d. Output size floor((H + 2 padding - kernel_size) / stride) + 1.

    Args:
      padding: zeros on every side; or "same", for stride 1: as many pixels out as in, where an
        even kernel gets the odd zero below and to the right, as in Keras.
      weights_init: key of INITS: "default" is torch's; "kaiming" and "glorot" are uniform, with
        bias 0.
      dtype: of the computation; None follows image and parameters.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | str = 1
    use_bias: bool = True
    dtype: Any = None
    weights_init: str = "default"

    @nn.compact
    def __call__(self, image, *, bias_gradient: bool = True):
        """Pass bias_gradient=False where batch norm follows and takes the bias out again.

        The gradient is then zero, but computed it is rounding noise, which Adam blows up to
        full steps: runs that should be equal drift apart.
        """
        pads = (self.padding, self.padding)
        if self.padding == "same":
            pads = ((self.kernel_size - 1) // 2, self.kernel_size // 2)
        shape = (self.kernel_size, self.kernel_size, image.shape[-1], self.features)
        geometry = dict(stride=self.stride, pads=(pads, pads))
        return _convolve(self, image, shape, shape[2:], bias_gradient, geometry)


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d. Output size (H-1) stride - 2 padding + kernel_size + output_padding.

    The kernel is torch's turned over in height and width, (height, width, in, out). Keras' 3x3
    with stride 2 and padding "same" has padding 0 and output_padding -1. `weights_init` is Conv's.
    """

    features: int
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1
    output_padding: int = 1
    use_bias: bool = True
    dtype: Any = None
    weights_init: str = "default"

    @nn.compact
    def __call__(self, image, *, bias_gradient: bool = True):
        """See Conv for bias_gradient."""
        low = self.kernel_size - 1 - self.padding
        pads = ((low, low + self.output_padding),) * 2
        shape = (self.kernel_size, self.kernel_size, image.shape[-1], self.features)
        geometry = dict(dilation=self.stride, pads=pads)
        # torch and Keras count outputs as inputs here.
        return _convolve(self, image, shape, shape[:1:-1], bias_gradient, geometry)


def _convolve(module, image, shape, fans, bias_gradient, geometry):
    """The common half of Conv and ConvTranspose: parameters, dtype, bias."""
    inits = pick(INITS, module.weights_init, "config.model.weights_init")
    kernel_init, bias_init = inits(*(module.kernel_size**2 * fan for fan in fans))
    kernel = module.param("kernel", kernel_init, shape, jnp.float32)
    bias = module.param("bias", bias_init, shape[-1:], jnp.float32) if module.use_bias else None
    image, kernel, bias = nn.dtypes.promote_dtype(image, kernel, bias, dtype=module.dtype)
    output = convolution(image, kernel, **geometry)
    if bias is None:
        return output
    return output + (bias if bias_gradient else lax.stop_gradient(bias))


class BatchNorm(nn.Module):
    """torch's BatchNorm2d over the global batch: epsilon 1e-5, momentum 0.1.

    Statistics are taken in one pass around a pivot (the mean of the central pixels), which
    keeps the variance exact where the mean is large beside the spread. As in torch, pixels are
    normalised with the biased variance and the running one is the unbiased, n/(n-1) of it.
    Variables: params scale, bias; batch_stats mean, var.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, image, *, train: bool):
        channels = image.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        if train:
            mean, var, count = _batch_moments(image, self.axis_name)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return ((image - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias).astype(dtype)


class GroupNorm(nn.Module):
    """torch's GroupNorm: every image by its own mean and biased variance, in training as later.

    Statistics are over height, width and the channels of a group; groups=0 makes each channel
    a group, which is torch's InstanceNorm2d(affine=True), and groups=1 takes all together,
    which is layer norm. One pass around a pivot, as in BatchNorm. Params: scale, bias.
    """

    groups: int = 0
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, image):
        n, height, width, channels = image.shape
        groups = self.groups or channels
        if channels % groups:
            raise InputError(
                f"config.model.groups: got {groups}; expected a divisor of the {channels} channels"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        grouped = image.reshape(n, height, width, groups, channels // groups)
        pivot = grouped[:, height // 2, width // 2].mean(-1)[:, None, None, :, None]
        mean, var = _moments(grouped, (1, 2, 4), lax.stop_gradient(pivot))
        normalized = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(image.shape)
        return (normalized * scale + bias).astype(dtype)


def _moments(image, axes, pivot):
    """Mean and biased variance over `axes`, which stay with size 1, in one pass."""
    shifted = image - pivot
    mean = shifted.mean(axes, keepdims=True)
    var = jnp.maximum((shifted * shifted).mean(axes, keepdims=True) - mean * mean, 0)
    return mean + pivot, var


def _batch_moments(image, axis_name):
    """Mean and biased variance per channel over the global batch, and the number of pixels."""
    n, height, width, _ = image.shape
    pivot = lax.stop_gradient(image[:, height // 2, width // 2].mean(0))
    mean, var = (moment.reshape(-1) for moment in _moments(image, (0, 1, 2), pivot))
    if axis_name is None:
        return mean, var, n * height * width
    global_mean = lax.pmean(mean, axis_name)
    var = lax.pmean(var + (mean - global_mean) ** 2, axis_name)
    return global_mean, var, n * height * width * lax.axis_size(axis_name)


class Dropout(nn.Module):
    """Zero entries with probability `rate` and scale the others to keep the expectation.

    Every row of the global batch has its own key, so that a mask does not depend on how many
    devices share the batch. The rate, in [0, 1), may be traced; 0 is then the exact identity,
    and as a Python number compiles to nothing. It acts in steps of 2**-16: two entries share
    one random word, and the scale is taken from the rounded rate.
    """

    rate: Any
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs, *, train: bool):
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return inputs
        n, *shape = inputs.shape
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * n
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(n))
        entries = math.prod(shape)
        words = jax.vmap(lambda key: _random_words(key, (entries + 1) // 2))(keys)
        halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(n, -1)[:, :entries]
        kept = jnp.round((1 - jnp.asarray(self.rate, jnp.float32)) * 2**16)
        # 2**16, for rate 0, is no uint16: compare with one less.
        keep = halves.reshape(inputs.shape) <= (kept - 1).astype(jnp.uint16)
        scaled = inputs * (2**16 / kept).astype(inputs.dtype)
        return jnp.where(keep, scaled, jnp.zeros_like(inputs))


def _random_words(key, count: int):
    """`count` random uint32 by hashing a counter with two words of the key.

    The hash is the finaliser of MurmurHash3, twice. jax.random.bits costs several times as much
    and was a fifth of a U-Net's training step on a CPU; a dropout mask needs no cryptography.
    """

    def mix(word):
        word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
        word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
        return word ^ (word >> 16)

    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return mix(mix(lax.iota(jnp.uint32, count) ^ first) + second)


def pad_to_multiple(image, multiple: int):
    """Zeros below and to the right, until height and width are multiples of `multiple`."""
    high = [-size % multiple for size in image.shape[1:3]]
    return jnp.pad(image, ((0, 0), (0, high[0]), (0, high[1]), (0, 0))) if any(high) else image


def max_pool(image):
    """The largest of every 2x2 pixels; an odd last row or column is left out, as in torch.

    Two `maximum`: their gradient costs a fraction of reduce_window's. Equal pixels share the
    gradient, where torch gives it to the first; after a ReLU the many equal zeros pass none.
    """
    n, height, width, channels = image.shape
    rows, columns = height // 2, width // 2
    image = image[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, 2 * columns, channels)
    image = jnp.maximum(image[:, :, 0], image[:, :, 1]).reshape(n, rows, columns, 2, channels)
    return jnp.maximum(image[:, :, :, 0], image[:, :, :, 1])


def upsample_bilinear(image):
    """Twice the height and width; corners stay where they are (torch: align_corners=True).

    Pixel 2k lies k / (2H - 1) before pixel k, and pixel 2k + 1 lies (H - 1 - k) / (2H - 1)
    behind it: shifts and weights, no gather.
    """
    for axis in (1, 2):
        size = image.shape[axis]
        share = _along(axis, jnp.arange(size) / (2 * size - 1), image.dtype)
        before, after = _edge(image, axis, 0), _edge(image, axis, size - 1)
        before = jnp.concatenate([before, lax.slice_in_dim(image, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([lax.slice_in_dim(image, 1, size, axis=axis), after], axis)
        even = image + (before - image) * share
        odd = image + (after - image) * jnp.flip(share)
        shape = (*image.shape[:axis], 2 * size, *image.shape[axis + 1 :])
        image = jnp.stack([even, odd], axis + 1).reshape(shape)
    return image


def stretch_by_one(image, axis: int):
    """One pixel more along `axis`, resized bilinearly about pixel centres.

    Equal to torch's interpolate(mode="bilinear", align_corners=False): pixel i of H + 1 lies
    (i + 1/2) / (H + 1) before pixel i of the H.
    """
    size = image.shape[axis]
    share = _along(axis, (jnp.arange(size + 1) + 0.5) / (size + 1), image.dtype)
    before = jnp.concatenate([_edge(image, axis, 0), image], axis)
    after = jnp.concatenate([image, _edge(image, axis, size - 1)], axis)
    return after + (before - after) * share


def _edge(image, axis, index):
    return lax.slice_in_dim(image, index, index + 1, axis=axis)


def _along(axis, weights, dtype):
    return weights.astype(dtype).reshape([-1 if a == axis else 1 for a in range(4)])


def leaky_relu(image):
    """max(x, 0.01 x): torch's default slope."""
    return nn.leaky_relu(image, 0.01)
