"""The front of the benchmarks; each still runs: its smallest case, in one round."""

import ast
import importlib
import json
import re
import subprocess
import sys
import types

import pytest
from helpers import ROOT, child_environment

from benchmarks import measuring, on_gpu, run, train_step
from cellseg_jax.data.synthetic import twins

# {benchmark: (arguments, twin of a dataset for --root or "", what it imports, a row of its table)}
NUMBER = r"-?[\d,]+(\.\d+)?(e-\d+)?"
CASES = {
    "augment": ("--cases=none,elastic --size=32 --rounds=1", "", (),
                rf"\| elastic \|( {NUMBER} \|){{4}}"),
    "classical_ebhi": ("", "ebhi_seg", (), rf"\| otsu \|( {NUMBER} \|){{4}}"),
    "gpu_plans": ("--configs=quickstart --topologies=h100 --nobatch", "", ("jax_plugins",),
                  rf"\| quickstart \| h100 \| 16 \|( {NUMBER} \|){{6}} yes \|"),
    "grain_readers": ("--count=8 --size=32 --rounds=1", "dsb2018", (),
                      rf"\| grain \|( {NUMBER} \|){{3}}"),
    "input_pipeline": ("--count=8 --size=32 --epochs=2 --batch_size=4", "dsb2018",
                       ("torch", "albumentations", "cv2"),
                       rf"\| cellseg_jax \|( {NUMBER} \|){{4}}"),
    "large_labels": ("--side=400 --targets=distance", "", (),
                     rf"\| distance \| 400 \| 100 \| 100 \| 0 \|( {NUMBER} \|){{4}}"),
    "member_convolution": ("--quick --rounds=1", "", (),
                           rf"\| 4 \| 8x8 \| 2 \|( {NUMBER} \|){{3}}"),
    "nuclei_monai": ("--size=64 --epochs=1 --batch_size=4", "dsb2018", ("torch", "monai"),
                     rf"\|( {NUMBER} \|){{6}}"),
    "on_gpu": ("--tiny --folder={tmp_path}", "", ("torch", "monai", "einops"),
               rf"\| simple_conv_64 \| bfloat16 \| 2 \|( {NUMBER} \|){{3}}"),
    "partly_annotated": ("--folder={tmp_path}/halves --repeats=1 --steps=2 --size=32", "dsb2018",
                         (), rf"\| half_marked \| dice_mean \| {NUMBER} \|"),
    "population": ("--slots=2 --backends=vmap --rounds=1 --steps=1", "", (),
                   rf"\| vmap \| 2 \| {NUMBER} \| {NUMBER} \|"),
    "pruning": ("--size=16 --channels=4,8 --images=8 --levels=1 --rounds=1", "", (),
                rf"\| one program \| {NUMBER} \| {NUMBER} \|"),
    "search": ("--repeats=1", "", (), r"\| 7 \| 0\.\d+ \| halving \|( \d\.\d+ \|){3}"),
    "target_survival": ("--targets=distance --every=20", "dsb2018", (),
                        rf"\| distance \|( {NUMBER} \|){{7}}"),
    "train_step": ("--cases=simple_conv_64 --rounds=1", "", ("torch", "monai", "einops"),
                   rf"\| simple_conv_64 \|( {NUMBER} \|)+"),
    "whole_image": ("--sides=1024 --rounds=1 --steps=2", "", ("torch", "monai"),
                    rf"\| 1,024 \|( {NUMBER} \|){{9}}"),
}
PARTS = {"torch_networks", "measuring", "run"}  # of other benchmarks


def front(*arguments):
    return subprocess.run([sys.executable, "benchmarks/run.py", *arguments], cwd=ROOT,
                          env=child_environment(), capture_output=True, text=True, timeout=1200)


def test_no_benchmark_is_left_out():
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(CASES) | PARTS == files and set(CASES) == set(run.summaries())


