"""The folder of one run: who may write, what it was started with, and its deterministic log."""

import json
import pathlib

from cellseg_jax import config as config_lib
from cellseg_jax import optim
from cellseg_jax.data import split
from cellseg_jax.data.records import some
from cellseg_jax.errors import InputError
from cellseg_jax.files import (
    append_line,
    interpreting,
    read_json,
    read_jsonl,
    remove_leftovers,
    strangers,
    write_atomic,
)
from cellseg_jax.runs.lock import Lock
from cellseg_jax.runs.names import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVAL,
    METRICS_LOG,
    RESULT_FILE,
    TIMING_LOG,
)
from cellseg_jax.runs.names import is_run as is_run
from cellseg_jax.runs.names import scores_file as scores_file
from cellseg_jax.runs.provenance import arithmetic, code_hash, environment

# Names in the folder, beside those of runs.names; no other module spells them.
TRAINING_CELLS = "training_cells"  # its key with how large cells and pixels of the training are
TRAINING_CONTRAST = "training_contrast"  # and what the least and largest contrast of images is
SPLIT_FILE = split.FILE  # names of the images of each part
TUNING_FILE = "tuning.json"  # decoding options that score best on the validation images
GRADIENTS_LOG = "gradients.jsonl"
LOGS = (METRICS_LOG, TIMING_LOG, GRADIENTS_LOG)
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
ANALYSIS = "analysis"
ANALYSIS_PAGE = "analysis.html"
AUGMENTED_PICTURE = "augmented.png"  # training samples before and after augmentation


def images_file(workdir, name: str = "test") -> pathlib.Path:
    """The scores of each image of a split."""
    return pathlib.Path(workdir) / EVAL / f"{name}_images.csv"


def counts_file(workdir, name: str = "test") -> pathlib.Path:
    """What the scores are made of, image by image; see inference.count_tables."""
    return pathlib.Path(workdir) / EVAL / f"{name}_counts.csv"


def objects_file(workdir, name: str = "test") -> pathlib.Path:
    """The predicted objects of a split, which COCO's AP is made of."""
    return pathlib.Path(workdir) / EVAL / f"{name}_objects.csv"


def pictures_folder(workdir, name: str = "test") -> pathlib.Path:
    """Pictures of some predictions on a split."""
    return pathlib.Path(workdir) / EVAL / f"{name}_predictions"


def page_file(workdir, name: str = "") -> pathlib.Path:
    """The page of a run or, with a name, of its scores on other data."""
    return pathlib.Path(workdir) / (f"report_{name}.html" if name else "report.html")


def no_checkpoint(workdir) -> str:
    """Why there is no checkpoint to read: the run is not trained yet, or they were deleted."""
    step = read_json(pathlib.Path(workdir) / RESULT_FILE, {}).get("step", 0)
    if not step:
        return f"no checkpoint in {workdir} yet; train first"
    return (f"{workdir} was trained to step {step} ({RESULT_FILE}), but there is no whole "
            f"checkpoint in {CHECKPOINTS}/; restore that folder, or train with another --workdir")


class RunFolder:
    """One run's folder, opened for writing; `close` gives it back.

    Opening compares config and data with what the folder was made with and refuses another run.
    With `writer=False` (the other processes of a multi-process run) nothing is written.
    """

    def __init__(self, path, config, fingerprint: str, *, writer: bool = True):
        self.path = pathlib.Path(path)
        self.writer = writer
        self.extended = ""  # what was made longer, in words
        self._config = config
        strangers.check(path)
        self._lock = Lock(path) if writer else None
        try:
            self._compare(config, fingerprint)
        except InputError:
            self.close()
            raise
        if writer:
            remove_leftovers([self.path, self.path / EVAL])
            if not self.extended:
                self._write_config()

    def _write_config(self) -> None:
        write_atomic(self.path / CONFIG_FILE, config_lib.to_json(self._config))

    def begin(self) -> None:
        """Before the first step: the run has not ended, and of an extended one this is the config.

        In this order: a run that is killed between is extended once more.
        """
        if self.writer:
            (self.path / RESULT_FILE).unlink(missing_ok=True)
            self._write_config()

    def _compare(self, config, fingerprint):
        if not (self.path / CONFIG_FILE).exists():
            ignored = (".lock", ".tmp")  # a kill may leave half of a first file
            others = [p.name for p in self.path.glob("*") if not p.name.endswith(ignored)]
            if others and self.writer:
                raise InputError(f"--workdir: {self.path} holds other files ({others[0]} ...) "
                                 "and no run; choose an empty or new folder")
            return
        if not (self.path / ENVIRONMENT_FILE).exists():
            return  # bad input ended it before its first step: it can be mended and started again
        self.extended = check_continues(self.path, config)
        check_same_data(self.path, fingerprint)

    def other_arithmetic(self) -> str:
        """What computes otherwise than where the run was begun, in words; "" if nothing does."""
        now = arithmetic()
        with interpreting(self.path / ENVIRONMENT_FILE):
            before = read_json(self.path / ENVIRONMENT_FILE, {}).get("arithmetic", {})
            changed = [f"{name} {before[name]} -> {now.get(name)}" for name in before
                       if before[name] != now.get(name)]
        return ("continues with other arithmetic, so that last bits may differ: "
                + "; ".join(changed)) if changed else ""

    def other_code(self) -> str:
        """That steps before were computed by other code, in words; "" if they were not."""
        with interpreting(self.path / ENVIRONMENT_FILE):
            before = read_json(self.path / ENVIRONMENT_FILE, {}).get("code", "")
        now = code_hash()
        return "" if before in ("", now) else (
            f"continues with other code ({before[:8]} -> {now[:8]}), so that results may differ "
            "from those of either")

    def write_environment(self, program: dict, fingerprint: str, images: dict) -> None:
        """Keep what made the run: command, packages, code, devices, program and data.

        Hashes of other code that computed steps before stay, as earlier_code.

        Args:
          images: what prediction compares its images with, by TRAINING_CELLS and so on.
        """
        if self.writer:
            record = environment() | {"program": program, "data_fingerprint": fingerprint, **images}
            with interpreting(self.path / ENVIRONMENT_FILE):
                before = read_json(self.path / ENVIRONMENT_FILE, {})
                earlier = [*before.get("earlier_code", []), before.get("code", record["code"])]
            earlier = [code for code in dict.fromkeys(earlier) if code != record["code"]]
            record |= {"earlier_code": earlier} if earlier else {}
            write_atomic(self.path / ENVIRONMENT_FILE, json.dumps(record, indent=1))

    def cut_logs(self, step: int) -> None:
        """Remove logged lines after `step`, whole or half written: they will be written again."""
        for name in LOGS if self.writer else ():
            path = self.path / name
            if path.exists():
                lines = [s for s in read_jsonl(path) if s["step"] <= step]
                write_atomic(path, "".join(json.dumps(s) + "\n" for s in lines))

    def log(self, name: str, line: dict) -> None:
        """Append one line to one of LOGS; all but TIMING_LOG hold deterministic values only."""
        if self.writer:
            self.check()
            # On the disk at once: a checkpoint of this step must not outlive its line.
            append_line(self.path / name, json.dumps(line))

    def check(self) -> None:
        """Before anything is written. Raises: InUse where another process took the folder over."""
        if self.writer:
            self._lock.check()

    def close(self) -> None:
        """Let others write."""
        if self.writer:
            self._lock.close()


