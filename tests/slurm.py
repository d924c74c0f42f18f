"""A real Slurm of one node for tests: three daemons that live in one folder and leave with it.

    with slurm(tmp_path) as environment:
        subprocess.run(["sbatch", ...], env=environment)
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def missing() -> str:
    """Why no Slurm can start on this machine; '' if one should."""
    absent = [p for p in PROGRAMS if shutil.which(p) is None]
    if absent:
        return f"no {', '.join(absent)} on PATH: apt-get install slurm-wlm slurm-wlm-torque munge"
    return "" if os.geteuid() == 0 else "slurmd wants to be root"


@contextlib.contextmanager
def slurm(directory, cpus=4, **settings):
    """Start a Slurm that runs jobs on this machine; gives the environment of its commands.

    Args:
      directory: an empty folder with a short path (it holds a socket: 107 characters at most).
      cpus: what the node pretends to have.
      **settings: further lines of slurm.conf.

    Raises: RuntimeError with the daemons' output where they do not come up.
    """
    directory = pathlib.Path(directory).resolve()
    _configure(directory, cpus, settings)
    environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
    munge = directory / "munge"
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={munge}/key",
         f"--socket={directory}/munge.sock", f"--pid-file={munge}/pid",
         f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    ready = [
        lambda: (directory / "munge.sock").exists(),
        lambda: not _answer(environment, "scontrol", "ping").returncode,
        lambda: "idle" in _answer(environment, "sinfo", "--noheader", "--format=%T").stdout,
    ]
    started = []
    with open(directory / "daemons.log", "w+") as log:
        try:
            for words, up in zip(daemons, ready, strict=True):
                started.append(subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL,
                                                stdout=log, stderr=log))
                if not wait_until(lambda up=up: up() or started[-1].poll() is not None, 20):
                    raise RuntimeError(f"{words[0]} does not answer")
                if started[-1].poll() is not None:
                    raise RuntimeError(f"{words[0]}: {(directory / 'daemons.log').read_text()}")
            yield environment
        finally:
            _stop(environment, started)


def wait_until(condition, seconds: float) -> bool:
    """Whether the condition came true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _configure(directory, cpus, settings):
    for name, mode in (("munge", 0o700), ("state", 0o755), ("spool", 0o755)):
        (directory / name).mkdir(mode=mode, parents=True)
    key = directory / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    # Jobs of qsub get PBS_* variables from this plugin.
    (directory / "plugstack.conf").write_text("optional spank_pbs.so\n")
    host = socket.gethostname().split(".")[0]
    controller, node = _free_ports(2)
    lines = {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller, "SlurmdPort": node, "SlurmUser": "root", "SlurmdUser": "root",
        "AuthType": "auth/munge", "CryptoType": "crypto/munge",
        "AuthInfo": f"socket={directory}/munge.sock",
        "StateSaveLocation": directory / "state", "SlurmdSpoolDir": directory / "spool",
        "SlurmctldPidFile": directory / "slurmctld.pid", "SlurmdPidFile": directory / "slurmd.pid",
        "SlurmctldLogFile": directory / "slurmctld.log", "SlurmdLogFile": directory / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "MpiDefault": "none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,bf_interval=1",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none", "MailProg": shutil.which("true"),
        "ReturnToService": 2, "PropagateResourceLimits": "NONE",
        "SlurmdParameters": "config_overrides",  # more cores than the machine has
        "PlugStackConfig": directory / "plugstack.conf", "JobSubmitPlugins": "pbs",
    } | settings
    lines = [f"{key}={value}" for key, value in lines.items()]
    lines += [f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN",
              "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"]
    (directory / "slurm.conf").write_text("\n".join(lines) + "\n")


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _answer(environment, *words):
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def _stop(environment, started):
    """Jobs first: without their slurmd, workers would live on."""
    if len(started) == 3 and all(p.poll() is None for p in started):
        _answer(environment, "scancel", "--user=root")
        wait_until(lambda: not _answer(environment, "squeue", "--noheader").stdout, 60)
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
