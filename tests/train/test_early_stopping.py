"""What validations decide: best score, early stopping in its two readings, plateau."""

import json
import math

import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import optim
from cellseg_jax.train.early_stopping import Judgement, judge, learning_rate, stops_early


def scores(dice, loss=0.5):
    return {"dice_mean": dice, "loss": loss}


def test_the_first_of_equal_scores_is_the_best_and_float32_decides_what_is_equal():
    config, judgement = tiny_config(), Judgement()
    seen = []
    for dice in (0.5, 0.7, 0.7 + 1e-12, 0.6, 0.8):
        judgement, is_best, stop = judge(judgement, scores(dice), config, epochs=1)
        seen.append((is_best, judgement.waited, stop))
    assert seen == [(True, 0, False), (True, 0, False), (False, 1, False), (False, 2, False),
                    (True, 0, False)]
    assert judgement.best == np.float32(0.8)


def test_a_score_that_is_no_number_is_never_the_best():
    judgement, is_best, _ = judge(Judgement(), scores(math.nan), tiny_config(), epochs=1)
    assert not is_best and judgement.best == -math.inf and judgement.waited == 1


def test_smaller_is_better_where_the_config_says_so():
    config = tiny_config(train__best=("loss", "min"))
    judgement, _, _ = judge(Judgement(), scores(0.1, loss=0.5), config, epochs=1)
    assert judge(judgement, scores(0.1, loss=0.25), config, epochs=2)[1]
    assert not judge(judgement, scores(0.1, loss=0.75), config, epochs=2)[1]


@pytest.mark.parametrize("mode, waited, epochs, losses, expected", [
    ("patience", 2, 9, (0.5, 0.4), False), ("patience", 3, 1, (0.3, 0.4), True),
    ("minimum", 9, 2, (0.4, 0.3), False), ("minimum", 0, 3, (0.4, 0.3), True),
    ("minimum", 0, 3, (0.3, 0.3), True), ("minimum", 9, 3, (0.2, 0.3), False)])
def test_early_stopping_in_its_two_readings(mode, waited, epochs, losses, expected):
    """losses: of this validation and of the one before."""
    options = tiny_config(train__early_stopping=3, train__early_stopping_mode=mode).train
    previous, loss = (-value for value in reversed(losses))  # larger is better
    assert stops_early(options, waited, epochs, -loss, -previous) == expected
    never = tiny_config().train
    assert not stops_early(never, 100, 100, 1.0, 0.0)


def test_the_plateau_lowers_the_rate_in_the_precision_of_training():
    """As optim.reduce_on_plateau does with float32 numbers, which a device would hold."""
    config = tiny_config(optimizer__schedule="plateau", optimizer__plateau_patience=0,
                         optimizer__plateau_metric=("loss", "max"), optimizer__plateau_factor=0.3,
                         optimizer__lr=0.1)
    judgement, scale = Judgement(), np.float32(1)
    assert learning_rate(judgement, config) == np.float32(0.1)
    for loss in (0.5, 0.4, 0.3, 0.2):
        judgement, _, _ = judge(judgement, scores(0.5, loss), config, epochs=1)
        if loss < 0.5:
            scale = np.float32(scale * np.float32(0.3))
        rate = learning_rate(judgement, config)
        assert rate == np.float32(0.1) * scale and rate.dtype == np.float32


def test_what_a_checkpoint_keeps_is_exact():
    for judgement in (Judgement(), Judgement(0.1, 3, -1 / 3, {
            "scale": float(np.float32(0.3)), "best": 0.7, "waited": 2, "cooldown": 1})):
        assert Judgement.restored(json.loads(json.dumps(judgement.to_json()))) == judgement
    assert Judgement.restored({"best": 0.5}).plateau == optim.PLATEAU
