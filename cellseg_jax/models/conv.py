"""Convolutions and transposed convolutions, equal to torch's, with gradients fast on a CPU.

Arrays are channel last: (N, H, W, C). Kernels are (height, width, in, out). Parameters are
initialised as torch does, unless `weights_init` names another way. This is the one file of the
networks that chooses a form of an operation by platform.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Shaped

from cellseg_jax.errors import pick
from cellseg_jax.models import kernel_gradient, onednn
from cellseg_jax.models.onednn import Pads

LAYOUT = ("NHWC", "HWIO", "NHWC")  # the only order that XLA compiles to fast code on a CPU
CACHE_BYTES = 2**23  # gathered patches beyond this cost more memory traffic than they save
FEW_PIXELS = 256  # of a batch; kernels are then larger than images, and moving them costs most


def _on_cpu(cpu_form: Callable, plain_form: Callable, *arrays):
    """cpu_form(*arrays) where the program is compiled for a CPU, plain_form(*arrays) elsewhere."""
    return lax.platform_dependent(*arrays, cpu=cpu_form, default=plain_form)


def plain_convolution(
    image: Float[ArrayLike, "n h w c"], kernel: Float[ArrayLike, "u v c k"], stride: int,
    dilation: int, pads: Pads,
) -> Float[Array, "n _ _ k"]:
    """The convolution as JAX defines it; its derived gradients are the reference for ours."""
    return lax.conv_general_dilated(
        image, kernel, (stride, stride), pads, (dilation, dilation), dimension_numbers=LAYOUT
    )


def _output(image, kernel, stride, dilation, pads, form):
    plain = partial(plain_convolution, stride=stride, dilation=dilation, pads=pads)
    if form == "xla":
        return plain(image, kernel)
    shape = jax.eval_shape(plain, image, kernel).shape
    ours = partial(_onednn_forward, shape=shape, stride=stride, dilation=dilation, pads=pads)
    return _on_cpu(ours, plain, image, kernel)


_convolution = jax.custom_vjp(_output, nondiff_argnums=(2, 3, 4, 5))


def _convolution_forward(image, kernel, stride, dilation, pads, form):
    return _output(image, kernel, stride, dilation, pads, form), (image, kernel)


def _convolution_backward(stride, dilation, pads, form, arrays, cotangent):
    def plain_form(image, kernel, cotangent):
        form = partial(plain_convolution, stride=stride, dilation=dilation, pads=pads)
        return jax.vjp(form, image, kernel)[1](cotangent)

    def xla_form(image, kernel, cotangent):
        return xla_gradients(image, kernel, cotangent, stride, dilation, pads)

    def onednn_form(image, kernel, cotangent):
        return _onednn_gradients(image, kernel, cotangent, stride, dilation, pads)

    cpu_form = {"xla": xla_form, "onednn": onednn_form}[form]
    return _on_cpu(cpu_form, plain_form, *arrays, cotangent)


_convolution.defvjp(_convolution_forward, _convolution_backward)


# --- by oneDNN ------------------------------------------------------------------------------------


def _form(image, kernel, stride, dilation, pads) -> str:
    """Whose convolutions a CPU computes with: those of "onednn" or "xla"."""
    if not onednn.usable(image, kernel) or (stride > 1 and dilation > 1):
        return "xla"
    if dilation > 1:
        pads = _strided_pads(image.shape, kernel.shape, dilation, pads)
    return "onednn" if min(min(pads)) >= 0 else "xla"


def _flipped(kernel):
    """The kernel of the convolution in the other direction."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _strided_pads(image, kernel, dilation, pads) -> Pads:
    """Of the strided convolution whose image gradient is this transposed one, given the shapes."""
    low = [size - 1 - below for size, (below, _) in zip(kernel[:2], pads, strict=True)]
    out = [(length - 1) * dilation + 1 + sum(pad) - size + 1
           for length, size, pad in zip(image[1:3], kernel[:2], pads, strict=True)]
    high = [(length - 1) * dilation + size - below - above for length, size, below, above
            in zip(image[1:3], kernel[:2], low, out, strict=True)]
    return tuple(zip(low, high, strict=True))


def _onednn_forward(image, kernel, *, shape, stride, dilation, pads):
    if dilation == 1:
        return onednn.forward(image, kernel, shape, stride, pads)
    pads = _strided_pads(image.shape, kernel.shape, dilation, pads)
    return onednn.image_gradient(image, _flipped(kernel), shape, dilation, pads)


