"""What was found in a dataset as lines and facts, for the terminal and for the page."""

import pathlib
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from cellseg_jax.data.quality.checks import LEVELS
from cellseg_jax.data.quality.examine import KINDS


class Line(NamedTuple):
    """The same finding in several files, as one."""

    level: str
    where: str  # of the first
    what: str
    others: tuple[str, ...] = ()  # where else

    def __str__(self):
        names = ", ".join(dict.fromkeys(pathlib.Path(other).name for other in self.others[:5]))
        dots = ", ..." if len(self.others) > 5 else ""
        more = f" [and {len(self.others)} more like it: {names}{dots}]" if self.others else ""
        return f"{self.where}: {self.what}{more}"


class Report(NamedTuple):
    """Findings on the data and on the config."""

    config: Any
    examination: Any  # of `examine.examine`
    lines: tuple[Line, ...]  # errors first
    seconds: float

    def count(self, level: str) -> int:
        """How many findings there are of a level."""
        return sum(1 + len(line.others) for line in self.lines if line.level == level)

    @property
    def verdict(self) -> str:
        """'1 error, 0 warnings, 2 notes'"""
        counts = {level: self.count(level) for level in LEVELS}
        return ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items())


def gather(findings) -> tuple[Line, ...]:
    """One Line for findings that differ in their file and in numbers only."""
    alike = {}
    for finding in findings:
        key = finding.level, re.sub(r"[0-9][0-9., ]*", "#", finding.what)
        alike.setdefault(key, []).append(finding)
    return tuple(Line(*same[0], tuple(f.where for f in same[1:])) for same in alike.values())


def facts(report: Report) -> list[tuple[str, str]]:
    """(name, text) rows: counts, sizes, types, balance."""
    examination, data = report.examination, report.config.data
    samples = examination.facts
    unread = examination.num_images - len(samples)
    rows = [("data", f"{data.name} in {data.root}" if data.root else data.name),
            ("images", f"{len(samples)} read"
             + (f", {unread} of {examination.num_images} unreadable" if unread else "")
             + f", {len({s.group for s in samples})} groups"
             + f" in {report.seconds:.1f} s")]
    if not samples:
        return rows
    if examination.parts:
        rows.append(("split", ", ".join(f"{len(i)} {p}" for p, i in examination.parts.items())))
    counted = lambda values: ", ".join(f"{v} ({n})" for v, n in Counter(values).most_common(8))
    rows += [("sizes", counted(f"{s.size[0]}x{s.size[1]}" for s in samples)),
             ("pixels", counted(f"{s.dtype} {kind(s, data.channel_index)}" for s in samples))]
    if len({s.stratum for s in samples}) > 1:
        rows.append(("strata", counted(s.stratum for s in samples)))
    if data.get("labels") == "classes":
        shares = np.mean([s.pixels / s.pixels.sum() for s in samples], 0)
        rows.append(("classes", ", ".join(
            f"{c}: {share:.1%}" for c, share in enumerate(shares[: data.num_classes]))))
    covered = np.array([1 - s.pixels[0] / s.pixels.sum() for s in samples])
    rows.append(("foreground", f"{np.median(covered):.1%} of an image (median), from "
                               f"{covered.min():.1%} to {covered.max():.1%}"))
    if data.get("labels", "instances") == "instances":
        objects = np.array([s.num_objects for s in samples])
        rows.append(("objects", f"{np.median(objects):g} in an image (median), from "
                                f"{objects.min()} to {objects.max()}; {objects.sum():,} in all"))
        diameters = [s.diameter for s in samples if s.diameter]
        if diameters:
            low, middle, high = np.percentile(diameters, (5, 50, 95))
            rows.append(("diameter", f"{middle:.1f} pixels of the median object of an image "
                                     f"(median), 90 % from {low:.1f} to {high:.1f}"))
    return rows


def kind(sample, channel_index: str = "") -> str:
    """What the channels of a file are, in words; those that config.data.channel_index chose are
    neither colours nor alpha."""
    if channel_index:
        return f"channels {channel_index}"
    gray = " (gray)" if sample.channels > 2 and not sample.coloured else ""
    return KINDS[sample.channels] + gray
