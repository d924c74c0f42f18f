"""The decoded images that runs train on, read and checked once for all runs of a dataset."""

import dataclasses
import types
from typing import NamedTuple

import numpy as np

from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.data import colours, scale
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.data.quality import annotation, checks, duplicates
from cellseg_jax.data.select import BLANK
from cellseg_jax.normalize import contrast_of
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import TRAINING_CELLS, TRAINING_CONTRAST


class Images(NamedTuple):
    """What `checks.of_split` reads of whole images, where samples may be patches of them."""

    names: list
    groups: list
    strata: list


@dataclasses.dataclass
class TrainingData:
    """Decoded samples and what was found in them."""

    arrays: Arrays
    findings: list  # on the samples, whatever the split
    alpha: bool = False  # the last channel is alpha
    pairs: list | None = None  # near-duplicate images, None until they are looked for
    reported: set = dataclasses.field(default_factory=set)  # findings on runs, shown already

    def unreported(self, found) -> list:
        """Those of some findings that were not yet shown; from now on they were."""
        new = [finding for finding in found if finding not in self.reported]
        self.reported.update(new)
        return new


def load(config) -> TrainingData:
    """Decode, or open the cache, and check.

    Raises: InputError where the data cannot be trained on.
    """
    with terminal.counting("reading images") as progress:
        arrays = data.load(config.data, progress)
    classes = config.data.num_classes if config.data.target == "classes" else None
    alpha = colours.has_alpha(config.data.channels, config.data.channel_index)
    seen = _read_in_training(arrays)
    findings = checks.of_samples(seen, num_classes=classes, alpha=alpha)
    findings += checks.of_ranges(arrays, config.data)
    findings += annotation.of_arrays(arrays, config.data, seen.foreground)
    checks.raise_errors(findings)
    return TrainingData(arrays, findings, alpha)


def _read_in_training(arrays: Arrays):
    """What checks.of_samples reads; where windows are cut, whole images in place of their middles.
    """
    if "image" not in arrays.flat:
        return arrays
    image, label = ([arrays.uncut(name, i) for i in range(arrays.num_samples)]
                    for name in ("image", "label"))
    share = np.array([np.count_nonzero(one > 0) / max(np.count_nonzero(one >= 0), 1)
                      for one in label], np.float32)
    return types.SimpleNamespace(names=arrays.names, image=image, label=label, foreground=share)


def split_findings(training: TrainingData, parts: dict) -> list:
    """What is wrong with a run's split and was not yet reported. Patches count as their image."""
    arrays = training.arrays
    images = Images(arrays.image_names, arrays.image_groups, arrays.image_strata)
    if training.pairs is None:
        training.pairs = duplicates.pairs_of(arrays, alpha=training.alpha)
    found = checks.of_split(images, {part: np.unique(indices // arrays.grid**2)
                                     for part, indices in parts.items()}, training.pairs)
    return training.unreported(found)


def known_of(config, arrays: Arrays, train) -> dict:
    """What environment.json keeps of the training images, for prediction to compare others with.

    Args:
      train: (n,) training samples.
    """
    images = np.unique(np.asarray(train) // arrays.grid**2)
    images = images[[not arrays.image_names[i].startswith(BLANK) for i in images]]
    whole, inner = (arrays.tables[name][images] for name in ("minmax", "percentile"))
    found = contrast_of(whole, inner, arrays.image.dtype,
                        each=bool(config.data.channel_index))._asdict() if len(images) else None
    return {TRAINING_CELLS: cells_of(config, arrays, images), TRAINING_CONTRAST: found}


def cells_of(config, arrays: Arrays, images) -> dict:
    """How large cells and pixels of the training images are: medians over the images.

    Args:
      images: (m,) numbers of the training images.
    Returns: median_diameter of the true cells, the median of each image, in pixels of the file;
      median_pixel_size_um; both also as the network sees them (_seen); median_factor, by which
      images were rescaled. None where nothing is known. With eval.min_size=-1 also least_area,
      what that is, see data.scale.least_area. {} where labels hold no instances.
    """
    if not derived.has_cells(config):
        return {}
    least = {"least_area": scale.least_area(map(arrays.original_label, images))
             } if config.eval.min_size < 0 else {}
    facts = scale.facts_of(arrays, lambda: data.records_of(config.data))
    factor = arrays.scales[images]
    if config.data.fit == "resize":
        areas = arrays.original_sizes[images].prod(1)
        factor = np.sqrt(np.prod(config.data.size) / areas)
    diameter, pixel_size = facts["diameter"][images], facts["pixel_size"][images]
    return {"median_diameter": _median(diameter),
            "median_diameter_seen": _median(diameter * factor),
            "median_pixel_size_um": _median(pixel_size),
            "median_pixel_size_seen_um": _median(pixel_size / factor),
            "median_factor": _median(factor), **least}


def _median(values) -> float | None:
    """Of what is known; None if nothing is."""
    known = values[~np.isnan(values)]
    return float(f"{np.median(known):.6g}") if len(known) else None
