"""Training, top to bottom: from a list of configs to checkpoints and logs.

One config is the ordinary case. Configs that differ only in values (config.VALUE_KEYS) train
together in one compiled program, each with its own step, epoch length and run folder.
"""

import collections
import contextlib
import json
import math
import signal
import threading
import time
import types
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cellseg_jax import checkpoint, data, derived, evaluate, feed, optim, recipe, step, weights
from cellseg_jax import config as config_lib
from cellseg_jax.data import checks, duplicates, order
from cellseg_jax.errors import InputError
from cellseg_jax.feed import fetch, put
from cellseg_jax.report import panels, samples, tensorboard, terminal
from cellseg_jax.rundir import RunDir, write_atomic

SAMPLES = "augmented.png"  # in a run's folder: training samples as decoded and as trained on
JUDGED = ("best", "waited", "stop", "previous_loss", "plateau")  # what validations decide
STATUS = {step.RUNNING: "done", step.STOPPED_EARLY: "stopped early",
          step.NON_FINITE: "non-finite"}


# For a program that runs once: the initial parameters' random draws compile in a seventh of the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


class Result(NamedTuple):
    """How one run ended: status is one of STATUS, or "interrupted" by SIGTERM after saving."""

    workdir: str
    status: str
    step: int
    metrics: dict  # of the last logged step


def train(configs: Sequence[ConfigDict], workdirs: Sequence[str], *, mesh=None,
          members: str | None = None) -> list[Result]:
    """Train every config into its workdir, or continue there; SIGTERM and Ctrl-C save and stop.

    Args:
      mesh: jax.sharding.Mesh with axes ("member", "data"); default: all devices.
      members: how a device runs several members (step.map_train); default: by platform.
    Returns: a Result per config, in order.
    Raises: InputError before any step is done.
    """
    configs = [config_lib.complete(c) for c in configs]
    if len(configs) != len(workdirs) or len(set(map(str, workdirs))) != len(workdirs):
        raise ValueError(f"{len(configs)} configs need as many distinct workdirs: {workdirs}")
    groups, results = collections.defaultdict(list), {}
    for i, config in enumerate(configs):
        if derived.is_classical(config):
            results[i] = begin_classical(config, workdirs[i])
        else:
            groups[program_key(config)].append(i)
    with _interrupt() as interrupted:
        for chosen in groups.values():
            trained = train_group([configs[i] for i in chosen], [workdirs[i] for i in chosen],
                                  interrupted, mesh, members)
            results.update(zip(chosen, trained, strict=True))
            if any(r.status == "interrupted" for r in trained):
                break
    not_begun = [Result(str(w), "interrupted", 0, {}) for w in workdirs]
    return [results.get(i, not_begun[i]) for i in range(len(configs))]


def begin_classical(config, workdir) -> Result:
    """The folder of a run that has nothing to train, ready to be scored."""
    recipe.check_model(config)
    with terminal.reading() as progress:
        arrays = data.load(config.data, progress)
    writer = jax.process_index() == 0
    folder = RunDir(workdir, config, arrays.fingerprint, writer=writer)
    with contextlib.closing(folder):
        folder.write_environment({"method": config.model.name}, arrays.fingerprint)
        if writer:
            _write_split(folder, arrays, data.split_of(config.data, arrays))
    terminal.note(f"{workdir}: {config.model.name} learns nothing, so there is nothing to train")
    return Result(str(folder.path), "done", 0, {})


def program_key(config) -> str:
    """What configs must share to train in one program: everything but values."""
    shared = {k: v for k, v in config_lib.flatten(config).items()
              if k not in config_lib.VALUE_KEYS}
    # Averaged weights are a part of the state, which must not depend on who else trains along.
    shared["optimizer.ema"] = config.optimizer.ema > 0
    return repr(sorted(shared.items()))


