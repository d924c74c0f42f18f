"""Trials of a search that Optuna proposes, from the trials of before; an optional dependency.

Optuna keeps what it knows in SEARCH/optuna.db. Proposal number n is made by a sampler with the
seed of the search plus n, so that a search which was ended at any moment gets the same ones.
"""

import functools

from cellseg_jax.errors import InputError

STORAGE = "optuna.db"
NAME = "search"


def asked(books, count: int) -> list[dict]:
    """{name in the space: value} of the next `count` trials; those asked for before come first."""
    first, out = len(books.trials), []
    for number in range(first, first + count):
        study = _study(books, number)
        known = study.get_trials(deepcopy=False)
        trial = known[number] if number < len(known) else study.ask(
            {key: _distribution(range_) for key, range_ in books.study.search.space.items()})
        out.append({key: _value(range_, trial.params[key])
                    for key, range_ in books.study.search.space.items()})
    return out


def tell(books, trials) -> None:
    """The scores of trials, which are known now; of stopped ones that they were."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    study = _study(books, 0)
    for trial in trials:
        number, score = int(trial["trial"][1:]), trial["rungs"][-1]["score"]
        if study.get_trials(deepcopy=False)[number].state.is_finished():
            continue
        if score is None:
            study.tell(number, state=states.FAIL)
        elif trial["rungs"][-1]["share"] >= 1:
            study.tell(number, score)
        else:
            study.tell(number, state=states.PRUNED)


def _study(books, number: int):
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=_storage(books.folder), study_name=NAME, load_if_exists=True,
        direction="maximize" if books.sign > 0 else "minimize",
        sampler=optuna.samplers.TPESampler(seed=books.study.search.seed + number))


@functools.lru_cache(maxsize=1)  # opening takes a second
def _storage(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return _optuna().storages.RDBStorage(f"sqlite:///{folder / STORAGE}")


def _distribution(range_):
    of = _optuna().distributions
    if range_.kind == "choice":  # by number: values may be tuples and mappings
        return of.CategoricalDistribution(tuple(range(len(range_.choices))))
    if range_.kind in ("int", "log_int"):
        return of.IntDistribution(range_.low, range_.high, log=range_.kind == "log_int")
    return of.FloatDistribution(range_.low, range_.high, log=range_.kind == "log")


def _value(range_, found):
    if range_.kind == "choice":
        return range_.choices[found]
    return found if range_.kind in ("int", "log_int") else range_.rounded(found)


def _optuna():
    try:
        import optuna  # an optional dependency
    except ImportError:
        raise InputError("SEARCH: sampler='optuna' needs Optuna: pip install cellseg_jax[search], "
                         "or expected sampler='random'") from None
    return optuna