def test_the_front_lists_and_refuses_in_one_line(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        try:
            return run.main(), capsys.readouterr()
        except SystemExit as stop:
            return stop.code, capsys.readouterr()

    code, out = call("--list")
    assert code == 0 and [line.split()[0] for line in out.out.splitlines()] == sorted(CASES)
    code, out = call("--list", "member_convolution")
    assert code == 0 and "--quick" in out.out
    for arguments, wanted in {("nothing",): "got nothing; expected some of augment, ",
                              ("member_convolution", "--rounds=2", "--sides=3"):
                              "no benchmark of these has --sides=3",
                              ("member_convolution", "--sides=a b"):
                              "no benchmark of these has --sides=a b",
                              (): "expected the name of a benchmark"}.items():
        code, out = call(*arguments)
        assert code == 2 and wanted in out.err.splitlines()[-1]


def test_turns_alternate_and_ratios_are_of_neighbours():
    order = []
    clock = lambda name: order.append(name) or measuring.Sample(*{"a": (1, 4), "b": (2, 2)}[name])
    found = measuring.in_turns({"a": "a", "b": "b"}, 3, warm=1, clock=clock)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert len(found["a"]) == 3 and measuring.median(found["b"]) == 2
    assert measuring.times_faster(found["a"], found["b"]) == 2
    assert measuring.times_faster(found["a"], found["b"], "cpu") == 0.5
    pairs = [[measuring.Sample(wall, 0) for wall in walls] for walls in ((1, 10, 4), (3, 10, 6))]
    assert measuring.times_faster(*pairs) == 1.5


def test_a_record_becomes_the_table_of_the_page_and_a_failure_ends_no_other(tmp_path, monkeypatch):
    table = measuring.Table(["case", "s"], [["a", 0.12345], ["b", 12345], ["c", 1.0], ["d", None]])
    made = types.SimpleNamespace(measure=lambda options: measuring.Result([table], ["A note."]))
    broken = types.SimpleNamespace(measure=lambda options: 1 / 0)
    modules = {"benchmarks.made": made, "benchmarks.broken": broken}
    monkeypatch.setattr(importlib, "import_module", modules.get)
    options = measuring.parser_of({"root": (str, "x"), "k": ([1], "x"), "turns": (False, "x")})
    options = options.parse_args(["--root=r", "--k=2,3"])
    assert not run.run("broken", options, str(tmp_path))
    assert run.run("made", options, str(tmp_path))
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {"made"}
    assert found["made"]["options"] == {"root": "r", "k": [2, 3], "turns": False}
    assert len(found["made"]["load"]) == 2 and found["made"]["machine"]["cores"] > 0
    page = run.with_tables("top\n<!-- made -->\nold\n<!-- /made -->\nend\n", found)
    assert page.startswith("top\n<!-- made -->\n`python benchmarks/run.py")
    assert page.endswith("| a | 0.123 |\n| b | 12,345 |\n| c | 1.00 |\n| d |  |\n"
                         "<!-- /made -->\nend\n") and "A note." in page
    with pytest.raises(ValueError, match="marks for"):
        run.with_tables("no marks", found)


def test_tables_of_the_page_are_those_of_the_results():
    page = run.PAGE.read_text()
    assert run.with_tables(page, run.kept()) == page


# --- the agenda of a GPU --------------------------------------------------------------------------


@pytest.fixture
def agenda(tmp_path, monkeypatch):
    """run(**options) -> {cell: what was found}, and the names of the cells that were begun."""
    begun, now = [], [0.0]

    class Process:
        pid, returncode = -1, 0

        def __init__(self, command, **_):
            self.name = command[-2]
            begun.append(self.name)

        def communicate(self, timeout=None):
            if timeout is None:
                return "", ""
            if self.name == "long" and timeout < 300:
                now[0] += timeout
                raise subprocess.TimeoutExpired("x", timeout)
            now[0] += 60.0
            self.returncode = self.name == "broken"
            table = measuring.Table(["cell"], [[self.name]], "Cells")
            return f"...\n{json.dumps(table._asdict())}\n", "Traceback\nValueError: no\n"

    fake = types.SimpleNamespace(Popen=Process, PIPE=-1, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(on_gpu, "subprocess", fake)
    monkeypatch.setattr(on_gpu, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(on_gpu.os, "killpg", lambda *_: None)
    monkeypatch.setattr(on_gpu, "agenda", lambda tiny: [
        on_gpu.Cell(name, None) for name in ("first", "broken", "second", "long", "last")])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    def go(*arguments):
        begun.clear()
        options = measuring.parser_of(on_gpu.OPTIONS).parse_args(
            [f"--folder={tmp_path}", *arguments])
        return on_gpu.measure(options)

    return go, begun


def test_a_failed_cell_ends_no_other_and_a_second_start_goes_on(agenda):
    go, begun = agenda
    found = go("--minutes=5")
    assert begun == ["first", "broken", "second", "long"]  # 60 s each; then too little is left
    assert [row for table in found.tables for row in table.rows] == [["first"], ["second"]]
    assert found.notes == ["- broken: ValueError: no", "- long: not ready after 120 s",
                           "- last: no time was left"]
    found = go("--minutes=25")
    assert begun == ["long", "last"] and found.data["broken"]["error"] == "ValueError: no"
    assert [row[0] for row in found.tables[0].rows] == ["first", "second", "long", "last"]
    go("--again")
    assert begun == ["broken"]
    go("--only=fi")
    assert begun == []
    with pytest.raises(SystemExit, match="take another --folder"):
        go("--tiny")


def test_cells_of_most_worth_come_first_and_all_cases_are_among_them():
    names = [cell.name for cell in on_gpu.agenda(tiny=False)]
    assert len(set(names)) == len(names) and names[0] == "step_unet_512"
    assert {f"step_{name}" for name in train_step.CASES} < set(names)
    assert set(on_gpu.BATCH) == set(train_step.CASES)


def resolve(module, name):
    """An attribute or submodule of a module of the package; AttributeError if there is none."""
    found = importlib.import_module(module)
    try:
        return getattr(found, name)
    except AttributeError:
        try:
            return importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"{module} has no {name}") from None


@pytest.mark.parametrize("name", CASES)
def test_benchmark_uses_names_that_the_package_has(name):
    """Also of a benchmark that cannot run here, since a peer that it measures is not installed."""
    tree, modules = ast.parse((ROOT / f"benchmarks/{name}.py").read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cellseg_jax":
            for alias in node.names:
                found = resolve(node.module, alias.name)
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found.__name__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:
                resolve(modules[node.value.id], node.attr)


@pytest.mark.weekly
@pytest.mark.parametrize("name", CASES)
def test_benchmark_prints_its_numbers(name, tmp_path):
    arguments, twin, needed, wanted = CASES[name]
    for module in needed:
        pytest.importorskip(module)
    arguments = arguments.format(tmp_path=tmp_path).split()
    if twin:
        twins.write(twin, tmp_path / twin, count={"ebhi_seg": 1, "dsb2018": 16}[twin],
                    size=(32, 32))
        root = next(path for path in (tmp_path / twin / "stage1_train", tmp_path / twin)
                    if path.is_dir())
        arguments.append(f"--root={root}")
    done = front(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(wanted, done.stdout), done.stdout
