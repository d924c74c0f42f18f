"""What can be known of augmented variants before training: which of their patches hold cells."""

import jax
import jax.numpy as jnp
import numpy as np

from cellseg_jax import augment
from cellseg_jax.crops import from_grid, to_grid


def foreground(config, arrays, train) -> np.ndarray:
    """(n, copies + 1) float32: the share of foreground of every variant of every patch.

    Of images that are augmented before they are cut (data.augment_before_grid). Patches of images
    that are not in `train` have the share of the untouched patch in all of their columns.

    Args:
      config: complete.
      arrays: its decoded data.
      train: indices of the training samples.
    """
    cells, copies = arrays.grid**2, config.data.copies
    names = [name for name in augment.GEOMETRIC if config.augment[name][0]]
    settings = {name: tuple(config.augment[name]) for name in names} | {
        name: config.augment[name] for name in augment.OPTIONS}

    @jax.jit
    def labels(image, label):
        def one(copy):
            key = augment.variant_key(config.seed, image, copy)
            return augment.warp(key, {"image": label[..., None], "label": label}, settings)["label"]

        return jax.lax.map(one, 1 + jnp.arange(copies))

    out = np.repeat(arrays.foreground[:, None], copies + 1, axis=1)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # one small program
        for i in np.unique(np.asarray(train) // cells):
            patches = slice(i * cells, (i + 1) * cells)
            warped = np.asarray(labels(i, from_grid(arrays.label[patches])))
            for copy, label in enumerate(warped, 1):
                out[patches, copy] = (to_grid(label, arrays.grid) > 0).mean((1, 2))
    return out
