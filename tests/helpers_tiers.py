"""Which tests a commit runs: all fast ones; with --slow also the slow ones and a fixed quarter of
the weekly ones, so that four commits in a row run every test.
"""

import subprocess
import zlib

QUARTERS = 4
SEED = 495  # of the hash: with it the four quarters of today's tests take about as long


def quarter_of(test_id: str) -> int:
    """The quarter, 0 to 3, that a weekly test belongs to: a function of its id alone."""
    return zlib.crc32(test_id.encode(), SEED) % QUARTERS


def quarter_of_commit(folder) -> int | None:
    """The number of commits up to HEAD modulo 4; None where `folder` has no whole git history."""
    git = lambda *words: subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True)
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        return None
    count = git("rev-list", "--count", "HEAD")
    return None if count.returncode else int(count.stdout) % QUARTERS


def chosen_quarter(weekly: str, folder) -> int | None:
    """The quarter to run; None means all four.

    Args:
      weekly: "commit" (without git history: all), "all", or the number of a quarter.
      folder: a checkout.
    """
    if weekly == "commit":
        return quarter_of_commit(folder)
    return None if weekly == "all" else int(weekly)


def reason_to_skip(marks, test_id: str, *, slow: bool, quarter: int | None) -> str:
    """Why a test with these marks does not run now; "" if it does."""
    if not slow and {"slow", "weekly"} & set(marks):
        return "slow; run with --slow"
    if "weekly" in marks and quarter not in (None, quarter_of(test_id)):
        return f"weekly, quarter {quarter_of(test_id)}; run with --slow --weekly=all"
    return ""
