"""A short form of the soak; faults/soak.py runs longer ones."""

import pytest
from faults import soak


@pytest.mark.weekly
def test_a_study_holds_under_a_minute_of_faults(tmp_path, capsys):
    code = soak.main(["--minutes=1", "--workers=4", f"--folder={tmp_path / 'soak'}"])
    assert code == 0, capsys.readouterr().out