def read_config(path, key: str = "--workdir"):
    """The config of a run; InputError if there is no run, or one whose folder has foreign links.

    Args:
      key: the flag or config key that names the folder.
    """
    file = pathlib.Path(path) / CONFIG_FILE
    strangers.check(path)
    if not is_run(path):
        below = _runs_below(file.parent)
        advice = (f"pass one of the runs that it holds: {some(below)}" if below else
                  "train one with python -m cellseg_jax.main --config=FILE")
        raise InputError(f"{key}: no run in {path} ({CONFIG_FILE} is missing); {advice}")
    with interpreting(file):
        return config_lib.from_json(json.dumps(read_json(file)))


def _runs_below(path) -> list[str]:
    """The folders of runs in that of a row, or in that of a study."""
    return [str(file.parent) for pattern in ("*", "*/*")
            for file in sorted(path.glob(f"{pattern}/{CONFIG_FILE}"))]


def changes(path, config) -> dict:
    """{key: (value of the run, value now)} of all that decides what a run computes."""
    return {k: v for k, v in config_lib.diff(read_config(path), config).items()
            if not k.startswith(config_lib.FREE_KEYS)}


def check_same_config(path, config) -> None:
    """InputError with the difference, if the run was made with another config."""
    _refuse(path, changes(path, config))


def _refuse(path, changed) -> None:
    if changed:
        shown = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in changed.items())
        raise InputError(f"--workdir: {path} holds a run of another config: {shown}; use the old "
                         "values or another --workdir")


def check_continues(path, config) -> str:
    """What is made longer, in words, "" if nothing; InputError if it is a run of another config."""
    changed = changes(path, config)
    length = "train.steps" if config.train.steps else "train.epochs"
    before, now = changed.get(length, (0, 0))
    if changed or not (pathlib.Path(path) / RESULT_FILE).exists():  # it goes on
        # When and how it is validated decides its best step, early stopping and the plateaus.
        changed |= {k: v for k, v in config_lib.diff(read_config(path), config).items()
                    if k in ("eval.every", "eval.threshold")}
    if set(changed) != {length} or not now > before > 0:
        _refuse(path, changed)
        return ""
    extended = f"extended: {length} {before} -> {now}"
    if config.optimizer.schedule in optim.OF_LENGTH:
        extended += f"; the {config.optimizer.schedule} schedule spans the new length"
    return extended


def names_of_parts(arrays, parts: dict) -> dict[str, list[str]]:
    """{part: names of its images}, of indices of samples; patches follow their image."""
    cells = arrays.grid**2
    return {part: list(dict.fromkeys(arrays.image_names[i // cells] for i in indices))
            for part, indices in parts.items()}


def check_same_split(path, arrays, parts: dict) -> None:
    """InputError if the run was trained on other parts of its data, as by another split file."""
    path = pathlib.Path(path)
    if not ((path / SPLIT_FILE).exists() and (path / ENVIRONMENT_FILE).exists()):
        return
    now = names_of_parts(arrays, parts)
    with interpreting(path / SPLIT_FILE):
        before = {part: list(read_json(path / SPLIT_FILE)[part]) for part in now}
    moved = [name for part in now for name in sorted(set(before[part]) ^ set(now[part]))]
    if moved:
        raise InputError(f"--workdir: {path} was trained on another split ({SPLIT_FILE}): "
                         f"{some(list(dict.fromkeys(moved)))} are in another part now; restore the "
                         "file that config.data.split names, or use another --workdir")


def check_same_data(path, fingerprint: str) -> None:
    """InputError if the run was trained on other data."""
    file = pathlib.Path(path) / ENVIRONMENT_FILE
    before = read_json(file).get("data_fingerprint") if file.exists() else fingerprint
    if before != fingerprint:
        raise InputError(f"--workdir: {path} was trained on other data (fingerprint "
                         f"{str(before)[:12]}, now {fingerprint[:12]}); use the old data or "
                         "another --workdir")
