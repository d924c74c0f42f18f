"""Cross-validation: what each fold trains on, validates on and tests.

A text in the place of config.data.split's fractions, see `parse`:

    fold:2/5                     fold 2 of 5, from 0; fold 7 is fold 2 of a second assignment
    fold:2/5:val=0.1             a tenth of the images that are not tested validates; the default
    fold:2/5:test=0.2            a fifth of all images is in no fold: the outer test part
    fold:2/5:test=official       the dataset's own test part is
    fold:2/5:nnunet              nnU-Net's assignment, without validation images

The test part of a run is its fold: over all folds of an assignment every image outside of the
outer test part is tested exactly once. The assignment depends on data.split_seed alone, the outer
test part is the same for all of them, and a group of images (data.split_by) is never split.
"""

import re
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.split import KEY, PARTS, STREAM, draw, indices_of, places
from cellseg_jax.errors import InputError

PREFIX = "fold:"
OFFICIAL = "official"
VAL = 0.1
ASSIGNMENTS = STREAM + 2  # Philox streams from here on are those of assignments
NNUNET_SEED = 12345


class Fold(NamedTuple):
    """One fold of a cross-validation."""

    number: int  # beyond count, of a further assignment
    count: int
    val: float = VAL  # share of the images that are not tested
    test: float | str = 0.0  # share of all images in no fold, or OFFICIAL
    nnunet: bool = False

    def __str__(self):
        options = [f"val={self.val:g}"] * (self.val != (0 if self.nnunet else VAL))
        options += [f"test={self.test}"] * bool(self.test) + ["nnunet"] * self.nnunet
        return ":".join([f"{PREFIX}{self.number}/{self.count}", *options])

    @property
    def training_share(self) -> float:
        """About the share of all images that a run trains on."""
        outer = 0.0 if self.test == OFFICIAL else self.test
        return (1 - outer) * (1 - 1 / self.count) * (1 - self.val)


def is_fold(how) -> bool:
    """Whether a value of config.data.split is a fold."""
    return isinstance(how, str) and how.startswith(PREFIX)


def parse(text: str) -> Fold:
    """The fold that a text names. Raises InputError for any other text."""
    form = f"{KEY}: got {text!r}; expected fold:K/N with options :val=0.1 :test=0.2 :nnunet"
    found = re.fullmatch(r"fold:(\d+)/(\d+)((?::[^:]+)*)", text)
    if not found:
        raise InputError(form)
    options = dict(part.partition("=")[::2] for part in found[3].split(":")[1:])
    nnunet = options.pop("nnunet", None) == ""
    try:
        val = float(options.pop("val", 0.0 if nnunet else VAL))
        test = options.pop("test", "0")
        test = test if test == OFFICIAL else float(test)
    except ValueError:
        raise InputError(form) from None
    if options:
        raise InputError(form)
    fold = Fold(int(found[1]), int(found[2]), val, test, nnunet)
    check(fold, KEY)
    return fold


def check(fold: Fold, where: str) -> None:
    """InputError, begun with `where`, for numbers that make no sense."""
    if type(fold.count) is not int:
        raise InputError(f"{where}: got {fold.count!r} folds; expected a whole number")
    if fold.count < 2:
        raise InputError(f"{where}: got {fold.count} folds; expected at least 2")
    for name, share in (("val", fold.val), ("test", fold.test)):
        official = name == "test" and share == OFFICIAL
        if not official and not (isinstance(share, (int, float)) and 0 <= share < 1):
            raise InputError(f"{where}: got {name}={share!r}; expected a share from 0 to below 1"
                             + f", or {OFFICIAL!r}" * (name == "test"))
    if fold.nnunet and fold.number >= fold.count:
        raise InputError(f"{where}: got fold {fold.number} of {fold.count} with nnunet, which has "
                         "one assignment; expected as many repeats as folds, or none of nnU-Net's")


