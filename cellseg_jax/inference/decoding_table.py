"""Scores of one split by several decodings, side by side: "decoding" of eval/<name>.json."""

from cellseg_jax import metrics
from cellseg_jax.config import derived
from cellseg_jax.inference import tune
from cellseg_jax.runs.folder import read_config
from cellseg_jax.runs.score_table import DECODING_SCORES
from cellseg_jax.targets.geometry import METHODS


def decodings(predictor) -> dict[str, dict]:
    """{name: options of config.eval that the target reads}, each combination once.

    First what is scored; then, where the target has them, the ways to cut a mask, with the same
    other options; the options of tuning.json, and those of the run's own config.
    """
    config = predictor.config
    keys = derived.decode_keys(config)
    scored = {key: config.eval[key] for key in keys}
    named = {scored.get("decode", config.data.target): scored}
    if "decode" in keys:
        named |= {name: scored | {"decode": name} for name in METHODS if name not in named}
    tuning = tune.found(predictor)
    if tuning:
        named[f"tuned for {tuning['metric']}"] = scored | {
            key.removeprefix("eval."): value for key, value in tuning["options"].items()}
    own = predictor.sized(read_config(predictor.workdir)).eval
    named["config of the run"] = {key: own[key] for key in keys}
    kept = {}
    for name, options in named.items():
        if options not in kept.values():
            kept[name] = options
    return kept


class DecodingTable:
    """Counts of the objects of images by each of `decodings`, gathered image by image."""

    def __init__(self, predictor):
        self.predictor, self.decodings = predictor, decodings(predictor)
        self.counts = {name: [] for name in self.decodings}

    def add(self, label, probs, scored: metrics.InstanceCounts) -> None:
        """One image; `scored` are its counts by the first decoding."""
        first, *others = self.decodings
        self.counts[first].append(scored)
        for name in others:
            found = self.predictor.decode(probs, **self.decodings[name])
            self.counts[name].append(metrics.instance_counts(label, found))

    def rows(self) -> list[dict]:
        """[{"name", "options", **DECODING_SCORES}]; the first is what is scored."""
        out = []
        for name, counts in self.counts.items():
            total = metrics.summed(counts)
            scores = metrics.instance_scores(total)
            out.append({"name": name, "options": self.decodings[name],
                        **{key: scores[key] for key in DECODING_SCORES}})
        return out
