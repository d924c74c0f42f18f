"""Programs that are kept between processes: found again, never for another one, damaged or not."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import augment, losses, targets
from cellseg_jax.cli import PROGRAMS_VARIABLE
from cellseg_jax.models.conv import Conv
from cellseg_jax.step import kept
from cellseg_jax.step.kept import Program
from cellseg_jax.step.mesh import make_mesh

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRAMS_VARIABLE, str(tmp_path / "programs"))
    return tmp_path / "programs"


@pytest.fixture
def number():
    """In no program that JAX's compile cache has."""
    return 1 + int.from_bytes(os.urandom(3)) / 2**20


class Start:
    """What a process has of a program: a function that was not traced, and counts when it is."""

    def __init__(self, function, *made_from, devices=None, **options):
        self.traced = 0

        def counted(*arguments):
            self.traced += 1
            return function(*arguments)

        self.program = Program(jax.jit(counted, keep_unused=True, **options),
                               devices or jax.devices()[:1], *made_from)

    def __call__(self, *arguments):
        return jax.device_get(self.program(*arguments))


def test_a_second_start_traces_nothing_and_computes_the_same(folder, number):
    function = lambda x, y: {"sum": (x["a"] * number).sum() + y, "rows": x["a"] @ x["b"]}
    arguments = {"a": ARRAY, "b": ARRAY.T}, np.float32(2)
    first, second = Start(function, "f"), Start(function, "f")
    want = first(*arguments)
    got = second(*arguments)
    assert (first.traced, second.traced) == (1, 0)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, want))
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.jit(function)(*arguments), want))
    second(*arguments)
    assert second.traced == 0 and len(list(folder.iterdir())) == 2  # a program, and its key


def test_another_shape_type_or_placement_is_another_program(folder, number):
    function = lambda tree: jax.tree.map(lambda x: x * number, tree)
    Start(function, "f")(ARRAY)
    others = [ARRAY[:1], ARRAY.astype(np.int32), [ARRAY], jax.device_put(ARRAY, jax.devices()[1]),
              jax.ShapeDtypeStruct((2, 4), np.float32)]
    for other in others:
        start = Start(function, "f", devices=jax.devices()[1:2] if isinstance(other, jax.Array)
                      else None)
        start.program.compiled(other)
        assert start.traced == 1, other


def test_what_a_program_is_made_from_tells_it_from_others(folder, number):
    assert Start(lambda x: x * number, "f", 0.5)(ARRAY)[1, 1] == np.float32(4 * number)
    other = Start(lambda x: x + number, "f", 0.25)
    assert np.array_equal(other(ARRAY), ARRAY + np.float32(number)) and other.traced == 1
    unnamed = Start(lambda x: x - number, object())
    unnamed(ARRAY)
    assert unnamed.traced == 1 and len(list(folder.iterdir())) == 4


def test_changed_code_is_traced_and_compiled_only_where_it_changes_the_program(
        folder, number, monkeypatch):
    Start(lambda x: x * number, "f")(ARRAY)
    monkeypatch.setattr(kept, "_sources", lambda: "changed")
    compiled = []
    monkeypatch.setattr(kept, "_compile", lambda lowered, path: compiled.append(path))
    factor = number
    same, again = (Start(lambda renamed: renamed * factor, "f") for _ in range(2))
    assert np.array_equal(same(ARRAY), ARRAY * np.float32(number))
    assert (same.traced, compiled) == (1, [])
    assert np.array_equal(again(ARRAY), same(ARRAY)) and again.traced == 0
    monkeypatch.setattr(kept, "_sources", lambda: "changed again")
    Start(lambda x: x * number + 1, "f").program.compiled(ARRAY)
    assert len(compiled) == 1


def test_which_argument_is_read_is_not_confused(folder, number, monkeypatch):
    """The texts of both would be equal, if those that are not read were left out."""
    arguments = ARRAY, ARRAY + 1
    assert np.array_equal(Start(lambda a, b: a * number, "f")(*arguments),
                          arguments[0] * np.float32(number))
    monkeypatch.setattr(kept, "_sources", lambda: "changed")
    assert np.array_equal(Start(lambda a, b: b * number, "f")(*arguments),
                          arguments[1] * np.float32(number))


