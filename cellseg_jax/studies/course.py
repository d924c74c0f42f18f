"""The course of training as numbers: how fast, how steady, how far it overfits.

Taken from a run's metrics.jsonl and test scores, for columns (METRICS) and claims of a study.
"""

import math

import numpy as np

COURSE = {  # metric: definition
    "epochs_to_95": "epochs until the validation Dice first reaches 95 % of its best, which is "
                    "above 0",
    "train_loss": "training loss of the last epoch, with dropout and augmentation",
    "val_loss": "validation loss of the last epoch",
    "val_loss_rise": "validation loss of the last epoch minus its lowest: how far a run that is "
                     "not stopped overfits or diverges",
    "val_loss_spread": "unsteadiness of the validation loss over the last half of the epochs: root "
                       "mean square of its steps from epoch to epoch, divided by the root of 2, "
                       "which is the standard deviation where epochs scatter around a slow trend",
    "loss_gap": "absolute difference of test loss and training loss at the scored checkpoint",
}
LOSS_METRICS = frozenset(COURSE) - {"epochs_to_95"} | {"loss"}  # compare only for one loss
SHARE = 0.95  # of the best validation Dice
MIN_STEPS = 2  # differences that a spread needs


def course(lines, test) -> dict[str, float]:
    """COURSE of a run; NaN is what its files do not tell.

    Args:
      lines: of metrics.jsonl, a dict each; not every epoch has a validation.
      test: eval/test.json.
    """
    found = dict.fromkeys(COURSE, math.nan)
    if not lines:
        return found
    column = lambda name: np.array([line[name] for line in lines if line.get(name) is not None],
                                   np.float64)
    training, validation = column("train_loss"), column("val_loss")
    if len(training):
        found["train_loss"] = float(training[-1])
    if len(validation):
        found["val_loss"] = float(validation[-1])
        found["val_loss_rise"] = float(validation[-1] - validation.min())
        found["val_loss_spread"] = _spread(validation[len(validation) // 2 :])
    found["epochs_to_95"] = _epochs_to(lines, SHARE)
    scored = [line["train_loss"] for line in lines
              if line.get("step") == test.get("checkpoint_step")
              and line.get("train_loss") is not None]
    loss = test.get("metrics", {}).get("loss")
    if scored and loss is not None:
        found["loss_gap"] = abs(loss - scored[-1])
    return found


def _spread(losses) -> float:
    steps = np.diff(losses)
    return float(np.sqrt(np.mean(steps**2) / 2)) if len(steps) >= MIN_STEPS else math.nan


def _epochs_to(lines, share) -> float:
    scores = [(line["epoch"], line["val_dice_mean"]) for line in lines
              if line.get("val_dice_mean") is not None]
    wanted = share * max((score for _, score in scores), default=0.0)
    if not wanted > 0:  # nothing was found in any epoch
        return math.nan
    return float(next(epoch for epoch, score in scores if score >= wanted))
