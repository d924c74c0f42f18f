"""Which tests a commit runs: all fast ones; with --slow also a fixed part of the slow ones and of
the weekly ones, so that SLOW_PARTS and PARTS commits in a row run every test.

The parts follow from the names of the tests alone: a new test moves no other into another part.
Slow tests are parted by file, since those of a file share what they train.
"""

import subprocess
import zlib

import pytest

PARTS = 24  # of the weekly tests
SLOW_PARTS = 12  # a divisor of PARTS: the number of a part names one of each
ALL = "--slow --part=all"
SEED = 16065  # of the hash that parts what is not in LONG or LONG_FILES

_ROW = "tests/faults/test_faults.py::test_other_cases_end_as_expected[{}]"
# Seconds of the longest weekly tests on two quiet cores, about. Where a test was not timed, they
# are six for each command that it begins, half a second for each case in its own process.
LONG = {
    "tests/analysis/test_filters.py::test_analysis_of_a_transformer_draws_attention": 50,
    "tests/analysis/test_gradients.py::test_coarse_logits_take_part_as_in_training": 65,
    "tests/data/datasets/test_dsb2018.py::test_records_match_index_of_the_real_archive": 60,
    "tests/faults/test_fuzz.py::test_any_value_in_a_run_folder_is_taken_or_refused": 150,
    "tests/faults/test_fuzz.py::test_any_value_of_any_config_key_is_taken_or_refused": 60,
    "tests/faults/test_fuzz.py::test_any_coco_document_is_taken_or_refused": 60,
    "tests/faults/test_soak.py::test_a_study_holds_under_a_minute_of_faults": 180,
    "tests/inference/test_predictor.py::"
    "test_what_looks_at_the_whole_image_has_no_halo_that_suffices[model0]": 80,
    "tests/parity/test_metrics.py::test_surface_metrics_match_monai[10000]": 165,
    "tests/planning/test_plan.py::test_validation_that_does_not_fit_is_told_from_training[device]":
        80,
    "tests/planning/test_plan.py::test_validation_that_does_not_fit_is_told_from_training[host]":
        60,
    "tests/studies/test_out_of_fold.py::test_a_study_of_folds": 80,
    "tests/studies/test_search.py::test_killed_at_random_moments_it_has_the_same_books_and_winner":
        150,
    "tests/studies/test_smoke.py::test_every_row_of_every_study_runs_on_twins[livecell]": 160,
    "tests/studies/test_smoke.py::test_every_row_of_every_study_runs_on_twins[nuclei]": 400,
    "tests/studies/test_work_queue.py::test_killed_workers_share_a_study[2-rows0-2-1]": 70,
    "tests/studies/test_work_queue.py::test_killed_workers_share_a_study[8-rows1-8-12]": 150,
    "tests/targets/test_distance.py::test_300_images_of_separated_cells_come_back": 75,
    "tests/targets/test_distance.py::test_an_image_of_3000_pixels_is_equal_to_its_parts": 45,
    "tests/test_analyze.py::test_every_analysis_leaves_tables_pictures_and_its_section": 120,
    "tests/test_benchmarks.py::test_benchmark_prints_its_numbers[on_gpu]": 600,
    "tests/test_benchmarks.py::test_benchmark_prints_its_numbers[partly_annotated]": 390,
    "tests/test_channels.py::test_a_network_of_stains_predicts_in_bands_what_it_does_at_once": 45,
    "tests/test_doctor.py::test_a_thousand_pairs_take_seconds": 60,
    "tests/test_launch.py::test_slurm_array_of_a_real_study_survives": 100,
    "tests/test_main.py::test_the_default_run_decodes_and_orders_its_images_by_grain": 120,
    "tests/test_study.py::test_stopped_and_killed_a_study_ends_with_the_same_table": 170,
    "tests/train/test_devices.py::test_losses_are_equal_on_any_number_of_devices_in_float64": 420,
    "tests/train/test_from_arrays.py::test_the_notebook_of_the_docs_runs": 85,
    "tests/train/test_slots.py::"
    "test_a_kill_between_the_saves_of_two_runs_resumes_both_bit_for_bit": 60,
    **{f"tests/train/test_processes.py::{name}[{residence}]": 50
       for name in ("test_two_processes_equal_one_and_one_goes_on",
                    "test_two_members_on_two_processes_equal_each_alone")
       for residence in ("device", "host")},
    "tests/train/test_memory.py::test_data_ten_times_larger_than_memory_trains": 100,
    "tests/train/test_train.py::test_killed_at_ten_random_moments_it_ends_bit_for_bit_the_same":
        120,
    **{_ROW.format(row): seconds for row, seconds in {
        "a PNG of 20,000 x 20,000 pixels, training, predict": 900,
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
LONG_FILES = {f"tests/{name}.py": seconds for name, seconds in {
    "analysis/test_pruning": 65,
    "inference/test_evaluate": 70,
    "inference/test_predictor": 50,
    "models/test_layers": 30,
    "models/test_models": 135,
    "models/test_segformer": 45,
    "models/test_segnet": 42,
    "parity/test_models": 100,
    "step/test_mesh": 30,
    "step/test_step": 226,
    "targets/test_distance": 36,
    "test_augment": 88,
    "test_compiler": 80,
    "test_export": 41,
    "test_main": 42,
    "test_predict": 48,
    "test_study": 113,
    "test_targets": 60,
    "train/test_devices": 130,
    "train/test_from_arrays": 60,
    "train/test_initial_weights": 77,
    "train/test_slots": 240,
    "train/test_train": 87}.items()}


def _shared_out(costs: dict[str, int], count: int) -> dict[str, int]:
    """{name: its part}: the longest first, each into the part that has least to do so far."""
    loads, parts = [0] * count, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        parts[name] = loads.index(min(loads))
        loads[parts[name]] += costs[name]
    return parts


_PART_OF_LONG, _PART_OF_FILE = _shared_out(LONG, PARTS), _shared_out(LONG_FILES, SLOW_PARTS)


def slow_but(fast, cases) -> list:
    """Cases of a parametrised test, marked slow but for those of `fast`.

    Args:
      cases: single values, tuples of values, or {id: value}.
    """
    named = cases.items() if isinstance(cases, dict) else [(None, case) for case in cases]
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), id=name,
                         marks=[] if (name or case) in fast else pytest.mark.slow)
            for name, case in named]


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
