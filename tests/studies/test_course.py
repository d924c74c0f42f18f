"""The course of training as numbers, by hand."""

import math

import pytest

from cellseg_jax.studies.course import COURSE, LOSS_METRICS, course

LINES = [
    {"step": 10, "epoch": 1.0, "train_loss": 0.9, "val_loss": 0.8, "val_dice_mean": 0.40},
    {"step": 20, "epoch": 2.0, "train_loss": 0.6, "val_loss": 0.5, "val_dice_mean": 0.75},
    {"step": 30, "epoch": 3.0, "train_loss": 0.4, "val_loss": 0.4, "val_dice_mean": 0.77},
    {"step": 40, "epoch": 4.0, "train_loss": 0.3, "val_loss": 0.6, "val_dice_mean": 0.80},
    {"step": 50, "epoch": 5.0, "train_loss": 0.2},  # an epoch without validation
    {"step": 60, "epoch": 6.0, "train_loss": 0.1, "val_loss": 0.7, "val_dice_mean": 0.70},
]


def test_numbers_by_hand():
    found = course(LINES, {"checkpoint_step": 40, "metrics": {"loss": 0.55}})
    assert set(found) == set(COURSE)
    assert found["train_loss"] == 0.1 and found["val_loss"] == 0.7
    assert found["val_loss_rise"] == pytest.approx(0.3)
    # The last half of .8 .5 .4 .6 .7 is .4 .6 .7: steps of .2 and .1.
    assert found["val_loss_spread"] == pytest.approx(math.sqrt((0.2**2 + 0.1**2) / 2 / 2))
    assert found["epochs_to_95"] == 3.0  # 0.95 of 0.80 is 0.76
    assert found["loss_gap"] == pytest.approx(0.25)


def test_a_run_that_finds_nothing_has_no_epoch_of_its_best():
    lines = [{"epoch": float(n), "step": n, "val_dice_mean": 0.0} for n in (1, 2)]
    assert math.isnan(course(lines, {})["epochs_to_95"])


def test_spread_is_the_sd_of_epochs_around_a_slow_trend():
    losses = [0.5 - 0.0001 * n + 0.02 * (-1) ** n for n in range(400)]
    lines = [{"epoch": float(n), "step": n, "val_loss": x} for n, x in enumerate(losses)]
    # Alternating signs have steps of twice the size, so sqrt(2) times their sd.
    assert course(lines, {})["val_loss_spread"] == pytest.approx(0.02 * math.sqrt(2), rel=0.01)


@pytest.mark.parametrize("lines", [[], [{"step": 1, "epoch": 1.0, "train_loss": None}],
                                   [{"step": 1, "epoch": 1.0, "val_loss": None}]])
def test_what_is_not_there_is_nan(lines):
    assert all(map(math.isnan, course(lines, {}).values()))
    assert all(map(math.isnan, course(lines, {"metrics": {"loss": 0.5}}).values()))


def test_losses_compare_only_where_rows_train_with_one_loss():
    assert "epochs_to_95" not in LOSS_METRICS and {"loss", "val_loss_rise"} < LOSS_METRICS
