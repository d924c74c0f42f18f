"""Star-convex polygons on the host: which of those that overlap are kept, and their pixels.

Corners are (row, column), in the order of the rays that they end, so that areas are positive.
"""

import numpy as np
import scipy  # whose modules are imported where they are first used
from jaxtyping import Bool, Float, Int32, Num
from skimage.draw import polygon

# Polygons with corners on pixels share corners and parts of edges. One that is moved by so little
# shares none, and areas change by about that share of a pixel per pixel of outline.
APART = 1e-5, 2.718281e-5
TOGETHER = 64  # polygons that are compared at once with another: what fits in a core's cache


def corners_of(
    points: Num[np.ndarray, "n 2"], rays: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "n r 2"]:
    """The ends of rays from points."""
    angles = 2 * np.pi * np.arange(rays.shape[1]) / rays.shape[1]
    directions = np.stack([np.sin(angles), np.cos(angles)], -1)
    return points[:, None] + rays[..., None] * directions


def kept(
    points: Num[np.ndarray, "n 2"], rays: Float[np.ndarray, "n r"], nms: float
) -> Bool[np.ndarray, " n"]:
    """Which polygons stay when each, in their order, removes later ones that overlap with it.

    The overlap is what two polygons share, relative to the smaller one's area. Corners are cut to
    whole pixels for it, as in StarDist.

    Most pairs are decided by what lies around them: two polygons share at most what their boxes
    share, and at least what their areas add up to beyond the octagon around both. With 15,849
    polygons of 120 cells of 512x512 pixels: 0.11 s on one core, stardist's C++ 0.28 s.

    Args:
      nms: later polygons that overlap by more are removed.
    Source: Schmidt et al. 2018, section 2; stardist 0.9, non_maximum_suppression, whose areas
      differ by roundings of the points where edges cross.
    """
    reach, tree = rays.max(1, initial=0), scipy.spatial.cKDTree(points)
    corners, area, extents = _whole_outlines(points, rays)
    farthest = reach.max(initial=0) + 2  # corners that are cut move by up to 1.5
    stays = np.ones(len(points), bool)
    for n in range(len(points)):
        if not stays[n]:
            continue
        near = np.array(tree.query_ball_point(points[n], reach[n] + farthest), int)
        near = near[near > n]
        near = near[stays[near]]
        limit = nms * (np.minimum(area[n], area[near]) + 1e-10)
        most, least = _doubled_bounds(extents[:, n, None], extents[:, near], area[n] + area[near])
        # Corners that were cut can make an outline cross itself near its centre: a pixel at most.
        stays[near[least > limit + 4]] = False
        unsure = (most > limit) & (least <= limit + 4)
        near, limit = near[unsure], limit[unsure]
        for first in range(0, len(near), TOGETHER):
            some = slice(first, first + TOGETHER)
            others = corners[near[some]].astype(float)
            stays[near[some]] = doubled_overlap(corners[n].astype(float), others) <= limit[some]
    return stays


def _whole_outlines(points, rays):
    """Corners cut to whole pixels, int32, doubled areas and extents; some at once saves memory."""
    corners = np.empty((*rays.shape, 2), np.int32)
    area, extents = np.empty(len(points)), np.empty((8, len(points)))
    for first in range(0, len(points), 4096):
        some = slice(first, first + 4096)
        cut = np.trunc(corners_of(points[some], rays[some]))
        corners[some], area[some], extents[:, some] = cut, _doubled_area(cut), _extents(cut)
    return corners, area, extents


def _extents(corners):
    """(8, n) how far polygons reach up and down along rows, columns and both diagonals."""
    y, x = corners[..., 0], corners[..., 1]
    return np.stack([part.max(1) for axis in (y, x, y + x, y - x) for part in (axis, -axis)])


def _doubled_bounds(one, others, areas):
    """The most and the least that may be twice the area shared, from extents and summed areas."""
    shared, around = np.minimum(one, others), np.maximum(one, others)
    most = 2 * np.maximum(shared[0] + shared[1], 0) * np.maximum(shared[2] + shared[3], 0)
    height, width = around[0] + around[1], around[2] + around[3]
    # What the diagonals cut off the four corners of the box: triangles with two equal sides.
    cut = around[[0, 1, 0, 1]] + around[[2, 3, 3, 2]] - around[4:]
    return most, areas - (2 * height * width - (cut**2).sum(0))


def _doubled_area(corners):
    """Twice the area of each polygon (..., R, 2)."""
    return _cross(corners, np.roll(corners, -1, -2)).sum(-1)


def _cross(a, b):
    return a[..., 1] * b[..., 0] - a[..., 0] * b[..., 1]


def doubled_overlap(
    one: Num[np.ndarray, "r 2"], others: Num[np.ndarray, "n r 2"]
) -> Float[np.ndarray, " n"]:
    """Twice the area that a polygon shares with each of the others.

    By Green's theorem: the outline of what is shared is that of each polygon inside of the other,
    and an edge from p to q adds cross(p, q) times its share that is inside. Where one outline
    enters the other polygon, the rest of it is added, where it leaves, taken off again.
    """
    a, b = one - one[0] + APART, others - one[0]
    after = lambda x, axis: np.roll(x, -1, axis)
    a_edge, b_edge = after(a, 0) - a, after(b, 1) - b
    # (n, corners of b, corners of a): on which side of b's edge lies a's corner; and the reverse.
    a_side = b_edge @ [[0, -1], [1, 0]] @ a.T - _cross(b_edge, b)[..., None]
    b_side = b @ [[0, 1], [-1, 0]] @ a_edge.T - _cross(a_edge, a)
    a_left, b_left = a_side > 0, b_side > 0
    n, k, m = np.nonzero((a_left != after(a_left, 2)) & (b_left != after(b_left, 1)))
    enters = np.where(a_left[n, k, m], -1, 1)  # a into b, or b out of a
    next_k, next_m = (k + 1) % b.shape[1], (m + 1) % len(a)
    part = lambda before, behind: before / (before - behind)
    a_rest = _rest(a, m, part(a_side[n, k, m], a_side[n, k, next_m]))
    b_rest = _rest(b, (n, k), part(b_side[n, k, m], b_side[n, next_k, m]))
    whole = (_turns(b[..., 0], a[0, 0], a_left[..., 0]) * _doubled_area(a)
             + _turns(a[:, 0], b[:, :1, 0], b_left[:, 0]) * _doubled_area(b))
    return whole + np.bincount(n, enters * (a_rest - b_rest), minlength=len(b))


def _rest(corners, edge, share):
    """What the edges of polygons add from a share of the edge on."""
    added = _cross(corners, np.roll(corners, -1, -2))
    return np.cumsum(added[..., ::-1], -1)[..., ::-1][edge] - share * added[edge]


def _turns(rows, row, left):
    """How often outlines go round points: their crossings of the line to the right of each.

    Args:
      rows: of the corners.
      row: of the point.
      left: whether the point lies to the left of each edge.
    """
    below = rows > row
    ahead = np.roll(below, -1, -1)
    return (~below & ahead & left).sum(-1) - (below & ~ahead & ~left).sum(-1).astype(int)


def drawn(
    points: Num[np.ndarray, "n 2"], rays: Float[np.ndarray, "n r"], shape: tuple[int, int]
) -> Int32[np.ndarray, "h w"]:
    """Label of polygons with the ids 1, 2, ...; earlier ones lie on top."""
    label = np.zeros(shape, np.int32)
    corners = corners_of(points, rays)
    for number in range(len(points), 0, -1):
        label[polygon(*corners[number - 1].T, shape)] = number
    return label
