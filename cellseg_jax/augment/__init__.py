"""Augmentations: one sample in, one sample out, on device inside the compiled step.

`warp` moves the pixels of a sample as it was decoded, `intensity` changes the intensities of a
normalised image. Both take one sample; vmap over a batch with one key per row:
`vmap(lambda key, sample: warp(key, sample, settings))(keys, batch)`.

`settings` is {name: (probability, strength)} over AUGMENTATIONS, and maybe numbers of OPTIONS;
all may be traced. Each augmentation is applied with its own probability, in the order of
AUGMENTATIONS, and has its own key, made from its name: leaving one out does not change the
others' draws. Draws are float32 also under x64. A probability or strength of 0 is the exact
identity; a probability that is the Python number 0 compiles nothing.

Functions are named as what they do; the keys of GEOMETRIC and INTENSITY are those of a config.
"""

from cellseg_jax.augment.apply import Patch, intensity, warp
from cellseg_jax.augment.draws import Draw, variant_key
from cellseg_jax.augment.geometric import GEOMETRIC
from cellseg_jax.augment.intensities import INTENSITY
from cellseg_jax.augment.presets import PRESETS, preset
from cellseg_jax.augment.settings import AUGMENTATIONS, OPTIONS, WHOLE_PIXEL, check

__all__ = ["AUGMENTATIONS", "GEOMETRIC", "INTENSITY", "OPTIONS", "PRESETS", "WHOLE_PIXEL", "Draw",
           "Patch", "check", "intensity", "preset", "variant_key", "warp"]