def _onednn_gradients(image, kernel, cotangent, stride, dilation, pads):
    if dilation == 1:
        return (onednn.image_gradient(cotangent, kernel, image.shape, stride, pads),
                onednn.kernel_gradient(image, cotangent, kernel.shape, stride, pads))
    pads, other = _strided_pads(image.shape, kernel.shape, dilation, pads), _flipped(kernel)
    gradient = onednn.kernel_gradient(cotangent, image, other.shape, dilation, pads)
    return (onednn.forward(cotangent, other, image.shape, dilation, pads), _flipped(gradient))


# --- by XLA ---------------------------------------------------------------------------------------


def xla_gradients(
    image: Float[ArrayLike, "n h w c"], kernel: Float[ArrayLike, "u v c k"],
    cotangent: Float[ArrayLike, "n p q k"], stride: int, dilation: int, pads: Pads,
) -> tuple[Float[Array, "n h w c"], Float[Array, "u v c k"]]:
    """The gradients of `plain_convolution` in image and kernel, as convolutions and products."""
    return (
        _image_gradient(image, kernel, cotangent, stride, dilation, pads),
        _kernel_gradient(image, kernel, cotangent, stride, dilation, pads),
    )


def _image_gradient(image, kernel, cotangent, stride, dilation, pads):
    """A forward convolution with the kernel flipped; stride and dilation change places.

    Where kernels are larger than images, a sum of products, one for each place of the kernel: XLA
    takes as long to flip such a kernel as to convolve with it.
    """
    low = [size - 1 - pad for size, (pad, _) in zip(kernel.shape[:2], pads, strict=True)]
    high = [
        (image.shape[axis + 1] - 1) * dilation
        + kernel.shape[axis] - 1 - low[axis]
        - (cotangent.shape[axis + 1] - 1) * stride
        for axis in (0, 1)
    ]
    pads = tuple(zip(low, high, strict=True))
    if stride == dilation == 1 and _has_few_pixels(image, cotangent):
        return _sum_of_products(image, kernel, cotangent, pads)
    return plain_convolution(cotangent, _flipped(kernel), dilation, stride, pads)


def _has_few_pixels(image, cotangent) -> bool:
    """Whether a batch has few pixels and many channels: then most of what is moved is kernel."""
    narrow = min(image.shape[-1], cotangent.shape[-1])
    return narrow >= 128 and math.prod(cotangent.shape[:-1]) <= FEW_PIXELS


