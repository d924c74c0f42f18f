"""Commands for a shell: train a run again, score it again, use it."""

import json
import pathlib
import shlex

from cellseg_jax import data

PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def training(environment: dict) -> str:
    """The command that trained the run, after the checkout of its commit; "" if it is not known."""
    command = environment.get("command", "")
    if not command:
        return ""
    script, *words = shlex.split(command)
    if (PACKAGE / script).is_file():
        script = f"python -m {PACKAGE.name}.{script.removesuffix('.py')}"
    elif script.endswith(".py"):
        script = f"python {shlex.quote(script)}"
    else:
        script = shlex.quote(script)
    commit = environment.get("commit", "")
    checkout = f"git checkout {shlex.quote(commit.rstrip('+'))}\n" if commit else ""
    return checkout + _command(script, *words)


def scoring(config, scores: dict, folder) -> str:
    """The command that scores the run on other data once more."""
    before = data.options(scores["data"]["name"]) | config.data.to_dict()
    before = json.loads(json.dumps(before))  # as the scores were written: tuples are lists
    changed = {k: v for k, v in scores["data"].items()
               if before.get(k) != v and k not in ("cache", "threads", "residence")}
    text = lambda v: v if isinstance(v, str) else repr(tuple(v) if isinstance(v, list) else v)
    return _command("python -m cellseg_jax.main", "--mode=eval", f"--workdir={folder}",
                    f"--split={scores['split']}",
                    *(f"--config.data.{k}={text(v)}" for k, v in changed.items()))


def use(folder) -> str:
    """The commands that label other images, and score other data that have labels."""
    workdir = f"--workdir={folder}"
    labels = _command("python -m cellseg_jax.predict", workdir, "--images=DIR", "--out=labels")
    scores = _command("python -m cellseg_jax.main", "--mode=eval", workdir, "--split=all",
                      "--config.data.name=folder", "--config.data.root=DIR")
    return f"{labels}\n{scores}"


def _command(program, *words) -> str:
    return " \\\n    ".join([program, *map(shlex.quote, words)])
