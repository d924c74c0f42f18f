"""The launchers: what they would do, what they refuse, and that every run ends once, come what may.

Workers are a stand-in for cellseg_jax.study here (no JAX, a second each): it keeps the same
promises, which are a lock, progress that is saved on SIGTERM, exit code 75, and tables on request.
"""

import csv
import itertools
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import slurm
from helpers import ROOT, child_environment, run_command

from cellseg_jax.runs.resources import RESOURCES

LAUNCH = ROOT / "launch"
# Twelve runs of STEPS steps; a run is done when its `state` says so.
WORKER = f"""#!{sys.executable} -IS
import fcntl, os, pathlib, signal, sys, time

options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[3:])
assert sys.argv[1:3] == ["-m", "cellseg_jax.study"] and pathlib.Path(options["study"]).exists()
workdir, steps = pathlib.Path(options["workdir"]), int(os.environ["STEPS"])
names = [f"row{{k:02d}}" for k in range(12)]
if "collect" in options:
    scores = [(workdir / name / "state").read_text().split() for name in names]
    table = "".join(f"{{name}},{{score}}\\n" for name, (_, score) in zip(names, scores))
    (workdir / "table.csv").write_text(table)
    (workdir / "collected").open("a").write("x")
    sys.exit(0)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
task, tasks = map(int, options["task"].split("/")) if "task" in options else (0, 1)
for name in names[task::tasks]:
    folder = workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(75)
    state = folder / "state"
    step, score = map(int, state.read_text().split()) if state.exists() else (0, 0)
    if step == steps:
        continue
    (folder / "starts").open("a").write("x")
    while step < steps:
        step, score = step + 1, (31 * score + step + len(name) + int(name[3:])) % 9973
        time.sleep(float(os.environ.get("PAUSE", "0.05")))
        if stopped or step % 10 == 0 or step == steps:
            (folder / "new").write_text(f"{{step}} {{score}}")
            (folder / "new").replace(state)
        if stopped:
            sys.exit(75)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a blank in its name, a study file and the stand-in for Python."""
    folder = tmp_path / "a place"
    folder.mkdir()
    (folder / "nuclei.py").write_text("")
    worker = folder / "python"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    return folder


def launch(name, *arguments, cwd, timeout=60, **environment):
    """launch/<name> in a process of its own."""
    environment = {**os.environ, "PYTHON": str(cwd / "python"), "STEPS": "4"} | environment
    return subprocess.run([LAUNCH / name, *arguments], cwd=cwd, env=environment, timeout=timeout,
                          capture_output=True, text=True)


def undisturbed(place, steps):
    """The table of one worker whom nobody stops."""
    for last in ((), ("--collect",)):
        subprocess.run([place / "python", "-m", "cellseg_jax.study", f"--study={place}/nuclei.py",
                        f"--workdir={place}/calm", *last], check=True,
                       env={**os.environ, "STEPS": str(steps)})
    return (place / "calm/table.csv").read_text()


# --- what each would do, and what it refuses -----------------------------------------------------

COMMON = ["--study=nuclei.py", "--workdir=a b/runs"]
TPU = [*COMMON, "--bucket=gs://cells/nuclei", "--name=me", "--zone=z", "--type=v5litepod-8",
       "--version=v2"]


@pytest.mark.parametrize("name", ["local.sh", "slurm.sh", "pbs.sh", "tpu_vm.sh"])
def test_help_names_every_option(place, name):
    done = launch(name, "--help", cwd=place)
    assert done.returncode == 0 and f"launch/{name} --study=FILE" in done.stdout
    known = set(re.findall(r"--[a-z-]+(?==|\)| \|)", (LAUNCH / name).read_text().split("esac")[0]))
    assert {o for o in known - {"--inside", "--help"} if o not in done.stdout} == set()


