#!/usr/bin/env bash
# torch-em 0.10.9: in a window that lies inside one object, the target "distance to the edge" of
# PerObjectDistanceTransform has an edge in its upper left corner, wherever the window lies.
#
# There is no edge to measure from, and the distance transform of bioimage-cpp 0.10 (as
# scipy.ndimage.distance_transform_edt) then gives distances from a pixel outside of the array, the
# one above its first. They are scaled to 0 (deepest inside) and 1 (at the edge) like others, so that
# the network learns the same ramp from corner to corner for all such windows: organelles of EM, or
# cells that are larger than the window. No value tells such a target from a true one. The distance
# to the centre is right.
#
# Seen, at the four corners of windows of 128 pixels in a disc of radius 400:
#   window at (384, 384): 1.00 0.30 0.29 0.00
#   window at (384, 600): 1.00 0.30 0.29 0.00
#   window at (600, 384): 1.00 0.30 0.29 0.00
#   window at (448, 856), with 9,383 pixels of background: 0.09 at its left, 1.00 at the true edge
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "torch_em==0.10.9" "bioimage-cpp==0.10.0" "torch==2.14.1" \
    "torchvision==0.29.1" "numpy==2.4.6" "scipy==1.17.1"
"$folder/env/bin/python" -W ignore - <<'PY'
import bioimage_cpp
import numpy as np
from scipy import ndimage
from torch_em.transform.label import PerObjectDistanceTransform

rows, columns = np.mgrid[:1024, :1024]
disc = (np.hypot(rows - 512, columns - 512) < 400).astype(np.int32)


def to_edge(row, column):
    """(mask of the window, the third of the maps: cell, centre, edge)."""
    window = disc[row : row + 128, column : column + 128]
    return window > 0, PerObjectDistanceTransform()(window)[2]


for place in ((384, 384), (384, 600), (600, 384)):
    inside, edge = to_edge(*place)
    corners = edge[[0, 0, -1, -1], [0, -1, 0, -1]]
    print(f"window at {place}:", *(f"{value:.2f}" for value in corners))
    assert inside.all()
    assert np.allclose(corners, [1, 0.3, 0.29, 0], atol=0.01), "torch-em behaves otherwise now"

inside, edge = to_edge(448, 856)
rim = inside & ~ndimage.binary_erosion(inside, border_value=1)
print(f"window at (448, 856), with {(~inside).sum():,} pixels of background: "
      f"{edge[:, 0].max():.2f} at its left, {edge[rim].mean():.2f} at the true edge")
assert edge[:, 0].max() < 0.1 and edge[rim].mean() > 0.9

full = np.ones((3, 4), bool)
for name, transform in (("bioimage-cpp", bioimage_cpp.distance.distance_transform),
                        ("scipy", ndimage.distance_transform_edt)):
    print(f"{name}, of a mask that is True everywhere:")
    print(np.round(transform(full), 2))
    assert np.isfinite(transform(full)).all()
PY
