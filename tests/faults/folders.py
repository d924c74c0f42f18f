"""Folders from somebody else: damaged, changed by hand, or made to lead out of themselves.

Whatever is in them, a command ends well or by one line, soon, and nothing beside them changes.
"""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import tempfile

import numpy as np
from faults.table import Fault
from helpers import tiny_config
from PIL import Image

from cellseg_jax import analysis, train
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in, segment
from cellseg_jax.inference.options import AS_TRAINED
from cellseg_jax.inference.score_run import score_run
from cellseg_jax.interop import exporting
from cellseg_jax.runs.folder import read_config
from cellseg_jax.runs.page import write_run_page
from cellseg_jax.train.one_run import train_and_score

SECONDS = 60  # after which a case hangs
JSON_FILES = ("config.json", "environment.json", "result.json", "split.json", "eval/test.json",
              "checkpoints/4/checksums.json", "checkpoints/4/_CHECKPOINT_METADATA")
CONTENTS = (b"", b"null", b"[]", b"5", b'"x"', b"{}", b'{"a', b"\0" * 20, b"\xff\xfe", b"[" * 10**5,
            b'{"step": {"a": 1}, "metrics": 3, "made_by": [], "data": 0, "program": "x"}')
TEXT_FILES = ("metrics.jsonl", "timing.jsonl", "eval/test_images.csv")
LINKED = ("metrics.jsonl", "result.json", "config.json", "split.json", "timing.jsonl",
          "checkpoints", "eval", "tensorboard", ".lock", ".system.lock", "analysis", "report.html",
          "eval/test.json", "checkpoints/4/state", "damaged_checkpoint_4")
VALUES = (None, True, -1, 1e308, 10**30, "", "x\0y", "<b>x</b>", [], [[]], {}, {"a": []}, "n" * 300,
          [None], "../../x", "=1+1", float("nan"))


@functools.cache
def scored():
    """A run with scores, and a page."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="cellseg_jax_tests_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    train_and_score(tiny_config(train__epochs=1), place / "run")
    return place / "run"


# --- changes -------------------------------------------------------------------------------------


def other_content(run, number):
    files, n = (*JSON_FILES, *TEXT_FILES), number // len(CONTENTS)
    (run / files[n % len(files)]).write_bytes(CONTENTS[number % len(CONTENTS)])


def other_value(run, number):
    """One value anywhere in one of the JSON files is another, of another type as a rule."""
    rng = np.random.default_rng(number)
    file = run / JSON_FILES[rng.integers(5)]
    content = json.loads(file.read_text())
    places = list(leaves(content))
    holder, key = places[rng.integers(len(places))]
    holder[key] = VALUES[rng.integers(len(VALUES))]
    file.write_text(json.dumps(content))


def leaves(content):
    """(holder, key) of every value in lists and objects."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, (dict, list)):
            yield from leaves(value)


def link(run, number):
    """Something in the folder is a link out of it: to a folder or a file with content."""
    name = LINKED[number % len(LINKED)]
    path, outside = run / name, run.parent / "outside"
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside if "." not in name.lstrip(".") and name[0] != "." else
                    outside / "precious.txt")


def special(run, number):
    path = run / ("metrics.jsonl", "result.json", "eval/test.json", "config.json", ".lock",
                  "checkpoints/4/checksums.json")[number]
    path.unlink()
    os.mkfifo(path)


def huge(run, number):
    """A file with holes, of a terabyte."""
    os.truncate(run / ("config.json", "environment.json", "eval/test.json", "result.json")[number],
                10**12)


def other_network(run, number):
    """config.json describes another network than was trained: too large, too deep, one smaller."""
    config = json.loads((run / "config.json").read_text())
    channels = ([10**9, 10**9], [4] * 3000, [4] * 900, [10**30, 8], [8, 4])[number]
    config["model"]["channels"] = channels
    (run / "config.json").write_text(json.dumps(config))


# --- what is done with them ----------------------------------------------------------------------


def evaluate(run):
    score_run(read_config(run), run, "test")


def predict(run):
    out = run.parent / "labels"
    runs = segment.open_runs(str(run), (), AS_TRAINED)
    jobs = images_in.find([str(run.parent / "image.png")], out)
    images_in.claim(out, runs.made_by, jobs, ["tiff"])
    assert segment.segment(runs, segment.Work(jobs, out, ["tiff"])) == 0


