"""The type of a target, and the masks that several targets make of probabilities."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Num
from scipy.special import logit

from cellseg_jax.targets.geometry import whole


class Target(NamedTuple):
    """What a network learns.

    Its outputs are probabilities, or first num_binary probabilities and then regressed outputs:
    distances, ray lengths, flows. "Maps" are probabilities and regressed outputs in their unit.

    encode(label, **options): (..., H, W) int -> (..., H, W, K) float32, the maps of a perfect
      network; traced in the train step, after augmentation. Options are `encode_options`.
    names(**options) -> (K,) what each output is, with its unit; with the options of encode.
    probs(logits): (..., H, W, K) -> maps of the same shape.
    mask(maps, threshold): (..., H, W, K) -> bool (..., H, W, num_binary), for pixel metrics.
    cell_mask(maps, threshold): (..., H, W, K) -> (..., H, W, 1) bool, cells of any class: what
      the foreground target learns, so that runs with different targets can be compared.
    decode(logits, **options): (H, W, K) or (N, H, W, K) -> int32 label without K; what encode
      gives is taken too. Regressed outputs are those of the maps. Options are `decode_options`.
    pixel_weight(label, *, w0, sigma): (H, W) int -> (H, W) float32 for the losses' pixel_weight;
      None where all pixels weigh the same.
    num_binary: number of probabilities; None where all outputs are.
    regression_weight(target): (N, H, W, K) -> (N, H, W), the weight of pixels in the losses of
      regressed outputs; None where all weigh the same.
    turned(maps, view): what turning a view of an image back does to outputs that have a
      direction (see inference.tile_blending.turns_back); None where none has.
    rescaled(maps, (sy, sx)): what resizing maps by these factors does to outputs in pixels; None
      where none is.
    reach(**options): how many steps from pixel to neighbour encode looks around a pixel for its
      probabilities, with the options of encode; math.inf: at all of the object. Objects nearer to
      pixels that are not annotated are not learned there, see geometry.far_from_unknown.
    regression_known(label): (N, H, W) -> (N, H, W) bool, where the regressed outputs of a label
      are the same whatever lies in its pixels that are not annotated, -1.
    of_objects: whether outputs follow from all of an object, such as where its centre is; then a
      piece that looks like a whole object has to be one.
    is_share: whether what encode gives as a probability lies between 0 and 1 in cells, so that it
      is not that of a pixel being in a cell and has no soft overlap.
    losses: {name: weight} that config.loss has unless others are chosen; empty: its defaults.
    """

    names: Callable
    encode: Callable
    probs: Callable
    mask: Callable
    cell_mask: Callable
    decode: Callable
    pixel_weight: Callable | None = None
    num_binary: int | None = None
    regression_weight: Callable | None = None
    turned: Callable | None = None
    rescaled: Callable | None = None
    reach: Callable = lambda **options: 0
    regression_known: Callable = whole
    of_objects: bool = False
    is_share: bool = False
    losses: Mapping[str, float] = MappingProxyType({})

    def num_outputs(self, **options) -> int:
        """K, with the options of encode."""
        return len(self.names(**options))

    @property
    def encode_options(self) -> tuple[str, ...]:
        """The names of the options of encode."""
        return _keywords(self.encode)

    @property
    def decode_options(self) -> tuple[str, ...]:
        """The names of the options of decode."""
        return _keywords(self.decode)

    def cell_probs(self, maps: Float[ArrayLike, "... h w k"]) -> Float[ArrayLike, "... h w"]:
        """The probability of a cell: the first output, or 1 - that where it is the background."""
        return 1 - maps[..., 0] if self.cell_mask is not_background else maps[..., 0]

    def logits(self, maps: Float[np.ndarray, "*n h w k"]) -> Float[np.ndarray, "*n h w k"]:
        """What decode takes, of maps: logits of probabilities, regressed outputs as they are."""
        n = self.num_binary
        return logit(maps) if n is None else np.concatenate(
            [logit(maps[..., :n]), maps[..., n:]], -1)


def _keywords(function) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def above(probs: Float[ArrayLike, "... h w k"], threshold=0.5) -> Bool[ArrayLike, "... h w k"]:
    """True where the probability exceeds the threshold."""
    return probs > threshold


def first_above(maps: Float[ArrayLike, "... h w k"], threshold=0.5) -> Bool[ArrayLike, "... h w 1"]:
    """True where the first output, a probability, exceeds the threshold."""
    return maps[..., :1] > threshold


def first_sigmoid(logits: Num[ArrayLike, "... h w k"]) -> Num[ArrayLike, "... h w k"]:
    """The probability of the first output, and the others as they are."""
    return jnp.concatenate([jax.nn.sigmoid(logits[..., :1]), logits[..., 1:]], -1)


def winner(probs: Float[ArrayLike, "... h w k"], threshold=None) -> Bool[ArrayLike, "... h w k"]:
    """True in the channel of the largest probability, the first of equals; no threshold."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] == jnp.arange(probs.shape[-1])


def not_background(
    probs: Float[ArrayLike, "... h w k"], threshold=None
) -> Bool[ArrayLike, "... h w 1"]:
    """True where another channel than the first has the largest probability; no threshold."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] > 0