@pytest.mark.parametrize("name, arguments, message", [
    ("local.sh", [], "--study=FILE is missing"),
    ("local.sh", ["--study=nuclei.py"], "--workdir=DIR is missing"),
    ("local.sh", ["--study=other.py", "--workdir=w"], "--study=other.py: no such file"),
    ("local.sh", [*COMMON, "--rows=a"], "--rows=a: not an option .* follow --"),
    ("local.sh", [*COMMON, "--wait=soon"], "--wait=soon: expected a whole number"),
    ("local.sh", [*COMMON, "--per-gpu"], "--per-gpu: no GPU"),
    ("slurm.sh", COMMON, "--tasks=N is missing"),
    ("slurm.sh", [*COMMON, "--tasks=0"], "--tasks=0: expected a whole number from 1 up"),
    ("slurm.sh", [*COMMON, "--tasks=2", "--time="], "--time=: not an option"),
    ("pbs.sh", [*COMMON, "--tasks=2", "--time=1:00"], "--time=1:00: expected HH:MM:SS"),
    ("pbs.sh", [*COMMON, "--tasks=2", "--time=00:02:00"], "more than two minutes"),
    ("pbs.sh", [*COMMON, "--tasks=2", "--flavour=lsf"], "--flavour=lsf: not an option"),
    ("tpu_vm.sh", COMMON, "--bucket is missing"),
    ("tpu_vm.sh", [*TPU, "--bucket=cells"], "--bucket=cells: not an option with such a value"),
    ("tpu_vm.sh", [*TPU, "--config=a.py"], "--study and --config: expected one"),
    ("tpu_vm.sh", [*TPU, "--workdir=/runs"], "--workdir=/runs: expected a relative path"),
    ("tpu_vm.sh", TPU, "nuclei.py: no file of this repository"),
])
def test_bad_options_are_one_line(place, name, arguments, message):
    done = launch(name, *arguments, cwd=place, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(f"error: {name}: .*{message}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("name, arguments, wanted", [
    ("tpu_vm.sh", [*TPU[2:], "--spot", f"--study={ROOT}/configs/quickstart.py"],
     ["gcloud compute tpus tpu-vm create me --version=v2 --accelerator-type=v5litepod-8 --spot",
      "scp cellseg_jax.tgz me: --worker=all", "ssh me --worker=0 --zone=z",
      "host_study gs://cells/nuclei/0_of_1 a\\ b/runs .venv/bin/python -m cellseg_jax.study",
      "tpu-vm delete me --quiet", "--collect"]),
    ("tpu_vm.sh", [*TPU[2:], "--queued", f"--config={ROOT}/configs/quickstart.py"],
     ["queued-resources create me --node-id=me --runtime-version=v2", "ssh me --worker=all",
      "host_run cells nuclei .venv/bin/python -m cellseg_jax.main", "--distributed",
      "queued-resources delete me --force --quiet", "rsync --recursive gs://cells/nuclei a"]),
    ("local.sh", [], ["python -m cellseg_jax.study --study=nuclei.py --workdir=a\\ b/runs"]),
    ("local.sh", ["--per-gpu", "--", "--rows=x"],
     ["CUDA_VISIBLE_DEVICES=7", "--rows=x --task=1/2", "--rows=x --collect"]),
    ("slurm.sh", ["--tasks=12", "--parallel=4", "--gpus=1", "--time=12:00:00", "--sbatch=-C a100"],
     ["--array=0-11%4", "--requeue", "--signal=B:USR1@120", "--open-mode=append", "--gres=gpu:1",
      "--time=12:00:00", "-C\\ a100", "--dependency=afterany:ARRAY", "--collect"]),
    ("pbs.sh", ["--tasks=12", "--gpus=1", "--time=12:00:00", "--mem=16gb", "--flavour=pro"],
     ["-J 0-11", "-l select=1:ncpus=4:ngpus=1:mem=16gb -l walltime=12:00:00",
      "depend=afterany:ARRAY", 'limit="43080"']),
    ("pbs.sh", ["--tasks=12", "--gpus=1", "--time=12:00:00", "--mem=16gb", "--flavour=torque"],
     ["-t 0-11", "-l nodes=1:ppn=4:gpus=1,mem=16gb,walltime=12:00:00",
      "depend=afteranyarray:ARRAY"]),
    ("pbs.sh", ["--tasks=1"],
     ["-V -r y -l select=1:ncpus=4 task.pbs", "depend=afterany:ARRAY collect.pbs"]),
])
def test_dry_run_says_all_and_does_nothing(place, name, arguments, wanted):
    before = sorted(place.rglob("*"))
    common = COMMON[1 if any("--config" in a for a in arguments) else 0 :]
    done = launch(name, *common, "--dry-run", *arguments, cwd=place, CUDA_VISIBLE_DEVICES="5,7")
    assert done.returncode == 0 and done.stderr == ""
    said = done.stdout.replace("\\,", ",")  # a comma needs no escape, but bash gives it one
    for words in wanted:
        assert words in said, said
    assert sorted(place.rglob("*")) == before


# --- one machine ---------------------------------------------------------------------------------

