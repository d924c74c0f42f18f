"""Exact outlines of the objects of a label, along the edges of its pixels."""

import numpy as np
from skimage import measure

# The four sides of a pixel, walked clockwise on screen: where the neighbour lies, and the corners
# (y, x) that the walk goes from and to.
SIDES = (((-1, 0), (0, 0), (0, 1)), ((0, 1), (0, 1), (1, 1)),
         ((1, 0), (1, 1), (1, 0)), ((0, -1), (1, 0), (0, 0)))


def outlines(label) -> dict[int, list[list[np.ndarray]]]:
    """Polygons of every object; filled again they are its pixels, no more and no less.

    Objects may have several pieces and holes. Pieces are 4-connected: two pixels that meet at a
    corner alone are two polygons, and holes that meet at a corner are two holes, so that every
    ring is simple (it meets no point twice) and every polygon valid.

    Args:
      label: (H, W) integers, 0 background.
    Returns: {id: [polygon, ...]}, ids rising. A polygon is [outer ring, hole, ...], a ring (n, 2)
      int64 corners (x, y), 0 being the image's upper and left edge; not closed (the first corner
      is not repeated), corners on a straight line left out. The outer ring runs clockwise on a
      screen, holes the other way; with y upwards these are the counterclockwise outer rings that
      GeoJSON asks for.
    """
    label = np.asarray(label)
    piece = measure.label(label, background=0, connectivity=1)
    corners_per_row = label.shape[1] + 1
    padded = np.pad(piece, 1)
    starts, ends, owners, directions = [], [], [], []
    for direction, ((down, right), start, end) in enumerate(SIDES):
        neighbour = padded[1 + down :, 1 + right :][: label.shape[0], : label.shape[1]]
        y, x = np.nonzero((piece > 0) & (piece != neighbour))
        starts.append((y + start[0]) * corners_per_row + x + start[1])
        ends.append((y + end[0]) * corners_per_row + x + end[1])
        owners.append(piece[y, x].astype(np.int64))
        directions.append(np.full(len(y), direction))
    num_top = len(starts[0])
    start, end, owner, direction = map(np.concatenate, (starts, ends, owners, directions))
    following = _following(start, end, owner, direction, label.size + sum(label.shape) + 1)
    turns = np.empty(len(start), bool)
    turns[following] = direction[following] != direction
    corners = np.stack([start % corners_per_row, start // corners_per_row], -1)

    found = {}
    for edges in _rings(following.tolist(), num_top):  # a piece's outer ring has its first edge
        edges = np.array(edges)
        found.setdefault(owner[edges[0]], []).append(corners[edges[turns[edges]]])
    by_id = {}
    for rings in found.values():
        x, y = rings[0][0]  # an outer ring begins at the upper left of its first pixel
        by_id.setdefault(int(label[y, x]), []).append(rings)
    return dict(sorted(by_id.items()))


def _following(start, end, owner, direction, num_corners):
    """The edge after each edge: of the same piece, from the corner where this one ends.

    There are two where a piece touches itself at a corner: to turn left goes around the pixel
    between, which parts the rings there.
    """
    keys = owner * num_corners + start
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], owner * num_corners + end)
    one, other = order[place], order[np.minimum(place + 1, len(order) - 1)]
    left = (keys[other] == keys[one]) & (direction[other] == (direction - 1) % 4)
    return np.where(left, other, one)


def _rings(following: list[int], num_top: int):
    """Cycles of edges, each begun with its lowest number; all have one below num_top."""
    seen = bytearray(len(following))
    for first in range(num_top):
        edge, ring = first, []
        while not seen[edge]:
            seen[edge] = 1
            ring.append(edge)
            edge = following[edge]
        if ring:
            yield ring
