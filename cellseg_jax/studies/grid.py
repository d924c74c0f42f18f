"""A full factorial: every combination of some choices, as the rows of a study."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping

from cellseg_jax.errors import InputError

LABEL = re.compile(r"[A-Za-z0-9._+]+")


class Grid(Mapping):
    """A full factorial as rows {name: {dotted key: value}}, each made when it is looked up.

    A row is named by a label for each factor, joined by "-": adam-lr0.001-dropout0.3.

    Args:
      choices: {key: (value, ...)} where the label is the value, with the last word of the key
        before a number; or {key: {label: value}}; or, where one choice sets several keys,
        {title: {label: {dotted key: value}}}. Later factors win.
    Raises: InputError for a factor without choices, with a repeated choice, or with a label that
      cannot be part of a folder's name.
    """

    def __init__(self, choices: Mapping):
        if not isinstance(choices, Mapping) or not choices:
            raise InputError(f"GRID: got {choices!r}; expected {{key: choices}}, such as "
                             "{'optimizer.lr': (1e-3, 1e-2)}")
        self.factors = {key: _labelled(key, values) for key, values in choices.items()}

    def __getitem__(self, name: str) -> dict:
        labels = name.split("-") if isinstance(name, str) else ()
        if len(labels) != len(self.factors):
            raise KeyError(name)
        changes = {}
        for label, choices in zip(labels, self.factors.values(), strict=True):
            changes |= choices[label]
        return changes

    def __iter__(self) -> Iterator[str]:
        return map("-".join, itertools.product(*self.factors.values()))

    def __len__(self) -> int:
        return math.prod(map(len, self.factors.values()))

    def one_at_a_time(self) -> list[str]:
        """Names of rows in which each choice of each factor occurs, beside the others' first."""
        first = [next(iter(choices)) for choices in self.factors.values()]
        return list(dict.fromkeys(
            "-".join([*first[:i], label, *first[i + 1 :]])
            for i, choices in enumerate(self.factors.values()) for label in choices))


def _labelled(key, values) -> dict:
    """{label: {dotted key: value}} of one factor of a grid."""
    if not isinstance(key, str) or not isinstance(values, (Mapping, tuple, list)):
        raise InputError(f"GRID[{key!r}]: got {values!r}; expected choices of a config key, such "
                         "as 'optimizer.lr': (1e-3, 1e-2)")
    if not isinstance(values, Mapping):
        labelled = {_label(key, value): value for value in values}
        if len(labelled) != len(values):
            raise InputError(f"GRID[{key!r}]: a choice is there twice, by its label "
                             f"({', '.join(labelled)}); expected distinct values")
        values = labelled
    for label in values:
        if not LABEL.fullmatch(str(label)):
            raise InputError(f"GRID[{key!r}]: label {label!r} cannot be part of a folder's name; "
                             "expected letters, digits, '.', '_' and '+', as in {'label': value}")
    if not values:
        raise InputError(f"GRID[{key!r}]: has no choices")
    return {label: dict(value) if isinstance(value, Mapping) else {key: value}
            for label, value in values.items()}


def _label(key, value) -> str:
    leaf = key.rpartition(".")[2]
    if isinstance(value, bool):
        return leaf if value else f"no_{leaf}"
    if isinstance(value, (int, float)):  # no exponent: its minus sign would separate two labels
        text = f"{value:.12f}".rstrip("0").rstrip(".")
        return f"{leaf}{text}"
    return str(value)
