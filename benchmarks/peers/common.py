"""What the scripts of all peers share: arguments, the budget of CPU time, files in and out.

Only the standard library is imported before `arguments` has set the number of threads, since
numpy, torch and TensorFlow read it once, as they are imported.
"""

import argparse
import json
import os
import pathlib
import time

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
           "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
CROP = 256  # height and width of training crops, pixels
PARTS = ("val", "test")  # that are predicted


class TimeUp(Exception):
    """The budget of a training is used up."""


class Clock:
    """CPU seconds of this process, all threads together, since the clock was made."""

    def __init__(self, minutes):
        self.budget = 60 * minutes
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def used(self):
        """CPU seconds so far."""
        return time.process_time() - self.cpu

    def left(self):
        """CPU seconds of the budget that remain."""
        return self.budget - self.used()

    def result(self):
        """{"cpu_seconds", "seconds"} until now."""
        return {"cpu_seconds": round(self.used(), 1),
                "seconds": round(time.perf_counter() - self.wall, 1)}


class Steps:
    """Counts the training steps of a torch network and ends its training in time.

    `cpu` has the CPU time at the beginning of each step.
    """

    def __init__(self, clock):
        self.clock, self.cpu = clock, []

    def watch(self, network):
        """Count the steps of this network from now on; TimeUp where no time is left."""
        network.register_forward_pre_hook(self._before)

    def _before(self, network, _):
        if network.training:
            if self.clock.left() <= 0:
                raise TimeUp
            self.cpu.append(self.clock.used())

    def seconds(self):
        """Median CPU seconds of a step."""
        return median_gap(self.cpu)


def median_gap(times):
    """The median difference of neighbours; one of the middle two where there are two."""
    gaps = sorted(after - before for before, after in zip(times, times[1:], strict=False))
    return gaps[len(gaps) // 2]


def schedule(left, step, validation, most_epochs):
    """(epochs, steps per epoch) that fill the time.

    Args:
      left: CPU seconds for all epochs.
      step, validation: CPU seconds of a step, and of the validation after each epoch.
      most_epochs: the wish; fewer where an epoch would have fewer than 10 steps, or its steps take
        less than 5 times as long as its validation.
    """
    epochs = left / (validation + max(10 * step, 5 * validation))
    epochs = max(int(min(most_epochs, epochs)), 1)
    return epochs, max(int((left / epochs - validation) / step), 1)


def arguments(description, extra=None):
    """The parsed arguments. `extra` may add some to the parser."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of export_split")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=30, help="CPU minutes of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    if extra:
        extra(parser)
    args = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, str(args.threads)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def paths(folder, part, kind):
    """The files of "images" or "labels" of a part, sorted by name."""
    return sorted((folder / part / kind).rglob("*.tif"))


def read(folder, part):
    """(images, labels) of a part: lists of (H, W) or (H, W, 3) and of (H, W) int32 arrays."""
    import tifffile

    images = [tifffile.imread(path) for path in paths(folder, part, "images")]
    labels = [tifffile.imread(path).astype("int32") for path in paths(folder, part, "labels")]
    return images, labels


def predict(args, segment):
    """Write segment(image) of all images of PARTS to OUT/PART/NAME.tif, 16 bit; CPU seconds."""
    import tifffile

    start = time.process_time()
    for part in PARTS:
        root = args.data / part / "images"
        for path in paths(args.data, part, "images"):
            target = args.out / part / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(target, segment(tifffile.imread(path)).astype("uint16"))
    return round(time.process_time() - start, 1)


def finish(args, **result):
    """Write OUT/result.json and print it as the last line."""
    options = {key: value for key, value in vars(args).items() if key not in ("data", "out")}
    text = json.dumps({**options, "crop": CROP, **result, "load": os.getloadavg()})
    (args.out / "result.json").write_text(text + "\n")
    print(text, flush=True)
