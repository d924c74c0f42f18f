"""Which trials of a search train for how long: pure functions, without any run.

Successive halving trains `trials` for a share eta^-(rungs - 1) of their steps, keeps the best
1 / eta of them for eta times as long, and so on to whole runs. Hyperband repeats it with fewer
trials that begin later, in case early scores mislead. Random search trains whole runs. The
learning-rate schedule of a trial is that of its whole run, also where it is stopped early.

Source: Jamieson and Talwalkar 2016 (successive halving); Li et al. 2018 (Hyperband).
"""

import math
from typing import NamedTuple

from cellseg_jax.errors import InputError

METHODS = ("halving", "hyperband", "random")
BATCH = 4  # trials of random search that are drawn together where earlier ones guide the sampler


class Bracket(NamedTuple):
    """Trials that are drawn together and compared at rungs."""

    shares: tuple[float, ...]  # of a run's steps at each rung, ascending to 1
    kept: tuple[int, ...]  # trials that train to each rung

    @property
    def cost(self) -> float:
        """Whole runs' worth of steps."""
        before = (0.0, *self.shares[:-1])
        return sum(n * (b - a) for n, a, b in zip(self.kept, before, self.shares, strict=True))


def plan_of(method: str, search, epochs: int = 0, every: int = 1) -> list[Bracket]:
    """The brackets of a method of METHODS; random search gets the steps of halving.

    Args:
      search: search_space.Search.
      epochs: of a whole run; 0: not known, rungs are where validations happen to come.
      every: epochs between two validations.
    Raises: InputError where rungs would fall on one validation.
    """
    bracket = lambda trials, first: _bracket(
        trials, search.eta, search.rungs - first, epochs, every)
    halving = bracket(search.trials, 0)
    if method == "halving":
        return [halving]
    if method == "random":
        count = max(2, math.floor(halving.cost + 1e-9))
        size = count if search.sampler == "random" else BATCH
        sizes = [size] * (count // size) + [count % size] * (count % size > 0)
        return [Bracket((1.0,), (n,)) for n in sizes]
    return [bracket(math.ceil(search.trials * search.rungs / (search.rungs - first)
                              / search.eta**first - 1e-9), first)
            for first in range(search.rungs)]


def _bracket(trials, eta, rungs, epochs, every) -> Bracket:
    shares = [float(eta) ** (k + 1 - rungs) for k in range(rungs)]
    if epochs:
        at = [min(math.ceil(share * epochs / every - 1e-9) * every, epochs) for share in shares]
        if len(set(at)) < len(at):
            raise InputError(
                f"SEARCH: rungs={rungs} with eta={eta} decide after {shares[0] * epochs:.2g} of "
                f"{epochs} epochs first, and validations come every {every}; expected fewer rungs, "
                f"or train.epochs of at least {every * eta ** (rungs - 1)}")
        shares = [one / epochs for one in at]
    return Bracket(tuple(shares), tuple(max(1, trials // eta**k) for k in range(rungs)))


def survivors(scores: dict, keep: int) -> list:
    """The trials with the best scores, best first; of equal ones the first trial.

    Args:
      scores: {trial: score}, larger is better; -inf or NaN: it diverged, and is not kept.
    """
    finite = [trial for trial, score in scores.items() if math.isfinite(score)]
    return sorted(finite, key=lambda trial: -scores[trial])[:keep]


def cut_among_equals(scores: dict, kept: list) -> bool:
    """Whether a trial that is not kept has the score of one that is."""
    return bool(kept) and any(score == scores[kept[-1]] for trial, score in scores.items()
                              if trial not in kept)
