"""In what a row differs from the baseline, after defaults and derived values, and what it names.

A row is confounded where it differs from the baseline in a key that the study file does not name
for it: the difference in score may then come from that key. Such keys are those that the baseline
has from its own row, and defaults of another model in the place of values of BASE. What a named key
decides by itself does not count: losses of another target, options that only one of two models has.
"""

from typing import NamedTuple

from cellseg_jax import config as config_lib
from cellseg_jax import targets
from cellseg_jax.config.derived import LABELS, UNTRAINED, default_losses
from cellseg_jax.studies.file import config_of

NAMED, FOLLOWS, NOT_NAMED = "named", "follows", "not named"
# Keys that nothing reads where nothing is trained, and those that change no score.
TRAINING = ("seed", "augment.", "loss.", "optimizer.", "train.", "data.balance", "data.copies",
            "data.mix_copies", "data.oversample", "data.train_fraction", "data.windows")
NO_MATTER = ("data.root", "data.cache", "data.threads", "data.residence", "eval.batch_size",
             "eval.panels", "train.checkpoint_minutes")
IMAGES, STEPS = "training images", "optimizer steps"  # what follows from data and keys


class Differs(NamedTuple):
    """One key in which a row differs from the baseline."""

    key: str  # dotted, or IMAGES or STEPS
    mine: object  # None: the row's model or dataset has no such key
    base: object
    why: str  # NAMED | FOLLOWS | NOT_NAMED


def differences(study, name, found, *, smoke: bool = False) -> tuple[Differs, ...]:
    """All keys in which a row differs from the baseline; none for the baseline itself.

    Args:
      found: {row: [runs.Found of each repeat]}.
      smoke: as in table.collect.
    """
    if name == study.baseline:
        return ()
    mine, base = (_config(study, row, found, smoke) for row in (name, study.baseline))
    named = set(study.rows[name])
    if LABELS in (mine["model.name"], base["model.name"]):  # made by a tool without config keys
        named |= {"model.name", "model.folder"}
    unread = NO_MATTER
    if {mine["model.name"], base["model.name"]} & {*UNTRAINED, LABELS}:
        unread += TRAINING
    keys = [k for k in {**base, **mine} if mine.get(k) != base.get(k)
            and (k in named or not k.startswith(unread))]
    out = [Differs(k, mine.get(k), base.get(k), _why(k, mine, base, named)) for k in keys]
    return tuple(out) + _derived(found, name, study.baseline, keys)


def not_named(differs) -> list[str]:
    """The keys that make a row confounded, as 'optimizer.lr 0.005 (baseline 0.001)'."""
    return [text(one) for one in differs if one.why == NOT_NAMED]


def text(one: Differs) -> str:
    """'optimizer.lr 0.005 (baseline 0.001)'."""
    return f"{one.key} {_value(one.mine)} (baseline {_value(one.base)})"


def _value(value) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _config(study, row, found, smoke) -> dict:
    """{dotted key: value} of repeat 0, also where it has no folder."""
    runs = found.get(row, ())
    return (runs[0].config if runs and runs[0].config else
            config_lib.flatten(config_of(study, row, 0, smoke=smoke)))


def _why(key, mine, base, named) -> str:
    if key in named:
        return NAMED
    section = key.partition(".")[0]
    if key not in mine or key not in base:  # an option of one of two models or datasets
        return FOLLOWS if f"{section}.name" in named else NOT_NAMED
    target = mine.get("data.target")
    if section == "loss" and "data.target" in named and target in targets.TARGETS:
        return FOLLOWS if mine[key] == default_losses(target).get(key[5:]) else NOT_NAMED
    return NOT_NAMED


def _derived(found, name, baseline, keys) -> tuple[Differs, ...]:
    """Training images and steps, which follow from keys of data and train that differ."""
    reads = {IMAGES: ("data.",), STEPS: ("data.", "train.")}
    # Of one repeat: folds and random splits differ by some images from repeat to repeat.
    both = next((pair for pair in zip(found.get(name, ()), found.get(baseline, ()), strict=False)
                 if all(map(_trained, pair))), ())
    out = []
    for what, sections in reads.items() if both else ():
        mine, base = (len(one.split.get("train", ())) if what == IMAGES else one.run.step
                      for one in both)
        if mine and base and mine != base:
            follows = any(key.startswith(sections) for key in keys)
            out.append(Differs(what, mine, base, FOLLOWS if follows else NOT_NAMED))
    return tuple(out)


def _trained(one) -> bool:
    """Whether a run trained to its end."""
    return one.run.status == "done" and one.run.counts and one.run.step > 0
