"""The scores of a run with their report: taken again only where something has changed."""

import contextlib
import pathlib

import jax

from cellseg_jax.config import derived
from cellseg_jax.data.split import PARTS
from cellseg_jax.errors import check_choice
from cellseg_jax.files import interpreting
from cellseg_jax.inference import tune
from cellseg_jax.inference.evaluate import evaluate, read_scores
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.report import terminal
from cellseg_jax.runs import checkpoint, page
from cellseg_jax.runs.folder import CHECKPOINTS, read_config, scores_file
from cellseg_jax.runs.lock import Lock
from cellseg_jax.runs.score_table import print_scores


def score_after_training(config, workdir, split: str = "test", *, tuned: bool = False) -> None:
    """`score_run`, if the config leaves images to test on; else the report alone."""
    if derived.has_part(config, "test"):
        score_run(config, workdir, split, tuned=tuned)
    else:
        terminal.log("no test split (config.data.split), so no scores")
        page.write_run_page(pathlib.Path(workdir))


def score_run(config, workdir, split: str, *, tuned: bool = False, metric: str = "") -> dict:
    """Score a split, unless that is done, print the scores and write the report.

    Args:
      config: of the run, or with other data.
      split: train | val | test; of other data than trained on also all.
      tuned: decode with the options that were found on the validation images.
      metric: of tune.METRICS: find these options first, unless they were, and use them.
    Raises: InputError as `evaluate`; with `tuned`, where no options were found.
    """
    check_choice(split, (*PARTS, "all"), "--split")
    is_main_process = jax.process_index() == 0
    own = read_config(workdir)  # before the lock makes a folder of a misspelt name
    if metric:
        tune.tune(Predictor(workdir, own), metric)
    if tuned or metric:
        config = _tuned(config, workdir, own)
    with Lock(workdir) if is_main_process else contextlib.nullcontext():
        scores = read_scores(workdir, split, config)
        if scores is None:
            scores = evaluate(config, workdir, split=split)
        else:
            terminal.log(f"{workdir}: scored before, from the same checkpoint, data and code")
        if scores["name"] != split:
            terminal.log(f"{config.data.name}: other data than the run was trained on"
                         + _warning(scores))
        with interpreting(scores_file(workdir, scores["name"])):
            print_scores(scores)
        if is_main_process:
            terminal.log(f"report: {page.write_run_page(workdir, scores['name'])}")
    return scores


def _tuned(config, workdir, own):
    """The config with the decoding options of tuning.json; `own` is the run's config."""
    saved = checkpoint.saved_steps(pathlib.Path(workdir) / CHECKPOINTS)
    tuning = tune.read(workdir, own, saved.get("best", 0))
    terminal.log(tune.sentence(tuning))
    return tune.apply(config, tuning)


def _warning(scores: dict) -> str:
    known = scores["names_of_training_images"]
    if not known:
        return ""
    return (f"; WARNING: {known} of {scores['n_images']} images have the names of training images: "
            "such scores do not hold for new images")
