"""The page of a study that is under way."""

import helpers_study as helpers
import pytest

from cellseg_jax.errors import InputError
from cellseg_jax.studies import live_page
from cellseg_jax.studies.live_page import LivePage

RELOADS = '<meta http-equiv="refresh" content="60">'


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: clock[0] is the time."""
    now = [1000.0]
    monkeypatch.setattr(live_page.time, "monotonic", lambda: now[0])
    return now


def test_the_page_is_written_for_a_twentieth_of_the_time_at_most(tmp_path, clock, monkeypatch):
    written = []

    def collect(study, workdir, **options):
        written.append(clock[0])
        clock[0] += 2.0  # seconds that it takes

    monkeypatch.setattr(live_page.tables, "collect", collect)
    monkeypatch.setattr(live_page, "write_study_page", lambda *_, **__: None)
    page = LivePage(None, tmp_path, None, 2)
    while clock[0] < 1100:
        page.update()
        clock[0] += 1.0
    assert written == [1000, 1042, 1084]


def test_a_page_of_a_study_under_way_reloads_itself(tmp_path, clock):
    study = helpers.make_study(repeats=1)
    LivePage(study, tmp_path, ["unet_adam"], 1).update()
    assert RELOADS in (tmp_path / "report.html").read_text()
    live_page.write_study_page(live_page.tables.collect(study, tmp_path, rows=["unet_adam"],
                                                        repeats=1), tmp_path / "report.html")
    assert RELOADS not in (tmp_path / "report.html").read_text()


def test_damaged_files_do_not_end_a_study(tmp_path, clock, monkeypatch, capsys):
    def collect(study, workdir, **options):
        raise InputError("table.csv is damaged")

    monkeypatch.setattr(live_page.tables, "collect", collect)
    LivePage(None, tmp_path, None, 2).update()
    assert "page: not written (table.csv is damaged)" in capsys.readouterr().err