def _sum_of_products(image, kernel, cotangent, pads):
    (height, width), (n, rows, columns, channels) = kernel.shape[:2], image.shape
    borders = ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0))
    padded = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), borders)
    gradient = 0.0
    for u, v in itertools.product(range(height), range(width)):
        top, left = height - 1 - u, width - 1 - v
        shifted = padded[:, top : top + rows, left : left + columns].reshape(
            n * rows * columns, -1)
        gradient += lax.dot_general(
            shifted, kernel[u, v], (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.promote_types(kernel.dtype, jnp.float32))
    return gradient.astype(image.dtype).reshape(n, rows, columns, channels)


def _kernel_gradient(image, kernel, cotangent, stride, dilation, pads):
    """The gradient of the kernel in forms that stay fast inside a loop.

    JAX derives a convolution in another dimension order, which XLA rewrites for the CPU in the
    entry computation only: inside a scan it can take a hundred times as long.
    """
    if dilation > 1:  # a transposed convolution: image and cotangent change places
        sizes = zip(
            kernel.shape[:2], image.shape[1:3], cotangent.shape[1:3], pads, strict=True)
        pads = tuple(
            (size - 1 - low, 1 + low - height + (length - 1) * dilation)
            for size, length, height, (low, _) in sizes
        )
        gradient = _correlate(cotangent, image, kernel.shape[:2], dilation, pads)
        return _flipped(gradient)
    pads = tuple(
        (low, size + (length - 1) * stride - height - low)
        for size, height, length, (low, _) in zip(
            kernel.shape[:2], image.shape[1:3], cotangent.shape[1:3], pads, strict=True
        )
    )
    return _correlate(image, cotangent, kernel.shape[:2], stride, pads)


def _correlate(image, cotangent, size, stride, pads):
    """sum over n, i, j of image[n, i * stride + u, j * stride + v, c] cotangent[n, i, j, k].

    Returns: (*size, C, K), for u, v below `size`. Three forms, each the fastest in its place:
    one matrix product over gathered patches where they stay small, Winograd's tiles for many
    channels, else shifted copies of both, block by block.
    """
    channels, features = image.shape[-1], cotangent.shape[-1]
    patches = cotangent.size // features * channels * math.prod(size) * image.dtype.itemsize
    gather = (max(size) <= stride or stride == 1 and _has_few_pixels(image, cotangent)
              or stride > 1 and patches <= CACHE_BYTES)
    if not gather:
        wide = [at_least_float32(x) for x in (image, cotangent)]
        tiles = size == (3, 3) and stride == 1 and min(channels, features) >= 48
        gradient = (kernel_gradient.by_winograd(*wide, pads) if tiles else
                    kernel_gradient.by_shifts(*wide, size, stride, pads))
        return gradient.astype(image.dtype)
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
    gathered = lax.optimization_barrier(jnp.concatenate(taps, axis=-1))
    rows = [x.reshape(-1, x.shape[-1]) for x in (gathered, cotangent)]
    gradient = lax.dot_general(*rows, (((0,), (0,)), ((), ())))
    return gradient.reshape(*size, channels, features)


def convolution(
    image: Float[ArrayLike, "n h w c"], kernel: Float[ArrayLike, "u v c k"], *, stride: int = 1,
    dilation: int = 1, pads: Pads,
) -> Float[Array, "n _ _ k"]:
    """Convolve an image whose pixels lie `dilation` apart; dilation 2 is a transposed convolution.

    Equal to `lax.conv_general_dilated` in value and gradient, with a gradient that is fast on
    CPUs too. Works under jit, vmap, scan and shard_map.

    Args:
      kernel: correlated with the image (not flipped).
      pads: ((low, high), (low, high)) zeros around the dilated image.
    """
    if onednn.is_disabled():
        return plain_convolution(image, kernel, stride, dilation, pads)
    # Replicated parameters become varying out here, so that autodiff sums their gradients.
    image, kernel = vary_alike(image, kernel)
    form = _form(image, kernel, stride, dilation, pads)
    return _convolution(image, kernel, stride, dilation, pads, form)


def at_least_float32(array: Shaped[ArrayLike, "..."]) -> Shaped[ArrayLike, "..."]:
    """The array in float32, or in its own dtype where that is wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def vary_alike(*arrays: Shaped[Array, "..."]) -> list:
    """The arrays, each cast to vary over all mesh axes that any of them varies over."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    axes = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(axes - own), to="varying") if axes - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def _uniform(bound: float) -> Callable:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_uniform(fan_in: int) -> Callable:
    """torch's default initialiser of convolutions and linear layers: uniform +-1/sqrt(fan_in)."""
    return _uniform(1 / math.sqrt(fan_in))


# How a convolution is initialised: from its fans, the initialisers of kernel and bias.
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
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, bias_gradient: bool = True
    ) -> Float[Array, "n _ _ {self.features}"]:
        """Pass bias_gradient=False where batch norm follows, which removes the bias again.

        The gradient is then zero, but its computed value is rounding noise, which Adam scales up
        to full steps: runs that should be equal drift apart.
        """
        pads = (self.padding, self.padding)
        if self.padding == "same":
            pads = ((self.kernel_size - 1) // 2, self.kernel_size // 2)
        shape = (self.kernel_size, self.kernel_size, image.shape[-1], self.features)
        geometry = dict(stride=self.stride, pads=(pads, pads))
        return _convolve(self, image, shape, shape[2:], bias_gradient, geometry)


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d. Output size (H-1) stride - 2 padding + kernel_size + output_padding.

    The kernel is torch's flipped in height and width, (height, width, in, out). Keras' 3x3
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
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, bias_gradient: bool = True
    ) -> Float[Array, "n _ _ {self.features}"]:
        """The image through the layer; see Conv for bias_gradient."""
        low = self.kernel_size - 1 - self.padding
        pads = ((low, low + self.output_padding),) * 2
        shape = (self.kernel_size, self.kernel_size, image.shape[-1], self.features)
        geometry = dict(dilation=self.stride, pads=pads)
        # torch and Keras count outputs as inputs here.
        return _convolve(self, image, shape, shape[:1:-1], bias_gradient, geometry)


def _convolve(module, image, shape, fans, bias_gradient, geometry):
    """What Conv and ConvTranspose share: parameters, dtype, bias."""
    inits = pick(INITS, module.weights_init, "config.model.weights_init")
    kernel_init, bias_init = inits(*(module.kernel_size**2 * fan for fan in fans))
    kernel = module.param("kernel", kernel_init, shape, jnp.float32)
    bias = module.param("bias", bias_init, shape[-1:], jnp.float32) if module.use_bias else None
    image, kernel, bias = nn.dtypes.promote_dtype(image, kernel, bias, dtype=module.dtype)
    output = convolution(image, kernel, **geometry)
    if bias is None:
        return output
    return output + (bias if bias_gradient else lax.stop_gradient(bias))
