"""Rows that differ in the share of the training images alone: those of a learning curve."""

import itertools
import re
from collections.abc import Mapping

from cellseg_jax.studies.study import Study

FRACTION = "data.train_fraction"


def fractions(rows: Mapping[str, dict], shares) -> dict[str, dict]:
    """Each row at each share of its training images: {"unet": {}} -> {"unet_0.5": ..., "unet_1"}.

    Args:
      shares: values of data.train_fraction, such as (1/4, 1/2, 1).
    """
    return {f"{row}_{share:g}": {**changes, FRACTION: float(share)}
            for row, changes in rows.items() for share in shares}


def families(study: Study, names) -> dict[str, list[str]]:
    """{name: rows} of those rows that differ in data.train_fraction alone, two fractions or more.

    The name of a family is what its rows' names share, in whole words: "unet" of "unet_0.25" and
    "unet_1".
    """
    alike = {}
    for row in names:
        changes = dict(study.rows[row])
        share = changes.pop(FRACTION, study.base.data.train_fraction)
        alike.setdefault(repr(sorted(changes.items())), {}).setdefault(share, []).append(row)
    groups = [[row for rows in shares.values() for row in rows]
              for shares in alike.values() if len(shares) > 1]
    shared = [_shared_name(rows) or study.name for rows in groups]
    return {name if shared.count(name) == 1 else rows[0]: rows
            for name, rows in zip(shared, groups, strict=True)}


def _shared_name(names) -> str:
    """What names begin and end with, in whole words between '-' or '_'."""
    words = [re.split(r"([-_])", name) for name in names]
    first = _common_start(words)
    last = _common_start([one[len(first) :][::-1] for one in words])[::-1]
    return re.sub("[-_]+([-_])", r"\1", "".join([*first, *last])).strip("-_")


def _common_start(lists) -> list:
    """The entries that all lists begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False))
    return [column[0] for column in columns]
