"""Search for a config: trials that are stopped where others are better, and the winner re-run.

    python -m cellseg_jax.study --study=FILE --workdir=DIR --search=halving|hyperband|random

In DIR/search/<method>:

    trials/t000/     a run for each trial, stopped ones included; `cellseg_jax.predict` reads them
    books.json, .csv who was stopped when, at which score, of which seed
    rerun/           a study of two rows, BASELINE and "found", with seeds and splits that the
                     search did not use; its verdict is what the search has shown
    result.json      the winner, its score in the search and re-run, and the verdict

Trials are compared by their best validation score so far (train.best); test images have no part in
it. What is decided follows from the runs' logs and the seed alone, so that a search that was ended
at any moment goes on to the same books and the same winner.
"""

import json
import math
import pathlib

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.cli.stopping import INTERRUPTED, stopping_at_sigterm
from cellseg_jax.errors import InputError, check_choice
from cellseg_jax.files import read_json, read_jsonl, write_atomic, write_csv
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import METRICS_LOG, RESULT_FILE
from cellseg_jax.studies import launch
from cellseg_jax.studies import table as tables
from cellseg_jax.studies.file import config_of
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.search import optuna_sampler
from cellseg_jax.studies.search.plan import METHODS, cut_among_equals, plan_of, survivors
from cellseg_jax.studies.search.space import EXAMPLE, changes_of, drawn
from cellseg_jax.train.rungs import Rungs

FOLDER, TRIALS, RERUN = "search", "trials", "rerun"
BOOKS = "books.json"
FOUND = "found"  # the row of the winner
FRESH = 10**6  # added to the seeds of re-runs
EPSILON = 1e-9


def command(study, workdir, args, repeats: int) -> int:
    """What the flag --search does; the exit code.

    Raises: InputError for flags that a search does not have.
    """
    for name in ("rows", "task", "collect"):
        if getattr(args, name):
            raise InputError(f"--{name}: not together with --search; leave one of the two out")
    if args.dry_run:
        return describe(study, args.search, repeats)
    with stopping_at_sigterm():  # while no training, which handles it itself, is under way
        return run(study, workdir, args.search, repeats=repeats, smoke=args.smoke,
                   backend=args.backend, slots=args.slots)


