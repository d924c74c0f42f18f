"""The page of the doctor: well formed, escaped, and whole with nothing to show."""

import collections
import re
import types

import numpy as np
from html_checker import HOSTILE, Checker, assert_only_text

from cellseg_jax.data.quality.examine import Facts
from cellseg_jax.data.quality.page import write
from cellseg_jax.data.quality.report import Report, gather
from cellseg_jax.data.records import Finding


def fact(name="a", stratum="", preview=True, num_objects=2):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    label = np.zeros((20, 30), np.int32)
    label[2:9, 3:9], label[10:15, 12:20] = 1, 2
    return Facts(name, f"d/{name}.png", name, "", stratum, (20, 30), 3, "uint8", True, "",
                 np.zeros(3), np.full(3, 255), np.array([540, 60]), num_objects, 0, 0,
                 np.zeros((64, 64)), (image, label) if preview else None)


class Data(collections.UserDict):
    @property
    def name(self):
        return self["name"]


def report(tmp_path, facts, findings=(), parts=None, name="my <data>", **data):
    examination = types.SimpleNamespace(facts=facts, parts=parts or {})
    config = types.SimpleNamespace(data=Data(data, name=name))
    made = Report(config, examination, gather(findings), 1.5)
    write(tmp_path / "doctor.html", made, [("images", "2 & <more>")])
    text = (tmp_path / "doctor.html").read_text()
    return Checker(text), text


def test_page_shows_findings_pictures_tables_and_charts(tmp_path):
    findings = [Finding("error", f"d/{n}<b>.png", f"has {n} values") for n in range(3)]
    findings += [Finding("note", "config.data.x", "fine & well")]
    facts = [fact("a", "stained"), fact("b & c", "glowing"), fact("d", "glowing", preview=False)]
    checker, text = report(tmp_path, facts, findings,
                           {"train": np.array([0, 2]), "val": np.array([1])})
    words = "\n".join(checker.texts)
    assert "my <data>: 3 errors, 0 warnings, 1 note" in words
    assert "Training will not start" in words and "2 & <more>" in words
    assert "has 0 values" in words and "and 2 more like it" in words and "d/2<b>.png" in words
    assert checker.tags.count("img") == 2 and "2 of 3 images, labels outlined" in words
    assert checker.tags.count("svg") == 2
    row = re.search("<tr><td>glowing</td>(.*?)</tr>", text)[1]
    assert re.findall(">([^<]+)<", row) == ["2", "2", "1", "1", "10.0%"]


def test_page_of_classes_has_their_shares_and_no_objects(tmp_path):
    facts = [fact()._replace(pixels=np.array([540, 0, 60, 0]))]
    checker, text = report(tmp_path, facts, labels="classes")
    assert checker.tags.count("svg") == 1 and "Objects per image" not in text
    row = re.search('<td class="n">2</td>(.*?)</tr>', text)[1]
    assert re.findall(">([^<]+)<", row) == ["10.00%", "1"]


def test_page_of_nothing_is_whole(tmp_path):
    checker, _ = report(tmp_path, [])
    assert "None." in checker.texts and "Nothing here stops training." in checker.texts
    assert "img" not in checker.tags


def test_no_name_or_value_becomes_markup(tmp_path):
    pages = []
    for word in (HOSTILE, "word"):
        facts = [fact()._replace(name=word + str(n), stratum=word, dtype=word, alpha=word)
                 for n in range(2)]
        findings = [Finding("warning", f"{word}{n}", word) for n in range(3)]
        folder = tmp_path / str(len(pages))
        folder.mkdir()
        parts = {word: np.array([0, 1])}
        pages.append(report(folder, facts, findings, parts, name=word)[1])
    assert_only_text(*pages, 11)
