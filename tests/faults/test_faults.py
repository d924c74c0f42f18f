"""Every row of the table of faults: a few cases in each run of the tests, all in the weekly tier.
"""

import pytest
from faults.table import faults

ROWS = {f"{row.fault}, {row.phase}": row for row in faults()}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.fast])
def test_first_cases_end_as_expected(name, tmp_path):
    run(name, range(ROWS[name].fast), tmp_path)


@pytest.mark.weekly
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.whole] * row.whole)
    for name, row in ROWS.items() if row.count > row.fast])
def test_other_cases_end_as_expected(name, tmp_path):
    run(name, range(ROWS[name].fast, ROWS[name].count), tmp_path)


def run(name, numbers, tmp_path):
    for number in numbers:
        place = tmp_path / str(number)
        place.mkdir()
        ROWS[name].case(place, number)
