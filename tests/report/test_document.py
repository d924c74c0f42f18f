"""The shell of pages: escaping, links to sections, and in a browser sorting and dark colours."""

import tomllib

import browser
import jinja2
import pytest
from html_checker import Checker

from cellseg_jax.report import document


def page(sections, **values):
    """A page of a template's text for the sections."""
    return document.environment().from_string(
        '{% extends "report/page.html.jinja" %}{% import "report/parts.html.jinja" as parts %}'
        "{% block top %}{% endblock %}{% block sections %}" + sections + "{% endblock %}"
    ).render(title="a & b", **values)


def table(head, rows, **options):
    parts = document.environment().get_template("report/parts.html.jinja").module
    return parts.table(head, rows, **options)


def test_cells_are_escaped_unless_the_kit_made_them():
    row = ("<i>", document.Cell(document.soft("<a_b>"), "<u>", ("<b>",), "name", ("<", "up"), 0.5))
    text = table(("a<b", "c"), [row], numeric={1}, name='"t"')
    assert "<th>a&lt;b</th>" in text and "<td>&lt;i&gt;</td>" in text
    assert '<td class="n"><span class="name">&lt;a_<wbr>b&gt;</span>' in text
    assert "</span> <small>&lt;u&gt;</small>" in text
    assert "<br><small>&lt;b&gt;</small>" in text and 'style="width:50%"' in text
    assert 'aria-label="&#34;t&#34;"' in text and Checker(text).tags.count("td") == 2
    assert "sortable" in table(("a",), [], sortable=True) and "sortable" not in table(("a",), [])


def test_headings_are_linked_from_the_top():
    text = page("{{ parts.heading('Scores & <more>') }}<h2>plain</h2>")
    assert '<h2 id="scores-more">Scores &amp; &lt;more&gt;</h2>' in text
    assert '<a href="#scores-more">Scores &amp; &lt;more&gt;</a>' in text and text.count("<a ") == 1


def test_a_name_that_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'scores' is undefined"):
        page("{{ scores }}")


def test_every_template_is_package_data():
    tables = tomllib.loads((document.PACKAGE.parent / "pyproject.toml").read_text())
    patterns = tables["tool"]["setuptools"]["package-data"]["*"]
    kept = [path for pattern in patterns for path in document.PACKAGE.rglob(pattern)]
    assert {path.relative_to(document.PACKAGE).as_posix() for path in kept} >= {
        "report/page.html.jinja", "report/style.css", "report/script.js", "runs/page.html.jinja",
        "studies/output/page.html.jinja", "analysis/page.html.jinja",
        "data/quality/page.html.jinja"}


def test_numbers_counts_and_plain_values():
    assert [document.number(v) for v in (None, float("nan"), 0.5)] == ["–", "–", "0.5000"]
    assert document.count(1, "row") == "1 row" and document.count(1200, "row") == "1,200 rows"
    assert document.plain({"a": [1, "b"], "c": None}) == "a 1, b, c None"


@pytest.mark.slow
def test_tables_sort_by_mouse_and_by_keyboard_and_colours_follow_the_system(tmp_path):
    rows = [("b 10", "0.5 ± 0.1"), ("b 9", "–"), ("a", "−1,200"), ("c", "12")]
    (tmp_path / "page.html").write_text(page(
        '{{ parts.heading("A table") }}{{ parts.table(("name", "n"), rows, (1,), sortable=true) }}',
        rows=rows))
    with browser.opened(tmp_path / "page.html", width=390, dark=True) as opened:
        assert opened.column(1) == ["b 10", "b 9", "a", "c"]
        opened.click("th:nth-child(2) button")
        assert opened.column(2) == ["−1,200", "0.5 ± 0.1", "12", "–"]
        opened.click("th:nth-child(2) button")
        assert opened.column(2) == ["12", "0.5 ± 0.1", "−1,200", "–"]
        opened.press("th:nth-child(1) button")
        assert opened.column(1) == ["a", "b 9", "b 10", "c"]
        assert opened.page.locator("th[aria-sort=ascending]").count() == 1
        assert opened.errors == [] and opened.requests == [] and opened.overflow() <= 0
        dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(21, 24, 28)"
