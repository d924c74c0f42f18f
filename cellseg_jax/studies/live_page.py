"""The page of a study that is under way: written anew after its programs, and reloads itself."""

import time

from cellseg_jax.errors import InputError
from cellseg_jax.report import terminal
from cellseg_jax.studies import table as tables
from cellseg_jax.studies.output.page import write_study_page

SHARE = 0.05  # of the time, at most, goes into writing the page
RELOAD_S = 60  # seconds after which a browser reloads it


class LivePage:
    """report.html of a study while runs are left; `launch.collect` writes the last one.

    The arguments are those of launch.run.
    """

    def __init__(self, study, workdir, rows, repeats: int, *, smoke: bool = False):
        self.study, self.workdir = study, workdir
        self.options = dict(rows=rows, repeats=repeats, smoke=smoke)
        self._next = 0.0  # when it may be written

    def update(self) -> None:
        """Write the page of the runs as they are now, if the last time is long enough ago."""
        began = time.monotonic()
        if began < self._next:
            return
        try:
            table = tables.collect(self.study, self.workdir, **self.options)
            write_study_page(table, self.workdir / "report.html", reload_s=RELOAD_S)
        except InputError as error:  # a damaged file, which is an error at the end of the study
            terminal.log(f"page: not written ({error})")
        now = time.monotonic()
        self._next = now + (now - began) / SHARE