@pytest.mark.parametrize("changed", ["XLA_FLAGS", "cores", "processor", "a flag of JAX"])
def test_another_compiler_or_processor_never_loads_it(folder, number, monkeypatch, changed):
    Start(lambda x: x * number, "f")(ARRAY)
    before = kept._compiler.__wrapped__()
    if changed == "XLA_FLAGS":
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_test=1")
    elif changed == "a flag of JAX":
        jax.config.update("jax_numpy_rank_promotion", "warn")
    else:
        monkeypatch.setattr(kept.machine, changed, lambda: "another")
    try:
        now = kept._compiler.__wrapped__()
    finally:
        jax.config.update("jax_numpy_rank_promotion", "allow")
    assert now != before
    monkeypatch.setattr(kept, "_compiler", lambda: now)
    second = Start(lambda x: x * number, "f")
    second.program.compiled(ARRAY)
    assert second.traced == 1


def test_sources_and_libraries_are_part_of_the_key(tmp_path, monkeypatch):
    listed = {library: list(kept._installed(library)) for library in ("jaxlib", "optax")}
    assert any(path.endswith(".so") for path, *_ in listed["jaxlib"])
    assert any(path.endswith("transform.py") for path, *_ in listed["optax"])
    monkeypatch.setattr(kept.cli, "STARTED", kept.cli.STARTED + 1e6)
    before = kept._sources.__wrapped__()
    (tmp_path / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(kept, "PACKAGE", tmp_path)
    one = kept._sources.__wrapped__()
    (tmp_path / "one.py").write_text("x = 2\n")
    assert len({before, one, kept._sources.__wrapped__()}) == 3


def test_a_damaged_file_is_compiled_anew(folder, number):
    Start(lambda x: x * number, "f")(ARRAY)
    for damage in (b"", b"damaged"):
        for file in folder.iterdir():
            file.write_bytes(damage)
        again = Start(lambda x: x * number, "f")
        assert np.array_equal(again(ARRAY), ARRAY * np.float32(number))


def test_jax_compile_cache_takes_no_part_and_is_on_again(folder, number):
    """What XLA has read from it, it writes without its functions: it would fail when called."""
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    Start(lambda x: x * number, "f")(ARRAY)
    assert not any("compile_requests_use_cache" in event for event in events)
    jax.jit(lambda x: x - number)(ARRAY)
    assert any("compile_requests_use_cache" in event for event in events)


def test_the_oldest_files_are_deleted_and_no_others(folder, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 3)
    folder.mkdir()
    (folder / "image.tif").touch()
    ends = (kept.KEY, kept.PROGRAM, kept.NUMBER, kept.KEY, kept.PROGRAM)
    for name, end in zip("abcde", ends, strict=True):
        kept._write(folder / f"{name}{end}", b"")
        os.utime(folder / f"{name}{end}", (0, ord(name)))
    kept._write(folder / f"f{kept.KEY}", b"")
    assert sorted(file.name[0] for file in folder.iterdir()) == ["d", "e", "f", "i"]


def test_sources_that_changed_since_the_start_keep_nothing(folder, number, monkeypatch, tmp_path):
    """What was imported is not what is hashed then."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").touch()
    monkeypatch.setattr(kept, "PACKAGE", tmp_path / "package")
    assert kept._sources.__wrapped__() == ""
    monkeypatch.setattr(kept.cli, "STARTED", kept.cli.STARTED + 1e6)
    assert kept._sources.__wrapped__()
    monkeypatch.setattr(kept, "_sources", lambda: "")
    assert kept._folder() is None


def test_nothing_is_kept_outside_of_commands(tmp_path, number, monkeypatch):
    monkeypatch.delenv(PROGRAMS_VARIABLE, raising=False)
    assert kept._folder() is None
    for off in ("off", ""):
        monkeypatch.setenv(PROGRAMS_VARIABLE, off)
        assert kept._folder() is None
    monkeypatch.setenv(PROGRAMS_VARIABLE, str(tmp_path))
    assert kept._folder() == tmp_path
    monkeypatch.setattr(kept, "_all_own", lambda: False)
    Start(lambda x: x * number, "f")(ARRAY)
    assert kept._folder() is None and not list(tmp_path.iterdir())


def mine(*arguments, **options):
    """Of no file of the package."""


@pytest.mark.parametrize("table, name, function", [
    (losses.LOSSES, "mine", mine), (losses.LOSSES, "dice", functools.partial(mine, 1)),
    (losses.LOSSES, "dice", functools.wraps(losses.LOSSES["dice"])(lambda *a, **k: mine(*a, **k))),
    (augment.INTENSITY, "noise", mine), (losses.LOSSES, "dice", jax.jit(mine)),
    (targets.TARGETS, "foreground", targets.TARGETS["foreground"]._replace(probs=mine)),
    (vars(Conv), "__call__", mine), (vars(kept), "_write", mine)])
def test_functions_that_others_put_into_the_package_are_seen(table, name, function, monkeypatch):
    assert kept._all_own.__wrapped__()
    if isinstance(table, dict) and table is not vars(kept):
        monkeypatch.setitem(table, name, function)
    else:
        monkeypatch.setattr(Conv if name == "__call__" else kept, name, function)
    assert not kept._all_own.__wrapped__()


def test_what_is_traced_goes_through(folder, number):
    program = Start(lambda x: (x * x).sum() * number, "f").program
    assert np.allclose(jax.grad(lambda x: program(x))(ARRAY), 2 * ARRAY * number)
    assert np.isclose(jax.jit(lambda x: program(x))(ARRAY), program(ARRAY))
    assert np.isclose(program(3.0), 9 * number)


def test_a_file_of_flags_counts_by_its_content(tmp_path, monkeypatch):
    found = []
    for content in ("--xla_a=1", "--xla_a=2"):
        (tmp_path / "flags.txt").write_text(content)
        monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags.txt"))
        found.append(kept._compiler.__wrapped__())
    monkeypatch.setenv("NPROC", "1")
    assert len({*found, kept._compiler.__wrapped__()}) == 3


def test_a_full_or_missing_disk_stops_nothing(tmp_path, number, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(PROGRAMS_VARIABLE, str(tmp_path / "file" / "programs"))
    start = Start(lambda x: x * number, "f")
    assert np.array_equal(start(ARRAY), ARRAY * np.float32(number)) and start.traced == 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_on_meshes_of_any_devices(folder, number, shape):
    mesh = make_mesh(*shape)
    rows = NamedSharding(mesh, P(("member", "data")))
    array = jax.device_put(np.arange(16, dtype=np.float32), rows)
    function = jax.shard_map(lambda x: jax.lax.psum(x * number, "data"), mesh=mesh,
                             in_specs=P(("member", "data")), out_specs=P("member"))
    want = Start(function, "f", devices=mesh.devices.flat)(array)
    second = Start(function, "f", devices=mesh.devices.flat)
    assert np.array_equal(second(array), want) and second.traced == 0


def test_donated_arguments_stay_donated(folder, number):
    function = lambda x: x + number
    Start(function, "f", donate_argnums=0)(jax.device_put(ARRAY))
    array = jax.device_put(ARRAY)
    second = Start(function, "f", donate_argnums=0)
    assert np.array_equal(second(array), ARRAY + np.float32(number))
    assert array.is_deleted() and second.traced == 0


@pytest.mark.slow
def test_runs_with_kept_programs_are_bit_for_bit_those_without(tmp_path):
    """In processes of their own: without, the first that keeps, and one that finds all of them."""
    def train(name, programs):
        environment = os.environ | {PROGRAMS_VARIABLE: programs, "JAX_LOG_COMPILES": "1",
                                    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
        done = subprocess.run(
            [sys.executable, "-m", "cellseg_jax.main", "--config=configs/quickstart.py",
             f"--workdir={tmp_path / name}", "--config.data.size=(32, 32)",
             "--config.data.count=16", "--config.model.channels=(4, 8)", "--config.train.epochs=2",
             "--config.train.batch_size=4"],
            env=environment, capture_output=True, text=True, check=True)
        return (tmp_path / name / "metrics.jsonl").read_text(), done.stderr

    folder = tmp_path / "programs"
    off, _ = train("off", "off")  # fills the compile cache of JAX
    metrics, log = train("first", str(folder))
    files = sorted(folder.iterdir())
    again, log_again = train("second", str(folder))
    assert metrics == again == off and metrics.count("\n") == 2
    assert len(files) >= 8 and sorted(folder.iterdir()) == files
    for name in ("jit(mapped)", "jit(per_device)"):
        assert name in log and name not in log_again, name
