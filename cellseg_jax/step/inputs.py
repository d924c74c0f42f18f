"""What the network trains on: the rows of a batch, augmented and normalised."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Integer, Key, Shaped

from cellseg_jax import augment, targets
from cellseg_jax.normalize import normalize
from cellseg_jax.step.batches import PIXELS
from cellseg_jax.step.spec import Spec


def step_keys(seed: Shaped[Array, ""] | int, step: Integer[Array, ""] | int) -> Key[Array, "2"]:
    """The keys of augmentation and of dropout in one step; fold 0 of the seed made the weights."""
    key = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), step + 1)
    return jax.random.split(key)


def augmented(spec: Spec, hparams: dict, key: Key[Array, ""], batch: dict,
              row: Integer[ArrayLike, " n"]) -> dict:
    """The batch as the network trains on it: warped, normalised, recoloured.

    Rows of a batch with copies are stored variants: their draws are keyed by sample and copy
    alone, and copy 0 is left as it is. With spec.grid, geometric augmentations move the whole image
    that a row is a patch of: all patches of a variant then share its draws.

    Args:
      hparams: of spec.hparams.
      key: of this step.
      batch: see train_step.train_step; with spec.grid, pixels have all patches of each row's image
        (n, grid**2, H, W, ...), or are those of all samples, as in step.mapped.gather.
      row: number of each row in the global batch.
    Returns: the batch, its image (n, H, W, C) of spec.dtype, about in [0, 1].
    """
    settings, options = _augmentations(spec, hparams)
    if not settings:
        return {**batch, "image": normalize(batch["image"], batch["range"], spec.dtype)}
    cells = spec.grid**2
    keys = warp_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row)
    applies = jnp.ones(row.shape, jnp.float32)
    if "copy" in batch:
        keys, warp_keys = (_variant_keys(hparams["seed"], sample, batch["copy"])
                           for sample in (batch["id"], batch["id"] // cells))
        applies = (batch["copy"] > 0).astype(jnp.float32)
    pixels, rows = {k: batch[k] for k in PIXELS if k in batch}, ()
    if cells > 1:
        pixels, first = _patches(pixels, batch["id"], cells)
        rows = first.astype(jnp.uint32), batch["id"] % cells

    def one(keys, applies, range_, sample, rows):
        key, warp_key = keys
        chosen = {name: (probability * applies, strength)
                  for name, (probability, strength) in settings.items()}
        patch = augment.Patch(spec.grid, *rows) if rows else None
        sample = augment.warp(warp_key, sample, chosen | options, patch,
                              copies_apart=targets.TARGETS[spec.target].of_objects)
        image = normalize(sample["image"], range_, spec.dtype)
        return {**sample, "image": augment.intensity(key, image, chosen, spec.colours)}

    mapped = jax.vmap(one, (0, 0, 0, None if rows else 0, 0))
    return {**batch, **mapped((keys, warp_keys), applies, batch["range"], pixels, rows)}


def _patches(pixels, sample, cells):
    """Pixels as patches (m, h, w, ...), and the number of the first patch of each row's image."""
    if pixels["label"].ndim == 3:  # all samples
        return pixels, sample // cells * cells
    return ({k: v.reshape(-1, *v.shape[2:]) for k, v in pixels.items()},
            jnp.arange(len(sample)) * cells)


def _augmentations(spec, hparams) -> tuple[dict, dict]:
    """{name: (probability, strength)} of the augmentations in use, and their common options."""
    active = {name: hparams[f"augment.{name}"]
              for name in (*augment.AUGMENTATIONS, *augment.OPTIONS)
              if f"augment.{name}" not in spec.inactive}
    return ({name: tuple(active[name]) for name in augment.AUGMENTATIONS if name in active},
            {name: active[name] for name in augment.OPTIONS if name in active})


def _variant_keys(seed, sample, copy):
    """(n,) keys of stored variants."""
    return jax.vmap(augment.variant_key, (None, 0, 0))(seed, sample, copy)
