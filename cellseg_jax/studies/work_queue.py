"""--task=any: any number of processes share the runs of a study, and each takes the next free one.

There is no list of who does what. A run's folder is the unit of work: its files say whether it is
done, its lock (runs.lock) who has it. So processes may come and go at any time, and what a lost one
had goes on from its last checkpoint in another one. `train` opens the folder of a run only when it
has a slot for it, so that several processes can be given the same runs and share them.
"""

import pathlib
import time

from cellseg_jax.cli.stopping import INTERRUPTED
from cellseg_jax.config import derived
from cellseg_jax.files import strangers
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import RESULT_FILE
from cellseg_jax.runs.lock import HEARTBEAT_LOST, InUse, Lock, holder
from cellseg_jax.studies import launch
from cellseg_jax.studies.live_page import LivePage

POLL = 5.0  # seconds between looks, while other processes have all that is left


def run(study, workdir: pathlib.Path, rows, repeats: int, *, smoke: bool = False,
        backend: str = "", slots: int = 0) -> int:
    """Train and score runs until all are done, those of other processes too; the exit code.

    A process that finds nothing to take waits, so that it takes over what the others may lose. The
    first one to find all runs done writes the tables.

    The arguments and errors are those of launch.run.
    """
    strangers.check(workdir)
    left, failed, waiting = launch.planned(study, workdir, rows, repeats, smoke), {}, False
    page = LivePage(study, workdir, rows, repeats, smoke=smoke)
    while left := _not_done(left, failed):
        taken = _next(left)
        if not taken:
            if not waiting:
                terminal.log(f"{sum(map(len, left))} runs are left, and other processes have them; "
                             "waiting to take over what they lose")
            waiting = True
            time.sleep(POLL)
            continue
        waiting = False
        terminal.log(f"--- {sum(map(len, left))} runs are left; {len(taken)} of one program are "
                     f"free: {launch.rows_of(taken)}")
        status = launch.train_program(taken, failed, backend, slots)
        if "interrupted" in status:
            return INTERRUPTED
        if "in use" not in status:  # else another process may have those that are not done
            failed |= {one.name: "is not done after it was run" for one in taken
                       if one.name not in failed and not launch.is_whole(*one)}
        elif len(status) == 1:
            time.sleep(POLL)
        page.update()
    for name, why in failed.items():
        terminal.log(f"not run: {name}: {why}")
    try:
        with Lock(workdir):
            launch.collect(study, workdir, rows, repeats, smoke=smoke)
    except InUse:
        terminal.log("all runs are done; another process writes the tables")
    return 2 if failed else 0


def _not_done(programs, failed) -> list[list[launch.PlannedRun]]:
    """The programs with those of their runs that are not done and did not fail here."""
    left = [[one for one in program if one.name not in failed and not launch.is_whole(*one)]
            for program in programs]
    return [program for program in left if program]


def _next(programs) -> list[launch.PlannedRun]:
    """The runs of one program that could begin now; none where other processes have all.

    Of the program that the fewest others work on, since each process compiles it for itself. A
    holder that is silent is tried where nothing is free, since its lock has to be watched first.
    """
    silent, offers = [], []
    for program in programs:
        holders = {one.folder: holder(one.folder) for one in program}
        free = [one for one in program if not holders[one.folder][0] and _can_begin(one)]
        held = sum(bool(name) for name, _ in holders.values())
        silent += [[one] for one in program if holders[one.folder][0]
                   and not 0 <= holders[one.folder][1] < HEARTBEAT_LOST]
        offers.append((held, free))
    some_free = [offer for offer in offers if offer[1]]
    if some_free:
        taken = min(some_free, key=lambda offer: offer[0])[1]
    elif any(held for held, _ in offers):
        taken = silent[0] if silent else []
    else:  # they start from a row that failed, and say so
        taken = programs[0]
    # What is not trained is scored at once: another process would begin it again.
    return taken[:1] if taken and derived.is_classical(taken[0].config) else taken


def _can_begin(one: launch.PlannedRun) -> bool:
    """Whether the run that a run starts from, if it does, has ended."""
    row = derived.first_row(one.config)
    return not row or (one.folder.parent.parent / row / one.folder.name / RESULT_FILE).exists()