def train_group(configs, workdirs, interrupted, mesh=None, members=None) -> list[Result]:
    """Train configs of one program_key together; see `train`."""
    first = configs[0]
    mesh = mesh or feed.default_mesh(len(configs), first.train.batch_size)
    members = members or ("unroll" if jax.default_backend() == "cpu" else "vmap")
    feed.check_mesh(first, mesh, len(configs))
    rows = first.train.batch_size // mesh.shape["data"]
    if rows % first.optimizer.accumulate:
        raise InputError(f"config.optimizer.accumulate: got {first.optimizer.accumulate}; expected "
                         f"a divisor of the {rows} images that each device gets per step")
    recipe.check_model(first)  # members share all that builds a network
    shared = recipe.make_recipe(configs)
    with terminal.reading() as progress:
        arrays = data.load(first.data, progress)

    findings = checks.of_samples(
        arrays, num_classes=first.data.num_classes if first.data.target == "classes" else None)
    checks.raise_errors(findings)

    with contextlib.ExitStack() as stack:
        group = []
        for config, workdir in zip(configs, workdirs, strict=True):
            group.append(Member(config, workdir, arrays))
            stack.callback(group[-1].close)

        # --- state: restored or fresh, one member at a time, then stacked -------------------------
        everywhere, by_member = NamedSharding(mesh, P()), NamedSharding(mesh, P("member"))
        image_shape = arrays.image.shape[1:]
        init = jax.jit(lambda v: step.init_state(shared, v, image_shape), out_shardings=everywhere,
                       compiler_options=QUICK_COMPILE if jax.default_backend() == "cpu" else None)
        states = []
        for member in group:
            values = recipe.traced_values(member.config, member.steps_per_epoch, shared)
            values = {k: put(v, everywhere) for k, v in values.items()}
            state = member.restore(checkpoint.abstract(jax.eval_shape(init, values), everywhere))
            if state is None:
                states.append(_with_weights(init(values), member.config, everywhere))
            else:
                states.append(state.replace(values=values, **{
                    k: put(np.asarray(getattr(member, k), getattr(state, k).dtype), everywhere)
                    for k in ("waited", "stop")}))
            member.plateau = {k: fetch(v)[()] for k, v in states[-1].plateau.items()}
        stack_states = jax.jit(lambda *s: jax.tree.map(lambda *x: jnp.stack(x), *s),
                               out_shardings=by_member)
        state = stack_states(*states)
        del states
        if not any(m.running for m in group):
            return [m.result() for m in group]
        select = jax.jit(lambda s, k: jax.tree.map(lambda x: x[k], s), out_shardings=everywhere)

        # --- compile, and say what will happen ----------------------------------------------------
        resident = feed.resident_source(first, arrays, mesh)
        batches = feed.Batches(group, resident, mesh)
        eval_step = step.map_eval(shared, mesh, first.eval.threshold)
        arguments = batches.next()
        compiled = step.map_train(shared, mesh, members).lower(state, *arguments).compile()
        program = {"members": len(group), "mesh": dict(mesh.shape), "how": members,
                   "residence": "host" if resident is None else "device"}
        augmented = samples.augmented_program(shared)
        if jax.process_index() == 0 and any(m.step == 0 for m in group):
            terminal.findings([*arrays.findings, *findings, *_of_splits(group, arrays)])
        for member in group:
            member.start(program, augmented)
        if jax.process_index() == 0:
            terminal.summary(describe(group, compiled, state, program))

        # --- the loop: every member to its next event ---------------------------------------------
        saved_at = logged_at = time.monotonic()
        steps_since_log = 0
        pending = collections.deque()  # (steps, outputs) that may still be computing
        with terminal.Training([m.folder.path.name for m in group], [m.num_steps for m in group],
                               [m.step for m in group], first.train.batch_size) as progress:

            def settle(depth):
                """Wait until at most `depth` steps are under way; note who became non-finite."""
                while len(pending) > depth:
                    steps, out = pending.popleft()
                    out = {k: fetch(v) for k, v in out.items()}
                    for k, member in enumerate(group):
                        if out["stop"][k] == step.NON_FINITE and member.stop == step.RUNNING:
                            member.fail(steps[k] - 1, float(out["lr"][k]))
                        elif member.step >= steps[k]:
                            member.lr = float(out["lr"][k])
                    progress.advance(steps, out["loss"].tolist())

            while any(m.running for m in group):
                state, out = compiled(state, *arguments)
                stepped = [m for m in group if m.running]
                for member in stepped:
                    member.step += 1
                pending.append(([m.step for m in group], out))
                steps_since_log += 1
                arguments = batches.next()  # the host prepares while the device computes
                events = [m for m in stepped if m.at_event()]
                # Two steps run ahead of the host, so that the device does not wait for it.
                settle(0 if events else 2)
                stopping = interrupted(group)
                timed = _timed_save_due(first, saved_at, bool(events))
                if not (events or stopping or timed or any(m.failed_now for m in group)):
                    continue
                settle(0)

                # Evaluate first, then save once: a timed save and a new best are one checkpoint.
                scored = {}
                for k, member in enumerate(group):
                    if member not in events or member.failed_now:
                        continue
                    line = {"train_loss": float(fetch(state.loss_sum)[k]) / member.steps_in_epoch()}
                    if member.validation_due():
                        one = select(state, k)
                        variables = {"params": getattr(one, one.weights),
                                     "batch_stats": one.batch_stats}
                        scores = evaluate.validate(
                            eval_step, one.values, variables, feed.eval_batches(
                                member.config, arrays, member.parts["val"], mesh, resident),
                            member.config)
                        line |= {f"val_{name}": v for name, v in scores.items()}
                        scored[k] = member.judge(scores)
                    now = time.monotonic()
                    rate = steps_since_log * first.train.batch_size * len(stepped)
                    member.log(line, now - logged_at, rate / (now - logged_at))
                    progress.logged(k, {**member.metrics, **member.timing})
                if events:
                    logged_at, steps_since_log = time.monotonic(), 0
                judged = [{k: getattr(m, k) for k in JUDGED} for m in group]
                state = state.replace(**jax.tree.map(
                    lambda old, *new: put(np.asarray(new, old.dtype), by_member),
                    {k: getattr(state, k) for k in JUDGED}, *judged))
                for k, member in enumerate(group):
                    if scored.get(k) is not None or ((timed or stopping or not member.running)
                                                     and member.saved != member.step):
                        member.save(select(state, k), scored.get(k))
                    member.failed_now = False
                if timed:
                    saved_at = time.monotonic()
                if stopping:
                    break
        return [m.result() for m in group]


