"""Cell or not, distances to the cell's centre and edge: instance ids in, instances out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float32, Int32, Integer, Num
from scipy.special import logit
from skimage import segmentation

from cellseg_jax.targets.geometry import decode_each, in_reading_order, peaks, remove_small
from cellseg_jax.targets.object_distance import centre_distance, edge_distance, normalised
from cellseg_jax.targets.target import Target, first_above


@jax.jit
def encode(label: Integer[ArrayLike, "*n h w"]) -> Float32[ArrayLike, "*n h w 3"]:
    """Cell or not, then two distances in [0, 1], relative to the largest of the cell.

    The distance to the cell's centre, 0 there, along a path within the cell; and the distance to
    the cell's rim, 1 at the rim and 0 in the middle. Both are 1 in background, and the first also
    in pieces of a cell that its centre does not reach. A cell of rim alone is 0 in the second.

    Source: torch-em, PerObjectDistanceTransform. There the distance to the centre is the straight
      line, which a crescent leaves and which makes two minima of a cell that a border cuts; the
      centre of a cell that does not hold its centroid is its pixel farthest from the rim.
    """
    label = jnp.asarray(label)
    path = centre_distance(label)
    # A cell of one pixel is its own centre, and no farther from it than 0.
    centre = jnp.where((label > 0) & (path > 0), normalised(path, label), label <= 0)
    edge = jnp.where(label > 0, 1 - normalised(edge_distance(label) - 1, label), 1)
    return jnp.stack([(label > 0).astype(jnp.float32), centre, edge], -1)


def decode(
    logits: Num[ArrayLike, "*n h w 3"], *, threshold: float = 0.5, min_size: int = 0,
    smooth: float = 1.0, seed_depth: float = 0.1,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of (logit of cell, distance to centre, distance to edge), or of a target.

    Every minimum of the distance to the centre that is at least seed_depth deep is the seed of a
    cell; a watershed on the distance to the edge gives it the pixels of the mask. A component of
    the mask has at least one. Distances in background are not read.

    Args:
      logits: of one image or several; the distances are those of maps, from 0 to 1.
      threshold: a pixel is a cell where its probability exceeds this.
      min_size: objects of fewer pixels are dropped.
      smooth: sigma in pixels by which the distances are smoothed within the mask; 0: not at all.
      seed_depth: how far the distance must rise from a seed on every way to a deeper one.
    Returns: 0 is background, cells are numbered in reading order.
    Raises: ValueError for another shape.
    Source: torch-em, watershed_from_center_and_boundary_distances, whose seeds are where both
      distances are below 0.5.
    """

    def decode_one(logits):
        mask = logits[..., 0] > logit(threshold)
        centre, edge = (smoothed(logits[..., k], mask, smooth) for k in (1, 2))
        seeds = peaks(1 - centre, mask, seed_depth)
        label = segmentation.watershed(edge, seeds, mask=mask, connectivity=1)
        return remove_small(in_reading_order(label), min_size)

    return decode_each(decode_one, logits, 3)


def smoothed(
    values: Num[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], sigma: float
) -> Float32[np.ndarray, "h w"]:
    """Values smoothed within a mask, about as a Gaussian of `sigma` pixels does; 0 outside.

    Steps of diffusion between neighbours of the mask: what lies outside changes nothing, and
    nothing passes from one arm of a cell to another over a gap.
    """
    steps = math.ceil(sigma**2 / 0.4)  # a step adds at most 0.4 to the variance along an axis
    share = np.float32(sigma**2 / 2 / max(steps, 1))
    values = np.where(mask, values, 0).astype(np.float32)
    down, across = mask[1:] & mask[:-1], mask[:, 1:] & mask[:, :-1]
    for _ in range(steps):
        flow_y, flow_x = share * down * np.diff(values, axis=0), share * across * np.diff(values)
        values[:-1] += flow_y
        values[1:] -= flow_y
        values[:, :-1] += flow_x
        values[:, 1:] -= flow_x
    return values


DISTANCE = Target(
    names=lambda **_: ("cell", "relative distance to the centre", "relative distance to the edge"),
    encode=encode, probs=jax.nn.sigmoid, mask=first_above, cell_mask=first_above, decode=decode,
    num_binary=1, regression_weight=lambda target: target[..., 0], of_objects=True,
    losses={"dice": 1.0, "distance_dice": 2.0})
