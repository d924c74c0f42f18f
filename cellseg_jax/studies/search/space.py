"""What a search varies: ranges of config keys, and trials drawn from them.

    SEARCH = {
        "space": {
            "optimizer.lr": log(1e-4, 1e-2),
            "model.dropout": uniform(0.0, 0.5),
            "train.batch_size": ints(4, 16, log=True),
            "optimizer.name": choice("adam", "sgd"),
            "augment": choice({"none": {}, "flips": {"augment.flip_horizontal": (0.5, 1.0)}})},
        "trials": 27, "eta": 3, "rungs": 3, "seed": 0, "sampler": "random"}

Only `space` has to be there; the others stand at their defaults. `search_plan` says what trials,
eta and rungs are. A choice of mappings sets several keys, as a factor of a Grid does.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError, check_choice, nearest, shortened
from cellseg_jax.studies.comparable import SEEN_KEYS
from cellseg_jax.studies.study import applicable, located

EXAMPLE = ("{'space': {'optimizer.lr': log(1e-4, 1e-2)}, 'trials': 27}, with log, uniform, ints "
           "and choice of cellseg_jax.studies")
SAMPLERS = ("random", "optuna")
# What a score is measured on, and what the plan decides: trials would not compare.
FIXED = ("seed", "train.epochs", "train.steps", "train.best", "eval.", "data.split", "data.strata",
         "data.name", "data.root", "data.train_fraction", "data.only_size", "data.z",
         "data.num_classes", *SEEN_KEYS)
# What validation losses are of, beside the weights of the losses: a loss of another target is no
# better for being smaller.
LOSS_KEYS = ("loss.", "data.target", "data.num_rays", "data.contour_width", "data.weight_")
STREAM = 2**42  # Philox key; data.split and data.order have others
DIGITS = 4  # significant, of a drawn number
MOST_DRAWS = 100  # for a trial that is not there yet, before the space counts as exhausted


class Range(NamedTuple):
    """What a key may be; made by `log`, `uniform`, `ints` and `choice`."""

    kind: str  # log | uniform | int | log_int | choice
    low: float = 0.0
    high: float = 0.0
    choices: tuple = ()  # values, or (label, {dotted key: value})

    def at(self, u: float):
        """The value at u in [0, 1)."""
        if self.kind == "choice":
            return self.choices[int(u * len(self.choices))]
        if self.kind == "int":
            return int(self.low) + int(u * (self.high - self.low + 1))
        if self.kind == "log_int":
            return min(int(self.low * ((self.high + 1) / self.low) ** u), int(self.high))
        value = (self.low * (self.high / self.low) ** u if self.kind == "log"
                 else self.low + u * (self.high - self.low))
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """A number within the range, to four digits."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def ends(self) -> tuple:
        """Values that are checked before any run: both ends, or all choices."""
        return self.choices if self.kind == "choice" else (self.at(0.0), self.at(1 - 1e-9))


def log(low: float, high: float) -> Range:
    """A number from low to high, uniform in its logarithm, to four digits."""
    return Range("log", float(low), float(high))


def uniform(low: float, high: float) -> Range:
    """A number from low to high, to four digits."""
    return Range("uniform", float(low), float(high))


def ints(low: int, high: int, *, log: bool = False) -> Range:
    """A whole number from low to high, both included; with `log` uniform in its logarithm."""
    return Range("log_int" if log else "int", low, high)


def choice(*values) -> Range:
    """One of several values; or, of a mapping {label: {dotted key: value}}, one of its entries."""
    if len(values) == 1 and isinstance(values[0], Mapping):
        values = tuple((str(label), dict(changes)) for label, changes in values[0].items())
    return Range("choice", choices=values)


class Search(NamedTuple):
    """SEARCH of a study file, checked."""

    space: Mapping[str, Range]
    trials: int = 27  # of successive halving; other methods get as many steps
    eta: int = 3  # one of eta trials goes on at each rung
    rungs: int = 3  # validations that decide, the last one after a whole run
    seed: int = 0  # of the drawing
    sampler: str = "random"


