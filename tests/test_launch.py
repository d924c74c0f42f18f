"""The launchers: what they would do, what they refuse, and that every run ends once, come what may.

Workers are a stand-in for cellseg_jax.study here (no JAX, a second each): it keeps the same
promises, which are a lock, progress that is saved on SIGTERM, exit code 75, and tables on request.
"""

import contextlib
import fcntl
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
from typing import NamedTuple

import pytest
import slurm
from helpers import ROOT, child_environment, run_command
from helpers_study import table_without_costs

from cellseg_jax import cli, study
from cellseg_jax.cli.stopping import INTERRUPTED
from cellseg_jax.runs import lock

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
fail = os.environ.get("FAIL")
shared = options.get("task") == "any"
task, tasks = (0, 1) if shared else map(int, options.get("task", "0/1").split("/"))
left = names[task::tasks]
while left:
    name = left.pop(0)
    folder = workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if stopped or not shared:
            sys.exit(75)
        left.append(name)
        time.sleep(0.05)
        continue
    state = folder / "state"
    step, score = map(int, state.read_text().split()) if state.exists() else (0, 0)
    if step == steps:
        continue
    (folder / "starts").open("a").write("x")
    if fail == "one worker" and task == 1:
        sys.exit("chip 3 is broken")
    while step < steps:
        step, score = step + 1, (31 * score + step + len(name) + int(name[3:])) % 9973
        time.sleep(float(os.environ.get("PAUSE", "0.05")))
        if stopped or step % 10 == 0 or step == steps:
            (folder / "new").write_text(f"{{step}} {{score}}")
            (folder / "new").replace(state)
        while fail == "preempted" and step == 10 and not (
                pathlib.Path(os.environ["HERE"]) / "taken").exists():
            time.sleep(0.02)
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
    ("local.sh", [*COMMON, "--any"], "--any: expected --per-gpu with it"),
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
    ("tpu_vm.sh", [*TPU, "--type=tpu7x-8"], "the Cloud TPU API ends at v6e"),
])
def test_bad_options_are_one_line(place, name, arguments, message):
    done = launch(name, *arguments, cwd=place, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(f"error: {name}: .*{message}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("name, arguments, wanted", [
    ("tpu_vm.sh", [*TPU[2:], "--spot", f"--study={ROOT}/configs/quickstart.py"],
     ["gcloud compute tpus tpu-vm create me --version=v2 --accelerator-type=v5litepod-8 --spot",
      "scp cellseg_jax.tgz me: --worker=all", "ssh me --worker=0 --zone=z",
      "export HOST=0 HOSTS=1;", "env KIND=study FILE=configs/quickstart.py WORKDIR=a\\ b/runs "
      "BUCKET=gs://cells/nuclei", "bash launch/tpu_host.sh setup", "bash launch/tpu_host.sh start",
      "tpu-vm delete me --zone=z --quiet", "--collect"]),
    ("tpu_vm.sh", [*TPU[2:], "--queued", f"--config={ROOT}/configs/quickstart.py"],
     ["queued-resources create me --node-id=me --runtime-version=v2", "tar -xzf cellseg_jax.tgz",
      "KIND=config", "queued-resources delete me --force --zone=z --quiet",
      "rsync --recursive gs://cells/nuclei a"]),
    ("local.sh", [], ["python -m cellseg_jax.study --study=nuclei.py --workdir=a\\ b/runs"]),
    ("local.sh", ["--per-gpu", "--", "--rows=x"],
     ["CUDA_VISIBLE_DEVICES=7", "--rows=x --task=1/2", "--rows=x --collect"]),
    ("local.sh", ["--per-gpu", "--any"], ["CUDA_VISIBLE_DEVICES=7", "--task=any", "--collect"]),
    ("slurm.sh", ["--tasks=3", "--any"],
     ["--array=0-2", "--tasks=3 --any --restarts=10", "--task=any"]),
    ("pbs.sh", ["--tasks=3", "--any"], ["-J 0-2", 'any="yes"', '"--task=$share"']),
    ("slurm.sh", ["--tasks=12", "--parallel=4", "--gpus=1", "--time=12:00:00", "--sbatch=-C a100"],
     ["--array=0-11%4", "--requeue", "--signal=B:USR1@120", "--open-mode=append", "--gres=gpu:1",
      "--time=12:00:00", "-C\\ a100", "--dependency=afterany:ARRAY", "--collect"]),
    ("pbs.sh", ["--tasks=12", "--gpus=1", "--time=12:00:00", "--mem=16gb", "--flavour=pro"],
     ["-J 0-11", "-l select=1:ncpus=4:ngpus=1:mem=16gb -l walltime=12:00:00",
      "depend=afterany:ARRAY", 'limit="43080"']),
    ("pbs.sh", ["--tasks=12", "--gpus=1", "--time=12:00:00", "--mem=16gb", "--flavour=torque"],
     ["-t 0-11", "-l nodes=1:ppn=4:gpus=1,mem=16gb,walltime=12:00:00",
      "depend=afteranyarray:ARRAY"]),
    ("slurm.sh", ["--tasks=1", "--gpus=0"], ["--cpus-per-task=4 "]),
    ("pbs.sh", ["--tasks=1", "--gpus=0"], ["-l select=1:ncpus=4 task.pbs"]),
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


def test_the_manifest_for_kubernetes_is_a_job_whose_pods_share_the_runs():
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "kubernetes.yaml").read_text()
    [job] = yaml.safe_load_all(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy and backoffLimitPerIndex require
    [container] = pod["containers"]
    codes = {code: rule["action"] for rule in spec["podFailurePolicy"]["rules"]
             for code in rule.get("onExitCodes", {}).get("values", ())}
    assert codes == {2: "FailIndex", INTERRUPTED: "Ignore"}
    named = {rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"]
             if "onExitCodes" in rule}
    assert named == {container["name"]}
    conditions = [one for rule in spec["podFailurePolicy"]["rules"]
                  for one in rule.get("onPodConditions", ())]
    assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    python, flag, module, *arguments = container["command"]
    assert (python, flag, module) == ("python", "-m", "cellseg_jax.study")
    options = dict(word.split("=", 1) for word in arguments)
    assert options["--task"] == "any" and (ROOT / options["--study"]).exists()
    assert options["--workdir"].startswith(mounted["runs"])
    values, overrides = cli.parse(["study", *arguments], study.define_flags)
    assert values.task == "any" and ("data.root", mounted["data"]) in overrides


@pytest.mark.parametrize("visible, gpus", [
    ("0,1", ["0", "1"]), (" 0 , 3 ", ["0", "3"]), ("2,-1,1", ["2"]), ("2,,1", ["2"]),
    ("GPU-8932f937-d72c,GPU-1a", ["GPU-8932f937-d72c", "GPU-1a"]), ("-1", []), ("", []), (" ", []),
    ("MIG-GPU-8932f937/1/0,MIG-41b3", ["MIG-GPU-8932f937/1/0", "MIG-41b3"]), ("NoDevFiles", []),
])
def test_gpus_are_those_that_cuda_sees_in_the_launcher_and_in_the_command(place, visible, gpus):
    done = launch("local.sh", *COMMON, "--dry-run", "--per-gpu", cwd=place,
                  CUDA_VISIBLE_DEVICES=visible)
    started = [line for line in done.stdout.splitlines() if line.startswith("CUDA_VISIBLE")]
    assert [line.split()[0].partition("=")[2] for line in started] == gpus
    assert [line.split("/logs/")[1].split()[0] for line in started] == [
        f"gpu_{gpu.replace('/', '_')}.log" for gpu in gpus]
    assert done.returncode == (0 if gpus else 2) and bool(done.stderr) == (not gpus)
    assert cli.visible_gpus(visible) == gpus


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


# --- a TPU and all that can go wrong with it -----------------------------------------------------

# Machines and the bucket are folders, the machine's processes those in its lock. FAIL names what
# goes wrong; `polls` counts the looks at host 0.
GCLOUD = r"""#!/bin/bash
export HERE=${0%/*}
fail() { echo "ERROR: $1" >&2; exit "${2-1}"; }
path() { echo "${1/#gs:\/\//$HERE/gs/}"; }
echo "${*//$'\n'/ }" >>"$HERE/calls"
if [[ $2 == rsync ]]; then
    urls=() update=()
    for word in "${@:3}"; do
        case $word in
            --skip-if-dest-has-newer-mtime) update=(--update) ;;
            --*) ;;
            *) urls+=("$word") ;;
        esac
    done
    from=$(path "${urls[0]}") to=$(path "${urls[1]}")
    [[ -d $from ]] || fail "(gcloud.storage.rsync) ${urls[0]} does not exist."
    [[ $FAIL == upload && $to == */gs/* ]] && fail "(gcloud.storage.rsync) HTTPError 503"
    mkdir -p "$to"
    exec cp -r --preserve=timestamps "${update[@]}" "$from/." "$to"
elif [[ $2 == cp ]]; then
    [[ $FAIL == upload && -e runs/starts ]] && (($(wc -l <runs/starts) == 3)) &&
        fail "(gcloud.storage.cp) HTTPError 403"
    to=$(path "$4")
    mkdir -p "$to"
    cp "$3" "$to/.part$$" # whole or not at all, as an object; hosts may write the same one
    exec mv "$to/.part$$" "$to/$(basename "$3")"
fi

cd "$HERE" || exit
end_all() { # as the machine itself ends
    local file group
    for file in machine*/cellseg_jax/.run/pid; do
        read -r _ _ _ _ group _ <"/proc/$(<"$file")/stat" && kill -KILL -- "-$group"
    done 2>/dev/null
}
create() {
    [[ $FAIL == quota ]] && fail "(gcloud.compute.tpus.tpu-vm.create) {
  'code': 8,
  'message': 'Quota limit TPUV5sLitepod has been exceeded. Limit: 0 in zone z.'
}"
    [[ $FAIL == capacity ]] && (($(grep -c ' create ' calls) < 3)) &&
        fail "There is no more capacity in the zone z"
    for ((k = 0; k < HOSTS_OF_TPU; k++)); do mkdir "machine$k"; done
    echo READY >state
}
for word in "$@"; do
    case $word in
        --worker=*) worker=${word#*=} ;;
        --command=*) command=${word#*=} ;;
    esac
done
case "$3 $4" in
    "queued-resources create") touch waiting ;;
    "queued-resources describe")
        [[ -e waiting ]] || fail NOT_FOUND
        rm waiting
        echo WAITING_FOR_RESOURCES
        create
        ;;
    "tpu-vm create") create ;;
    *" delete")
        for lock in machine*/cellseg_jax/.run/lock; do
            [[ -e $lock && $(<state) == READY ]] && ! flock -n "$lock" true &&
                touch "deleted under a run"
        done
        end_all
        rm -r machine* state
        ;;
    "tpu-vm describe")
        [[ -e state ]] || fail NOT_FOUND
        if [[ $* == *networkEndpoints* ]]; then printf '10.0.0.2 %.0s' machine*
        else cat state; fi
        ;;
    "tpu-vm scp")
        [[ $FAIL == "no room" ]] && ln -sf /dev/full "machine$((HOSTS_OF_TPU - 1))/cellseg_jax.tgz"
        [[ $FAIL == "no room" || $FAIL == "broken upload" && ! -e broken ]] &&
            touch broken && fail "scp: Connection closed"
        for machine in machine*; do cp "$5" "$machine"; done
        ;;
    "tpu-vm ssh")
        [[ $(<state) == READY ]] || exit 255
        asked=""
        [[ $command == *" state " ]] && asked=yes
        [[ $asked && $worker == 0 ]] && echo -n x >>polls
        looks=$(wc -c <polls)
        if [[ $FAIL == preempted && ! -e taken ]] && ((looks == 4)); then
            until (($(ls gs/cells/nuclei/*/row*/state 2>/dev/null | wc -l) == HOSTS_OF_TPU)); do
                sleep 0.02
            done
            touch taken
            echo PREEMPTED >state
            end_all
            exit 255
        fi
        if [[ $asked ]] && ((looks >= 2)); then
            [[ $FAIL == unreachable || $FAIL == dropped && looks -lt 5 ]] && exit 255
        fi
        limited="trap '' XFSZ; ulimit -f 0; tar -x"
        [[ $FAIL == "no room to unpack" ]] && command=${command/tar -x/"$limited"}
        [[ $FAIL == dropped && $command == *"tpu_host.sh start"* ]] && command+="; exit 255"
        cd "machine$worker" && exec bash -c "$command"
        ;;
esac
"""
UV = """#!/bin/bash
[[ $FAIL == "no python" ]] && {
    echo "error: No interpreter found for Python 3.12 in managed installations or search path" >&2
    exit 2
}
[[ "$*" == "pip install --quiet -e .[tpu]" ]] && exit
[[ "$*" == "venv --quiet --allow-existing --python 3.12 .venv" ]] || exit 9
mkdir -p .venv/bin && cp python .venv/bin
"""
GCSFUSE = """#!/bin/bash
rmdir "${*: -1}" && ln -s "$HERE/gs/${*: -2:1}" "${*: -1}"
"""
# Stands for cellseg_jax.main: FAIL names what goes wrong in it.
MAIN = """#!/bin/bash
[[ "$*" =~ --workdir=([^ ]*) ]]
workdir=${BASH_REMATCH[1]}
echo x >>"$workdir/starts"
echo "$*" >>"$workdir/words"
starts=$(wc -l <"$workdir/starts")
if [[ $FAIL == "in use" ]] && ((starts < 2)) || [[ $FAIL == "in use for ever" ]]; then
    echo "error: --workdir: $workdir is in use by pid 1 on other; wait for it" >&2
    exit 2
fi
if [[ $FAIL == "one worker" ]]; then
    [[ $PWD == *machine1/* ]] && { echo "error: chip 3 is broken" >&2; exit 1; }
    trap 'echo saved >"$workdir/saved"; kill $!; exit 75' TERM
    sleep 30 & wait
fi
[[ $FAIL == "row in use" ]] && { echo "--workdir: row is in use by pid 1"; echo done; exit 75; }
((starts == 1)) && [[ $FAIL == "saved" ]] && exit 75
if [[ $FAIL == "dropped" || $FAIL == "unreachable" ]]; then # until `go` looks were taken
    until [[ -e $HERE/go ]] && (($(wc -c <"$HERE/polls") >= $(<"$HERE/go"))); do sleep 0.05; done
fi
exit 0
"""


class Launched(NamedTuple):
    """What came of a launcher, and of its TPU."""

    code: int
    lines: list[str]  # what the launcher printed of its own, beside the states of the TPU
    calls: list[str]
    cloud: pathlib.Path  # the folder of the machines and the bucket

    def count(self, *words):
        return sum(all(w in call for w in words) for call in self.calls)

    @property
    def tries(self):
        """(machines made, installations, machines deleted)"""
        return self.count(" create me"), self.count("scp"), self.count(" delete me")


@pytest.fixture
def tpu(place):
    """tpu_vm.sh in a repository of its own, with stand-ins for gcloud and for a host's tools."""
    shutil.copytree(LAUNCH, place / "launch")
    subprocess.run(["git", "init", "-q", place], check=True)
    cloud = place.parent / "bin"
    cloud.mkdir()

    def run(*options, fail="", hosts=1, gcsfuse=False, **environment):
        if any(option.startswith("--config=") for option in options):
            (place / "python").write_text(MAIN)
        tools = {"gcloud": GCLOUD, "uv": UV} | ({"gcsfuse": GCSFUSE} if gcsfuse else {})
        for name, text in tools.items():
            (cloud / name).write_text(text)
            (cloud / name).chmod(0o755)
        environment = {**os.environ, "PYTHON": "./python", "STEPS": "8", "PAUSE": "0.005",
                       "PATH": f"{cloud}:{os.environ['PATH']}", "FAIL": fail,
                       "HOSTS_OF_TPU": str(hosts), "GRACE": "60"} | environment
        done = subprocess.run(
            ["launch/tpu_vm.sh", *TPU[2:], "--workdir=runs", "--wait=0", "--sync=9", *options],
            cwd=place, env=environment, capture_output=True, text=True, timeout=60)
        assert not (cloud / "deleted under a run").exists()
        return Launched(done.returncode, [line for line in done.stderr.splitlines()
                                          if "tpu_vm.sh: " in line
                                          and not re.search(" me is [A-Z_]+$", line)],
                        (cloud / "calls").read_text().splitlines(), cloud)

    yield run
    for pid in cloud.glob("machine*/cellseg_jax/.run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


STUDY_RUN, MAIN_RUN = "--study=nuclei.py", "--config=nuclei.py"
TOO_OLD = "ERROR: Package 'cellseg-jax' requires a different Python: 3.10.12 not in '>=3.11'"


@pytest.mark.parametrize("options, condition, message", [
    ([STUDY_RUN, f'--setup=echo "{TOO_OLD}" >&2; echo "[notice] upgrade pip"; false'], {},
     re.escape(f"host 0: setup failed: {TOO_OLD} [notice] upgrade pip")),
    ([STUDY_RUN], {"fail": "no python"},
     "host 0: setup failed: error: No interpreter found for Python 3.12 in .*"),
    ([STUDY_RUN, "--setup=cargo-of-nobody build"], {},
     "host 0: setup failed: .*cargo-of-nobody: command not found"),
    ([STUDY_RUN, "--data=gs://nowhere/x"], {},
     "host 0: setup failed: ERROR: .* gs://nowhere/x does not exist."),
    ([MAIN_RUN], {"hosts": 2},
     "host 0: setup failed: gcsfuse is missing on the host: a run over several hosts needs it .*"),
    ([STUDY_RUN], {"fail": "no room", "hosts": 2},
     "host 1: setup failed: head: error writing .*: No space left on device"),
    ([STUDY_RUN], {"fail": "no room to unpack"}, "host 0: setup failed: tar: .*File too large"),
])
def test_a_setup_that_cannot_work_is_tried_once(tpu, options, condition, message):
    done = tpu(*options, **condition)
    assert done.code == 3 and done.tries == (1, 1, 1)
    assert re.fullmatch(f"error: tpu_vm.sh: {message}", done.lines[-1]), done.lines
    assert not done.count("tpu_host.sh start")


def test_an_upload_that_breaks_is_tried_again(tpu):
    done = tpu(MAIN_RUN, fail="broken upload")
    assert done.code == 0 and done.tries == (1, 2, 1)
    assert done.lines == ["tpu_vm.sh: me does not answer; trying again, 29 restarts left"]


def test_no_quota_is_not_asked_for_twice(tpu):
    done = tpu(STUDY_RUN, fail="quota")
    assert done.code == 3 and done.tries == (1, 0, 0)
    assert re.fullmatch("error: tpu_vm.sh: me cannot be created: .*Quota limit .* has been "
                        "exceeded.*", done.lines[-1])


@pytest.mark.parametrize("restarts, code, tries", [(2, 0, (3, 1, 1)), (1, 75, (2, 0, 0))])
def test_no_capacity_is_waited_for(tpu, restarts, code, tries):
    done = tpu(MAIN_RUN, f"--restarts={restarts}", fail="capacity")
    assert done.code == code and done.tries == tries
    assert "tpu_vm.sh: me could not be created; trying again, 0 restarts left" in done.lines


def starts(place):
    """How often Python was started on the run of the bucket."""
    return len((place.parent / "bin/gs/cells/nuclei/starts").read_text().split())


def test_one_host_needs_no_gcsfuse(place, tpu):
    done = tpu(MAIN_RUN, "--", "--config.train.epochs=2")
    assert done.code == 0 and done.tries == (1, 1, 1) and done.lines == []
    assert (place / "runs/words").read_text() == (
        "-m cellseg_jax.main --config=nuclei.py --workdir=runs --config.train.epochs=2\n")


def test_several_hosts_run_the_same_command_in_one_folder(place, tpu):
    done = tpu(MAIN_RUN, hosts=2, gcsfuse=True)
    assert done.code == 0 and done.tries == (1, 1, 1)
    assert (place / "runs/words").read_text() == 2 * (
        "-m cellseg_jax.main --config=nuclei.py --workdir=.run/bucket/nuclei --distributed\n")


def test_a_broken_connection_neither_stops_nor_doubles_the_run(place, tpu):
    (place.parent / "bin/go").write_text("7")
    done = tpu(MAIN_RUN, fail="dropped")
    assert done.code == 0 and done.tries == (1, 1, 1) and starts(place) == 1
    assert "tpu_vm.sh: me does not answer; trying again, 29 restarts left" in done.lines


def assert_refused(done, running, file, *more):
    """That another command has the TPU, in one line that names both."""
    workdir = "b\\\\ c" if "--workdir=b c" in more else "runs"
    flags = re.escape("".join(f" {word}" for word in more if "--workdir" not in word))
    assert done.code == 2 and len(done.lines) == 1
    assert re.fullmatch(
        f"error: tpu_vm.sh: me still has the run of {running} --workdir=runs "
        f"--bucket=gs://cells/nuclei; not started: {file} --workdir={workdir} "
        f"--bucket=gs://cells/nuclei{flags}; use another --name, or wait for the first",
        done.lines[0]), done.lines


def test_a_tpu_that_does_not_answer_is_not_deleted_but_found_again(place, tpu):
    done = tpu(MAIN_RUN, "--restarts=1", fail="unreachable")
    assert done.code == 75 and done.tries == (1, 1, 0)
    assert done.lines[-1] == ("error: tpu_vm.sh: me is not deleted and may cost: the same command "
                              "finds it again")
    with (done.cloud / "machine0/cellseg_jax/.run/lock").open() as lock, pytest.raises(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run goes on
    for other in ([MAIN_RUN, "--workdir=b c"], [MAIN_RUN, "--", "--config.seed=2"]):
        refused = tpu(*other)
        assert_refused(refused, MAIN_RUN, *other)
        assert refused.tries == (1, 1, 0)
    (done.cloud / "go").write_text(str(len((done.cloud / "polls").read_text()) + 2))
    done = tpu(MAIN_RUN)
    assert done.code == 0 and done.tries == (1, 1, 1) and starts(place) == 1


@pytest.mark.parametrize("fail, restarts, code, tries, started, message", [
    ("saved", 2, 0, (1, 2, 1), 2, "the run was stopped; trying again, 1 restarts left"),
    ("saved", 0, 75, (1, 1, 1), 1, "the run was stopped; no restart is left"),
    ("in use", 1, 0, (1, 2, 1), 2, "another process has the run; trying again, 0 restarts left"),
    ("row in use", 0, 75, (1, 1, 0), 1, "me is not deleted and may cost: .*"),
    ("in use for ever", 1, 75, (1, 2, 0), 2, "me is not deleted and may cost: .*"),
])
def test_a_run_that_ended_before_its_end_is_started_again(place, tpu, fail, restarts, code, tries,
                                                      started, message):
    done = tpu(MAIN_RUN, f"--restarts={restarts}", "--sync=1", fail=fail)
    assert (done.code, done.tries, starts(place)) == (code, tries, started), done.lines
    assert re.fullmatch(f"(error: )?tpu_vm.sh: {message}", done.lines[-1]), done.lines


def test_the_lock_is_known_by_its_message(tmp_path):
    """tpu_host.sh looks for these words in what a run prints."""
    with lock.Lock(tmp_path), pytest.raises(lock.InUse, match=" is in use by pid "):
        lock.Lock(tmp_path)
    assert "' is in use by '" in (LAUNCH / "tpu_host.sh").read_text()


def test_results_that_were_not_uploaded_are_not_deleted(place, tpu):
    older = place.parent / "bin/gs/cells/nuclei/starts"
    older.parent.mkdir(parents=True)
    older.write_text("x\n")
    os.utime(older, (0, 0))
    done = tpu(MAIN_RUN, "--restarts=2", fail="upload")
    assert done.code == 75 and done.tries == (1, 3, 0)  # the third setup fails
    assert "tpu_vm.sh: results could not be uploaded; trying again, 0 restarts left" in done.lines
    results = done.cloud / "machine0/cellseg_jax/runs"
    assert (results / "starts").read_text() == "x\nx\nx\n"  # older ones did not replace them
    refused = tpu(STUDY_RUN)
    assert_refused(refused, MAIN_RUN, STUDY_RUN)
    assert refused.tries == (1, 3, 0)


def test_a_worker_that_fails_stops_the_others_of_its_run(place, tpu):
    done = tpu(MAIN_RUN, fail="one worker", hosts=2, gcsfuse=True)
    assert done.code == 1 and done.tries == (1, 1, 1)
    assert done.lines[-1] == "error: tpu_vm.sh: host 1 ended with exit code 1"
    assert (place / "runs/saved").exists()


def test_a_share_that_fails_leaves_the_others_alone(place, tpu):
    done = tpu(STUDY_RUN, fail="one worker", hosts=2)
    assert done.code == 1 and done.tries == (1, 1, 1)
    assert done.lines[-1] == "error: tpu_vm.sh: host 1 ended with exit code 1"
    finished = sorted(path.parent.name for path in place.glob("runs/row*/state"))
    assert finished == [f"row{k:02d}" for k in range(0, 12, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("queued", [[], ["--queued"]])
def test_tpu_goes_on_after_preemption(place, tpu, queued):
    done = tpu(STUDY_RUN, "--spot", "--sync=1", *queued, fail="preempted", hosts=2, STEPS="12")
    assert done.code == 0 and done.tries == (2, 2, 2), done.lines
    assert done.lines == ["tpu_vm.sh: me was pre-empted or stopped; trying again, 29 restarts left"]
    assert not (done.cloud / "state").exists()
    assert (place / "runs/table.csv").read_text() == undisturbed(place, 12)
    # The second machines went on where the first ones were in their first run, and that alone.
    assert sum(len(p.read_text()) for p in place.glob("runs/*/starts")) == 14


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
@pytest.mark.parametrize("cluster, shares", [
    ({}, ["--tasks=12"]), ({"RequeueExit": 75}, ["--tasks=12"]), ({}, ["--tasks=5", "--any"])],
    ids=["plain", "RequeueExit", "any"], indirect=["cluster"])
def test_slurm_array_survives(place, cluster, shares):
    steps, workdir = 60, place / "runs"
    done = launch("slurm.sh", f"--study={place}/nuclei.py", f"--workdir={workdir}", *shares,
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
@pytest.mark.parametrize("options", [["--tasks=12"], ["--tasks=4", "--any"]], ids=["shares", "any"])
def test_slurm_array_of_a_real_study_survives(place, cluster, options):
    study, workdir, names = place / "rates.py", place / "runs", [f"lr_{k}" for k in range(6)]
    study.write_text(STUDY)
    environment = child_environment() | cluster | {"XDG_CACHE_HOME": str(place / "cache")}
    done = launch("slurm.sh", f"--study={study}", f"--workdir={workdir}", *options,
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
    assert table_without_costs(workdir) == table_without_costs(place / "calm") != []
