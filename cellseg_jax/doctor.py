"""Check the data of a config before a GPU hour is spent.

    python -m cellseg_jax.doctor --config=FILE [--out=doctor.html] [--config.data.root=DIR ...]

Reads every image and mask once, prints what there is and every problem with its file and its
fix, and writes the same with pictures to --out. An error stops training; a warning is for you to
judge; a note is information. Exit codes: 0 no error, 2 errors, or bad input or config.
"""

import pathlib
import re
import sys
import time
from collections import Counter
from typing import NamedTuple

from absl import flags

from cellseg_jax.cli import run_command
from cellseg_jax.errors import InputError

MAX_LINES = 20  # of each level on the terminal; the page has all


class Line(NamedTuple):
    """Findings that say the same of several files, as one."""

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
    """What the doctor found: `examination` of data.examine, and findings on the config too."""

    config: object
    examination: object
    lines: tuple[Line, ...]  # errors first
    seconds: float

    def count(self, level: str) -> int:
        return sum(1 + len(line.others) for line in self.lines if line.level == level)

    @property
    def verdict(self) -> str:
        """'1 error, 0 warnings, 2 notes'"""
        counts = {level: self.count(level) for level in ("error", "warning", "note")}
        return ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items())


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    flags.DEFINE_string("out", "doctor.html", "the page to write", flag_values=values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """Examine the data of one config; returns the exit code."""
    from cellseg_jax import config as config_lib
    from cellseg_jax.config import derived
    from cellseg_jax.data.quality.page import write
    from cellseg_jax.report import terminal
    from cellseg_jax.train import preview

    if not args.config:
        raise InputError("--config: missing; expected a file such as configs/quickstart.py")
    config = config_lib.load(args.config, overrides)
    out = pathlib.Path(args.out)
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out: cannot write to '{out}'; expected a file such as doctor.html in "
                         "a folder that exists")
    with terminal.counting("reading images") as progress:
        report = examine(config, progress)
    terminal.summary(facts(report))
    for level in ("error", "warning", "note"):
        lines = [line for line in report.lines if line.level == level]
        terminal.summary([(level, line) for line in lines[:MAX_LINES]])
        if len(lines) > MAX_LINES:
            terminal.summary([(level, f"... {len(lines) - MAX_LINES} more, see {out}")])
    trains = not (report.count("error") or derived.is_classical(config))
    try:
        write(out, report, facts(report), preview.preview(config) if trains else None)
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}' ({error.strerror})") from error
    terminal.summary([("found", report.verdict), ("page", out)])
    return 2 if report.count("error") else 0


def examine(config, progress=None) -> Report:
    """Reads the data of a complete config once and checks it, and the config against it.

    Args:
      progress: called with (samples done, samples in all).
    Raises: InputError where there is nothing to read, such as a root that does not exist.
    """
    from cellseg_jax.data.quality import checks, examine

    start = time.monotonic()
    examination = examine.examine(config.data, progress)
    findings = [*examination.findings, *_of_config(config, examination)]
    findings.sort(key=lambda finding: checks.LEVELS.index(finding.level))
    return Report(config, examination, gather(findings), time.monotonic() - start)


def gather(findings) -> tuple[Line, ...]:
    """One Line for findings that differ in their file and in numbers only."""
    alike = {}
    for finding in findings:
        key = finding.level, re.sub(r"[0-9][0-9., ]*", "#", finding.what)
        alike.setdefault(key, []).append(finding)
    return tuple(Line(*same[0], tuple(f.where for f in same[1:])) for same in alike.values())


def facts(report: Report) -> list[tuple[str, str]]:
    """(name, text) rows: counts, sizes, types, balance."""
    import numpy as np

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
             ("pixels", counted(f"{s.dtype} {kind(s)}" for s in samples))]
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
    return rows


def kind(sample) -> str:
    """What the channels of a file are, in words."""
    from cellseg_jax.data.quality.examine import KINDS

    gray = " (gray)" if sample.channels > 2 and not sample.coloured else ""
    return KINDS[sample.channels] + gray


# --- the config against the data -----------------------------------------------------------------


def _of_config(config, examination):
    """Findings on batches and on the network at the size of its input."""
    from cellseg_jax.config import derived
    from cellseg_jax.crops import round_up
    from cellseg_jax.data.quality import examine
    from cellseg_jax.data.records import Finding
    from cellseg_jax.step.state import check_model

    try:
        check_model(config)
    except InputError as error:
        yield examine.finding_of(error)
        return
    if derived.is_classical(config):  # nothing is trained
        return
    key, batch_size = "config.train.batch_size", config.train.batch_size
    if examination.parts:
        num_train = len(examination.parts["train"]) * config.data.grid**2
        if batch_size > num_train:
            yield Finding("error", key, f"got {batch_size}; expected 1 to {num_train}, the number "
                          "of training images")
    pixels, batch_norm = of_network(config)
    if batch_size == 1 and batch_norm:
        yield Finding("warning", key, "batch normalisation learns from single images with 1; "
                      "expected 2 at least")
    height, width = derived.input_size(config)
    padded = tuple(round_up(n, pixels) for n in (height, width))
    small = f"got {height}x{width}; {config.model.name} reduces it down to 1/{pixels}"
    if min(padded) < 2 * pixels:
        yield Finding("warning", "config.data.size", f"{small}, which leaves "
                      f"{padded[0] // pixels}x{padded[1] // pixels} pixels at its bottom; set at "
                      f"least {2 * pixels}x{2 * pixels}, or fewer levels in config.model")
    elif padded != (height, width):
        yield Finding("note", "config.data.size", f"{small}, so the network pads to "
                      f"{padded[0]}x{padded[1]} and cuts back")


def of_network(config) -> tuple[int, bool]:
    """(stride, whether there is batch normalisation) of a network, without computing anything.

    The stride of an unpadded network counts as 1: it pads images by a rule of its own.
    """
    import jax

    from cellseg_jax import models
    from cellseg_jax.config import derived
    from cellseg_jax.step.spec import make_spec

    module, channels = make_spec([config]).module({}), derived.channels(config)
    image = jax.ShapeDtypeStruct((1, *derived.input_size(config), channels), "float32")
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    unpadded = config.model.get("padding") == "valid"
    return 1 if unpadded else models.stride(module, channels), "batch_stats" in variables


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
