"""Charts with a row per thing: missing values, close dots, verdicts by shape, clipped rows."""

import math
import re
import xml.dom.minidom

import numpy as np
import pytest

from cellseg_jax.report import row_charts


def test_bars_missing_mean_and_values():
    text = row_charts.bars("t", [row_charts.Bar("a & b", None),
                                 row_charts.Bar("c", 0.5, [0.4, None, 0.6], (0.4, 0.6))])
    xml.dom.minidom.parseString(text)
    assert text.count("<circle") == 2 and text.count("<rect") == 1
    assert text.count('class="range"') == 1 and "c 0.500 (0.400 to 0.600)" in text


def test_bars_keep_close_dots_apart():
    text = row_charts.bars("t", [row_charts.Bar("a", 0.97, [0.97] * 5)])
    assert len(set(re.findall(r'cy="([\d.]+)"', text))) == 5


def test_shares_of_nothing():
    text = row_charts.shares("t", [("a", 0, "#000"), ("<b>", 0, "#fff")])
    drawn = xml.dom.minidom.parseString(text)
    widths = [float(bar.getAttribute("width")) for bar in drawn.getElementsByTagName("rect")]
    assert widths == [0, 14, 0, 14]  # bars, and squares of the legend
    assert "nan" not in text and "&lt;b&gt;" in text


@pytest.mark.parametrize("marker", row_charts.MARKERS)
def test_differences_show_a_meaning_by_the_shape_of_its_marker(marker):
    rows = [row_charts.Difference("a & b", 0.02, 0.01, 0.03, marker, "its meaning"),
            row_charts.Difference("c" * 50, -0.01, math.nan, math.nan, "circle", "another")]
    text = row_charts.differences("t", "x", rows, 0.005)
    xml.dom.minidom.parseString(text)
    assert row_charts.MARKERS[marker] in text and 'class="strip"' in text and "nan" not in text
    assert "a &amp; b +0.0200, its meaning" in text
    shapes = [re.sub('class="[a-z]*"', "", shape) for shape in row_charts.MARKERS.values()]
    assert len(set(shapes)) == len(row_charts.MARKERS)


def test_differences_stay_apart_beside_a_collapsed_row():
    row = lambda label, value, half: row_charts.Difference(
        label, value, value - half, value + half, "up", "better")
    rows = [row(str(n), 0.002 * n, 0.001) for n in range(5)]
    text = row_charts.differences("t", "x", [*rows, row("0", -0.8, 0.02)])
    places = [float(x) for x in re.findall(r"translate\(([\d.]+) ", text)]
    assert np.diff(places[:5]).min() > 8 and text.count("span open") == 1
    assert row_charts.differences("t", "x", []) == ""
    assert "nan" not in row_charts.differences("t", "x", [row("a", 0.0, 0.0)])


def test_distributions_survive_missing_values():
    text = row_charts.distributions("t", "dice", [
        ("a", np.array([0.5])), ("b", np.array([np.nan])),
        ("c", np.r_[0.01, np.full(200, 0.9)])])
    xml.dom.minidom.parseString(text)
    assert text.count('class="violin"') == 2 and "\u25c21<" in text and "nan" not in text
    assert row_charts.distributions("t", "x", []) == ""


def test_a_margin_has_a_line_on_either_side():
    rows = [row_charts.Difference("a", 0.02, 0.01, 0.03, "up", "better")]
    text = row_charts.differences("t", "x", rows, 0.005, 0.05)
    ends = [float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*class="target"', text)]
    zero = float(re.search(r'<line x1="([\d.]+)"[^>]*class="zero"', text)[1])
    assert len(ends) == 2 and sum(ends) / 2 == pytest.approx(zero, abs=0.2)
    assert 'class="target"' not in row_charts.differences("t", "x", rows, 0.005)