class Member:
    """The host's side of one run: its data, its folder, and when something is due."""

    def __init__(self, config, workdir, arrays):
        self.config, self.arrays = config, arrays
        self.parts = data.split_of(config.data, arrays)
        self.order = order.order_of(config, arrays, self.parts["train"])
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_steps = derived.num_steps(config, self.steps_per_epoch)
        writer = jax.process_index() == 0
        self.folder = RunDir(workdir, config, arrays.fingerprint, writer=writer)
        if self.folder.extended:
            terminal.note(self.folder.extended)
        self.checkpoints = checkpoint.Checkpoints(self.folder.path / "checkpoints")
        self.board = None
        self.step, self.saved, self.stop = 0, -1, step.RUNNING
        self.best, self.waited, self.previous_loss = -math.inf, 0, math.inf
        self.plateau = {}  # of optim.reduce_on_plateau, as numbers of the state's dtypes
        self.lr, self.metrics, self.timing = config.optimizer.lr, {}, {}
        self.failed_now = False

    @property
    def running(self) -> bool:
        return self.stop == step.RUNNING and self.step < self.num_steps

    def restore(self, abstract):
        """The newest saved state, or None; the logs are cut to it."""
        state = self.checkpoints.restore_latest(abstract, terminal.note)
        if state is not None:
            for k in ("step", "best", "waited", "stop", "previous_loss"):
                setattr(self, k, fetch(getattr(state, k)).item())
            self.saved = self.step
            if self.folder.extended and self.stop == step.STOPPED_EARLY:
                self.waited, self.stop = 0, step.RUNNING
        self.folder.cut_logs(self.step)
        return state

    def start(self, program, augmented):
        self.folder.write_environment(program, self.arrays.fingerprint)
        if self.folder.writer:
            _write_split(self.folder, self.arrays, self.parts)
            if not (self.folder.path / SAMPLES).exists():
                panels.write_png(self.folder.path / SAMPLES, samples.augmented_sheet(
                    self.config, self.arrays, self.order, augmented))
            self.board = tensorboard.Board(self.folder.path)

    def steps_in_epoch(self) -> int:
        """Steps of the current epoch that are done, after at least one step."""
        return (self.step - 1) % self.steps_per_epoch + 1

    def at_event(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step == self.num_steps

    def validation_due(self) -> bool:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        due = self.step == self.num_steps or (rest == 0 and epoch % self.config.eval.every == 0)
        return due and len(self.parts["val"]) > 0

    def judge(self, scores: dict) -> float | None:
        """The score, larger is better, if it is a new best; stops early and lowers the rate."""

        def score_of(metric, direction):
            # As the checkpoint keeps it: a resumed run must find the same ties.
            return float(np.float32(scores[metric] if direction == "max" else -scores[metric]))

        options, optimizer = self.config.train, self.config.optimizer
        score, loss = score_of(*options.best), score_of("loss", "max")
        better = score > self.best
        self.best, self.waited = (score, 0) if better else (self.best, self.waited + 1)
        over = self.waited >= options.early_stopping
        if options.early_stopping_mode == "minimum":
            over = (self.step >= options.early_stopping * self.steps_per_epoch
                    and loss >= self.previous_loss)
        if options.early_stopping and over:
            self.stop = step.STOPPED_EARLY
        self.previous_loss = loss
        if self.plateau:
            new = optim.reduce_on_plateau(
                self.plateau, score_of(*optimizer.plateau_metric), lr=optimizer.lr,
                factor=optimizer.plateau_factor, patience=optimizer.plateau_patience,
                cooldown=optimizer.plateau_cooldown, min_lr=optimizer.plateau_min_lr)
            self.plateau = {k: self.plateau[k].dtype.type(v) for k, v in new.items()}
        return score if better else None

    def log(self, line: dict, seconds: float, images_per_second: float) -> None:
        self.metrics = {"step": self.step, "epoch": self.step / self.steps_per_epoch,
                        "lr": self.lr, **line}
        self.timing = {"step": self.step, "seconds": round(seconds, 3),
                       "images_per_second": round(images_per_second, 2),
                       "peak_memory_gib": round(feed.peak_memory() / 2**30, 3)}
        self.folder.log("metrics.jsonl", self.metrics)
        self.folder.log("timing.jsonl", self.timing)
        if self.board:
            self.board.add({**self.metrics, **self.timing})

    def fail(self, at: int, lr: float) -> None:
        """The step after `at` was not finite; the device kept the state of step `at`."""
        self.step, self.stop, self.failed_now = at, step.NON_FINITE, True
        names = [self.arrays.names[i] for i in self.order.rows(at)["id"]]
        self.metrics = {"step": at, "stopped": "loss or gradient not finite in the next step",
                        "lr": lr, "images": names}
        self.folder.log("metrics.jsonl", self.metrics)
        terminal.note(f"{self.folder.path}: loss or gradient not finite after step {at} (lr "
                      f"{lr:g}); stopped there. A lower optimizer.lr usually helps; the batch is "
                      "in metrics.jsonl")

    def save(self, state, score) -> None:
        self.checkpoints.save(state, self.step, score)
        self.saved = self.step

    def result(self) -> Result:
        status = "interrupted" if self.running else STATUS[self.stop]
        return Result(str(self.folder.path), status, self.step, self.metrics)

    def close(self) -> None:
        self.checkpoints.close()
        if self.board:
            self.board.close()
        self.folder.close()


def _write_split(folder, arrays, parts) -> None:
    """split.json: the names of the images of each part."""
    cells = arrays.grid**2  # patches follow their image
    split = {part: list(dict.fromkeys(arrays.image_names[i // cells] for i in indices))
             for part, indices in parts.items()}
    write_atomic(folder.path / "split.json", json.dumps(split, indent=1))


def _with_weights(state, config, sharding):
    """The fresh state, with the weights of train.weights in place of random ones."""
    if not config.train.weights:
        return state
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    found = weights.read(config, wanted)
    place = lambda old, new: put(np.asarray(new, old.dtype), sharding)
    found = jax.tree.map(place, wanted, found)
    ema = found["params"] if state.weights == "ema" else state.ema
    return state.replace(**found, ema=ema)


# --- devices and signals -------------------------------------------------------------------------


@contextlib.contextmanager
def _interrupt():
    """A function that says whether SIGTERM or Ctrl-C came, the same on every process."""
    flag = threading.Event()
    many = jax.process_count() > 1  # JAX's own coordination makes all processes stop together
    previous = {}

    def request(number, _):
        flag.set()
        signal.signal(number, previous[number])  # a second one does what it always did

    if not many and threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, request) for n in (signal.SIGTERM, signal.SIGINT)}

    def interrupted(group) -> bool:
        if many:
            return multihost_utils.reached_preemption_sync_point(max(m.step for m in group))
        return flag.is_set()

    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _timed_save_due(config, saved_at, at_event) -> bool:
    """Whether checkpoint_minutes have passed; processes agree, at events only."""
    due = time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
    if jax.process_count() == 1:
        return due
    return at_event and bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))


