"""Targets: what a network learns of an instance label, and labels back from its logits.

Each target is a pair, encode and decode, that agree: decode(encode(label), ...) is the label
where its cells are apart. Probabilities are sigmoids per output, as the losses take them;
other outputs are regressed. encode, probs, mask and cell_mask are traceable; decode and
pixel_weight run on the host.

A new target is a file with a `Target` and a line in TARGETS.
"""

from cellseg_jax.targets.boundary import BOUNDARY, unet_weight_map
from cellseg_jax.targets.classes import CLASSES
from cellseg_jax.targets.contour import CONTOUR
from cellseg_jax.targets.distance import DISTANCE
from cellseg_jax.targets.flow import FLOW
from cellseg_jax.targets.foreground import FOREGROUND
from cellseg_jax.targets.geometry import METHODS, components, remove_small, split_by_distance
from cellseg_jax.targets.signed import SIGNED
from cellseg_jax.targets.star import STAR
from cellseg_jax.targets.target import Target

TARGETS = {
    "foreground": FOREGROUND,
    "boundary": BOUNDARY,
    "contour": CONTOUR,
    "classes": CLASSES,
    "distance": DISTANCE,
    "signed": SIGNED,
    "star": STAR,
    "flow": FLOW,
}
