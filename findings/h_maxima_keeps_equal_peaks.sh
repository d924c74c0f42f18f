#!/usr/bin/env bash
# scikit-image 0.26.0: h_maxima keeps peaks of equal height however shallow the pass between them is.
#
# Its documentation gives a maximum the height of the pass to an equal or higher one, and returns
# maxima of height h or more. In 5 4 5 0 9 with h = 2, both fives are 1 above the pass to an equal one,
# and both are returned; in 5 4 6 0 9 the five is not. Ties are the rule where peaks come from distances
# to the background, which take few values: used as seeds of a watershed, as many tutorials do, one
# elongated cell is cut in two or more. The regional maxima of the reconstruction by dilation of
# f - h under f ("extended maxima") have one seed for each such group of peaks.
#
# Seen: 5 4 5 0 9 gives 3 maxima, 5 4 6 0 9 gives 2; seeds of 200 cells, ellipses drawn apart from
# each other, h = 1: 290 by h_maxima, 200 by extended maxima.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "scikit-image==0.26.0" "numpy==2.4.6" "scipy==1.16.3"
"$folder/env/bin/python" - <<'PY'
import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.morphology import h_maxima, local_maxima, reconstruction


def extended(f, h):
    """Regional maxima of the reconstruction of f - h under f, over corners too."""
    return local_maxima(reconstruction(f - h, f, footprint=np.ones((3,) * f.ndim)))


for row, expected in (([5, 4, 5, 0, 9], 3), ([5, 4, 6, 0, 9], 2)):
    found = h_maxima(np.array([row]), 2)
    print(*row, "-> maxima of height 2:", found.sum())
    assert found.sum() == expected, "h_maxima behaves otherwise now"

rng, side = np.random.default_rng(0), 50
y, x = np.mgrid[:side, :side] - side / 2
fields = []
for _ in range(200):
    angle, long, short = rng.uniform((0, 12, 4), (np.pi, 22, 9))
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    fields.append((along / long) ** 2 + (across / short) ** 2 < 1)
mask = np.concatenate(fields)
distance = distance_transform_edt(mask)
counts = label(mask).max(), label(h_maxima(distance, 1)).max(), label(extended(distance, 1)).max()
print(f"{counts[0]} cells: {counts[1]} seeds by h_maxima, {counts[2]} by extended maxima")
assert counts == (200, 290, 200), "h_maxima behaves otherwise now"
PY