def analyse(run):
    analysis.run(run, (), {"weights": {}})


def page(run):
    write_run_page(run)


def export(run):
    options = exporting.ExportOptions("stablehlo", out=run.parent / "export")
    exporting.export(exporting.open_run(run, [], "best", options), options)


def start_again(run):
    """Another run of the config, which computes its first state."""
    new = run.parent / "new"
    shutil.rmtree(new, ignore_errors=True)
    config = read_config(run)
    train.train([config], [new])


def go_on(run):
    train.train([tiny_config(train__epochs=1)], [run])


@contextlib.contextmanager
def in_time():
    """TimeoutError where the block hangs."""
    def hang(*_):
        raise TimeoutError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(change, works, refused=False):
    """A case: the change, then each of the works on a copy of the folder.

    Args:
      refused: whether all of them have to end by a line.
    """
    def case(place, number):
        Image.fromarray(np.eye(48, dtype=np.uint8)).save(place / "image.png")
        outside = place / "outside"
        (outside / "4").mkdir(parents=True)
        (outside / "4.saving").mkdir()
        (outside / "test_predictions").mkdir()
        for name in ("precious.txt", "4/a", "4.saving/b", "test_predictions/c"):
            (outside / name).write_text('{"step": 4}\n')
        before = contents(outside)
        for work in works:
            run = shutil.copytree(scored(), place / "run", symlinks=True)
            change(run, number)
            try:
                with in_time():
                    work(run)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 1500, error
            else:
                assert not refused
            assert contents(outside) == before
            shutil.rmtree(run)
    return case


MARKUP = ("<b>x</b>", "' onx='", '" onx="', "{{ 7 }}", "</script><i>x</i>", "]]><u>x</u>")


def injected(place, number):
    """Names and texts in a run's folder are shown on its page, never as markup."""
    run, mark = shutil.copytree(scored(), place / "run"), MARKUP[number]
    for name in ("environment.json", "eval/test.json", "metrics.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()] if (
            name.endswith("l")) else [json.loads((run / name).read_text())]
        for content in lines:
            for holder, key in list(leaves(content)):
                if isinstance(holder[key], str) and key not in ("name", "command"):
                    holder[key] = mark
        (run / name).write_text("\n".join(map(json.dumps, lines)))
    table = run / "eval" / "test_images.csv"
    head, *rows = table.read_text().splitlines()
    quoted = mark.replace('"', '""')
    table.write_text("\n".join([head, *(f'"{quoted}",{row.partition(",")[2]}' for row in rows)]))
    text = write_run_page(run).read_text()
    assert (mark in text) == (mark == "{{ 7 }}")  # which is no markup where it is not a template


READS = (evaluate, predict, analyse, page)
FAULTS = (
    Fault("another content of a file of a run", "eval, predict, analyze, page, train",
          "right, or one line", changed(other_content, (*READS, go_on)),
          len(CONTENTS) * (len(JSON_FILES) + len(TEXT_FILES))),
    Fault("another value in a JSON file of a run", "eval, predict, page, train",
          "right, or one line", changed(other_value, (evaluate, predict, page, go_on)), 60),
    Fault("a network in config.json that was not trained", "eval, predict, analyze, export",
          "one line", changed(other_network, (evaluate, predict, analyse, export), refused=True),
          5),
    Fault("a network in config.json that fits no memory", "training",
          "one line before memory is taken", changed(other_network, (start_again,), refused=True),
          4),
    Fault("a link out of a run's folder", "eval, predict, analyze, page, train",
          "one line, nothing outside changes", changed(link, (*READS, go_on), refused=True),
          len(LINKED)),
    Fault("markup in names and texts of a run", "page", "it is shown as text", injected,
          len(MARKUP)),
    Fault("a FIFO in a run's folder", "eval, predict, analyze, page, train", "one line",
          changed(special, (*READS, go_on), refused=True), 6),
    Fault("a file of a terabyte in a run's folder", "eval, predict, analyze, page, train",
          "right, or one line; no memory is taken", changed(huge, (*READS, go_on)), 4),
)
