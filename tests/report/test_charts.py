"""Charts with two axes: gaps, single points, marks, bands, and ticks."""

import math
import re
import xml.dom.minidom

import numpy as np
import pytest

from cellseg_jax.report import charts, svg


def test_curves_one_point_gap_and_empty():
    assert charts.curves("t", "x", [charts.Series("a", [1, 2], [None, math.nan])]) == ""
    one = charts.curves("t", "x", [charts.Series("a", [1], [0.5])])
    gap = charts.curves("t", "x", [charts.Series("<a>", [1, 2, 3, 4], [0.5, 0.6, math.inf, 0.8])],
                     mark=(2, "best"))
    for picture in (one, gap):
        xml.dom.minidom.parseString(picture)
    path = re.search(r' d="([^"]*)"', gap)[1]
    assert path.count("M") == 2 and path.count("L") == 1


def test_curves_joins_values_across_epochs_without_validation():
    text = charts.curves("t", "x", [charts.Series("val", [1, 2, 3], [0.5, None, 0.7])])
    assert re.search(r' d="([^"]*)"', text)[1].count("L") == 1


def test_curves_of_a_very_long_log_stay_small():
    n = 100_000
    text = charts.curves("t", "x", [charts.Series("a", list(range(n)), [i / n for i in range(n)])])
    assert len(text) < 20_000


def test_curves_name_the_mark_above_every_curve():
    text = charts.curves("t", "x", [charts.Series("a", [1, 2, 3], [0.0, 1.0, 1.0])],
                         mark=(2, "best"))
    mark = float(re.search(r'y="([\d.]+)"[^>]*>best<', text)[1])
    curve = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", text)]
    assert 18 < mark < min(curve)  # below the legend


def test_reliability_leaves_out_empty_bins():
    text = charts.reliability("t", [("a", [0.1, 0.5, 0.9], [0.0, 0.5, 1.0], [0.9, 0.0, 0.1])])
    xml.dom.minidom.parseString(text)
    assert text.count("<circle") == 2 and "0.50 positive" not in text and "1.00 positive" in text


def test_band_spans_the_curves_where_they_have_values():
    one = charts.band("a", [([1, 2, 4], [0.1, 0.2, 0.4]), ([2, 4, 6], [0.4, None, 0.8])])
    np.testing.assert_array_equal(one.x, [1, 2, 4, 6])
    np.testing.assert_allclose(one.low, [0.1, 0.2, 0.4, 0.8])
    np.testing.assert_allclose(one.mean, [0.1, 0.3, 0.5, 0.8])
    np.testing.assert_allclose(one.high, [0.1, 0.4, 0.6, 0.8])
    assert charts.band("a", [([1], [None]), ([1], [math.nan])]) is None
    n = 100_000
    long = charts.band("a", [(range(n), np.sin(np.arange(n)))])
    assert len(long.x) <= charts.BAND_POINTS and long.x[0] == 0 and long.x[-1] == n - 1


def test_bands_leave_out_what_lies_below_their_limits():
    one = charts.Band("a", *np.array([[1, 2, 3], [0.1, 0.5, 0.6], [0.2, 0.6, 0.7], [0.3, 0.7, 0.8]],
                                     float))
    text = charts.bands("t", "x", [one, None], limits=(0.5, 0.8), base=one)
    xml.dom.minidom.parseString(text)
    assert re.search(r'stroke-dasharray="none" d="([^"]*)"', text)[1].count("L") == 1
    assert charts.bands("t", "x", [None]) == ""
    point = charts.bands("t", "x", [charts.band("a", [([1], [0.5])])])
    assert "<circle" in point and "nan" not in point


@pytest.mark.parametrize("low, high", [(0, 1), (0.5, 0.5), (0, 0), (-3, 1e-9), (1e-6, 2e-3),
                                       (0.912, 0.913), (1, 12345)])
def test_ticks_span_the_values_with_round_steps(low, high):
    ticks = svg.ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high - 1e-6 * (high - low) and 2 <= len(ticks) <= 7


def test_scatter_survives_missing_and_equal_values():
    text = charts.scatter("t", "x", "y", [(0.5, 0.5, math.nan), (0.5, 0.5, 0.1), (math.nan, 1, 1)])
    xml.dom.minidom.parseString(text)
    assert ">1,2<" in text and text.count("<circle") == 2
    cost = charts.scatter("t", "minutes", "dice", [(5, 0.9, 0.1), (50, 0.8, 0.1)], diagonal=False)
    left, right = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"[^>]*class="up"', cost))
    zero = svg.Margins().left  # x begins at 0
    assert right - zero == pytest.approx(10 * (left - zero), rel=0.01)
    assert "zero" not in cost and "zero" in text
    assert charts.scatter("t", "x", "y", []) == ""


def test_fitted_curve_is_solid_where_tried_and_dashed_beyond():
    x = np.geomspace(20, 2000, 60)
    mean = 0.86 - 0.4 * x**-0.5
    drawn = charts.fitted(
        "Learning curve of unet", "training images", "dice_mean", [(20, 0.77), (320, 0.84)],
        charts.Band("unet", x, mean - 0.01, mean, mean + 0.01), last=320.0, best=1.0,
        targets=[charts.Target("wanted 0.85", 0.85, 1600.0),
                 charts.Target("wanted 0.95", 0.95, math.inf)])
    xml.dom.minidom.parseString(drawn)
    assert drawn.count('class="run"') == 2 and drawn.count('class="line fitted"') == 2
    assert drawn.count('stroke-dasharray="7 4"') == 1 and drawn.count('class="down"') == 1
    for text in ("wanted 0.95", "training images (logarithmic)", ">100<", ">1,000<", "dice_mean"):
        assert text in drawn
    assert charts.fitted("nothing", "n", "dice_mean", [(20, math.nan)], None) == ""
    assert "circle" in charts.fitted("points", "n", "dice_mean", [(7, 0.5)], None)


def test_histogram_draws_every_value():
    values = [0, 1, 1, 7, 40]
    text = charts.histogram("objects", values, "images")
    assert "from 0 to 40, median 1" in text
    bars = re.findall('class="bar" .*? height="([0-9.]+)"', text)
    heights = [float(height) for height in bars]
    assert len(bars) == 3 and np.allclose(heights, np.array([3, 1, 1]) * heights[1], atol=0.11)
    assert charts.histogram("objects", [0, 0], "images").count('class="bar"') == 1
