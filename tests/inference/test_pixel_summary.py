"""Means of images and of strata, pooled scores: hand values, loops, the bootstrap draw by draw."""

import numpy as np
import pytest

from cellseg_jax import metrics
from cellseg_jax.inference import pixel_summary, score_definitions
from cellseg_jax.inference.pixel_summary import PixelScores
from cellseg_jax.metrics.bootstrap import DRAWS


def by_hand():
    """Two images of stratum a and one of b; conformity of b alone is below 0."""
    counts = metrics.Counts(*(np.array(c, np.float64)[:, None] for c in (
        (8, 0, 2), (1, 0, 1), (1, 5, 3), (0, 5, 4))))
    soft = {"soft_dice": np.array([[0.9], [0.1], [0.5]]),
            "soft_jaccard": np.array([[0.8], [0.0], [0.4]])}
    return PixelScores(counts, soft, np.array(["p", "q", "r"]), np.array(["a", "a", "b"]))


def random_scores(outputs=2, images=17, seed=0):
    rng = np.random.default_rng(seed)
    counts = metrics.Counts(*rng.integers(0, 50, (4, images, outputs)).astype(np.float64))
    soft = {name: rng.random((images, outputs)) for name in metrics.SOFT_SCORES}
    return PixelScores(counts, soft, rng.integers(0, 6, images).astype(str),
                       rng.choice(["a", "b", "c"], images, p=[0.7, 0.2, 0.1]))


def test_scores_equal_hand_values():
    scores = by_hand().scores(macro=True)
    dice = (16 / 18, 0.0, 4 / 8)
    assert scores["dice_mean"] == pytest.approx(sum(dice) / 3)
    assert scores["dice_macro"] == pytest.approx(((dice[0] + dice[1]) / 2 + dice[2]) / 2)
    assert scores["iou_macro"] == pytest.approx(((8 / 10 + 0) / 2 + 2 / 6) / 2)
    assert scores["precision_macro"] == pytest.approx(((8 / 9 + 0) / 2 + 2 / 3) / 2)
    assert scores["recall_macro"] == pytest.approx(((8 / 9 + 0) / 2 + 2 / 5) / 2)
    assert scores["accuracy_macro"] == pytest.approx(((8 / 10 + 5 / 10) / 2 + 6 / 10) / 2)
    assert scores["conformity_pooled"] == pytest.approx(1 - (2 + 9) / 10)
    assert scores["soft_dice_mean"] == pytest.approx(0.5)
    assert scores["soft_dice_macro"] == pytest.approx(0.5)
    assert scores["soft_jaccard_mean"] == pytest.approx(0.4)
    assert scores["soft_jaccard_macro"] == pytest.approx(0.4)
    assert set(scores) <= set(score_definitions.DEFINITIONS)
    assert not any(name.endswith("_macro") for name in by_hand().scores())


def test_one_stratum_has_equal_means_and_a_rare_one_counts_as_much_as_a_common_one():
    scores = random_scores()
    alone = scores._replace(strata=np.full(17, "a")).scores(macro=True)
    for name in ("dice", "recall", "soft_jaccard"):
        assert alone[f"{name}_macro"] == pytest.approx(alone[f"{name}_mean"], abs=1e-15)
    one = scores.of_images(np.r_[np.zeros(99, int), 1])._replace(
        strata=np.array(["common"] * 99 + ["rare"]))
    dice = scores.per_image()["dice"]
    assert one.scores(macro=True)["dice_macro"] == pytest.approx((dice[0] + dice[1]) / 2)


def test_parts_are_those_of_their_images_and_outputs():
    scores = random_scores()
    part = scores.of_images(scores.strata == "a").of_outputs(slice(1, 2))
    images = [n for n in range(17) if scores.strata[n] == "a"]
    tp, fp, fn, _ = (c[images, 1] for c in scores.counts)
    assert part.scores()["dice_mean"] == pytest.approx(np.mean(2 * tp / (2 * tp + fp + fn)))
    assert part.scores()["conformity_pooled"] == pytest.approx(1 - (fp + fn).sum() / tp.sum())
    soft = scores.soft["soft_dice"][images, 1].mean()
    assert part.scores()["soft_dice_mean"] == pytest.approx(soft)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_equal_a_loop_over_drawn_groups(seed):
    scores = random_scores(seed=seed)
    names = np.unique(scores.groups)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)),
                                                 DRAWS)
    found, left_out = {}, 0
    for drawn in times:
        images = np.concatenate([np.flatnonzero(scores.groups == name)
                                 for name, count in zip(names, drawn, strict=True)
                                 for _ in range(count)])
        left_out += len(set(scores.strata[images])) < len(set(scores.strata))
        for name, value in scores.of_images(images).scores(macro=True).items():
            found.setdefault(name, []).append(value)
    assert left_out > 0  # draws without an image of some stratum are among them
    intervals = scores.intervals(macro=True)
    assert set(intervals) == set(found)
    for name, values in found.items():
        np.testing.assert_allclose(intervals[name], np.quantile(values, (0.025, 0.975)), 1e-12)


def test_few_groups_have_no_interval():
    scores = by_hand()
    assert scores._replace(groups=np.array(["p", "p", "q"])).intervals(macro=True) == {}
    assert pixel_summary.macro_mean(np.array([1.0, 3.0, 7.0]), scores.strata) == 4.5