COUNTING = """#!/bin/bash
echo "$CUDA_VISIBLE_DEVICES ${*:3}" >>calls
[[ $* == *--collect ]] && exit
trap 'echo saved >>calls; kill $!; exit 75' TERM
echo x >>"count$CUDA_VISIBLE_DEVICES"
[[ $STEPS == 0 ]] && { sleep 30 & wait $!; }
(($(wc -l <"count$CUDA_VISIBLE_DEVICES") > 2)) || exit 75
exit $STEPS
"""


@pytest.mark.parametrize("arguments, code, trained", [
    ([], 7, ["--study=nuclei.py --workdir=a b/runs"]),
    (["--per-gpu"], 7, [f"--study=nuclei.py --workdir=a b/runs --task={i}/2" for i in (0, 1)]),
    (["--restarts=1"], 75, ["--study=nuclei.py --workdir=a b/runs"]),
])
def test_local_starts_again_and_makes_tables(place, arguments, code, trained):
    (place / "python").write_text(COUNTING)
    done = launch("local.sh", *COMMON, "--wait=0", *arguments, cwd=place, STEPS="7",
                  CUDA_VISIBLE_DEVICES="5,7")
    assert done.returncode == code, done.stderr
    calls = [line.partition(" ")[2] for line in (place / "calls").read_text().splitlines()]
    assert calls[-1] == "--study=nuclei.py --workdir=a b/runs --collect"
    assert sorted(calls[:-1]) == sorted(trained * (2 if "--restarts=1" in arguments else 3))


