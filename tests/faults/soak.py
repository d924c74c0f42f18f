"""A soak: a study shared by several processes, under faults at drawn moments, for some minutes.

    python tests/faults/soak.py --minutes=60 --workers=4 --seed=0 --folder=DIR

The study grows whenever it is done, until the minutes are over. Then it is compared with the same
study of one process without faults. A line for each check says whether it held; exit code 1 if one
did not. The folder has to be new; it gets the logs of all processes. The study lies on a small disk
of its own where mounting is allowed (root), and is copied to DIR/kept if a check did not hold.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # as pytest has it
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from faults.disks import small_disk
from helpers import ROOT, child_environment, command, run_command
from helpers_study import SHARED_STEPS, SHARED_STUDY, logged_steps, table_without_costs

from cellseg_jax.runs.lock import holder

ROWS = ("base", "slow", "wide", "second", "otsu")
GROWTH = 4  # repeats more whenever the study is done
FULL_S = (1.0, 8.0)  # how long a disk stays full
SHARES = {"SIGKILL": 0.3, "SIGTERM": 0.3, "full disk": 0.1, "clock step": 0.2,
          "stamps of the future": 0.1}
STEPS_S = (-600.0, -30.0, 0.0, 30.0, 600.0)  # from the true time, of a worker's clock
DISK_MB, RUN_MB = 32, 1  # of the small disk: at first, and for each run
STUCK_S = 900.0  # seconds without a run that ended
NO_SPACE = "No space left on device"

# The clock of a process as another host's: time and stamps are ahead by what a file says now.
CLOCK = """
import os, time
now, utime = time.time, os.utime

def ahead():
    try:
        with open(os.environ["SOAK_CLOCK"]) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0

def stamped(path, times=None, **options):
    if times is None and not options:
        times = (time.time(),) * 2
    return utime(path, times, **options)

