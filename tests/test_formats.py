"""The table of formats names tests that there are."""

import re

from helpers import ROOT


def test_every_test_in_the_table_of_formats_exists():
    text = (ROOT / "docs/formats.md").read_text()
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {name for path in files
             for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    named = re.findall(r"`(?:tests/[\w/]*)?(test_\w+)(\.py)?`", text)
    stems = {path.stem for path in files}
    missing = [name for name, is_file in named if name not in (stems if is_file else known | stems)]
    assert len(named) > 40 and not [name for name in missing if not any(
        stem.startswith(name) for stem in stems)]
