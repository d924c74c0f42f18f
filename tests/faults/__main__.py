"""Run the campaign and print its table as Markdown: python tests/faults [--all] [WORD ...]

--all runs every case, otherwise those of each run of the tests; WORDs choose rows by their text.
"""

import contextlib
import pathlib
import sys
import tempfile
import traceback

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # as pytest has it
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from faults.table import faults


def held(fault, number: int) -> bool | str:
    """Whether the case ends as expected; if not, its traceback is printed. Or why it cannot run."""
    with tempfile.TemporaryDirectory() as place:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # only the table is printed
                fault.case(pathlib.Path(place), number)
        except pytest.skip.Exception as reason:
            return str(reason)
        except Exception:
            print(f"{fault.fault}, case {number}:", file=sys.stderr)
            traceback.print_exc()
            return False
    return True


def main(words: list[str]) -> int:
    """The table; returns the number of rows with a case that did not hold."""
    chosen = [word for word in words if word != "--all"]
    bad = 0
    print("| fault | phase | expected | held |\n|---|---|---|---|")
    for fault in faults():
        count = fault.count if "--all" in words else fault.fast
        if count and all(word in " ".join(fault[:3]) for word in chosen):
            ends = [held(fault, number) for number in range(count)]
            bad += False in ends
            missing = sorted({end for end in ends if isinstance(end, str)})
            result = "; not run: ".join([f"{ends.count(True)} of {count}", *missing])
            print(f"| {fault.fault} | {fault.phase} | {fault.ending} | {result} |", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
