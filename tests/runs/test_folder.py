"""The layout of a run's folder is spelled in one place."""

import ast
import pathlib

import pytest
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.runs import elsewhere, folder

PACKAGE = pathlib.Path(folder.__file__).resolve().parent.parent
# A name, and the module that spells it.
NAMES = {name: "runs/folder.py" for name in (
    "tuning.json", "gradients.jsonl", "augmented.png", "analysis.html", "_images.csv",
    "_predictions", "test_images.csv", "test_predictions", "test.json")}
NAMES |= {name: "runs/names.py" for name in (
    "config.json", "environment.json", "result.json", "metrics.jsonl", "timing.jsonl")}
NAMES |= {"split.json": "data/split.py"}
FOLDERS = {"checkpoints", "tensorboard", "eval", "analysis"}


def text_of(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def files_in(tree):
    """Known file names among the string constants of a module that are no sentences."""
    texts = [text_of(node) for node in ast.walk(tree)]
    return {text.split("/")[-1] for text in texts if " " not in text} & NAMES.keys()


def folders_in(tree):
    """Known folder names in `path / "name"`."""
    divisions = (node for node in ast.walk(tree)
                 if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    return {text_of(node.right).split("/")[0] for node in divisions} & FOLDERS


def test_the_search_finds_what_it_looks_for():
    tree = ast.parse('w / "eval/test.json", f"{n}_images.csv", w / "checkpoints", "analysis"')
    assert files_in(tree) == {"test.json", "_images.csv"}
    assert folders_in(tree) == {"eval", "checkpoints"}
    assert not files_in(ast.parse('"no config.json there"'))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")),
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_names_in_a_run_folder_stand_in_one_module(path):
    where = str(path.relative_to(PACKAGE))
    tree = ast.parse(path.read_text())
    assert {name for name in files_in(tree) if NAMES[name] != where} == set()
    assert where == "runs/folder.py" or folders_in(tree) == set()


def test_the_runs_of_a_row_and_of_a_study_are_named_where_there_is_none(tmp_path):
    for run in ("a/0", "a/1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(InputError, match=f"--workdir: no run in {path} .*; pass one of the "
                                             f"runs that it holds: {tmp_path}/a/0, "):
            folder.read_config(path)
    with pytest.raises(InputError, match="config.train.weights: no run in .*train one with"):
        folder.read_config(tmp_path / "b", "config.train.weights")


def test_what_is_no_copy_of_the_run_is_named_by_its_own_flag(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(config_lib.to_json(tiny_config()))
    with pytest.raises(InputError, match=f"--out: {tmp_path} holds something else than a copy"):
        elsewhere.folder_of(tmp_path / "run", tmp_path)
    with pytest.raises(InputError, match="--workdir: got ','"):
        elsewhere.folders_of(",", "")


def test_layout_is_that_of_the_folders_made_before(tmp_path):
    names = [folder.CONFIG_FILE, folder.ENVIRONMENT_FILE, folder.RESULT_FILE, folder.SPLIT_FILE,
             folder.TUNING_FILE, *folder.LOGS, folder.CHECKPOINTS, folder.TENSORBOARD,
             folder.ANALYSIS, folder.ANALYSIS_PAGE, folder.AUGMENTED_PICTURE]
    assert names == ["config.json", "environment.json", "result.json", "split.json",
                     "tuning.json", "metrics.jsonl", "timing.jsonl", "gradients.jsonl",
                     "checkpoints", "tensorboard", "analysis", "analysis.html", "augmented.png"]
    files = [folder.scores_file(tmp_path), folder.scores_file(tmp_path, "val"),
             folder.images_file(tmp_path), folder.pictures_folder(tmp_path),
             folder.page_file(tmp_path), folder.page_file(tmp_path, "other")]
    assert [str(f.relative_to(tmp_path)) for f in files] == [
        "eval/test.json", "eval/val.json", "eval/test_images.csv", "eval/test_predictions",
        "report.html", "report_other.html"]
