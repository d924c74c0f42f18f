"""One run from its config to its scores: what `main --mode=train` and `cellseg_jax.train` do."""

from cellseg_jax.cli.stopping import stopping_at_sigterm
from cellseg_jax.config import derived
from cellseg_jax.inference.score_run import score_after_training
from cellseg_jax.report import terminal
from cellseg_jax.train.loop import train
from cellseg_jax.train.result import Result


def train_and_score(config, workdir, split: str = "test", *, tuned: bool = False) -> Result:
    """Train or continue; then score the best checkpoint, unless that is done.

    Nothing is scored where training was interrupted or became non-finite.

    Args:
      split, tuned: as `score_run` takes them.
    """
    result = train([config], [workdir])[0]
    if result.status in ("interrupted", "non-finite"):
        return result
    if not derived.is_classical(config):
        terminal.log(f"{workdir}: training is {result.status} at step {result.step}")
    with stopping_at_sigterm():  # scoring can be done again from its start
        score_after_training(config, workdir, split, tuned=tuned)
    return result
