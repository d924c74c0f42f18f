"""The order of the house: who imports whom, how large things are; maths never sees a config."""

import ast
import graphlib
import pathlib
import re
import statistics

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "cellseg_jax"
# From the ground up: a module imports lower floors, or its own room. Maths may import maths.
FLOORS = (
    ("errors",),
    ("files",),
    ("cli",),
    ("losses", "optim", "augment", "targets", "normalize", "crops", "pruning", "metrics",
     "random_bits", "report"),
    ("models", "classical"),
    ("data",),
    ("config",),
    ("step", "runs"),
    ("inference",),
    ("interop",),
    ("train",),
    ("studies", "analysis", "planning", "napari"),
    ("main", "study", "predict", "doctor", "plan", "analyze", "export", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MATHS = {"losses", "optim", "augment", "targets", "normalize", "crops", "pruning", "metrics",
         "random_bits", "models", "classical"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms of this package that a file imports, at module level or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cellseg_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cellseg_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name.split(".")[1] for name in names if name.startswith("cellseg_jax."))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor: put it into FLOORS"
    for other in imported_rooms(path):
        allowed = other == room or FLOOR[other] < FLOOR[room] or {room, other} <= MATHS
        assert allowed, f"{room} imports {other}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in MATHS],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_maths_never_sees_a_config(path):
    tree = ast.parse(path.read_text())
    names = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not names & {"config", "ConfigDict", "ml_collections"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_and_public_function_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            short = len(node.body) <= 3 and isinstance(node, ast.FunctionDef)
            assert ast.get_docstring(node) or short, f"{path.name}: {node.name} has no docstring"


# --- sizes ----------------------------------------------------------------------------------------

COMMANDS = FLOORS[-1]
TRAINING_PATH = {"train", "step", "runs", "data", "inference"}


def functions(tree, prefix=""):
    """(dotted name, definition) of every function of a module, methods and inner ones too."""
    for child in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{prefix}.{child.name}".lstrip(".")
        if isinstance(child, ast.FunctionDef):
            yield name, child
        yield from functions(child, name)


def all_functions():
    """(path in the package, dotted name, definition) of every function of the package."""
    for path in MODULES:
        for name, node in functions(ast.parse(path.read_text())):
            yield path.relative_to(PACKAGE), name, node


def num_lines(node):
    return node.end_lineno - node.lineno + 1


def num_parameters(node):
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    given = [a for a in given if a.arg not in ("self", "cls")]
    return len(given) + bool(node.args.vararg) + bool(node.args.kwarg)


def test_the_root_holds_commands_what_users_extend_and_rooms():
    entries = [p.name for p in PACKAGE.iterdir() if not p.name.startswith(("__pycache__", "."))]
    assert len(entries) <= 35, sorted(entries)


def test_a_command_is_flags_and_then_one_call():
    long = {name for name in COMMANDS
            if len((PACKAGE / f"{name}.py").read_text().splitlines()) >= 100}
    assert not long


def test_functions_of_the_training_path_fit_on_a_screen():
    long = {f"{path}:{name}" for path, name, node in all_functions()
            if path.parts[0] in TRAINING_PATH and num_lines(node) > 60}
    assert not long


def test_a_function_takes_eight_parameters_at_most():
    many = {f"{path}:{name}" for path, name, node in all_functions() if num_parameters(node) > 8}
    assert not many


def test_half_of_all_functions_are_shorter_than_12_lines():
    assert statistics.median(num_lines(node) for *_, node in all_functions()) < 12


# --- imports --------------------------------------------------------------------------------------


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path, names):
    """Modules of this package that a file imports, at module level or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cellseg_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)


def test_no_module_imports_itself_through_others():
    names = {module_name(p): p for p in MODULES + [PACKAGE / "__init__.py"]}
    graph = {name: set(imported_modules(path, names)) - {name} for name, path in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def has_reason(lines, node):
    """Whether a comment stands beside an import or above the block of imports it belongs to."""
    number = node.lineno - 1
    if any("#" in line for line in lines[number : node.end_lineno]):
        return True
    while re.match(r"\s+(from|import|[\w, ]+\)?,?$)", lines[number - 1]):
        number -= 1
        if "#" in lines[number]:
            return True
    return lines[number - 1].lstrip().startswith("#")


def test_an_import_inside_a_function_says_why():
    """A command imports what it needs after its flags are read, so that --help starts at once."""
    without = set()
    for path in MODULES:
        text = path.read_text()
        late = {node for _, function in functions(ast.parse(text)) for node in ast.walk(function)
                if isinstance(node, (ast.Import, ast.ImportFrom))}
        name = str(path.relative_to(PACKAGE))
        if name.removesuffix(".py") in COMMANDS:
            continue
        if not all(has_reason(text.splitlines(), node) for node in late):
            without.add(name)
    assert sorted(without) == []


def test_no_test_imports_another_tests_module():
    for path in (PACKAGE.parent / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                parts = {part for name in names for part in name.split(".")}
                assert not any(part.startswith("test_") for part in parts), path
