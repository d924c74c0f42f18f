"""How configs differ, and the identities that runs and programs have by their config."""

import hashlib
import json

from ml_collections import ConfigDict

from cellseg_jax import normalize
from cellseg_jax.config.defaults import FREE_KEYS, VALUE_KEYS

# Keys that came after the first runs, with the value that all runs had before. At that value they
# are left out of `identity`, so that a run keeps the hash that its scores were stored with.
LATER_KEYS = {"data.only_size": (), "data.strata": (), "data.mix_copies": True,
              "data.blank_images": 0, "data.split_by": "group", "data.augment_before_grid": False,
              "data.num_rays": 32, "data.ignore": "", "data.rim": 5,
              "data.windows": 1, "data.annotations": "", "data.mask_suffix": "", "data.folders": "",
              "data.classes": (),
              "loss.mae": 0.0, "loss.mse": 0.0, "loss.distance_dice": 0.0,
              "data.percentiles": normalize.PERCENTILES,
              "data.channel_index": "", "data.z": "", "data.diameter": 0.0, "data.pixel_size": 0.0,
              "model.batch_norm": True, "model.activation": "relu"}


def flatten(config) -> dict:
    """{dotted key: value} of all leaves."""
    out = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            out.update({f"{key}.{k}": v for k, v in flatten(value).items()})
        else:
            out[key] = value
    return out


def diff(config, other) -> dict:
    """{dotted key: (value here, value there)} of what differs; a missing key is None."""
    a, b = flatten(config), flatten(other)
    return {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}


def identity(config) -> str:
    """A hash of all keys that decide what a run computes."""
    later = {k: json.dumps(v) for k, v in LATER_KEYS.items()}  # a config.json has lists for tuples
    flat = flatten(config)
    if flat.get("data.name") == "ebhi_seg":
        del later["data.classes"]  # which this dataset had from the first
    kept = {k: v for k, v in flat.items()
            if not k.startswith(FREE_KEYS) and later.get(k) != json.dumps(v)}
    text = json.dumps(sorted(kept.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def program_key(config) -> str:
    """A text that configs of one program share: every key but those of VALUE_KEYS."""
    shared = {k: v for k, v in flatten(config).items() if k not in VALUE_KEYS}
    # Averaged weights are a part of the state, which must not depend on the other runs.
    shared["optimizer.ema"] = config.optimizer.ema > 0
    return repr(sorted(shared.items()))
