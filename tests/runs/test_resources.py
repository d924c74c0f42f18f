"""The table of what a run used holds what a run writes."""

from helpers import tiny_config

from cellseg_jax.files import read_json
from cellseg_jax.runs.folder import RESULT_FILE, RunFolder
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.train.result import Result, write_result


def test_resources_are_in_the_result_of_a_run(tmp_path):
    folder = RunFolder(tmp_path / "run", tiny_config(), "data")
    timing = [{"seconds": 30.0, "cpu_seconds": 60.0, "members": 2, "peak_memory_gib": 1.5}] * 4
    write_result(folder, Result(str(folder.path), "done", 4, {}), 4, timing)
    folder.close()
    result = read_json(folder.path / RESULT_FILE)
    shown = {one.title: result[name] / one.divisor for name, one in RESOURCES.items()
             if name in result}
    assert shown == {"minutes": 1.0, "CPU minutes": 2.0, "GiB": 1.5}
