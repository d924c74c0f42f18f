"""Memory of process and machine, as the operating system counts it."""

import sys

import jax
import numpy as np
import psutil
import pytest

from cellseg_jax.step import memory

MIB = 2**20


@pytest.mark.slow
def test_peak_rss_keeps_what_was_given_back():
    before = memory.peak_rss()
    block = np.ones(before // 8 + 64 * MIB // 8)  # larger than all that was held so far
    held = memory.process_memory()
    del block
    assert held >= before + 64 * MIB
    assert memory.peak_rss() >= held
    assert memory.process_memory() < held


def test_what_fits_nowhere_is_refused_before_it_is_made():
    shape = jax.ShapeDtypeStruct((10**9, 10**9), np.float32)  # more bytes than 64 bits count
    with pytest.raises(memory.DoesNotFit, match=r"^runs/a: the network does not fit: needs 3725290"
                       r"298\.46 GiB per device, has [\d.]+ GiB$"):
        memory.check_fits({"a": shape, "b": jax.ShapeDtypeStruct((), np.int32)},
                          "runs/a: the network")
    memory.check_fits({"b": jax.ShapeDtypeStruct((1000,), np.int32)}, "")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_process_memory_is_that_of_the_kernel():
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file]
    anonymous = next(int(line[1]) * 1024 for line in lines if line[0] == "RssAnon:")
    assert memory.process_memory() == pytest.approx(anonymous, abs=8 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit")
def test_limits_of_the_process_count(monkeypatch):
    memory.available_memory()  # starts the devices, which takes memory
    used = psutil.Process().memory_info().data
    limits = {psutil.RLIMIT_DATA: used + 100 * MIB, psutil.RLIMIT_AS: 2**50}
    monkeypatch.setattr(psutil.Process, "rlimit", lambda self, kind: (limits[kind],) * 2)
    free, source = memory.available_memory()
    assert source == "ulimit -d" and abs(free - 100 * MIB) < 32 * MIB
    assert memory.device_memory() <= used + 100 * MIB


def test_limits_of_a_container_count(monkeypatch):
    used = memory.process_memory()
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [(used + 50 * MIB, 3 * MIB)])
    free, source = memory.available_memory()
    assert source == "the cgroup's limit" and abs(free - 50 * MIB) < 16 * MIB
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [(50 * MIB, None)])
    assert memory.available_memory()[1] != "the cgroup's limit"


def test_memory_is_that_of_devices_that_count_it(monkeypatch):
    class Device:
        def __init__(self, limit, peak):
            self.stats = {"bytes_limit": limit, "peak_bytes_in_use": peak}

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(80, 7), Device(70, 9)])
    assert memory.device_memory() == 70 and memory.peak_memory() == 9
    assert memory.available_memory() == (70, "the device's memory_stats")
