"""Full disks, disks without free inodes, and folders that cannot be written.

A case makes a small file system of its own, which needs root and the right to mount.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from faults.checkpoints import trained
from faults.signals import CONFIG
from faults.table import Fault
from helpers import assert_same_run, last_state, run_command
from helpers_study import SHARED_STUDY

from cellseg_jax import files
from cellseg_jax.files import maps
from cellseg_jax.runs.lock import Lock


@contextlib.contextmanager
def mounted(path, *steps):
    """A file system on a folder by some calls of mount; skips where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    if not shutil.which("mount") or subprocess.run(
            ["mount", *steps[0], str(path)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for step in steps[1:]:
            subprocess.run(["mount", *step, str(path)], check=True)
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def small_disk(path, size="8m"):
    return mounted(path, ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"])


@contextlib.contextmanager
def quota(path, size):
    """A btrfs with a quota, which processes of root keep too."""
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("mkfs.btrfs is missing")
    image = path.with_name(f"{path.name}.btrfs")
    image.touch()
    os.truncate(image, 2**27)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    with mounted(path, ["-o", "loop", str(image)]):
        btrfs("quota", "enable", path)
        btrfs("qgroup", "limit", size, path)
        yield path


def btrfs(*words):
    subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True)


def read_only(path):
    return mounted(path, ["--bind", str(path)], ["-o", "remount,bind,ro"])


def enlarge(path):
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=9999", str(path)], check=True)


def run(*words, place, good=False):
    """The result of a command, which ends well or by one line that starts with "error: "."""
    done = run_command(*words, XDG_CACHE_HOME=str(place / "caches"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    assert (done.returncode == 0) == good and len(errors) == (not good), done.stderr
    assert done.returncode in (0, 1, 2), done.returncode  # no signal
    return errors[0] if errors else ""


def training(place):
    (place / "config.py").write_text(CONFIG.replace("= 30, 8", "= 3, 8"))
    return "main", f"--config={place}/config.py"


def full_training(place, number):
    """The disk is full at one of several moments; with more room the run ends as if it had been."""
    words = training(place)
    options = ["size=16k", "size=60k", "size=90k", "size=140k", "size=200k", "nr_inodes=20",
               "nr_inodes=32"][number]
    run(*words, f"--workdir={place}/whole", place=place, good=True)
    with mounted(place / "disk", ["-t", "tmpfs", "-o", options, "tmpfs"]) as disk:
        error = run(*words, f"--workdir={disk}/run", place=place)
        assert str(disk) in error and ("No space" in error), error
        enlarge(disk)
        run(*words, f"--workdir={disk}/run", place=place, good=True)
        assert_same_run(place / "whole", disk / "run")


def full_prediction(place, number):
    """Likewise; the files of images before it are whole."""
    from PIL import Image

    (place / "in").mkdir()
    rng = np.random.default_rng(number)
    for n in range(3):
        shape = (700, 700, 3) if number == 2 else (48, 48, 3)
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(place / "in" / f"{n}.png")
    words = ["predict", f"--workdir={trained()}", f"--images={place}/in", "--format=tiff,csv"]
    run(*words, f"--out={place}/whole", place=place, good=True)
    with small_disk(place / "disk", ("8k", "20k", "40k")[number]) as disk:
        error = run(*words, f"--out={disk}/out", place=place)
        assert str(disk) in error and "No space" in error, error
        enlarge(disk)
        run(*words, f"--out={disk}/out", place=place, good=True)
        for file in (place / "whole").iterdir():
            assert (disk / "out" / file.name).read_bytes() == file.read_bytes(), file
        assert not list((disk / "out").glob("*.tmp"))


def full_cache(place, number):
    words = training(place)
    with small_disk(place / "disk", ("8k", "60k")[number]) as disk:
        error = run(*words, f"--config.data.cache={disk}/cache", f"--workdir={place}/run",
                    place=place)
        assert f"{disk}/cache" in error and "No space" in error, error
        enlarge(disk)
        run(*words, f"--config.data.cache={disk}/cache", f"--workdir={place}/run", place=place,
            good=True)


def used_quota(place, number):
    """A quota that is used up ends a command as a full disk does; with a larger one it goes on."""
    from PIL import Image

    (place / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    Image.fromarray(pixels).save(place / "in" / "a.png")
    disk = place / "disk"
    size, *words = (("64k", *training(place), f"--workdir={disk}/run"),
                    ("160k", *training(place), f"--workdir={disk}/run"),
                    ("64k", *training(place), f"--workdir={place}/run",
                     f"--config.data.cache={disk}/cache"),
                    ("64k", "predict", f"--workdir={trained()}", f"--images={place}/in",
                     "--format=tiff,csv", f"--out={disk}/out"))[number]
    with quota(disk, size):
        error = run(*words, place=place)
        assert str(disk) in error and "quota exceeded" in error, error
        btrfs("qgroup", "limit", "none", disk)
        run(*words, place=place, good=True)
        assert not list(disk.rglob("*.tmp"))


def full_run(place, number):
    """A run on a full disk keeps what it has, whatever is begun."""
    words = (["main", "--mode=eval", "--split=val"], ["analyze", "--analysis=weights"],
             ["export", "--format=stablehlo"])[number]
    with small_disk(place / "disk", "1m") as disk:
        folder = shutil.copytree(trained(), disk / "run")
        before = last_state(folder)
        with contextlib.suppress(OSError), open(disk / "rest", "wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        error = run(*words, f"--workdir={folder}", place=place)
        assert str(disk) in error and "No space" in error, error
        for a, b in zip(before, last_state(folder), strict=True):
            np.testing.assert_array_equal(a, b)


def full_log(place, number):
    with small_disk(place / "disk", "16k") as disk:
        with pytest.raises(OSError, match="No space") as caught:
            for _ in range(40):
                files.append_line(disk / "metrics.jsonl", "x" * 1000)
        assert caught.value.filename == str(disk / "metrics.jsonl")
        with pytest.raises(OSError, match="No space") as caught:
            files.write_atomic(disk / "result.json", b"x" * 10**5)
        assert caught.value.filename == str(disk / "result.json")
        assert [p.name for p in disk.iterdir()] == ["metrics.jsonl"]


def full_queue(place, number):
    """A disk that is full when a run's folder is made is no bad input of the run."""
    (place / "study.py").write_text(SHARED_STUDY)
    words = ["study", f"--study={place}/study.py", "--rows=otsu", "--repeats=1", "--task=any"]
    with mounted(place / "disk", ["-t", "tmpfs", "-o", "nr_inodes=4", "tmpfs"]) as disk:
        error = run(*words, f"--workdir={disk}/study", place=place)
        assert f"{disk}/study/otsu" in error and "make room there" in error, error
        enlarge(disk)
        assert [path.name for path in (disk / "study").iterdir() if path.is_file()] == [
            "study.json"]
        run(*words, f"--workdir={disk}/study", place=place, good=True)


def full_lock(place, number):
    with small_disk(place / "disk", "16k") as disk:
        with contextlib.suppress(OSError), open(disk / "rest", "wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        with pytest.raises(OSError, match="No space") as caught:
            Lock(disk / "run")
        assert caught.value.filename.startswith(str(disk / "run"))
        assert not list(disk.rglob("*.tmp"))
        (disk / "rest").unlink()
        Lock(disk / "run").close()


def full_map(place, number):
    """The room for a map is taken before it is written: no bus error ends the process."""
    with small_disk(place / "disk", "1m") as disk:
        with pytest.raises(OSError, match="No space left on device, 4 MiB are needed"):
            maps.scratch_map(np.uint32, (1024, 1024), disk)
        some = maps.scratch_map(np.uint32, (1024, 1024), disk, rows=range(7, 20))
        some[7:20] += 1
        assert some[7:20].all()


def read_only_run(place, number):
    """It is read by every command that writes elsewhere; the others end by one line."""
    (place / "in").mkdir()
    from PIL import Image

    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(place / "in" / "a.png")
    words = (["main", "--mode=eval", "--split=val"], ["analyze", "--analysis=weights"],
             ["export", "--format=stablehlo"], ["predict", f"--images={place}/in"])[number]
    folder = shutil.copytree(trained(), place / "run")
    with read_only(folder):
        if number < 3:
            assert str(folder) in run(*words, f"--workdir={folder}", place=place)
        before = sorted(folder.rglob("*"))
        for _ in range(2):
            run(*words, f"--workdir={folder}", f"--out={place}/out", place=place, good=True)
        assert sorted(folder.rglob("*")) == before
    made = ("eval/val.json", "analysis.html", "model.stablehlo", "a_label.tif")[number]
    assert (pathlib.Path(place) / "out" / made).is_file()


def no_room_for_a_copy(place, number):
    with small_disk(place / "disk", "16k") as disk:
        error = run("main", "--mode=eval", f"--workdir={trained()}", f"--out={disk}/out",
                    place=place)
        assert "--out: cannot copy" in error and "No space" in error, error
        assert os.listdir(disk) == []


FAULTS = (
    Fault("a full disk, or one without inodes", "training",
          "one line with the path; with more room it ends as if there had been", full_training, 7),
    Fault("a full disk", "predict", "as above", full_prediction, 3),
    Fault("a full disk", "cache building", "as above", full_cache, 2),
    Fault("a quota that is used up", "training, cache building, predict",
          "one line with the path; with a larger one the same command continues", used_quota, 4),
    Fault("a full disk", "eval, analyze, export", "one line with the path, the run is whole",
          full_run, 3),
    Fault("a full disk", "a log, an atomic file", "an error with the path, the old content",
          full_log, 1, 1),
    Fault("a full disk", "lock", "an error with the path, nothing is left", full_lock, 1, 1),
    Fault("a disk without inodes", "the first run of a study", "one line with the path; with more "
          "room the same command continues", full_queue, 1),
    Fault("a full disk", "a memory-mapped file", "an error before it is written", full_map, 1, 1),
    Fault("a read-only run", "eval, analyze, export, predict", "works with --out", read_only_run,
          4),
    Fault("a full disk", "a copy of a run", "one line, nothing is left", no_room_for_a_copy, 1),
)