def run(study, workdir, method: str, *, repeats: int, smoke: bool = False, backend: str = "",
        slots: int = 0) -> int:
    """Search, re-run the winner and the baseline, and write what was found; the exit code.

    Args:
      repeats: of the winner and the baseline.
      smoke, backend, slots: as launch.run has them.
    Raises: InputError without SEARCH, or in the folder of another search.
    """
    plan = plan_of_study(study, method, smoke)
    folder = pathlib.Path(workdir) / FOLDER / method
    books = Books(study, folder, method, smoke)
    for number, bracket in enumerate(plan):
        if not _train_bracket(books, number, bracket, backend, slots):
            terminal.log("stopped after saving, or another process has a run; the same command "
                         "continues")
            return INTERRUPTED
    winner = books.winner()
    rerun = rerun_study(study, winner["values"])
    code = launch.run(rerun, folder / RERUN, None, repeats, (0, 1), smoke=smoke, backend=backend,
                      slots=slots)
    if code:
        return code
    result = _result(rerun, folder, books, winner, repeats, smoke)
    write_atomic(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return launch.collect(rerun, folder / RERUN, None, repeats, smoke=smoke,
                          notes=sentences(result))


def plan_of_study(study, method: str, smoke: bool = False):
    """The plan of a study's search. Raises InputError without SEARCH, or for another method."""
    check_choice(method, METHODS, "--search")
    if study.search is None:
        raise InputError(f"--search: {study.name} has no SEARCH; expected in the study file "
                         f"SEARCH = {EXAMPLE}")
    if study.baseline == FOUND:
        raise InputError(f"--search: the baseline is called {FOUND!r}, as the row of what a search "
                         "finds is; rename it")
    weights = config_of(study, study.baseline, 0).train.weights
    if weights.startswith("row:"):
        raise InputError(f"--search: the baseline starts from the weights of {weights}, a row that "
                         "a search does not train; set its train.weights to the folder of a run")
    options, wanted = study.base.train, study.search
    if smoke:  # two steps each: as few trials as there are decisions
        few = min(wanted.trials, wanted.eta ** (wanted.rungs - 1))
        return plan_of(method, wanted._replace(trials=max(2, few)))
    return plan_of(method, wanted, 0 if options.steps else options.epochs, study.base.eval.every)


def describe(study, method: str, repeats: int) -> int:
    """Print what a search would train; the exit code."""
    plan = plan_of_study(study, method)
    rows = [(str(number), str(kept), f"{share:.3g}") for number, bracket in enumerate(plan)
            for share, kept in zip(bracket.shares, bracket.kept, strict=True)]
    terminal.print_table(f"{study.title}: search by {method}",
                         ("bracket", "trials", "share of a run"), rows)
    print(f"as many steps as {sum(b.cost for b in plan):.3g} whole runs, and then {2 * repeats} "
          f"runs of the winner and of {study.baseline}")
    return 0


# --- the trials -----------------------------------------------------------------------------------


class Books:
    """The trials of a search, what is known of them, and the files that say so.

    Args:
      folder: of the search; that of another search is refused.
    """

    def __init__(self, study, folder: pathlib.Path, method: str, smoke: bool):
        self.study, self.folder, self.smoke = study, folder, smoke
        self.trials: list[dict] = []
        search = study.search
        self.head = json.loads(json.dumps({
            "study": study.name, "method": method,
            "search": {**search._asdict(),
                       "space": {key: list(range_) for key, range_ in search.space.items()}},
            "base": config_lib.identity(study.base), "smoke": smoke,
            "score": list(study.base.train.best)}))
        before = read_json(folder / BOOKS, {})
        changed = [key for key in self.head if before and before.get(key) != self.head[key]]
        if changed:
            raise InputError(f"--workdir: {folder} holds a search with another {changed[0]}; "
                             "restore it, or use another --workdir")
        if not before:  # else it stays until more is known
            self.write()

    def begin_bracket(self, number: int, count: int) -> list[dict]:
        """New trials, drawn when all of before are known."""
        values = [trial["values"] for trial in self.trials]
        if self.study.search.sampler == "random":
            new = drawn(self.study.search, self.study.base, count, values)
        else:
            new = optuna_sampler.asked(self, count)
        for one in new:
            name = f"t{len(self.trials):03d}"
            config = self.config({"values": one, "trial": name})
            self.trials.append({
                "trial": name, "bracket": number, "values": one,
                "seed": config.seed, "split_seed": config.data.split_seed,
                "config": config_lib.identity(config), "rungs": []})
        return [trial for trial in self.trials if trial["bracket"] == number]

    def config(self, trial):
        """The config of a trial's run."""
        row = trial["trial"]
        one = self.study._replace(
            rows={row: changes_of(trial["values"], self.study.base)}, folds=None)
        return config_of(one, row, 0, smoke=self.smoke)

    def run_folder(self, trial) -> pathlib.Path:
        """Of a trial's run."""
        return self.folder / TRIALS / trial["trial"]

    def write(self) -> None:
        """Both files, as far as it is known."""
        lines = [{"trial": trial["trial"], "bracket": trial["bracket"], "seed": trial["seed"],
                  "split_seed": trial["split_seed"], **rung,
                  **{key: _shown(value) for key, value in trial["values"].items()}}
                 for trial in self.trials for rung in trial["rungs"]]
        steps = sum(trial["rungs"][-1]["step"] for trial in self.trials if trial["rungs"])
        self.folder.mkdir(parents=True, exist_ok=True)
        if lines:
            write_csv(self.folder / "books.csv", lines)
        write_atomic(self.folder / BOOKS, json.dumps(
            {**self.head, "steps": steps, "trials": self.trials}, indent=1) + "\n")

    def winner(self) -> dict:
        """The trial of the best score among those that trained to their end.

        Raises: InputError where none has a finite score.
        """
        scores = {n: -math.inf if trial["rungs"][-1]["score"] is None else
                  self.sign * trial["rungs"][-1]["score"] for n, trial in enumerate(self.trials)
                  if trial["rungs"][-1]["share"] >= 1}
        best = survivors(scores, 1)
        if not best:
            raise InputError(f"SEARCH: no trial ended with a finite {self.study.base.train.best[0]}"
                             f"; {self.folder / BOOKS} has what became of them. Expected lower "
                             "learning rates")
        return self.trials[best[0]]

    @property
    def sign(self) -> float:
        """1 where a larger score is better, -1 where a smaller one is."""
        return 1.0 if self.study.base.train.best[1] == "max" else -1.0


def _train_bracket(books: Books, number: int, bracket, backend, slots) -> bool:
    """Train the trials of a bracket from rung to rung; whether that ended, not was interrupted."""
    trials = books.begin_bracket(number, bracket.kept[0])
    configs = [books.config(trial) for trial in trials]
    folders = [books.run_folder(trial) for trial in trials]
    rungs = Rungs(configs, folders, backend=backend, slots=slots)
    going = list(range(len(trials)))
    for rung, share in enumerate(bracket.shares):
        reached = lambda n, share=share: score_at(folders[n], configs[n], share)
        waiting = {n: share for n in going if reached(n) is None}
        if waiting:
            terminal.log(f"--- search, bracket {number}, rung {rung}: {len(waiting)} of "
                         f"{len(going)} trials train to {share:.3g} of their steps")
            ended = rungs.train(waiting)
            if len(ended) < len(waiting) or {"interrupted", "in use"} & {
                    one.status for one in ended.values()}:
                return False
        at = {n: reached(n) for n in going}
        scores = {n: score for n, (_, score) in at.items()}
        last = rung + 1 == len(bracket.shares)
        kept = survivors(scores, len(going) if last else bracket.kept[rung + 1])
        if cut_among_equals(scores, kept):
            terminal.log(f"bracket {number}, rung {rung}: trials with equal scores of "
                         f"{abs(scores[kept[-1]]):.4f} were parted by their number; networks that "
                         "have learned something differ: fewer rungs or more train.epochs help")
        for n in going:
            step, score = at[n]
            word = "diverged" if not math.isfinite(score) else (
                "ended" if last else "goes on" if n in kept else "stopped")
            trials[n]["rungs"].append({
                "rung": rung, "share": share, "step": step, "decision": word,
                "score": books.sign * score if math.isfinite(score) else None})
        going = sorted(kept)
        books.write()
    if books.study.search.sampler != "random":
        optuna_sampler.tell(books, trials)
    return True


def score_at(folder, config, share: float) -> tuple[int, float] | None:
    """(step, score) of a run at the first validation at which a share of it is done.

    The score is the best one so far, larger is better, as early stopping judges it; -inf: the run
    became non-finite. None where the run has not come so far. A run that ended early has its last
    step and best score at all later shares.
    """
    metric, direction = config.train.best
    sign, best = (1.0 if direction == "max" else -1.0), -math.inf
    for line in read_jsonl(folder / METRICS_LOG, []):
        if line.get(f"val_{metric}") is None:
            continue
        best = max(best, sign * float(np.float32(line[f"val_{metric}"])))
        done = (line["step"] / config.train.steps if config.train.steps
                else line["epoch"] / config.train.epochs)
        if done >= share - EPSILON:
            return line["step"], best
    result = read_json(folder / RESULT_FILE, {})
    if not result:
        return None
    return result["step"], -math.inf if result["status"] == "non-finite" else best


# --- the winner -----------------------------------------------------------------------------------


def rerun_study(study, values):
    """The study of two rows that decides: the baseline, and the winner's values, all seeds fresh.

    Repeats draw splits of their own where the study's data.split is fractions.
    """
    base = study.base
    varies = study.varies
    if not isinstance(base.data.split, str) and study.folds is None:
        varies = tuple(dict.fromkeys((*varies, "data.split_seed")))
    base = config_lib.changed(base, {key: config_lib.flatten(base)[key] + FRESH
                                     for key in ("seed", "data.split_seed")})
    baseline = study.rows[study.baseline]
    if isinstance(study.rows, Grid):  # without keys that only other models have
        baseline = changes_of(baseline, study.base)
    rows = {study.baseline: baseline, FOUND: changes_of(values, study.base)}
    return study._replace(base=base, rows=rows, varies=varies, claims=(), reference={},
                          learning_curve={}, title=f"{study.title}: what the search found")


def _result(rerun, folder, books: Books, winner, repeats, smoke) -> dict:
    """result.json."""
    metric, direction = rerun.base.train.best
    table = tables.collect(rerun, folder / RERUN, repeats=repeats, smoke=smoke)
    row = next(one for one in table.rows if one.name == FOUND)
    again = [score_at(folder / RERUN / FOUND / str(repeat),
                      config_of(rerun, FOUND, repeat, smoke=smoke), 1.0)
             for repeat in range(repeats)]
    ended = [books.sign * score for _, score in filter(None, again)]
    again = [score for score in ended if math.isfinite(score)]
    before, headline = winner["rungs"][-1]["score"], rerun.metrics[0]
    mean = float(np.mean(again)) if again else None
    compared = row.compared[headline]
    return {
        "method": books.head["method"], "trials": len(books.trials),
        "stopped": sum(trial["rungs"][-1]["share"] < 1 for trial in books.trials),
        "steps": sum(trial["rungs"][-1]["step"] for trial in books.trials),
        "winner": winner["trial"], "values": winner["values"], "baseline": rerun.baseline,
        "metric": f"val_{metric}", "search_score": before, "rerun_scores": again,
        "rerun_diverged": len(ended) - len(again),
        "rerun_mean": mean, "rerun_sd": float(np.std(again, ddof=1)) if len(again) > 1 else None,
        "optimism": None if mean is None else books.sign * (before - mean),
        "test_metric": headline, "verdict": row.verdicts[headline],
        "difference": compared and compared.difference,
        "interval": compared and list(compared.interval), "p": compared and compared.p,
        "same_split": isinstance(rerun.base.data.split, str) and rerun.folds is None}


def sentences(result: dict) -> list[str]:
    """What result.json says, for a reader."""
    values = ", ".join(f"{key}={_shown(value)}" for key, value in result["values"].items())
    out = [f"Search by {result['method']}: {result['trials']} trials, {result['stopped']} of them "
           f"stopped before their end, {result['steps']} steps. Row {FOUND} is trial "
           f"{result['winner']}: {values}."]
    if result["optimism"] is not None:
        spread = f" ± {result['rerun_sd']:.4f}" if result["rerun_sd"] is not None else ""
        diverged = result["rerun_diverged"]
        spread += f", without {diverged} that diverged" * (diverged > 0)
        out.append(
            f"In the search it had a {result['metric']} of {result['search_score']:.4f}, the best "
            f"of {result['trials']} trials; {len(result['rerun_scores'])} re-runs with fresh seeds"
            f"{'' if result['same_split'] else ' and splits'} have {result['rerun_mean']:.4f}"
            f"{spread}. The optimism of the selection, by how much its score is better than "
            f"theirs, is {result['optimism']:+.4f}; the table has re-runs alone.")
    out.append(
        "The test images are those of the search's data.split, which no trial was judged on."
        if result["same_split"] else
        "Splits are drawn anew from the same images, so that most test images of the re-runs had "
        "a part in the search: the verdict holds for networks trained anew on images such as "
        "these.")
    return out


def _shown(value) -> str:
    """A value of a trial; of a choice of mappings its label."""
    labelled = isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], dict)
    return str(value[0] if labelled else value)
