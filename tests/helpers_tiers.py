"""Which tests a commit runs: all fast ones; with --slow also the slow ones and a fixed part of
the weekly ones, so that PARTS commits in a row run every test.
"""

import subprocess
import zlib

PARTS = 8
SEED = 14223  # of the hash: with it the parts of today's tests take about as long


def part_of(test_id: str) -> int:
    """The part, 0 to PARTS - 1, that a weekly test belongs to: a function of its id alone."""
    return zlib.crc32(test_id.encode(), SEED) % PARTS


def part_of_commit(folder) -> int | None:
    """The number of commits up to HEAD modulo PARTS; None if `folder` has no whole git history."""
    git = lambda *words: subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True)
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        return None
    count = git("rev-list", "--count", "HEAD")
    return None if count.returncode else int(count.stdout) % PARTS


def chosen_part(weekly: str, folder) -> int | None:
    """The part to run; None means all.

    Args:
      weekly: "commit" (without git history: all), "all", or the number of a part.
      folder: a checkout.
    """
    if weekly == "commit":
        return part_of_commit(folder)
    return None if weekly == "all" else int(weekly)


def reason_to_skip(marks, test_id: str, *, slow: bool, part: int | None) -> str:
    """Why a test with these marks does not run now; "" if it does."""
    if not slow and {"slow", "weekly"} & set(marks):
        return "slow; run with --slow"
    if "weekly" in marks and part not in (None, part_of(test_id)):
        return f"weekly, part {part_of(test_id)}; run with --slow --weekly=all"
    return ""
