"""Medical Transformer: axial attention over the whole image, and within its patches.

Source: Valanarasu et al., arXiv:2102.10662, with the sizes of the authors' code where the paper
leaves them open. A baseline of the EBHI-SEG paper. Different from that code: the patches, which
it processes one after the other, share the statistics of their batch norms; the gates learn
from the first step, not after ten epochs; and parts without any effect are left out: the means
and biases of the norms of the scores, and convolutions that are never called.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, at_least_float32
from cellseg_jax.models.linear import Dense
from cellseg_jax.models.norm import BatchNorm, conv_norm
from cellseg_jax.models.resample import pad_to_multiple

GATES = ("before_norm", "after_norm", "none")
BRANCHES = ("global", "local")
PAIRS = 2**21  # attention weights in memory at a time; more are computed by rows of the image


class ScoreGain(nn.Module):
    """What batch norm multiplies attention scores by, given their moments.

    A batch norm also adds one number to all scores of a head, which softmax ignores.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, heads: int, moments: tuple, *, train: bool) -> Float[Array, " {heads}"]:
        """The factor per head.

        Args:
          moments: mean and mean square, each (heads,), and the count; used in training.
        """
        running = self.variable("batch_stats", "var", jnp.ones, (heads,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (heads,), jnp.float32)
        var = running.value
        if train:
            mean, square, count = moments
            if self.axis_name is not None:
                mean, square = lax.pmean((mean, square), self.axis_name)
                count *= lax.axis_size(self.axis_name)
            var = jnp.maximum(square - mean * mean, 0)
            running.value += self.momentum * (var * (count / max(count - 1, 1)) - running.value)
        return scale * lax.rsqrt(var + self.epsilon)


def _content_moments(query, key):
    """Mean and mean square per head of q_i . k_j over all rows and pairs, without the pairs."""
    n, rows, length, _, _ = query.shape
    query, key = (at_least_float32(x) for x in (query, key))
    mean = _sum("nrhc,nrhc->h", query.mean(2), key.mean(2)) / (n * rows)
    grams = [_sum("nrihc,nrihd->nrhcd", x, x) / length for x in (query, key)]
    square = _sum("nrhcd,nrhcd->h", *grams) / (n * rows)
    return mean, square, n * rows * length**2


def _position_moments(vectors, embedding):
    """The same of x_i . e_ij, where e is (length, length, width)."""
    n, rows, length, _, _ = vectors.shape
    vectors, embedding = (at_least_float32(x) for x in (vectors, embedding))
    mean = _sum("ihc,ic->h", vectors.mean((0, 1)), embedding.mean(1)) / length
    gram = _sum("nrihc,nrihd->ihcd", vectors, vectors) / (n * rows)
    square = _sum("ihcd,icd->h", gram, _sum("ijc,ijd->icd", embedding, embedding)) / length**2
    return mean, square, n * rows * length**2


def _relative_positions(table, length):
    """(2 L - 1, C) for L pixels to (length, length, C): pixels i - j apart share a row."""
    rows = 2 * length - 1
    if len(table) != rows:
        table = jax.image.resize(table, (rows, table.shape[1]), "linear", antialias=False)
    place = jnp.arange(length)
    return table[place[:, None] - place + length - 1]


def _sum(subscripts, *arrays):
    return jnp.einsum(subscripts, *arrays, precision="highest")  # variances are differences


def _attend(content, key, value, of_query, of_key, of_value, positions):
    """The sums over j of v_j and, with positions, of r^v_ij; each (N, rows, length, heads, C).

    All pairs of as many rows at a time as PAIRS allows; recomputed for the gradient.
    """

    def attend_row(content, key, value, *placed):
        scores = jnp.einsum("ihc,jhc->hij", content, key)
        if placed:
            scores += jnp.einsum("ihc,ijc->hij", placed[0], of_query)
            scores += jnp.einsum("jhc,jic->hij", placed[1], of_key)
        scores = at_least_float32(scores)
        attention = jax.nn.softmax(scores).astype(value.dtype)
        mixed = [jnp.einsum("hij,jhc->ihc", attention, value)]
        if placed:
            mixed.append(jnp.einsum("hij,ijc->ihc", attention, of_value))
        return mixed

    n, rows, length, heads, _ = key.shape
    inputs = [x.reshape(n * rows, *x.shape[2:]) for x in (content, key, value, *positions)]
    at_once = max(1, PAIRS // (heads * length**2))
    attend = jax.checkpoint(attend_row)
    if at_once >= n * rows:
        mixed = jax.vmap(attend)(*inputs)
    else:
        mixed = lax.map(lambda row: attend(*row), inputs, batch_size=at_once)
    return [x.reshape(n, rows, *x.shape[1:]) for x in mixed]


class AxialAttention(nn.Module):
    """Attention of pixels to those in their own row, with gated relative positions.

        y_i = G_V1 sum_j a_ij v_j + G_V2 sum_j a_ij r^v_ij
        a_i = softmax_j(q_i . k_j + G_Q q_i . r^q_ij + G_K k_j . r^k_ji)

    Batch norms lie on q, k and v, on each of the three kinds of score and on both sums. The
    authors' code gates before the norms (gates="before_norm"), which then undo a gate up to
    their epsilon; "after_norm" gates the normalised terms, as the formula has it; "none" does
    not gate. The moments of the scores are computed from q, k and the positions, and their
    norms folded into q and k; nothing of the size of all pairs is kept for the gradient.

    Args:
      features: channels of the output, a multiple of 2 num_heads; q and k have half of them.
      table_size: pixels of a row for which relative positions are learnt, and resized
        linearly to other rows; 0 has neither positions nor gates.
    """

    features: int
    num_heads: int
    table_size: int
    gates: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n rows length c"], *, train: bool
    ) -> Float[Array, "n rows length {self.features}"]:
        """The rows of an image after attention, in `features` channels."""
        width = self.features // self.num_heads
        start = nn.initializers.normal(image.shape[-1] ** -0.5)
        joint = Dense(
            2 * self.features, use_bias=False, dtype=self.dtype, kernel_init=start, name="qkv"
        )(image)
        joint = self._norm(joint, "norm_qkv", 1, train)
        joint = joint.reshape(*image.shape[:3], self.num_heads, 2 * width)
        query, key, value = jnp.split(joint, (width // 2, width), -1)

        def scaled(vectors, name, gate, moments):
            before = gate if self.gates == "before_norm" else 1
            mean, square, count = moments
            moments = before * mean, before**2 * square, count
            gain = ScoreGain(self.axis_name, name=name)(self.num_heads, moments, train=train)
            return vectors * (gate * gain)[:, None].astype(vectors.dtype)

        gate_query, gate_key, gate_value, gate_position = self._gates()
        content = scaled(query, "norm_content", 1, _content_moments(query, key))
        positions, relative = (), (None, None, None)
        if self.table_size:
            shape = (2 * self.table_size - 1, 2 * width)
            table = self.param("relative", nn.initializers.normal(width**-0.5), shape, jnp.float32)
            relative = _relative_positions(table, image.shape[2]).astype(joint.dtype)
            relative = of_query, of_key, _ = jnp.split(relative, (width // 2, width), -1)
            moments = _position_moments(query, of_query)
            placed_query = scaled(query, "norm_query", gate_query, moments)
            moments = _position_moments(key, of_key)
            placed_key = scaled(key, "norm_key", gate_key, moments)
            positions = (placed_query, placed_key)
        mixed, *placed = _attend(content, key, value, *relative, positions)
        output = self._norm(mixed, "norm_value", gate_value, train)
        if placed:
            output += self._norm(*placed, "norm_position", gate_position, train)
        return output

    def _gates(self):
        if self.gates == "none" or not self.table_size:
            return 1, 1, 1, 1
        start = lambda key: jnp.array([0.1, 0.1, 1.0, 0.1], jnp.float32)
        return self.param("gates", start)

    def _norm(self, image, name, gate, train):
        """Batch norm of the channels, with the gate before or after it as `gates` says."""
        image = image.reshape(*image.shape[:3], -1)
        norm = BatchNorm(self.axis_name, dtype=self.dtype, name=name)
        gate = jnp.asarray(gate, image.dtype)
        if self.gates == "after_norm":
            return gate * norm(image, train=train)
        return norm(gate * image, train=train)


class AxialBlock(nn.Module):
    """Attention along height, then width, between 1x1 convolutions; a bottleneck with its skip.

    Args:
      features: of the attention; the block has twice as many.
      stride: 2 halves the size, by averages after the attention.
      table_size: (height, width) of AxialAttention.
    """

    features: int
    stride: int
    table_size: tuple[int, int]
    num_heads: int
    gates: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n _ _ {2*self.features}"]:
        """The image in 2 * features channels, its size divided by the stride."""
        def convolved(image, features, name, stride=1):
            conv = Conv(
                features, 1, stride, 0, use_bias=False, dtype=self.dtype, name=f"conv_{name}"
            )
            return conv_norm(self, image, conv, f"norm_{name}", train=train)

        def attend(image, side, name):
            options = (self.gates, self.axis_name, self.dtype)
            attention = AxialAttention(self.features, self.num_heads, side, *options, name=name)
            return attention(image, train=train)

        output = nn.relu(convolved(image, self.features, "down"))
        output = attend(output.swapaxes(1, 2), self.table_size[0], "height").swapaxes(1, 2)
        output = attend(output, self.table_size[1], "width")
        if self.stride == 2:
            n, height, width, channels = output.shape
            output = output.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        output = convolved(nn.relu(output), 2 * self.features, "up")
        if image.shape != output.shape:
            image = convolved(image, 2 * self.features, "skip", self.stride)
        return nn.relu(output + image)


class Branch(nn.Module):
    """A convolutional stem, one level of blocks per entry of `blocks`, and the way back up.

    Args:
      stem_features: channels of the stem's first and last convolution, and of its second.
      deeper: another halving below the last level.
      image_size: (height, width) for its positions; zeros for none.
    """

    blocks: Sequence[int]
    stem_features: tuple[int, int]
    deeper: bool
    image_size: tuple[int, int]
    features: int
    num_heads: int
    gates: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.features}"]:
        """The image in `features` channels."""
        outer, middle = self.stem_features
        for index, features in enumerate((outer, middle, outer)):
            size, stride = (7, 2) if index == 0 else (3, 1)
            conv = Conv(
                features, size, stride, size // 2, use_bias=False, dtype=self.dtype,
                name=f"stem_{index}",
            )
            image = nn.relu(conv_norm(self, image, conv, f"stem_norm_{index}", train=train))

        shared = (self.num_heads, self.gates, self.axis_name, self.dtype)
        table_size = tuple(side // 2 for side in self.image_size)
        skips = []
        for level, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if level > 0 and index == 0 else 1
                image = AxialBlock(
                    self.features * 2**level, stride, table_size, *shared,
                    name=f"block_{level}_{index}",
                )(image, train=train)
                table_size = tuple(side // stride for side in table_size)
            skips.append(image)

        def up(image, features, name, stride=1):
            conv = Conv(features, stride=stride, dtype=self.dtype, name=name)
            return nn.relu(_double(conv(image)))

        if self.deeper:
            below = up(image, image.shape[-1], "bottom", stride=2)
            image = below[:, : image.shape[1], : image.shape[2]] + image
        for level in reversed(range(len(self.blocks))):
            image = up(image, self.features * 2**level, f"up_{level}")
            if level > 0:
                image = image + skips[level - 1]
        return image


def _double(image):
    """Twice the height and width, bilinear about pixel centres (torch: align_corners=False)."""
    for axis in (1, 2):
        size = image.shape[axis]
        edges = jnp.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        before, after = (lax.slice_in_dim(edges, k, k + size, axis=axis) for k in (0, 2))
        pair = [0.75 * image + 0.25 * neighbour for neighbour in (before, after)]
        shape = (*image.shape[:axis], 2 * size, *image.shape[axis + 1 :])
        image = jnp.stack(pair, axis + 1).reshape(shape)
    return image


class MedT(nn.Module):
    """Medical Transformer: the sum of a shallow network of the image and a deep one of patches.

    The global branch has the first two levels and positions; the local branch has all levels
    and no positions. Any height and width: the image is padded with zeros below and to the
    right to a multiple of patch_grid * 2**levels, and the logits are cropped back. Where that
    is not `image_size`, padded alike, relative positions are resized linearly.

    Args:
      num_outputs: K, channels of the logits.
      image_size: pixels, one number or (H, W), for which positions are learnt.
      features: channels of the first level's attention and of the last maps.
      stem_features: channels of the stem's middle convolution.
      num_heads: of every attention; features is a multiple of twice as many.
      blocks: attention blocks per level, at least two levels.
      patch_grid: the local branch sees patch_grid x patch_grid patches.
      branches: global, local or both.
      gates: before_norm (the authors' code), after_norm (the formula) or none, see
        AxialAttention.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    image_size: int | tuple[int, int] = 128
    features: int = 16
    stem_features: int = 128
    num_heads: int = 8
    blocks: Sequence[int] = (1, 2, 4, 1)
    patch_grid: int = 4
    branches: Sequence[str] = BRANCHES
    gates: str = "before_norm"
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        self._check(sides)
        n, height, width, channels = image.shape
        multiple = self.patch_grid * 2 ** len(self.blocks)
        image = pad_to_multiple(image, multiple)
        shared = dict(
            features=self.features, num_heads=self.num_heads, gates=self.gates,
            axis_name=self.axis_name, dtype=self.dtype,
        )
        maps = 0
        if "global" in self.branches:
            sides = tuple(side + -side % multiple for side in sides)
            stem = (self.features // 2, self.stem_features)
            branch = Branch(self.blocks[:2], stem, False, sides, name="global", **shared)
            maps += branch(image, train=train)
        if "local" in self.branches:
            grid = self.patch_grid
            rows, columns = (side // grid for side in image.shape[1:3])
            patches = image.reshape(n, grid, rows, grid, columns, channels).swapaxes(2, 3)
            stem = (4 * self.features, self.stem_features)  # so wide in the authors' code only
            branch = Branch(self.blocks, stem, True, (0, 0), name="local", **shared)
            patches = branch(patches.reshape(-1, rows, columns, channels), train=train)
            patches = patches.reshape(n, grid, grid, rows, columns, -1).swapaxes(2, 3)
            maps += patches.reshape(*image.shape[:3], -1)
        maps = nn.relu(Conv(self.features, dtype=self.dtype, name="fuse")(maps))
        logits = Conv(self.num_outputs, 1, padding=0, dtype=self.dtype, name="out")(maps)
        logits = logits[:, :height, :width]
        return at_least_float32(logits)

    def _check(self, sides):
        expected = {
            "image_size": ("one or two positive numbers", len(sides) == 2 and min(sides) > 0),
            "features": (
                f"a multiple of twice num_heads ({self.num_heads})",
                self.features % (2 * self.num_heads) == 0,
            ),
            "blocks": (
                "two or more positive numbers", len(self.blocks) > 1 and min(self.blocks) > 0
            ),
            "patch_grid": ("a positive number", self.patch_grid > 0),
            "branches": (
                f"one or both of {', '.join(BRANCHES)}",
                len(self.branches) > 0 and set(self.branches) <= set(BRANCHES),
            ),
            "gates": (f"one of {', '.join(GATES)}", self.gates in GATES),
        }
        for option, (rule, met) in expected.items():
            if not met:
                got = getattr(self, option)
                raise InputError(f"config.model.{option}: got {got!r}; expected {rule}")
