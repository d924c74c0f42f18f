"""What validations decide: the best checkpoint, early stopping, a learning rate that plateaus.

The result is kept on the host and saved beside the state in every checkpoint. The device gets two
results of it: TrainState.stop, and the learning rate among TrainState.values.
"""

import dataclasses
import math

import numpy as np

from cellseg_jax import optim


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the validations of a run have shown so far; larger scores are better."""

    best: float = -math.inf  # score
    waited: int = 0  # validations since the best
    previous_loss: float = math.inf  # of the last validation
    plateau: dict = dataclasses.field(default_factory=lambda: dict(optim.PLATEAU))

    @classmethod
    def restored(cls, saved: dict) -> "Judgement":
        """Of what to_json gave."""
        return cls(**{**saved, "plateau": saved.get("plateau") or dict(optim.PLATEAU)})

    def to_json(self) -> dict:
        """What a checkpoint keeps: exact, since JSON keeps every digit of a float."""
        return dataclasses.asdict(self)


def judge(before: Judgement, scores: dict, config, epochs: float) -> tuple[Judgement, bool, bool]:
    """What is known after one more validation, whether it is the best, whether to stop early.

    Args:
      scores: {metric of config.VALIDATION_METRICS: value}.
      epochs: of training so far.
    """
    best, waited = best_score(before, _score(scores, config.train.best))
    loss = _score(scores, ("loss", "max"))
    stop = stops_early(config.train, waited, epochs, loss, before.previous_loss)
    plateau = before.plateau
    if config.optimizer.schedule == "plateau":
        plateau = lowered(plateau, _score(scores, config.optimizer.plateau_metric), config)
    return Judgement(best, waited, loss, plateau), waited == 0, stop


def best_score(before: Judgement, score: float) -> tuple[float, int]:
    """The best score and the validations since then; an equal score is not better."""
    return (score, 0) if score > before.best else (before.best, before.waited + 1)


def stops_early(options, waited: int, epochs: float, loss: float, previous_loss: float) -> bool:
    """Whether training stops now, by config.train.early_stopping in its two readings.

    "patience": so many validations in a row were not the best. "minimum": after at least so many
    epochs, the validation loss is not below the one before.
    """
    if not options.early_stopping:
        return False
    if options.early_stopping_mode == "minimum":
        return epochs >= options.early_stopping and loss >= previous_loss
    return waited >= options.early_stopping


def lowered(plateau: dict, score: float, config) -> dict:
    """The state of optim.reduce_on_plateau after one more score."""
    optimizer, number = config.optimizer, _number_type(config)
    # Rounded like the learning rate itself, so that the logged rates are those of the device.
    rounded = lambda state: {**state, "scale": number(state["scale"]),
                             "best": number(state["best"])}
    after = rounded(optim.reduce_on_plateau(
        rounded(plateau), score, lr=optimizer.lr, factor=optimizer.plateau_factor,
        patience=optimizer.plateau_patience, cooldown=optimizer.plateau_cooldown,
        min_lr=optimizer.plateau_min_lr))
    return {**after, "scale": float(after["scale"]), "best": float(after["best"])}


def learning_rate(judgement: Judgement, config):
    """The rate that the schedule scales, in the precision of training."""
    number = _number_type(config)
    return number(config.optimizer.lr) * number(judgement.plateau["scale"])


def _score(scores: dict, wanted: tuple[str, str]) -> float:
    """The metric with the sign that makes larger better."""
    metric, direction = wanted
    # Scores that are equal in float32 are ties.
    return float(np.float32(scores[metric] if direction == "max" else -scores[metric]))


def _number_type(config):
    return np.float64 if config.train.precision == "float64" else np.float32
