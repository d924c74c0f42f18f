"""What would fit: the largest batch, and changes of a config that does not fit as it is."""

import dataclasses
import time
from collections.abc import Callable

from ml_collections import ConfigDict

from cellseg_jax.config import derived
from cellseg_jax.planning import shapes
from cellseg_jax.planning.target import Target

MICRO_BATCHES = (2, 4, 8, 16, 32, 64)  # that are tried of optimizer.accumulate


@dataclasses.dataclass(frozen=True)
class Search:
    """A run whose changes are compiled until one fits or time is up."""

    config: ConfigDict
    images: shapes.Images
    resident: bool  # the dataset lies on the devices
    target: Target
    limit: float  # bytes per device
    deadline: float  # time.monotonic() after which nothing more is compiled

    def needs(self, changes: dict, **parts) -> int:
        """Bytes per device after changes of config keys; parts: see Target.compiled."""
        return self.target.needs_of(self.config, self.images, self.resident, changes, **parts)

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


def largest_batch(needs: Callable[[int], float], limit: float, *, unit: int, at: int, most: int,
                  deadline: float) -> int | None:
    """The largest multiple of `unit` whose programs fit, as far as compiling a few sizes shows.

    Two sizes give a line of bytes by images; the size that it predicts is compiled, and reduced
    by a tenth until it fits.

    Args:
      needs: batch size -> bytes per device.
      at: the first size that is tried.
      most: images that there are.
      deadline: time.monotonic() after which nothing is compiled.
    Returns: a size whose program was compiled and fits; 0 if none does, None if time ran out.
    """
    known = {}

    def fits(size):
        known[size] = known.get(size) or needs(size)
        return known[size] <= limit

    most = max(most // unit * unit, unit)
    size = min(max(at // unit * unit, unit), most)
    while not fits(size) and size > unit:  # a size that compiles at all
        if time.monotonic() > deadline:
            return None
        size = max(size // 2 // unit * unit, unit)
    if not fits(size):
        return 0
    best, second = size, min(2 * size, most)
    if second == size or time.monotonic() > deadline:
        return best
    if fits(second):
        best = second
    slope = (known[second] - known[size]) / (second - size)
    guess = most if slope <= 0 else size + int((limit - known[size]) / slope)
    while time.monotonic() < deadline:
        guess = min(guess // unit * unit, most)
        if guess <= best or fits(guess):
            return max(best, guess)
        guess = min(int(0.9 * guess), guess - unit)
    return best


def largest_eval_batch(search: Search, num_devices: int) -> int | None:
    """The largest eval.batch_size below that of the config whose validation fits."""
    size = search.config.eval.batch_size
    return largest_batch(
        lambda n: search.needs({"eval.batch_size": n}, training=False),
        search.limit, unit=num_devices, at=size // 2, most=size, deadline=search.deadline)


def largest_training_batch(search: Search, training: int, validation: int) -> int | None:
    """The largest train.batch_size that fits on all devices beside the config's validation.

    Args:
      training: bytes per device that the config needs while it trains.
      validation: likewise, while it validates.
    """
    config, images, resident, target = search.config, search.images, search.resident, search.target
    at = config.train.batch_size
    # While a run validates, the next batch of a stream is in memory.
    mesh, num_devices = target.mesh(config), len(target.devices)
    used = mesh.shape["data"]
    batch = 0 if resident else shapes.batch_bytes(config, images, mesh)
    larger = lambda n: batch * (n * used - at * num_devices) // (at * num_devices)
    return largest_batch(
        lambda n: max(validation and validation + larger(n), training if n == at
                      else search.needs({"train.batch_size": n}, validation=False)),
        search.limit, unit=num_devices * config.optimizer.accumulate, at=at,
        most=derived.training_samples(config, images.count), deadline=search.deadline)


def alternatives(search: Search, original: ConfigDict, training_fits: bool) -> list[dict]:
    """Other choices, each compiled: [{"change", "changes", "topology", "needs", "fits"}].

    Args:
      search: its config is `original`, with a smaller eval.batch_size where validation needs one
        and one fits.
    """
    target, found = search.target, []
    batch_size = original.train.batch_size
    rows = batch_size // target.mesh(original).shape["data"]  # on each device
    smaller = ({} if search.config.eval.batch_size == original.eval.batch_size
               else {"eval.batch_size": search.config.eval.batch_size})

    def try_change(changes, topology=target.topology) -> bool:
        other = topology != target.topology
        there = Target(topology, target.given_limit) if other else target
        needs = dataclasses.replace(search, target=there).needs(changes)
        words = [f"config.{k}={v}" for k, v in (smaller | changes).items()]
        words += [f"--topology={topology}"] if other else []
        found.append({"change": " and ".join(words), "changes": smaller | changes,
                      "topology": topology, "needs": needs, "fits": needs <= search.limit})
        return found[-1]["fits"]

    if smaller and training_fits:
        try_change({})
        return found
    changes = [] if original.train.remat else [{"train.remat": True}]
    if original.train.precision == "float32":
        changes.append({"train.precision": "bfloat16"})
    for change in changes:
        if not search.out_of_time:
            try_change(change)
    for n in MICRO_BATCHES:
        if (n > original.optimizer.accumulate and rows % n == 0
                and not search.out_of_time and try_change({"optimizer.accumulate": n})):
            break
    for larger in target.larger(batch_size):
        if search.out_of_time or try_change({}, larger):
            break
    return found
