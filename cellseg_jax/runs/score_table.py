"""The scores of a run as tables on the terminal."""

from cellseg_jax.report import terminal

DECODING_SCORES = ("ap50", "ap", "f1", "pq")  # of each decoding of the same probabilities


def print_scores(test: dict) -> None:
    """Tables of eval/test.json: every score at both sizes, and Dice by stratum."""
    small = test["metrics"] | test.get("report2", {})
    original = test.get("metrics_original_size", {})
    title = f"{test['split']} split, {test['n_images']} images"
    rows = [(name, _number(small.get(name)), _number(original.get(name)))
            for name in {**small, **original}]
    terminal.print_table(title, ("score", "at data.size", "original size"), rows)
    rows = [(one["name"], *(_number(one[key]) for key in DECODING_SCORES))
            for one in test.get("decoding", ())]
    if len(rows) > 1:
        terminal.print_table("by decoding, at the original size; the first is scored above",
                             ("decoding", *DECODING_SCORES), rows)
    rows = [(name, str(value["n"]), _number(value["dice_mean"]), _number(value["iou_mean"]))
            for name, value in test.get("per_stratum", {}).items()]
    if len(rows) > 1:
        columns = ("stratum", "images", "dice_mean", "iou_mean")
        terminal.print_table("by stratum, at data.size", columns, rows)


def _number(value) -> str:
    return "-" if value is None else f"{value:.4f}"
