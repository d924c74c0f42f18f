"""How often a search finds the best of a grid: successive halving against random search.

    python benchmarks/run.py search [--repeats=20] [--trained] [--folder=runs/benchmark_search]

All methods have equal steps, those of 7 or of 100 whole runs. Simulated are the 8,192 points of
report 1's grid: a point's true score is a sum of effects of its choices and of pairs of them; its
curve is a power law whose speed is the point's own, in the last case such that the best ones are
slow; each validation is noisy, and a run has luck of its own. With --trained also 32 points
(optimiser, rate, flips, loss) that are trained on synthetic cells, with two seeds each: the search
sees the validation curves of the first, the truth is the score of the second. Trials are drawn
`repeats` times.
"""

import pathlib

import numpy as np

from benchmarks.measuring import Result, Table
from cellseg_jax import config as config_lib
from cellseg_jax import studies, train
from cellseg_jax.studies.search.plan import METHODS, plan_of, survivors
from cellseg_jax.studies.search.space import Search
from cellseg_jax.studies.search.trials import score_at

OPTIONS = {
    "repeats": (20, "drawings of trials"),
    "trained": (False, "train a small grid too"),
    "folder": ("runs/benchmark_search", "of the trained runs"),
}
HEAD = ["whole runs", "rank correlation of first rung and truth", "method", "best decile",
        "best percentile", "below the best"]
LEVELS = (2, 4, 2, 4, 4, 4, 2, 4)  # choices of the factors of small_unet_grid.py


def searched(method, search, points, score, rng) -> int:
    """The point that a search chooses: points are drawn, score(point, share) is what it sees."""
    best = {}
    taken = rng.permutation(points)
    for bracket in plan_of(method, search):
        going, taken = taken[: bracket.kept[0]].tolist(), taken[bracket.kept[0] :]
        for rung, share in enumerate(bracket.shares):
            seen = {point: score(point, share) for point in going}
            last = rung + 1 == len(bracket.shares)
            going = survivors(seen, len(going) if last else bracket.kept[rung + 1])
        best |= {point: seen[point] for point in going}
    return survivors(best, 1)[0]


class Simulated:
    """Points of a grid with true scores and curves."""

    def __init__(self, rng, slowness: float, aligned: float, run_sd=0.01, image_sd=0.005):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in LEVELS), indexing="ij"), -1)
        index = index.reshape(-1, len(LEVELS))
        self.points, self.rng, self.image_sd = len(index), rng, image_sd
        effect = lambda sd: self._effects(index, sd)
        final = effect(1.0) + self._pairs(index, 0.5)
        final, own = map(self._standard, (final, effect(1.0) + self._pairs(index, 0.5)))
        slow = slowness * (aligned * final + (1 - aligned**2) ** 0.5 * own)
        self.truth = 0.75 + 0.05 * final
        self.seen = self.truth + rng.normal(0, run_sd, self.points)
        self.exponent = 0.5
        self.gap = 0.03 * np.exp(slow)

    def _effects(self, index, sd):
        return sum(self.rng.normal(0, sd, n)[index[:, k]] for k, n in enumerate(LEVELS))

    def _pairs(self, index, sd):
        total = 0.0
        for a in range(len(LEVELS)):
            for b in range(a):
                total += self.rng.normal(0, sd, (LEVELS[a], LEVELS[b]))[index[:, a], index[:, b]]
        return total

    @staticmethod
    def _standard(x):
        return (x - x.mean()) / x.std()

    def score(self, point, share):
        """What a validation shows."""
        return self.seen[point] - self.gap[point] * (share**-self.exponent - 1) + self.rng.normal(
            0, self.image_sd)

    def correlation(self, share) -> float:
        """Of ranks at a share and of the truth."""
        early = self.seen - self.gap * (share**-self.exponent - 1)
        ranks = [np.argsort(np.argsort(x)) for x in (early, self.truth)]
        return float(np.corrcoef(*ranks)[0, 1])


