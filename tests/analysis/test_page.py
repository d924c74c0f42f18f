"""The page of what lies inside a run: one section per analysis, self-contained."""

import contextlib
import shutil

import numpy as np
import pytest
from helpers import tiny_config
from html_checker import HOSTILE, HOSTILE_FILE, Checker, assert_only_text
from matplotlib.text import Text

from cellseg_jax import config as config_lib
from cellseg_jax import files
from cellseg_jax.analysis.page import FINDINGS, Findings, _table, replacing, write_page
from cellseg_jax.analysis.page import write as write_
from cellseg_jax.errors import InputError
from cellseg_jax.report import figures, panels


def write(workdir, name, **changes):
    folder = workdir / "analysis" / name
    folder.mkdir(parents=True)
    panels.write_png(folder / "map.png", np.zeros((40, 60, 3), np.uint8))
    rows = "".join(f"layer <{k}>,0.{k:03d}5\n" for k in range(70))
    (folder / "map.csv").write_text(f"layer,dice\n{rows}last,nan\n")
    found = dict(title="Which layers & why", text=["The first <b> matters."],
                 figures=[("map.png", "Dice of \"all\"")], tables=[("map.csv", "All layers")])
    write_(folder, Findings(**found | changes))


def test_old_findings_stay_until_new_ones_are_whole(tmp_path):
    write(tmp_path, "pruning")
    for error in (InputError("a typo"), None):
        with contextlib.suppress(InputError), replacing(tmp_path, "pruning") as new:
            (new / "new.csv").write_text("half")
            if error:
                raise error
        assert sorted(p.name for p in (tmp_path / "analysis").iterdir()) == ["pruning"]
        assert (tmp_path / "analysis/pruning/map.png").exists()
    with replacing(tmp_path, "pruning") as new:
        write_(new, Findings("New", ["whole"], [], []))
    assert [p.name for p in (tmp_path / "analysis/pruning").iterdir()] == [FINDINGS]
    shutil.rmtree(tmp_path / "analysis")
    (tmp_path / "analysis").write_text("no folder")
    with pytest.raises(InputError, match="--workdir: cannot make"):
        replacing(tmp_path, "pruning").__enter__()


def test_page_has_a_section_per_analysis_with_words_pictures_and_tables(tmp_path):
    write(tmp_path, "pruning")
    (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config()))
    write(tmp_path, "weights", title="What moved", figures=[])
    (tmp_path / "analysis/filters").mkdir()  # not whole: without findings
    page = Checker(write_page(tmp_path).read_text())
    assert page.tags.count("img") == 1 and page.tags.count("table") == 2
    assert page.tags.count("h2") == 2
    for part in (f"Inside {tmp_path.name}", "unet trained with adam on synthetic, 32x32 pixels",
                 "Which layers & why", "The first <b> matters.", "What moved",
                 "layer <0>", "0.0005", "The first 60 of 71 rows"):
        assert part in page.shown, part
    assert "layer <69>" not in page.shown


def test_numbers_of_a_table_are_short_and_what_is_missing_is_a_dash(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("layer,dice,zeros\nup,0.123456,1728\ndown,nan,3\n")
    assert _table(path, "Layers")["rows"] == [["up", "0.1235", "1728"], ["down", "–", "3"]]
    assert _table(path, "Layers")["numeric"] == [1, 2]


def test_figures_are_written_whole_and_their_lines_differ_without_colour(tmp_path):
    fig, axes = figures.figure(3, 2)
    for number in range(7):
        axes.plot([0, 1], [0, number], label=f"line {number}", **figures.line_style(number))
    figures.label_lines(axes)
    figures.save(fig, tmp_path / "lines.png")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    assert len({str(figures.line_style(n)["linestyle"]) for n in range(7)}) == 7
    styles = [figures.line_style(n) for n in range(49)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == 49
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("ends", [[0.2] * 6, [0, 0.5, 1, 0.98, 0.02, 0.5], [1.0] * 3])
def test_names_beside_lines_do_not_overlap_and_keep_their_order(ends):
    fig, axes = figures.figure(4, 3)
    for n, end in enumerate(ends):
        axes.plot([0, 1], [0.3, end], label=f"line {n}", **figures.line_style(n))
    axes.set_ylim(0, 1)
    figures.label_lines(axes)
    fig.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line
    assert [text.get_text() for text in axes.texts] == [f"line {n}" for n in range(len(ends))]
    assert [text.get_color() for text in axes.texts] == [
        line.get_color() for line in axes.get_lines()]
    order = sorted(range(len(ends)), key=lambda n: boxes[n].y0)
    for below, above in zip(order, order[1:], strict=False):
        assert boxes[below].y0 + 8 < boxes[above].y0 and ends[below] <= ends[above]
    assert axes.get_window_extent().y0 - 8 < boxes[order[0]].y0
    assert boxes[order[-1]].y1 < axes.get_window_extent().y1 + 12


def test_no_name_or_value_becomes_markup(tmp_path):
    pages = []
    for word, file in ((HOSTILE, HOSTILE_FILE), ("word", "word")):
        workdir = tmp_path / file
        write(workdir, "pruning", title=word, text=[word], figures=[("map.png", word)],
              tables=[(f"{file}.csv", word)])
        files.write_csv(workdir / f"analysis/pruning/{file}.csv", [{word: word, "n": 1.5}])
        (workdir / "config.json").write_text(config_lib.to_json(tiny_config()))
        pages.append(write_page(workdir).read_text())
    assert_only_text(*pages, 9)
