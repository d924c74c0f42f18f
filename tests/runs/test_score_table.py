"""Scores of a run on the terminal."""

from cellseg_jax.runs.score_table import print_scores

TEST = {
    "split": "test", "n_images": 3,
    "metrics": {"dice_mean": 0.91234, "iou_mean": 0.85, "loss": 0.1},
    "metrics_original_size": {"dice_mean": 0.9, "iou_mean": 0.84, "ap50": None},
    "per_stratum": {"[red] a": {"n": 2, "dice_mean": 0.95, "iou_mean": 0.9},
                    "b": {"n": 1, "dice_mean": 0.8, "iou_mean": 0.7}},
}


def test_scores_shows_both_sizes_and_strata(capsys):
    print_scores(TEST)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dice_mean", "0.9123", "0.9000"] in shown
    assert ["ap50", "-", "-"] in shown
    assert ["[red]", "a", "2", "0.9500", "0.9000"] in shown
