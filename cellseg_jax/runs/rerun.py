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
    """The command that scores the run once more as it was: on its data, by its options of eval.

    Args:
      config: of the run.
    """
    changed = {}
    if "data" in scores:
        before = _as_written(data.options(scores["data"]["name"]) | config.data.to_dict())
        changed = {f"data.{k}": v for k, v in scores["data"].items()
                   if before.get(k) != v and k not in ("cache", "threads", "residence")}
    changed |= {f"eval.{k}": v for k, v in _other_options(config, scores).items()}
    text = lambda v: v if isinstance(v, str) else repr(tuple(v) if isinstance(v, list) else v)
    return _command("python -m cellseg_jax.main", "--mode=eval", f"--workdir={folder}",
                    f"--split={scores['split']}",
                    *(f"--config.{k}={text(v)}" for k, v in changed.items()))


def again(config, scores: dict | None, environment: dict, folder) -> str:
    """The commands that make the run's own scores again; "" if they are not known.

    After the training, where its options of eval are not those of the scores, the scoring too.
    """
    trained = training(environment)
    if not scores or not _other_options(config, scores):
        return trained
    return "\n".join(filter(None, (trained, scoring(config, scores, folder))))


def _other_options(config, scores) -> dict:
    """Options of eval by which scores were made, and which are not those of the run's config."""
    if "labels_content" in scores:  # labels made elsewhere are not decoded
        return {}
    own = _as_written(config.eval.to_dict())
    return {k: v for k, v in (scores.get("eval_options") or {}).items()
            if k in own and k not in ("batch_size", "panels", "every") and own[k] != v}


def _as_written(values: dict) -> dict:
    """As JSON has them: tuples are lists."""
    return json.loads(json.dumps(values))


def use(folder) -> str:
    """The commands that label other images, and score other data that have labels."""
    workdir = f"--workdir={folder}"
    labels = _command("python -m cellseg_jax.predict", workdir, "--images=DIR", "--out=labels")
    scores = _command("python -m cellseg_jax.main", "--mode=eval", workdir, "--split=all",
                      "--config.data.name=folder", "--config.data.root=DIR")
    return f"{labels}\n{scores}"


def _command(program, *words) -> str:
    return " \\\n    ".join([program, *map(shlex.quote, words)])