def _of_splits(group, arrays) -> list:
    """What is wrong with the members' splits, each said once. Patches count as their image."""
    cells = arrays.grid**2
    images = types.SimpleNamespace(names=arrays.image_names, groups=arrays.image_groups,
                                   strata=arrays.image_strata)
    pairs = None
    if len(images.names) <= checks.MANY:
        pairs = duplicates.near_duplicates(arrays.whole_images())
    found = [checks.of_split(images, {part: np.unique(indices // cells)
                                      for part, indices in member.parts.items()}, pairs)
             for member in group]
    return list(dict.fromkeys(finding for one in found for finding in one))


# --- words ---------------------------------------------------------------------------------------


def describe(group, compiled, state, program) -> list[tuple[str, str]]:
    """The first lines of a run: data, network, devices, cost."""
    config, arrays = group[0].config, group[0].arrays
    counts = " / ".join(f"{len(group[0].parts[p])} {p}" for p in ("train", "val", "test"))
    parameters = sum(x.size for x in jax.tree.leaves(state.params)) // len(group)
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    changed = config_lib.diff(config_lib.plain(config), config)
    devices = jax.devices()
    rows = [
        ("run", ", ".join(str(m.folder.path) for m in group)),
        ("config", ", ".join(f"{k}={b!r}" for k, (_, b) in changed.items()) or "the default"),
        ("data", f"{config.data.name}: {len(arrays.names)} images, {counts}; "
                 f"{'x'.join(map(str, arrays.image.shape[1:]))} {arrays.image.dtype}, "
                 f"on the {program['residence']}"),
        ("network", f"{config.model.name}: {parameters:,} parameters"),
        ("devices", f"{len(devices)} {devices[0].device_kind}, mesh {program['mesh']}, "
                    f"{program['members']} member(s)"),
        ("length", f"{group[0].num_steps} steps of {config.train.batch_size} images"
                   + (f", continuing at step {group[0].step}" if group[0].step else "")),
    ]
    if cost.get("flops", 0) > 0:
        rows.append(("cost", f"{cost['flops'] / 1e9:.1f} GFLOP per step and device"))
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        rows.append(("memory", f"{used / 2**30:.2f} GiB per device: "
                     f"{memory.argument_size_in_bytes / 2**30:.2f} state and data, "
                     f"{memory.temp_size_in_bytes / 2**30:.2f} temporary"))
    return rows
