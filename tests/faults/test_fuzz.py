"""Any content of a config, a split file, a COCO document or a run's folder: right, or one line."""

import functools
import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
from faults.folders import leaves, scored
from helpers import tiny_config
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax.data import split
from cellseg_jax.data.datasets.folder import records as folder_records
from cellseg_jax.errors import InputError, error_line
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import read_config
from cellseg_jax.runs.page import write_run_page

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis (the extra `test`)")
from hypothesis import strategies as st  # noqa: E402  (only where it is)

CASES = 2000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["", "\0", "=1+1", "../x", "n" * 300, "1e999", "<b>", -1, 0, 10**30, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3), max_leaves=6)
pytestmark = pytest.mark.weekly


def fuzzed(**arguments):
    """Like hypothesis.given, 2,000 cases, without its database and the same ones in each run."""
    def decorate(test):
        return hypothesis.settings(
            max_examples=CASES, database=None, derandomize=True, deadline=20_000,
            suppress_health_check=list(hypothesis.HealthCheck))(hypothesis.given(**arguments)(test))
    return decorate


def right_or_one_line(function):
    """The result; None after an InputError, whose line is not without end."""
    try:
        return function()
    except InputError as error:
        assert 20 < len(error_line(error)) < 3000
        return None


@functools.cache
def flat_config():
    return json.loads(config_lib.to_json(tiny_config()))


def with_value(content, place: int, value, remove: bool):
    """A copy of a JSON value with one of the values in it replaced, or removed."""
    content = json.loads(json.dumps(content))
    places = list(leaves(content))
    holder, key = places[place % len(places)]
    if remove and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = value
    return content


@fuzzed(place=st.integers(0, 10**4), value=JSON, remove=st.booleans())
def test_any_value_of_any_config_key_is_taken_or_refused(place, value, remove):
    changed = with_value(flat_config(), place, value, remove)
    config = right_or_one_line(lambda: config_lib.from_json(json.dumps(changed)))
    if config is not None:  # it was taken as it is written
        again = config_lib.from_json(config_lib.to_json(config))
        assert config_lib.identity(again) == config_lib.identity(config)


NAMES = [f"image{n}" for n in range(8)]


@fuzzed(content=JSON | st.dictionaries(
    st.sampled_from([*split.PARTS, "tests"]),
    st.lists(st.sampled_from([*NAMES, "other"]), max_size=5) | JSON))
def test_any_split_file_is_taken_or_refused(content):
    with tempfile.TemporaryDirectory() as place:
        path = pathlib.Path(place, "split.json")
        path.write_text(json.dumps(content))
        found = right_or_one_line(lambda: split.from_file(path, NAMES))
    if found:
        assert {part: [NAMES[i] for i in found[part]] for part in split.PARTS} == {
            part: sorted(content.get(part, [])) for part in split.PARTS}


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 20},
               {"id": 2, "file_name": "b.png", "height": 16, "width": 20}],
    "categories": [{"id": 1, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 8, 8], "area": 64,
         "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]},
        {"id": 2, "image_id": 2, "category_id": 1, "iscrowd": 1,
         "segmentation": {"size": [16, 20], "counts": [16, 32, 272]}}]}


@functools.cache
def coco_folder():
    place = pathlib.Path(tempfile.mkdtemp(prefix="cellseg_jax_tests_"))
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((16, 20), np.uint8)).save(place / name)
    path = place / "annotations.json"
    path.write_text(json.dumps(COCO))
    assert [sample.label.max() for sample in coco_samples(path)] == [1, 2]
    return place


def coco_samples(path):
    found = folder_records(str(path.parent), labels="instances", annotations="coco")
    return [record.read() for record in found]


@fuzzed(place=st.integers(0, 10**4), value=JSON, remove=st.booleans(), cut=st.integers(0, 3000))
def test_any_coco_document_is_taken_or_refused(place, value, remove, cut):
    text = json.dumps(with_value(COCO, place, value, remove))
    path = coco_folder() / "annotations.json"
    path.write_text(text if cut > len(text) or cut % 3 else text[:cut])
    for sample in right_or_one_line(lambda: coco_samples(path)) or ():
        assert sample.label.shape == sample.image.shape[:2] == (16, 20)
        assert sample.label.min() >= 0 and len(np.unique(sample.label)) <= 3  # ids stay as given


FILES = ("config.json", "environment.json", "result.json", "split.json", "eval/test.json")


@functools.cache
def run_copy():
    place = pathlib.Path(tempfile.mkdtemp(prefix="cellseg_jax_tests_"))
    return shutil.copytree(scored(), place / "run")


@fuzzed(file=st.sampled_from(FILES), place=st.integers(0, 10**4), value=JSON, remove=st.booleans())
def test_any_value_in_a_run_folder_is_taken_or_refused(file, place, value, remove):
    path = run_copy() / file
    before = path.read_bytes()
    try:
        path.write_text(json.dumps(with_value(json.loads(before), place, value, remove)))
        right_or_one_line(lambda: write_run_page(run_copy()))
        right_or_one_line(lambda: read_config(run_copy()))
        assert checkpoint.saved_steps(run_copy() / "checkpoints")
    finally:
        path.write_bytes(before)
