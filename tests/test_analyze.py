"""The command that looks inside a run: what it leaves, and what it refuses in one line."""

import pytest
from helpers import tiny_config
from html_checker import Checker

from cellseg_jax import analysis, analyze, cli, train
from cellseg_jax import config as config_lib
from cellseg_jax.analysis.page import ORDER


def started(workdir, *arguments):
    return cli.run_command(analyze.main, analyze.define_flags,
                                ["analyze", f"--workdir={workdir}", *arguments])


@pytest.fixture
def workdir(tmp_path):
    config = tiny_config(train__epochs=1, train__log_gradients=True)
    train.train([config], [tmp_path / "run"])
    return tmp_path / "run"


def test_flags_page_and_analyses_name_the_same():
    assert tuple(analysis.ANALYSES) == ORDER == tuple(analyze.OPTIONS)


@pytest.mark.parametrize("arguments,words", [
    (["--workdir=runs/none"], "--analysis: missing; expected some of pruning, weights"),
    (["--analysis=weight"], "did you mean weights?"),
    (["--analysis=weights", "--workdir="], "--workdir: missing"),
    (["--analysis=filters", "--split=tset"], "--split: got 'tset'"),
    (["--analysis=weights", "--config=configs/quickstart.py"], "has its own config"),
    (["--analysis=pruning", "--iterations=0"], "--iterations"),
    (["--analysis=weights", "--masks=2"], "--masks: --analysis=weights does not read it"),
    (["--analysis=weights"], "no run in"),
])
def test_bad_flags_are_told_in_one_line(arguments, words, tmp_path, capsys):
    assert started(tmp_path / "none", *arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and words in said


@pytest.mark.weekly
def test_every_analysis_leaves_tables_pictures_and_its_section(workdir, capsys):
    assert started(workdir, "--analysis=weights,gradients,filters,pruning", "--iterations=2",
                   "--masks=2", "--kinds=conv,transposed") == 0, capsys.readouterr().err
    for name in analyze.OPTIONS:
        folder = workdir / "analysis" / name
        assert (folder / f"{name}.csv").read_text().count("\n") > 1
        assert list(folder.glob("*.png"))
    page = Checker((workdir / "analysis.html").read_text())
    assert page.tags.count("h2") == 4 and page.tags.count("img") > 6
    assert "analysis.html" in capsys.readouterr().err


@pytest.mark.slow
def test_a_classical_method_has_nothing_to_look_at(tmp_path, capsys):
    config = config_lib.default()
    config.data = dict(name="synthetic", size=(32, 32), count=20)
    config.model = dict(name="otsu")
    train.train([config], [tmp_path / "otsu"])
    assert started(tmp_path / "otsu", "--analysis=weights") == 2
    assert "has no layers to analyse" in capsys.readouterr().err
