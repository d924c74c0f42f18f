"""The shell of pages: escaping, links to sections, and in a browser sorting and dark colours."""

import browser
import pytest

from cellseg_jax.report import document


def page(*sections):
    return document.document("a & b", [document.NAV, *sections])


def test_cells_are_escaped_unless_they_are_html():
    row = ("<i>", document.Html("<i>x</i>"))
    text = document.table(("a<b", "c"), [row], numeric={1}, name='"t"')
    assert "<th>a&lt;b</th>" in text and "<td>&lt;i&gt;</td>" in text
    assert '<td class="n"><i>x</i></td>' in text and 'aria-label="&quot;t&quot;"' in text
    assert 'class="sortable"' in document.table(("a",), [], sortable=True)


def test_headings_are_linked_from_the_top():
    text = page(document.heading("Scores & more"), "<h2>plain</h2>", "")
    assert '<h2 id="scores-more">Scores &amp; more</h2>' in text
    assert '<a href="#scores-more">Scores &amp; more</a>' in text and text.count("<a ") == 1


@pytest.mark.slow
def test_tables_sort_by_mouse_and_by_keyboard_and_colours_follow_the_system(tmp_path):
    rows = [("b 10", "0.5 ± 0.1"), ("b 9", "–"), ("a", "−1,200"), ("c", "12")]
    (tmp_path / "page.html").write_text(page(
        document.heading("A table"), document.table(("name", "n"), rows, {1}, sortable=True)))
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