def split(fold: Fold, groups, strata, names, *, seed: int, parts=None, fixed=None,
          ) -> dict[str, np.ndarray]:
    """{"train", "val", "test"}: ascending int32 indices, as data.split.split.

    Args:
      groups, strata, names: of the samples. Strata have equal shares in all folds.
      seed: of the assignment, and of the outer test part.
      parts: of the dataset itself, "train", "val", "test" or "" per sample; read where
        fold.test is OFFICIAL. Samples without a part are unused then.
      fixed: "train" of samples that are in training in each fold, such as those mixed in; else "".
    Raises: InputError for fewer groups than folds, or a part that would be empty.
    """
    groups, strata, names = map(np.asarray, (groups, strata, names))
    place, number = places(fixed, len(groups)), np.full(len(groups), -1)
    pool = np.flatnonzero((place == "") & in_folds(fold, groups, strata, seed, parts, fixed))
    number[pool] = _assigned(fold, groups[pool], strata[pool], names[pool], seed)
    tested = fold.number % fold.count
    place[number == tested] = "test"
    rest = np.flatnonzero((number >= 0) & (number != tested))
    place[rest] = draw(groups[rest], strata[rest], np.array([1 - fold.val, fold.val]), seed,
                       PARTS[:2], ASSIGNMENTS + fold.number) if fold.val else "train"
    return indices_of(place)


def in_folds(fold: Fold, groups, strata, seed: int, parts, fixed) -> np.ndarray:
    """(n,) bool: samples that are in a fold; of the others, those not `fixed` are for the end.

    Arguments as those of `split`; without an outer test part all that is not fixed is in a fold.
    """
    groups, strata = np.asarray(groups), np.asarray(strata)
    inside = places(fixed, len(groups)) == ""
    if fold.test == OFFICIAL:
        parts = places(parts, len(groups))
        if not (parts[inside] == "test").any():
            raise InputError(f"{KEY}: got test=official, but none of the images is in a test part "
                             "of the dataset; expected a share such as test=0.2")
        inside &= (parts == "train") | (parts == "val")
    elif fold.test:
        free = np.flatnonzero(inside)
        shares = np.array([1 - fold.test, 0.0, fold.test, 0.0])
        inside[free] = draw(groups[free], strata[free], shares, seed) == "train"
    return inside


def outer(fold: Fold, groups, strata, *, seed: int, parts=None, fixed=None) -> np.ndarray:
    """(m,) int32: the outer test part, empty without one. Arguments as those of `split`."""
    free = places(fixed, len(groups)) == ""
    left = free & ~in_folds(fold, groups, strata, seed, parts, fixed)
    if fold.test == OFFICIAL:
        left &= places(parts, len(groups)) == "test"
    return np.flatnonzero(left).astype(np.int32)


def _assigned(fold, groups, strata, names, seed) -> np.ndarray:
    """(n,) the fold of each sample."""
    count = len(np.unique(groups))
    if count < fold.count:
        raise InputError(f"{KEY}: got {fold.count} folds, but there are {count} groups of images "
                         f"(data.split_by); expected at most {count} folds")
    if fold.nnunet:
        if count < len(groups):
            raise InputError(f"{KEY}: got nnunet, which draws images, but {len(groups)} images lie "
                             f"in {count} groups; expected folds without nnunet, or "
                             "data.split_by=image, where groups are split")
        return nnunet_folds(names, fold.count)
    numbers = [str(n) for n in range(fold.count)]
    return draw(groups, strata, np.full(fold.count, 1 / fold.count), seed, numbers,
                ASSIGNMENTS + fold.number // fold.count).astype(np.int64)


def nnunet_folds(names, count: int = 5) -> np.ndarray:
    """(n,) the fold of each name, as nnU-Net assigns its training cases.

    Sorted names are shuffled by numpy's legacy generator with seed 12345 and cut into `count`
    pieces, of which the first are longer by one where they are not equal:
    sklearn.model_selection.KFold(count, shuffle=True, random_state=12345).

    Args:
      names: of nnU-Net's cases: of files without suffix, and without _0000 where all end so.
    Source: nnU-Net v2, generate_crossval_split.
    """
    names = [str(name) for name in names]
    if all(name.endswith("_0000") for name in names):  # the files of a case's only channel
        names = [name.removesuffix("_0000") for name in names]
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    shuffled = np.arange(len(order))
    np.random.RandomState(NNUNET_SEED).shuffle(shuffled)  # numpy keeps this stream as it is
    out = np.empty(len(order), np.int64)
    for number, piece in enumerate(np.array_split(shuffled, count)):
        out[order[piece]] = number
    return out