def searched(found: Mapping, base) -> Search | None:
    """SEARCH of a study file as a Search; None without one.

    Raises: InputError for what makes no sense, also values that BASE cannot have.
    """
    if not found:
        return None
    if not isinstance(found, Mapping) or not isinstance(found.get("space"), Mapping) or (
            not found["space"]):
        raise InputError(f"SEARCH: got {shortened(found)}; expected {EXAMPLE}")
    for key in found:
        if key not in Search._fields:
            raise InputError(f"SEARCH: got {key!r}{nearest(key, Search._fields)}; expected "
                             f"{', '.join(Search._fields)}")
    search = Search(**found)
    for key, least in (("trials", 2), ("eta", 2), ("rungs", 1), ("seed", 0)):
        value = getattr(search, key)
        if type(value) is not int or value < least:
            raise InputError(f"SEARCH: {key} is {value!r}; expected a whole number, at least "
                             f"{least}")
    check_choice(search.sampler, SAMPLERS, "SEARCH: sampler")
    if not derived.has_part(base, "val"):
        raise InputError("SEARCH: BASE has no validation images (data.split), by which trials are "
                         "judged; expected some")
    for key, range_ in search.space.items():
        _check_range(key, range_, base)
    return search


def _check_range(key, range_, base) -> None:
    where = f"SEARCH[{key!r}]"
    if not isinstance(range_, Range):
        raise InputError(f"{where}: got {range_!r}; expected log(low, high), uniform(low, high), "
                         "ints(low, high) or choice(...)")
    whole = range_.kind in ("int", "log_int")
    if range_.kind == "choice":
        if len(set(map(repr, range_.choices))) < max(len(range_.choices), 2):
            raise InputError(f"{where}: got {range_.choices!r}; expected two distinct choices or "
                             "more")
    elif not (range_.low < range_.high and math.isfinite(range_.high)) or (
            range_.low <= 0 and "log" in range_.kind) or (
            whole and {type(range_.low), type(range_.high)} != {int}):
        raise InputError(f"{where}: got {range_.kind} from {range_.low} to {range_.high}; expected "
                         f"low below high{', whole numbers' * whole}"
                         f"{', above 0' * ('log' in range_.kind)}")
    # Options of the dataset say which images and labels there are.
    own = {f"data.{name}" for name in data.options(base.data.name)}
    own -= config_lib.flatten(config_lib.default()).keys()
    for value in range_.ends():
        changes = changes_of({key: value}, base)
        for changed in changes:
            fixed = [name for name in FIXED if changed == name or (
                name[-1] == "." or name == "data.split") and changed.startswith(name)]
            of_loss = base.train.best[0] == "loss" and changed.startswith(LOSS_KEYS)
            # Scores are means over classes there, and of all cells with other targets.
            of_classes = changed == "data.target" and "classes" in (
                {changes[changed]} ^ {base.data.target})
            if fixed or of_loss or of_classes or changed in own:
                raise InputError(f"{where}: sets {changed}, without which trials compare; expected "
                                 "keys that leave length, data and score as they are")
        located(where, config_lib.changed, base, changes)


def changes_of(values: Mapping, base) -> dict:
    """{dotted key: value} of a trial's {name in the space: value}.

    Keys that the trial's model or dataset does not have are left out.
    """
    changes = {}
    for key, value in values.items():
        labelled = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict)
        changes |= value[1] if labelled else {key: value}
    return applicable(changes, changes.get("model.name", base.model.name), base.data.name)


def drawn(search: Search, base, count: int, taken=()) -> list[dict]:
    """{name in the space: value} of up to `count` new trials, fewer where the space has no more.

    Trials that are equal in what they change are drawn once. The n-th draw of a seed is always the
    same, so that `taken`, the trials of before, decide where the drawing goes on.

    Args:
      taken: values of trials that are there already, in their order.
    """
    known = {repr(sorted(changes_of(values, base).items())) for values in taken}
    out, number, failed = [], 0, 0
    while len(out) < count and failed < MOST_DRAWS * (count + len(known)):
        words = np.random.Philox(key=[search.seed, STREAM + number]).random_raw(len(search.space))
        number += 1
        values = {key: range_.at(u) for (key, range_), u in zip(
            search.space.items(), (words >> np.uint64(11)) * 2.0**-53, strict=True)}
        text = repr(sorted(changes_of(values, base).items()))
        if text in known:
            failed += 1
            continue
        known.add(text)
        out.append(values)
    return out
