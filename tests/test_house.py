"""The order of the house: who may import whom, and that maths never sees a config."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "cellseg_jax"
# From the ground up: a module imports lower floors, or its own room. Maths may import maths.
FLOORS = (
    ("errors",),
    ("files", "cli"),
    ("losses", "optim", "augment", "targets", "normalize", "crops", "pruning", "metrics",
     "random_words", "report"),
    ("models", "classical"),
    ("data",),
    ("config",),
    ("step", "runs"),
    ("inference",),
    ("interop",),
    ("train",),
    ("studies", "analysis", "planning"),
    ("main", "study", "predict", "doctor", "plan", "analyze", "export"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MATHS = {"losses", "optim", "augment", "targets", "normalize", "crops", "pruning", "metrics",
         "random_words", "models", "classical"}
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
