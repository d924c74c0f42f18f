
from cellseg_jax.data import records


def test_bad_files_tell_all_in_one_line():
    one = records.Finding("error", "d/a.png", "is empty; remove it")
    assert str(records.BadFiles([one])) == "d/a.png: is empty; remove it"
    both = records.BadFiles([one, one._replace(where="d/b.png")])
    assert str(both) == "d/a.png: is empty; remove it; and 1 more: b.png"
    assert len(both.findings) == 2
