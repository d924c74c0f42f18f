"""What a target loses of a label, before any network: decode(encode(label)) against the label."""

from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics, targets
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.data.records import Finding
from cellseg_jax.data.resize import resize_label
from cellseg_jax.step.spec import make_spec

SEVERAL = 0.02  # the share of lost cells from which it is a warning
VANISHED = 0.05  # of cells that resizing removes, from which it is an error
STEP, MOST_TIMES = 16, 16  # of sizes that are tried: pixels, and times the config's
KINDS = ("merged with a neighbour", "split", "of another shape", "missing")


class Survival(NamedTuple):
    """Cells of some images, and what becomes of them on the way to the network and back."""

    num_images: int
    in_files: int
    at_size: int  # after resizing, or in the window that the network sees
    back: int  # decoded from the encoded label with an IoU of at least 0.5
    kinds: tuple[int, ...]  # those that are not back, as KINDS
    keeping: tuple[int, int] | None = None  # the least data.size tried that keeps all, if not it

    @property
    def lost(self) -> int:
        """Cells that the network sees and that its target does not give back."""
        return self.at_size - self.back


def survival(config, arrays) -> Survival:
    """Encode and decode all labels of instances as a run does, with the options of config.eval.

    Args:
      config: complete.
      arrays: of data.load.
    """
    images, spec = range(len(arrays.image_names)), make_spec([config])
    target, options = targets.TARGETS[config.data.target], derived.decode_options(config)

    def returned(label):
        """What decoding makes of a network without error."""
        return target.decode(np.asarray(spec.encode(label[None])[0]), **options)

    counts = metrics.summed(
        metrics.instance_counts(label, returned(label)) for label in arrays.label)
    kinds = metrics.ErrorKinds(*counts.kinds.tolist())
    in_files = sum(_num_cells(arrays.original_label(i)) for i in images)
    keeping = None
    if config.data.fit == "resize" and in_files > counts.n_true:
        keeping = _keeping(config.data.size, [arrays.original_label(i) for i in images])
    return Survival(len(images), in_files, counts.n_true, int(counts.tp[0]),
                    (kinds.merged, kinds.split, kinds.inexact, kinds.missed), keeping)


def _keeping(size, labels) -> tuple[int, int] | None:
    """The least size, in steps of a quarter of `size`, at which no label loses a cell by resizing.
    """
    largest = np.max([label.shape for label in labels], axis=0)
    for quarters in range(5, 4 * MOST_TIMES + 1):
        tried = tuple(round_up(-(-n * quarters // 4), STEP) for n in size)
        if all(_num_cells(resize_label(label, tried)) == _num_cells(label) for label in labels):
            return tried
        if np.all(tried >= largest):
            return None
    return None


def findings(config, found: Survival):
    """Findings on what the size of the network's input and its target lose."""
    height, width = derived.input_size(config)
    gone = found.in_files - found.at_size
    larger = "to {}x{}, which keeps all".format(*found.keeping) if found.keeping else "larger"
    if config.data.fit == "resize" and gone > 0:
        yield Finding(
            "error" if gone > VANISHED * found.in_files else "note", "config.data.size",
            f"resizing to {height}x{width} leaves no pixel of {gone:,} of {found.in_files:,} cells "
            f"of {found.num_images} images; set it {larger}, or config.data.fit=random_crop, "
            "which keeps the pixels of the files")
    if found.lost > 0:
        many = found.lost > SEVERAL * found.at_size
        kinds = ", ".join(f"{n:,} {kind}" for n, kind in zip(found.kinds, KINDS, strict=True) if n)
        other = ("; config.data.target=distance keeps cells apart that touch"
                 if many and config.data.target in ("foreground", "boundary") else "")
        yield Finding(
            "warning" if many else "note", "config.data.target",
            f"{config.data.target} at {height}x{width}, decoded from a network without error, "
            f"gives {found.back:,} of {found.at_size:,} cells of {found.num_images} images back "
            f"({kinds}){other}")


def _num_cells(label) -> int:
    return len(np.unique(label[label > 0]))
