"""Which tests a commit runs: all fast ones; with --slow also a fixed part of the slow ones and of
the weekly ones, so that SLOW_PARTS and PARTS commits in a row run every test.

The parts follow from the names of the tests alone: a new test moves no other into another part.
Slow tests are parted by file, since those of a file share what they train.
"""

import subprocess
import zlib

PARTS = 12  # of the weekly tests
SLOW_PARTS = 3  # a divisor of PARTS: the number of a part names one of each
ALL = "--slow --part=all"
SEED = 14330  # of the hash that parts what is not in LONG or LONG_FILES

_ROW = "tests/faults/test_faults.py::test_other_cases_end_as_expected[{}]"
# Seconds of the longest weekly tests on two quiet cores. Where a test was not timed, they are six
# for each command that it begins, half a second for each case in its own process.
LONG = {
    "tests/faults/test_fuzz.py::test_any_value_in_a_run_folder_is_taken_or_refused": 150,
    "tests/faults/test_fuzz.py::test_any_value_of_any_config_key_is_taken_or_refused": 60,
    "tests/faults/test_fuzz.py::test_any_coco_document_is_taken_or_refused": 60,
    "tests/faults/test_soak.py::test_a_study_holds_under_a_minute_of_faults": 180,
    "tests/studies/test_search.py::test_killed_at_random_moments_it_has_the_same_books_and_winner":
        150,
    "tests/studies/test_work_queue.py::test_killed_workers_share_a_study[8-rows1-8-12]": 150,
    "tests/test_launch.py::test_slurm_array_of_a_real_study_survives": 100,
    "tests/train/test_memory.py::test_data_ten_times_larger_than_memory_trains": 100,
    "tests/train/test_train.py::test_killed_at_ten_random_moments_it_ends_bit_for_bit_the_same":
        120,
    **{_ROW.format(row): seconds for row, seconds in {
        "a PNG of 20,000 x 20,000 pixels, training, predict": 240,
        "300 saves with 256 descriptors, training": 60,
        "60 runs of a study, training": 40,
        "60 predictions, each opening the run, predict": 30,
        "30 evaluations, eval": 60,
        "30 exports, export": 60,
        "SIGTERM at three drawn moments, train and score": 120,
        "SIGTERM at three drawn moments, predict": 90,
        "SIGTERM at three drawn moments, study": 120,
        "a full disk, or one without inodes, training": 280,
        "a full disk, predict": 50,
        "a full disk, cache building": 30,
        "a quota that is used up, training, cache building, predict": 50,
        "a read-only run, eval, analyze, export, predict": 60,
        "another content of a file of a run, eval, predict, analyze, page, train": 200,
        "another value in a JSON file of a run, eval, predict, page, train": 120,
        "a link out of a run's folder, eval, predict, analyze, page, train": 40,
        "a file of weights that is damaged or holds code, train.weights": 60}.items()},
}


# Seconds of the slow tests of the files that take longest, as above.
LONG_FILES = {
}


def _shared_out(costs: dict[str, int], count: int) -> dict[str, int]:
    """{name: its part}: the longest first, each into the part that has least to do so far."""
    loads, parts = [0] * count, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        parts[name] = loads.index(min(loads))
        loads[parts[name]] += costs[name]
    return parts


_PART_OF_LONG, _PART_OF_FILE = _shared_out(LONG, PARTS), _shared_out(LONG_FILES, SLOW_PARTS)


def part_of(test_id: str) -> int:
    """The part, 0 to PARTS - 1, that a weekly test belongs to."""
    return _PART_OF_LONG.get(test_id, _hash(test_id) % PARTS)


def slow_part_of(test_id: str) -> int:
    """The part, 0 to SLOW_PARTS - 1, that a slow test belongs to."""
    file = test_id.partition("::")[0]
    return _PART_OF_FILE.get(file, _hash(file) % SLOW_PARTS)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode(), SEED)


def part_of_commit(folder) -> int | None:
    """The number of commits up to HEAD modulo PARTS; None if `folder` has no whole git history."""
    git = lambda *words: subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True)
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        return None
    count = git("rev-list", "--count", "HEAD")
    return None if count.returncode else int(count.stdout) % PARTS


def chosen_part(part: str, folder) -> int | None:
    """The part to run; None means all.

    Args:
      part: "commit" (without git history: all), "all", or the number of a part.
      folder: a checkout.
    """
    if part == "commit":
        return part_of_commit(folder)
    return None if part == "all" else int(part)


def reason_to_skip(marks, test_id: str, *, slow: bool, part: int | None) -> str:
    """Why a test with these marks does not run now; "" if it does."""
    if not slow and {"slow", "weekly"} & set(marks):
        return "slow; run with --slow"
    if "whole" in marks and part is not None:
        return f"only with {ALL}"
    if "weekly" in marks:
        own, count = part_of(test_id), PARTS
    elif "slow" in marks:
        own, count = slow_part_of(test_id), SLOW_PARTS
    else:
        return ""
    return "" if part is None or part % count == own else f"part {own} of {count}; run with {ALL}"
