"""Several predictions as one: their mean, and where wanted their variance as one more output."""

import numpy as np

from cellseg_jax.config import derived
from cellseg_jax.data.lazy import Image
from cellseg_jax.errors import InputError
from cellseg_jax.inference.options import AS_TRAINED, PredictOptions
from cellseg_jax.inference.row_bands import rechunked, row_ranges


def mean_of(outs, uncertain: bool, num_binary: int | None = None) -> np.ndarray:
    """The mean of arrays (..., K); if wanted their variance too, behind it.

    The variance is the mean over those outputs that are probabilities (see targets.Target).
    """
    mean = outs[0] if len(outs) == 1 else np.mean(outs, 0)
    if not uncertain:
        return mean
    spread = np.var([out[..., :num_binary] for out in outs], 0)
    return np.concatenate([mean, spread.mean(-1, keepdims=True)], -1)


def mean_of_runs(outs, uncertain: bool, num_binary: int | None = None) -> np.ndarray:
    """The mean of what `mean_of` gives for each run.

    The variance is that among the runs plus the mean of their own.
    """
    if not uncertain:
        return mean_of(outs, False)
    joined = mean_of([out[..., :-1] for out in outs], True, num_binary)
    joined[..., -1] += np.mean([out[..., -1] for out in outs], 0)
    return joined


class Ensemble:
    """Several runs that learned one target: the mean of their probabilities.

    Args:
      members: Predictor of each run.
    Raises: InputError where they learned different targets.
    """

    def __init__(self, members):
        first, *others = members
        for other in others:
            for key in ("target", "num_classes", "num_rays", "channel_index", "z", "foreground"):
                # Only some datasets have a foreground, the others' is the cell.
                mine, its = (one.config.data.get(key, "cell") for one in (first, other))
                if mine != its:
                    raise InputError(f"--workdir: config.data.{key} is {mine!r} in one run and "
                                     f"{its!r} in another; expected runs that learned the same")
            mine, its = (derived.class_names(one.config) for one in (first, other))
            if mine != its and "class 1" not in (*mine, *its):  # what nobody named may be equal
                raise InputError(f"--workdir: classes are {', '.join(mine)} in one run and "
                                 f"{', '.join(its)} in another; expected runs that learned the "
                                 "same, in one order")
        self.members, self.config = members, first.config
        self.decode, self.decode_bands = first.decode, first.decode_bands
        self.target, self.scale, self.contrast = first.target, first.scale, first.contrast
        self.counts, self.batch_size = first.counts, first.batch_size

    def probs(self, images, options: PredictOptions = AS_TRAINED) -> list[np.ndarray]:
        """As Predictor.probs, the mean of the members."""
        outs = zip(*(member.probs(images, options) for member in self.members), strict=True)
        return [mean_of_runs(out, options.uncertain, self.target.num_binary) for out in outs]

    def bands(self, image: Image, options: PredictOptions = AS_TRAINED):
        """As Predictor.bands, the mean of the members."""
        ranges = row_ranges(*image.shape[:2], options.band_pixels)
        streams = [rechunked(member.bands(image, options), ranges) for member in self.members]
        for bands in zip(*streams, strict=True):
            yield mean_of_runs(bands, options.uncertain, self.target.num_binary)