def simulated(repeats: int) -> list[list]:
    """A row per number of whole runs, slowness and method."""
    rows = []
    for trials, rungs in ((27, 3), (900, 4)):
        for slowness, aligned in ((0.0, 0.0), (0.6, 0.0), (2.0, 0.0), (1.0, 0.9)):
            grids = [Simulated(np.random.default_rng(seed), slowness, aligned)
                     for seed in range(repeats)]
            for method in METHODS:
                # The brackets of Hyperband share the steps.
                share = rungs if method == "hyperband" else 1
                search = Search({}, trials=max(trials // share, 9), eta=3, rungs=rungs)
                rows.append(_row(grids, method, search, 3.0 ** (1 - rungs)))
    return rows


def _row(grids, method, search, first) -> list:
    """A method on grids, each with a drawing of its own."""
    chosen = [searched(method, search, grid.points, grid.score, np.random.default_rng(1000 + seed))
              for seed, grid in enumerate(grids)]
    above = np.array([np.mean(grid.truth > grid.truth[point])
                      for grid, point in zip(grids, chosen, strict=True)])
    regret = np.mean([grid.truth.max() - grid.truth[point]
                      for grid, point in zip(grids, chosen, strict=True)])
    cost = sum(bracket.cost for bracket in plan_of(method, search))
    rho = np.mean([grid.correlation(first) for grid in grids])
    return [f"{cost:.0f}", f"{rho:.2f}", method, f"{np.mean(above < 0.1):.2f}",
            f"{np.mean(above < 0.01):.2f}", f"{regret:.4f}"]


def trained(repeats: int, out: pathlib.Path) -> list[list]:
    """Train a small grid on synthetic cells; rows of searches in what was recorded."""
    base = config_lib.default()
    base.data = dict(name="synthetic", size=(32, 32), count=60, split=(0.6, 0.4, 0.0))
    base.model = dict(name="simple_conv")
    base.train.epochs, base.train.batch_size, base.eval.batch_size = 9, 6, 24
    base = config_lib.complete(base)
    grid = studies.Grid({
        "optimizer.name": ("adam", "sgd"), "optimizer.lr": (3e-2, 1e-2, 1e-3, 1e-4),
        "augment.flip_horizontal": {"plain": (0.0, 1.0), "flips": (0.5, 1.0)},
        "loss.focal": (0.0, 1.0)})
    configs = [config_lib.changed(base, {**grid[row], "seed": seed})
               for seed in range(2) for row in grid]
    folders = [out / row / str(seed) for seed in range(2) for row in grid]
    train.train(configs, folders)
    score = lambda point, share: score_at(folders[point], configs[point], share)[1]
    truth = np.array([score(len(grid) + point, 1.0) for point in range(len(grid))])
    ranked, rows = lambda scores: np.argsort(np.argsort(scores)), []
    for trials, rungs in ((18, 3), (9, 2)):  # the first one after 1 and after 3 of 9 epochs
        search = Search({}, trials=trials, eta=3, rungs=rungs)
        first = [score(point, 3.0 ** (1 - rungs)) for point in range(len(grid))]
        rho = np.corrcoef(ranked(first), ranked(truth))[0, 1]
        for method in ("halving", "random"):
            chosen = [searched(method, search, len(grid), score, np.random.default_rng(seed))
                      for seed in range(repeats)]
            above = np.array([np.sum(truth > truth[point]) for point in chosen])
            cost = sum(bracket.cost for bracket in plan_of(method, search))
            rows.append([f"{cost:.2g}", f"{rho:.2f}", method,
                         f"{np.mean(above < len(grid) // 10):.2f}", f"{np.mean(above < 1):.2f}",
                         f"{np.mean(truth.max() - truth[chosen]):.4f}"])
    return rows


def measure(options) -> Result:
    """Both tables."""
    tables = [Table(HEAD, simulated(options.repeats), "Simulated, 8,192 points:")]
    if options.trained:
        tables.append(Table([*HEAD[:4], "best of all", HEAD[5]],
                            trained(options.repeats, pathlib.Path(options.folder)),
                            "Trained, 32 points (the best decile is 3):"))
    return Result(tables, [f"{options.repeats} drawings of trials."])