@pytest.mark.parametrize("arguments, workers", [([], 1), (["--per-gpu"], 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_once(place, arguments, workers, number):
    (place / "python").write_text(COUNTING)
    environment = {**os.environ, "PYTHON": "./python", "STEPS": "0", "CUDA_VISIBLE_DEVICES": "5,7"}
    # A shell's background job has Ctrl-C ignored, and so would all that it starts.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", LAUNCH / "local.sh", *COMMON, *arguments], cwd=place,
        env=environment, start_new_session=True, stderr=subprocess.PIPE)
    assert slurm.wait_until(lambda: len(list(place.glob("count*"))) == workers, 10)
    os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
    assert process.wait(10) == 75 and b"the same command goes on" in process.stderr.read()
    calls = (place / "calls").read_text().splitlines()
    assert calls.count("saved") == workers and len(calls) == 2 * workers  # no tables either


# --- a TPU that is taken away --------------------------------------------------------------------

# Machines and the bucket are folders. The first training ends with SIGTERM, as a pre-emption does.
GCLOUD = f"""#!{sys.executable} -IS
import os, pathlib, re, shutil, signal, subprocess, sys, time

here, words = pathlib.Path(__file__).parent, sys.argv[1:]
options = dict(w.lstrip("-").partition("=")[::2] for w in words if w.startswith("--"))
with open(here / "calls", "a") as calls:
    calls.write(" ".join(words).replace("\\n", " ") + "\\n")
state, waiting = here / "state", here / "waiting"
folder = lambda url: url.replace("gs://", f"{{here}}/gs/")
if words[:2] == ["storage", "rsync"]:
    source, target = (folder(w) for w in words[2:] if not w.startswith("--"))
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    sys.exit(subprocess.run(["cp", "--recursive", "--update", f"{{source}}/.", target]).returncode)
if words[:2] == ["storage", "cp"]:
    pathlib.Path(folder(words[3])).mkdir(parents=True, exist_ok=True)
    sys.exit(bool(shutil.copy(words[2], folder(words[3]))) - 1)
verb = words[3]
machines = [here / "machine0", here / "machine1"]
if words[2:4] == ["queued-resources", "create"]:
    waiting.touch()
elif words[2:4] == ["queued-resources", "describe"]:
    if not waiting.exists():
        sys.exit("NOT_FOUND")
    waiting.unlink()
    print("WAITING_FOR_RESOURCES")
    verb = "create"
if verb == "create" and not waiting.exists():
    for machine in machines:
        machine.mkdir()
    state.write_text("READY")
elif verb == "delete":
    for machine in machines:
        shutil.rmtree(machine)
    state.unlink()
elif verb == "describe" and words[2] == "tpu-vm":
    if not state.exists():
        sys.exit("NOT_FOUND")
    print("10.0.0.2 10.0.0.3" if "networkEndpoints" in options["format"] else state.read_text())
elif verb == "scp":
    for machine in machines:
        shutil.copy(words[4], machine)
elif verb == "ssh":
    chosen = machines if options["worker"] == "all" else [machines[int(options["worker"])]]
    for machine in chosen:
        shell = subprocess.Popen(["bash", "-c", options["command"]], cwd=machine,
                                 start_new_session=True)
        if "host_study" in options["command"] and not (here / "taken").exists():
            while not list(machine.glob("cellseg_jax/runs/*/state")):
                time.sleep(0.02)
            time.sleep(0.1)
            (here / "taken").touch()
            state.write_text("PREEMPTED")
            os.killpg(shell.pid, signal.SIGTERM)
        if shell.wait():
            sys.exit(shell.returncode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("queued", [[], ["--queued"]])
def test_tpu_goes_on_after_preemption(place, queued):
    shutil.copytree(LAUNCH, place / "launch")
    subprocess.run(["git", "init", "-q", place], check=True)
    (place.parent / "bin").mkdir()
    gcloud = place.parent / "bin/gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    environment = {**os.environ, "PYTHON": "./python", "STEPS": "12", "PAUSE": "0.005",
                   "PATH": f"{gcloud.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["launch/tpu_vm.sh", *TPU, "--workdir=runs", "--wait=0", "--spot", *queued,
         "--setup=mkdir -p .venv/bin && cp python .venv/bin"],
        cwd=place, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = (gcloud.parent / "calls").read_text().splitlines()
    count = lambda *words: sum(all(w in call for w in words) for call in calls)
    assert count("create me") == count("delete me") == count("scp", "--worker=all") == 2
    assert count("ssh", "tar -xzf", "--worker=all") == 2
    assert count("ssh", "host_study gs://cells/nuclei/1_of_2", "TPU_PROCESS_BOUNDS") == 2
    assert not (gcloud.parent / "state").exists()
    assert (place / "runs/table.csv").read_text() == undisturbed(place, 12)
    # The second machine went on where the first ones stopped, and began nothing anew.
    assert sum(len(p.read_text()) for p in place.glob("runs/*/starts")) in (13, 14)


# --- a real Slurm --------------------------------------------------------------------------------


@pytest.fixture
def cluster(request):
    """A Slurm whose jobs that are queued again wait no two minutes."""
    reason = slurm.missing()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm") as directory:
        try:
            with slurm.slurm(directory, **getattr(request, "param", {})) as environment:
                yield environment
        except RuntimeError as error:
            pytest.skip(f"Slurm does not start here: {error}")


def jobs(environment):
    """{job_task: state} of what is queued or runs."""
    lines = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %T"], env=environment,
                           capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def workers(workdir):
    """Process ids of the workers that train into a folder."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if {b"cellseg_jax.study", f"--workdir={workdir}".encode()} <= set(words):
            yield int(path.parent.name)


def disturb(environment, workdir, kinds, count, seconds, chance=0.3):
    """Deal `count` blows, all kinds alike, to random jobs and workers; wait until all is done."""
    rng, waiting = random.Random(0), {}
    blows = [kind for kind, _ in zip(itertools.cycle(kinds), range(count))]
    rng.shuffle(blows)

    def calm():
        queued = jobs(environment)
        for job in [j for j in waiting if queued.get(j) != "PENDING"]:
            del waiting[job]
        for job in (j for j, state in queued.items() if state == "PENDING"):
            # A job that is queued again waits two minutes: its old credential is revoked to the
            # second, so a moment must pass here too.
            if time.monotonic() - waiting.setdefault(job, time.monotonic()) > 3:
                waiting[job] = math.inf
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"],
                               env=environment, capture_output=True)
        running = [j for j, state in queued.items() if state == "RUNNING" and "_" in j]
        victims = sorted(workers(workdir))
        if running and victims and blows and rng.random() < chance:
            kind, job = blows.pop(), rng.choice(running)
            if kind == "kill":
                os.kill(rng.choice(victims), signal.SIGKILL)
            elif kind == "term":
                os.kill(rng.choice(victims), signal.SIGTERM)
            else:
                words = {"requeue": ["scontrol", "requeue", job],
                         "signal": ["scancel", "--signal=TERM", "--full", job],
                         "warning": ["scancel", "--signal=USR1", "--batch", job]}[kind]
                # scancel tries for minutes where the job is no longer running.
                subprocess.run(["timeout", "2", *words], env=environment, capture_output=True)
        return not queued

    assert slurm.wait_until(calm, seconds), f"still queued: {jobs(environment)}"
    assert not blows, f"all was done before {blows} fell"


def restarts(workdir, steps):
    """How often one of the runs, which are all done, was started again."""
    states = [(workdir / f"row{k:02d}/state").read_text().split()[0] for k in range(12)]
    assert states == [str(steps)] * 12
    return sum(len((workdir / f"row{k:02d}/starts").read_text()) for k in range(12)) - 12


@pytest.mark.weekly
@pytest.mark.parametrize("cluster", [{}, {"RequeueExit": 75}], ids=["plain", "RequeueExit"],
                         indirect=True)
def test_slurm_array_survives(place, cluster):
    steps, workdir = 60, place / "runs"
    done = launch("slurm.sh", f"--study={place}/nuclei.py", f"--workdir={workdir}", "--tasks=12",
                  "--parallel=4", "--cpus=1", "--time=01:00:00", cwd=place, **cluster,
                  STEPS=str(steps))
    assert done.returncode == 0, done.stderr
    disturb(cluster, workdir, ["requeue", "signal", "warning", "kill"], 16, 120)
    assert 0 < restarts(workdir, steps) <= 16  # a blow, a restart at most
    assert (workdir / "collected").read_text() == "x"
    assert (workdir / "table.csv").read_text() == undisturbed(place, steps)


@pytest.mark.weekly
def test_pbs_scripts_run_in_slurms_qsub(place, cluster):
    """No PBS, but its options, its variables and its dependencies, as Slurm's qsub knows them."""
    steps, workdir = 60, place / "runs"
    done = launch("pbs.sh", f"--study={place}/nuclei.py", f"--workdir={workdir}", "--tasks=12",
                  "--parallel=4", "--cpus=1", "--mem=1gb", "--time=01:00:00", cwd=place, **cluster,
                  STEPS=str(steps))
    assert done.returncode == 0, done.stderr
    disturb(cluster, workdir, ["requeue", "term", "kill"], 8, 150)
    assert 0 < restarts(workdir, steps) <= 8
    assert (workdir / "collected").read_text() == "x"
    assert (workdir / "table.csv").read_text() == undisturbed(place, steps)


@pytest.mark.weekly
def test_pbs_submits_again_before_the_time_limit(place, cluster):
    """Two tasks of fifteen seconds of work in jobs that save after five."""
    steps, workdir = 50, place / "runs"
    done = launch("pbs.sh", f"--study={place}/nuclei.py", f"--workdir={workdir}", "--tasks=2",
                  "--cpus=1", "--time=00:02:05", cwd=place, **cluster, STEPS=str(steps))
    assert done.returncode == 0, done.stderr
    disturb(cluster, workdir, [], 0, 300)
    stops = 0
    for task in (0, 1):
        codes = re.findall(r"exit code (\d+)", (workdir / f"logs/{task}.log").read_text())
        assert codes[0] == "75" and codes[-1] == "0" and set(codes) == {"75", "0"}
        stops += codes.count("75")
    assert 0 <= restarts(workdir, steps) <= stops  # none where a stop fell between two runs
    assert (workdir / "table.csv").read_text() == undisturbed(place, steps)


STUDY = """
from cellseg_jax.config import default
from cellseg_jax.studies import rows

TITLE = "Six learning rates"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=24)
BASE.model = dict(name="unet", channels=(4, 8), dropout=0.1)
BASE.train.epochs = 10
BASE.train.batch_size = 8
BASE.eval.batch_size = 8
BASE.eval.panels = 1
ROWS = {f"lr_{k}": {"optimizer.lr": 1e-3 * 2**k} for k in range(6)}
REPEATS = 2
get_config = rows(BASE, ROWS)
"""


@pytest.mark.weekly
def test_slurm_array_of_a_real_study_survives(place, cluster):
    study, workdir, names = place / "rates.py", place / "runs", [f"lr_{k}" for k in range(6)]
    study.write_text(STUDY)
    environment = child_environment() | cluster | {"XDG_CACHE_HOME": str(place / "cache")}
    done = launch("slurm.sh", f"--study={study}", f"--workdir={workdir}", "--tasks=12",
                  "--parallel=2", "--cpus=1", "--time=01:00:00", cwd=place,
                  **environment | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    disturb(cluster, workdir, ["requeue", "signal", "warning", "kill"], 10, 900, 0.05)
    for run in (workdir / row / str(repeat) for row in names for repeat in (0, 1)):
        assert json.loads((run / "result.json").read_text())["status"] == "done"
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
        assert steps == sorted(set(steps)) and steps[-1] == 20
    calm = run_command("study", f"--study={study}", f"--workdir={place}/calm", "--backend=loop",
                       "--slots=1", XDG_CACHE_HOME=str(place / "cache"))
    assert calm.returncode == 0, calm.stderr
    assert scores(workdir) == scores(place / "calm") != []


def scores(workdir):
    """The lines of table.csv but for those on what a run costs."""
    with open(workdir / "table.csv") as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in RESOURCES]
