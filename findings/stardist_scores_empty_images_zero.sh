#!/usr/bin/env bash
# StarDist 0.9.1: an image without cells in which none are found scores 0, as if all were wrong.
#
# Every score of stardist.matching is 0 where its denominator is. Pooled over a data set, images without
# cells do not count. With by_image=True their zeros are averaged: the labels compared with themselves
# score less than 1, by the share of empty fields, and a network that finds nothing where nothing is
# gains nothing. Compare by_image=True only between data sets without empty fields, or leave them out.
#
# Seen: labels against themselves, 10 images of which n are empty, accuracy at IoU 0.5
#   0 empty: pooled 1.0, by image 1.0
#   5 empty: pooled 1.0, by image 0.5
#   9 empty: pooled 1.0, by image 0.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "stardist==0.9.1" "numpy==1.26.4" "setuptools==75.8.0"
"$folder/env/bin/python" -W ignore - <<'PY'
import numpy as np
from stardist.matching import matching, matching_dataset

empty = np.zeros((64, 64), np.int32)
cell = empty.copy()
cell[20:40, 20:40] = 1
for count, by_image in ((0, 1.0), (5, 0.5), (9, 0.1)):
    labels = [empty] * count + [cell] * (10 - count)
    found = [matching_dataset(labels, labels, thresh=0.5, by_image=mean, show_progress=False).accuracy
             for mean in (False, True)]
    print(f"{count} empty: pooled {found[0]:.1f}, by image {found[1]:.1f}")
    assert np.allclose(found, (1.0, by_image)), "StarDist behaves otherwise now"
assert matching(empty, empty).f1 == 0
PY