time.time, os.utime = lambda: now() + ahead(), stamped
"""


class Worker:
    """A process of --task=any, its log and its clock."""

    def __init__(self, number, place, words):
        self.log, self.clock = place / f"logs/{number:04d}.log", place / f"clocks/{number:04d}"
        self.signals = set()  # that it was sent
        environment = child_environment() | {
            "PYTHONPATH": f"{ROOT}:{place}/clock", "SOAK_CLOCK": str(self.clock),
            "XDG_CACHE_HOME": f"{place}/caches"}
        with open(self.log, "w") as said:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said,
                                            stderr=subprocess.STDOUT)

    def send(self, number):
        self.signals.add(number)
        self.process.send_signal(number)

    def unexpected(self):
        """What is wrong with how it ended, in words; "" if nothing is."""
        code, said = self.process.returncode, self.log.read_text(errors="replace")
        expected = {0} | ({-signal.SIGKILL} & {-number for number in self.signals})
        if signal.SIGTERM in self.signals:
            expected |= {75, -signal.SIGTERM}  # the latter before its flags are read
        if re.search(f"^error: .*{NO_SPACE}", said, re.M):
            expected |= {1, 2}
        # Python drops what a handler raises in a callback of its memory management; the watching
        # thread ends the process then.
        dropped = said.count("Exception ignored") if signal.SIGTERM in self.signals else 0
        if said.count("Traceback") != dropped:
            return f"{self.log.name}: exit {code} with a traceback"
        return "" if code in expected else f"{self.log.name}: exit {code}"


class Soak:
    """The study under way, its processes, and what was done to them."""

    def __init__(self, place, study, disk, args):
        self.place, self.study, self.disk, self.every = place, study, disk, args.every
        self.rng, self.repeats, self.count = random.Random(args.seed), GROWTH, 0
        self.workers = [None] * args.workers
        self.faults, self.endings = collections.Counter(), collections.Counter()
        self.wrong, self.twice, self.ended = [], [], {}
        self.full_until, self.news = 0.0, time.monotonic()

    def words(self, *options):
        return ["study", f"--study={self.place}/shared.py", f"--rows={','.join(ROWS)}",
                "--backend=loop", f"--repeats={self.repeats}", *options]

    def run(self, seconds):
        """Until the study is done after so many seconds of faults."""
        end = time.monotonic() + seconds
        next_fault = time.monotonic() + self.rng.expovariate(1 / self.every)
        self.start()
        while any(self.workers):
            now = time.monotonic()
            if next_fault < now < end:
                self.fault(self.rng.choices(list(SHARES), list(SHARES.values()))[0])
                next_fault = time.monotonic() + self.rng.expovariate(1 / self.every)
            self.look()
            if not any(self.workers) and time.monotonic() < end:
                self.repeats += GROWTH
                self.start()
            assert time.monotonic() - self.news < STUCK_S, f"no run ended for {STUCK_S:.0f} s"
            time.sleep(0.1)
        self.free()

    def start(self):
        if self.disk:
            size = DISK_MB + RUN_MB * self.repeats * len(ROWS)
            subprocess.run(["mount", "-o", f"remount,size={size}m", str(self.study)], check=True)
        for slot in range(len(self.workers)):
            self.begin(slot)

    def begin(self, slot):
        self.count += 1
        self.workers[slot] = Worker(self.count, self.place, command(
            *self.words("--slots=2", f"--workdir={self.study}", "--task=any")))

    def look(self):
        """What has ended since the last look; who ended before the study did is replaced."""
        if self.full_until:
            self.free() if time.monotonic() > self.full_until else self.fill()
        results = [self.study.glob(f"{row}/*/result.json") for row in ROWS if row != "otsu"]
        for file in itertools.chain(*results, self.study.glob("*/*/eval/test.json")):
            with contextlib.suppress(FileNotFoundError):  # a score that is taken again
                when = file.stat().st_mtime_ns
                if file not in self.ended:
                    self.news = time.monotonic()
                if self.ended.setdefault(file, when) != when:
                    self.ended[file] = when
                    self.twice.append(str(file.relative_to(self.study)))
        for slot, worker in enumerate(self.workers):
            if worker and worker.process.poll() is not None:
                self.endings[worker.process.returncode] += 1
                self.wrong += filter(None, [worker.unexpected()])
                self.workers[slot] = None
                if worker.process.returncode:
                    self.begin(slot)

    # --- faults -----------------------------------------------------------------------------------

    def fault(self, name):
        worker = self.rng.choice([worker for worker in self.workers if worker])
        if name in ("SIGKILL", "SIGTERM"):
            worker.send(getattr(signal, name))
        elif name == "clock step":
            worker.clock.write_text(str(self.rng.choice(STEPS_S)))
        elif name == "stamps of the future":
            stamp = time.time() + 10.0 ** self.rng.randrange(2, 7)
            for file in self.study.glob("*/*/.lock"):
                os.utime(file, (stamp, stamp))
        elif self.disk and not self.full_until:
            self.full_until = time.monotonic() + self.rng.uniform(*FULL_S)
            self.fill()
        else:
            return
        self.faults[name] += 1

    def fill(self):
        """Write a file until nothing more fits."""
        with open(self.study / "ballast.tmp", "ab", buffering=0) as ballast:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while ballast.write(bytes(size)) == size:
                        pass

    def free(self):
        (self.study / "ballast.tmp").unlink(missing_ok=True)
        self.full_until = 0.0

    # --- what has to hold -------------------------------------------------------------------------

    def checks(self, alone):
        """{what has to hold: what was found that does not}."""
        tables = [table_without_costs(folder) for folder in (self.study, alone)]
        differ = [] if tables[0] == tables[1] != [] else [
            line for line in tables[0] if line not in tables[1]] or [f"{len(tables[0])} lines"]
        return {"every run ended once": self.books(),
                "results and scores were written once": self.twice,
                "the table equals the undisturbed one to the last bit": differ,
                "the files are those of the undisturbed study": sorted(
                    files(self.study) ^ files(alone)),
                "no lock is held": [str(file.parent.relative_to(self.study)) for file
                                    in self.study.rglob(".lock") if holder(file.parent)[0]],
                "every process ended as expected": self.wrong}

    def books(self):
        """The runs that did not end, or whose log has a step twice or not at all."""
        bad = []
        for row in ROWS:
            for run in (self.study / row / str(repeat) for repeat in range(self.repeats)):
                with contextlib.suppress(OSError, ValueError):
                    done = json.loads((run / "result.json").read_text())["status"] == "done"
                    if done and (row == "otsu" or logged_steps(run) == SHARED_STEPS):
                        continue
                bad.append(f"{row}/{run.name}")
        return bad


def files(folder):
    """The names below a study's folder, without locks, which stay for the next holder.

    Of what JAX's libraries name by step or time, there are only leftovers among them.
    """
    names = (str(path.relative_to(folder)) for path in folder.rglob("*")
             if path.name not in (".lock", ".system.lock"))
    return {re.sub(r"(checkpoints|tensorboard)/.*?(tmp(?=/|$).*)?$", r"\1/\2", name)
            for name in names}


def begin(place, args, stack):
    """A Soak in a new folder, whose processes and disk are gone when the stack ends."""
    for name in ("logs", "clocks", "clock", "study"):
        (place / name).mkdir(parents=True)
    (place / "shared.py").write_text(SHARED_STUDY)
    (place / "clock/sitecustomize.py").write_text(CLOCK)
    disk, study = True, place / "study"
    try:
        stack.enter_context(small_disk(study, f"{DISK_MB}m"))
    except pytest.skip.Exception:
        disk = False
        print("no disk could be mounted, which needs root: full disks are left out", flush=True)
    soak = Soak(place, study, disk, args)

    def end():
        for worker in filter(None, soak.workers):
            worker.process.kill()
            worker.process.wait()

    stack.callback(end)
    return soak


def main(argv=None) -> int:
    """Soak, compare, and print what was done and what held; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=10.0,
                        help="seconds between two faults, on average; a process starts in 5 to 60")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    place, began = args.folder.resolve(), time.monotonic()
    with contextlib.ExitStack() as stack:
        soak = begin(place, args, stack)
        soak.run(60 * args.minutes)
        minutes = (time.monotonic() - began) / 60
        print(f"{minutes:.1f} minutes, faults in the first {args.minutes:g}; {args.workers} "
              f"workers, {soak.repeats * len(ROWS)} runs, seed {args.seed}", flush=True)
        print("faults:", ", ".join(f"{n} {name}" for name, n in sorted(soak.faults.items())))
        print(f"endings of {soak.count} processes:",
              ", ".join(f"{n} with {code}" for code, n in sorted(soak.endings.items())), flush=True)
        done = run_command(*soak.words("--slots=1", f"--workdir={place}/alone"), timeout=7200,
                           XDG_CACHE_HOME=f"{place}/caches")
        assert done.returncode == 0, done.stderr
        found = soak.checks(place / "alone")
        if any(found.values()):
            shutil.copytree(soak.study, place / "kept")
    for check, bad in found.items():
        print(f"{'not held' if bad else 'held'}: {check}", *map(str, bad[:20]), sep="\n    ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
