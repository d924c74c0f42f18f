"""Progress of training on the terminal, and what is wrong with the data of a run."""

import collections
import shlex
import time

from cellseg_jax.report import terminal

WINDOW_S = 20.0  # over which images/s is averaged


class Progress:
    """Progress of runs that share a program; a context manager.

    Args:
      num_runs: that will train, now or when others have ended.
      batch_size: images per step and run.
    """

    def __init__(self, num_runs: int, batch_size: int):
        self.num_runs, self.batch_size = num_runs, batch_size
        self.names, self.num_steps, self.steps = {}, {}, {}  # of the runs that have begun
        self.images = 0
        self.images_per_second = 0.0
        self._window = collections.deque()  # (time, images)
        self._last_line = {}  # run -> time of its last plain line
        self._bar = None

    def __enter__(self):
        self._window.append((time.monotonic(), 0))
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def begin(self, run: int, name: str, num_steps: int, step: int) -> None:
        """Run `run` begins, or goes on, at `step`."""
        self.names[run], self.num_steps[run], self.steps[run] = name, num_steps, step
        if terminal.can_redraw() and self._bar is None:
            self._bar = terminal.bar()
            self._bar.start()
            title = name if self.num_runs == 1 else f"{self.num_runs} runs"
            self._task = self._bar.add_task(title, total=1, text="")

    def advance(self, moved: dict[int, tuple[int, float]]) -> None:
        """After a call: {run: (its step, its loss)}."""
        for run, (step, _) in moved.items():
            self.images += self.batch_size * (step - self.steps[run])
            self.steps[run] = step
        now, window = time.monotonic(), self._window
        window.append((now, self.images))
        while len(window) > 2 and now - window[0][0] > WINDOW_S:
            window.popleft()
        seconds = max(now - window[0][0], 1e-9)
        self.images_per_second = (self.images - window[0][1]) / seconds
        if self._bar:
            done, known = sum(self.steps.values()), sum(self.num_steps.values())
            total = round(known * self.num_runs / len(self.num_steps))  # those to come: as these
            left = (total - done) * self.batch_size / max(self.images_per_second, 1e-9)
            loss = sum(loss for _, loss in moved.values()) / len(moved)
            text = (f"{self.images_per_second:.4g} images/s  {terminal.clock(left)} left  "
                    f"loss {loss:.4f}")
            self._bar.update(self._task, completed=done, total=total, text=text)

    def logged(self, run: int, line: dict) -> None:
        """One line for a logged epoch of a run; on long runs without a terminal, for some."""
        now, step = time.monotonic(), line["step"]
        # Each of n runs prints n times less often, but always its first and last line.
        wait = terminal.INTERVAL_S * len(self.names)
        last = self._last_line.get(run, -float("inf"))
        if not self._bar and step < self.num_steps[run] and now - last < wait:
            return
        self._last_line[run] = now
        shown = [f"epoch {line['epoch']:g}", f"step {step}/{self.num_steps[run]}"]
        for key, name, form in (("lr", "lr", ".3g"), ("train_loss", "train loss", ".4f"),
                                ("val_loss", "val loss", ".4f"),
                                ("val_dice_mean", "val Dice", ".4f")):
            if line.get(key) is not None:
                shown.append(f"{name} {line[key]:{form}}")
        shown.append(f"{self.images_per_second:.4g} images/s")
        shown = ([self.names[run]] if self.num_runs > 1 else []) + shown
        console = self._bar.console if self._bar else terminal.console()
        console.print("  ".join(shown), soft_wrap=True)


def print_findings(found, workdir) -> None:
    """The warnings on the data of a run, a line each; notes are counted only."""
    for finding in found:
        if finding.level != "note":
            terminal.log(f"{finding.level}: {finding.where}: {finding.what}")
    notes = sum(finding.level == "note" for finding in found)
    if notes:
        command = f"python -m cellseg_jax.doctor --workdir={shlex.quote(str(workdir))}"
        terminal.log(f"{notes} note{'s' * (notes > 1)} on the data: {command} shows them")
