"""How often does a search find the best of a grid? Successive halving against random search.

    python benchmarks/search.py                      simulated, the 8,192 points of report 1's grid
    python benchmarks/search.py --real --out=DIR     32 points that are trained, on synthetic cells

All methods have equal steps, those of 7 or of 100 whole runs. Simulated: a point's true score is a
sum of effects of its choices and of pairs of them; its curve is a power law whose speed is the
point's own, in the last case such that the best ones are slow; each validation is noisy, and a run
has luck of its own. Real: each point is trained with two seeds; the search sees the validation
curves of the first, the truth is the score of the second. Trials are drawn 20 times.
"""

import argparse
import pathlib

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import studies, train
from cellseg_jax.studies.search import score_at
from cellseg_jax.studies.search_plan import METHODS, plan_of, survivors
from cellseg_jax.studies.search_space import Search

GRID = pathlib.Path(__file__).resolve().parents[1] / "configs/studies/small_unet_grid.py"
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


def simulate(repeats: int) -> None:
    """Print a line per number of whole runs, slowness and method."""
    print("| whole runs | rank correlation of first rung and truth | method | best decile | best "
          "percentile | below the best |\n| --- | --- | --- | --- | --- | --- |")
    for trials, rungs in ((27, 3), (900, 4)):
        for slowness, aligned in ((0.0, 0.0), (0.6, 0.0), (2.0, 0.0), (1.0, 0.9)):
            grids = [Simulated(np.random.default_rng(seed), slowness, aligned)
                     for seed in range(repeats)]
            for method in METHODS:
                # The brackets of Hyperband share the steps.
                share = rungs if method == "hyperband" else 1
                search = Search({}, trials=max(trials // share, 9), eta=3, rungs=rungs)
                print(_line(grids, method, search, 3.0 ** (1 - rungs)), flush=True)


def _line(grids, method, search, first) -> str:
    """A line of the table: a method on grids, each with a drawing of its own."""
    chosen = [searched(method, search, grid.points, grid.score, np.random.default_rng(1000 + seed))
              for seed, grid in enumerate(grids)]
    above = np.array([np.mean(grid.truth > grid.truth[point])
                      for grid, point in zip(grids, chosen, strict=True)])
    regret = np.mean([grid.truth.max() - grid.truth[point]
                      for grid, point in zip(grids, chosen, strict=True)])
    cost = sum(bracket.cost for bracket in plan_of(method, search))
    rho = np.mean([grid.correlation(first) for grid in grids])
    return (f"| {cost:.0f} | {rho:.2f} | {method} | {np.mean(above < 0.1):.2f} | "
            f"{np.mean(above < 0.01):.2f} | {regret:.4f} |")


def real(repeats: int, out: pathlib.Path) -> None:
    """Train a part of report 1's grid on synthetic cells, and search in what was recorded."""
    study = studies.load(GRID)
    base = config_lib.changed(study.base, {
        "data.name": "synthetic", "data.size": (32, 40), "data.count": 60, "data.mix": (),
        "data.copies": 0, "data.augment_before_grid": False, "data.grid": 1,
        "data.split": (0.5, 0.2, 0.3), "data.train_fraction": 1.0, "data.keep_blank": True,
        "train.steps": 0, "train.epochs": 9, "train.batch_size": 5, "eval.batch_size": 20,
        "eval.panels": 0, "eval.every": 1, "train.best": ("dice_mean", "max"),
        "loss.class_weights": (1.0, 1.0, 1.0)})
    grid = studies.Grid({
        "optimizer.name": ("adam", "sgd"), "optimizer.lr": (1e-2, 1e-3, 1e-4, 5e-5),
        "model.dropout": (0.3, 0.5), "augment.flip_horizontal": {"plain": (0.0, 1.0),
                                                                 "flips": (0.5, 1.0)}})
    configs = [config_lib.changed(base, {**grid[row], "seed": seed})
               for seed in range(2) for row in grid]
    folders = [out / row / str(seed) for seed in range(2) for row in grid]
    train.train(configs, folders)
    score = lambda point, share: score_at(folders[point], configs[point], share)[1]
    truth = np.array([score(len(grid) + point, 1.0) for point in range(len(grid))])
    search = Search({}, trials=18, eta=3, rungs=3)
    cost = plan_of("halving", search)[0].cost
    print(f"{len(grid)} points, true Dice {np.sort(truth)[::-1].round(3).tolist()}; halving "
          f"{cost:.2f} whole runs, {repeats} repeats")
    for method in ("halving", "random"):
        chosen = [searched(method, search, len(grid), score, np.random.default_rng(seed))
                  for seed in range(repeats)]
        ranks = np.array([np.sum(truth > truth[point]) for point in chosen])
        print(f"{method}: best decile ({len(grid) // 10} points) {np.mean(ranks < len(grid) // 10)}"
              f", below the best by {np.mean(truth.max() - truth[chosen]):.4f}")


def main():
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark_search"))
    options = parser.parse_args()
    if options.real:
        real(options.repeats, options.out)
    else:
        simulate(options.repeats)


if __name__ == "__main__":
    main()
