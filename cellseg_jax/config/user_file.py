"""Config files of users, and configs as JSON."""

import contextlib
import importlib.util
import inspect
import json
import os
import pathlib
import traceback

from ml_collections import ConfigDict

from cellseg_jax.config.edit import complete, override
from cellseg_jax.config.values import as_tuples
from cellseg_jax.errors import InputError, nearest


def load(path: str, overrides=()) -> ConfigDict:
    """The complete config of a file, after overrides [(dotted key, text), ...].

    `path` may carry an argument for get_config: "configs/studies/ebhi.py:unet_13_1".

    Raises: InputError for whatever is wrong in the file, with its line, or in the config.
    """
    file, _, argument = path.partition(":")
    if not pathlib.Path(file).is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        raise InputError(f"--config: no file {file!r} in {pathlib.Path.cwd()}"
                         f"{nearest(file, known)}; expected a Python file with get_config()")
    if not file.endswith(".py"):
        raise InputError(f"--config: got {file!r}; expected a Python file (.py) with get_config()")
    with blame(file):
        get_config = getattr(run_file(file), "get_config", None)
        if not callable(get_config):
            raise InputError(f"{file}: get_config is missing; expected def get_config(): ...")
        if argument and not inspect.signature(get_config).parameters:
            raise InputError(f"{file}: got :{argument}, but the file is no study, whose rows are "
                             f"named so; pass --config={file}")
        config = get_config(*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise InputError(f"{file}: get_config() returned {type(config).__name__}; expected "
                             "the ConfigDict that cellseg_jax.config.default() gives")
    return override(config, overrides)


def run_file(file: str):
    """The module that a config or study file is; run it `with blame(file)`."""
    spec = importlib.util.spec_from_file_location("cellseg_jax_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def blame(file: str):
    """Any error of a user's file becomes an InputError with the file's name and the line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
    except Exception as error:
        own = os.path.abspath(file)  # as frames have it
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
        line, text = frames[-1].lineno if frames else 0, " ".join(str(error).split())
        if isinstance(error, SyntaxError) and not frames:  # of the file itself, not of an import
            line, text = error.lineno, error.msg
        where = f"{file} line {line}" if line else file
        raise InputError(f"{where}: {text or type(error).__name__}") from error


def to_json(config) -> str:
    """A config as the JSON text of a run's folder."""
    return json.dumps(config.to_dict(), indent=1)


def as_json(section: ConfigDict) -> dict:
    """A section of a config with the types of JSON: tuples become lists."""
    return json.loads(section.to_json())


def from_json(text: str) -> ConfigDict:
    """The inverse of to_json; lists become tuples again. Raises InputError as `complete`."""
    found = as_tuples(json.loads(text))
    try:
        config = ConfigDict(found)
    except ValueError as error:
        raise InputError("config: a name of a key has a dot in it; expected a section in a "
                         'section, such as {"optimizer": {"lr": 0.001}}') from error
    return complete(config)
