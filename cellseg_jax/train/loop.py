"""Training, top to bottom: from a list of configs to checkpoints and logs.

One config is the ordinary case. Configs that differ only in values (config.VALUE_KEYS) share one
compiled program: they sit in its slots (population.py), each with its own step, epoch length and
run folder, and those that find no slot wait for one that has ended.
"""

import collections
import contextlib
import itertools
import os
import pathlib
import signal
import threading
import time
import types
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax import crops, data
from cellseg_jax.config import derived
from cellseg_jax.data.quality import checks, duplicates
from cellseg_jax.errors import pick
from cellseg_jax.files import read_json
from cellseg_jax.inference import measure as measure_lib
from cellseg_jax.report import terminal
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import ENVIRONMENT_FILE, RunFolder
from cellseg_jax.runs.lock import InUse
from cellseg_jax.step.batches import Batches, eval_batches, resident_source
from cellseg_jax.step.memory import DoesNotFit
from cellseg_jax.step.mesh import check_mesh, default_mesh, fetch, make_mesh, put
from cellseg_jax.step.programs import eval_program, scoring_values
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import NON_FINITE, RUNNING, check_model
from cellseg_jax.train import initial_weights, preflight, preview
from cellseg_jax.train.execution import BACKENDS, Program, candidates
from cellseg_jax.train.run import JUDGED, Clock, Member, Result, write_result, write_split
from cellseg_jax.train.slots import Population, init_program

WORTH = 20  # another back-end is measured where the work left is so many times what that costs


def train(configs: Sequence[ConfigDict], workdirs: Sequence[str], *, mesh=None, backend: str = "",
          slots: int = 0) -> list[Result]:
    """Train every config into its workdir, or continue there; SIGTERM and Ctrl-C save and stop.

    Runs that have ended are left as they are. Runs that were begun go on in the program that they
    were begun in, where the devices are the same.

    Args:
      mesh: jax.sharding.Mesh with axes ("member", "data"); default: all devices.
      backend: population.BACKENDS; "" = by measurement, where that is worth its time.
      slots: runs under way at once; 0 = by measurement.
    Returns: a Result per config, in order.
    Raises: InputError before any step is done.
    """
    configs = [config_lib.complete(c) for c in configs]
    if len(configs) != len(workdirs) or len(set(map(str, workdirs))) != len(workdirs):
        raise ValueError(f"{len(configs)} configs need as many distinct workdirs: {workdirs}")
    if backend:
        pick(dict.fromkeys(BACKENDS), backend, "--backend")
    groups, results = {}, {}
    for i, config in enumerate(configs):
        if derived.is_classical(config):
            results[i] = begin_classical(config, workdirs[i])
        else:
            groups.setdefault(config_lib.program_key(config), []).append(i)
    with _interrupt() as interrupted:
        for chosen in groups.values():
            group = Group([configs[i] for i in chosen], [workdirs[i] for i in chosen])
            for program, members in group.programs(mesh, backend, slots):
                trained = group.train(members, program, interrupted)
                results.update({chosen[k]: result for k, result in trained.items()})
            if any(results[i].status == "interrupted" for i in chosen if i in results):
                break
    not_begun = [Result(str(w), "interrupted", 0, {}) for w in workdirs]
    return [results.get(i, not_begun[i]) for i in range(len(configs))]


def begin_classical(config, workdir) -> Result:
    """The folder of a run that has nothing to train, ready to be scored."""
    check_model(config)
    with terminal.reading() as progress:
        arrays = data.load(config.data, progress)
    writer = jax.process_index() == 0
    folder = RunFolder(workdir, config, arrays.fingerprint, writer=writer)
    result = Result(str(folder.path), "done", 0, {})
    with contextlib.closing(folder):
        folder.write_environment({"method": config.model.name}, arrays.fingerprint)
        if writer:
            write_split(folder, arrays, data.split_of(config.data, arrays))
            write_result(folder, result, num_steps=0, timing=[])
    terminal.log(f"{workdir}: {config.model.name} learns nothing, so there is nothing to train")
    return result


class Group:
    """Configs of one config.program_key, their data, and the spec that their programs share."""

    def __init__(self, configs, workdirs):
        self.configs, self.workdirs = configs, [pathlib.Path(w) for w in workdirs]
        above = os.path.commonpath([w.absolute().parents[1] for w in self.workdirs])
        self.names = [os.path.relpath(w, above) for w in self.workdirs]
        first = configs[0]
        check_model(first)  # the runs share all that builds a network
        with terminal.reading() as progress:
            self.arrays = data.load(first.data, progress)
        self.findings = checks.of_samples(
            self.arrays,
            num_classes=first.data.num_classes if first.data.target == "classes" else None)
        checks.raise_errors(self.findings)
        self._pairs = None  # of near-duplicates, once wanted
        self._said = set()  # findings on splits

    def programs(self, mesh, backend: str, slots: int) -> list[tuple[Program, list[int]]]:
        """Each program to run and the configs (by number) that train in it.

        A program of 0 slots is still to be chosen by measurement.
        """
        inactive = make_spec(self.configs).inactive
        mesh = mesh or default_mesh(len(self.configs), self.configs[0].train.batch_size)
        shape = (mesh.shape["member"], mesh.shape["data"])
        if backend or slots:
            slots = slots or min(len(self.configs), 8)
            slots = shape[0] if backend == "loop" else crops.round_up(slots, shape[0])
            usual = "unroll" if jax.default_backend() == "cpu" else "vmap"
            backend = backend or ("loop" if slots == shape[0] else usual)
        new = Program(backend or "loop", slots, shape, inactive)
        inactive_of = [set(make_spec([config]).inactive) for config in self.configs]
        fits = lambda program, i: program is not None and inactive_of[i] >= set(program.inactive)
        found, fresh = {}, []
        for i, workdir in enumerate(self.workdirs):
            program = None if slots else _stored_program(workdir)
            if fits(program, i):
                found.setdefault(program, []).append(i)
            else:
                fresh.append(i)
        if len(found) == 1 and all(fits(next(iter(found)), i) for i in fresh):
            next(iter(found.values())).extend(fresh)  # they join those that were begun
            fresh = []
        return [*found.items(), *([(new, fresh)] if fresh else [])]

    def train(self, chosen: list[int], program: Program, interrupted) -> dict[int, Result]:
        """Train the configs `chosen` in one program; {number: Result} of all that had a turn."""
        first = self.configs[chosen[0]]
        mesh = make_mesh(*program.mesh)
        check_mesh(first, mesh)
        spec = make_spec(self.configs).replace(inactive=program.inactive)
        everywhere = NamedSharding(mesh, P())
        init = init_program(spec, self.arrays.image.shape[1:], everywhere)
        queue, results = collections.deque(chosen), {}

        with contextlib.ExitStack() as stack:

            def begin():
                """(number, Member, its state) of the next run that has steps to do, or None."""
                while queue:
                    i = queue.popleft()
                    try:
                        member = Member(self.configs[i], self.workdirs[i], self.arrays)
                    except InUse as error:
                        if len(self.configs) == 1:
                            raise
                        terminal.log(str(error))
                        results[i] = Result(str(self.workdirs[i]), "in use", 0, {})
                        continue
                    stack.callback(member.close)
                    if not member.ended_before():
                        state = _begin_state(member, spec, init, everywhere)
                        if member.running:
                            return i, member, state
                        member.finish()  # killed between its last save and this
                    results[i] = member.result()
                    member.close()
                return None

            next_run = begin()
            if next_run is None:
                return results
            resident = resident_source(first, self.arrays, mesh)
            if program.slots:
                population = Population(spec, program, mesh)
            else:
                population = self._measured(program, spec, init, next_run[1], len(queue) + 1,
                                            resident)
                program = population.program
                if make_mesh(*program.mesh) != mesh:  # the same devices along other axes
                    queue.appendleft(next_run[0])
                    next_run[1].close()
                    return results | self.train(list(queue), program, interrupted)
            batches = Batches(program.slots, resident, mesh)
            eval_step = eval_program(spec, mesh, first.eval.threshold)
            scored_by = lambda one: (scoring_values(one.values), {
                "params": getattr(one, one.weights), "batch_stats": one.batch_stats})
            augmented = preview.augmented_program(spec)
            record = {**program._asdict(), "residence": "device" if resident else "host"}
            members, numbers = [None] * program.slots, [None] * program.slots
            arguments = [None] * len(population.chunks)
            pending = collections.deque()  # ([(number, member, step, place)], outputs) under way
            saved_at, images = time.monotonic(), 0
            progress = stack.enter_context(
                terminal.Training(len(chosen), first.train.batch_size))

            def seat(slot, run):
                """The run takes the slot; the first one compiles the program."""
                numbers[slot], member, state = run
                members[slot] = member
                population.put(slot, state)
                batches.begin(slot, member)
                chunk = slot // program.width
                arguments[chunk] = batches.next(population.chunks[chunk])
                new = population.compiled is None
                preflight.compile_checked(population, arguments[chunk], first)
                if images == slot == 0 and len(member.parts["val"]):
                    few = eval_batches(
                        config_lib.changed(first, {"eval.batch_size": 1}), self.arrays,
                        member.parts["val"][:mesh.size], mesh, resident)
                    preflight.check_validation(
                        population, eval_step, (*scored_by(population.get(slot)), next(few)), first)
                speaks = jax.process_index() == 0
                if speaks and member.step == 0:
                    terminal.findings([*(self.arrays.findings if new else ()),
                                       *(self.findings if new else ()),
                                       *self._of_split(member)])
                member.start(record, augmented, images)
                if speaks and new:
                    terminal.summary(describe(member, len(chosen), population, record))
                progress.begin(numbers[slot], self.names[numbers[slot]], member.num_steps,
                               member.step)

            def settle(depth):
                """Wait until at most `depth` calls are under way; note who became non-finite."""
                while len(pending) > depth:
                    runs, out = pending.popleft()
                    out = {k: fetch(v) for k, v in out.items()}
                    for _, member, at, place in runs:
                        if out["stop"][place] == NON_FINITE and member.stop == RUNNING:
                            member.fail(at - 1, float(out["lr"][place]))
                        elif member.step >= at:
                            member.lr = float(out["lr"][place])
                    progress.advance({number: (min(at, member.step), float(out["loss"][place]))
                                      for number, member, at, place in runs})

            # --- the loop: every run to its next event --------------------------------------------
            for slot in range(program.slots):
                if next_run is not None:
                    seat(slot, next_run)
                    next_run = begin() if slot + 1 < program.slots else None
            while any(members):
                for c, chunk in enumerate(population.chunks):
                    stepped = [k for k in chunk if members[k]]
                    if not stepped:
                        continue
                    out = population.step(c, arguments[c])
                    for k in stepped:
                        members[k].step += 1
                    images += first.train.batch_size * len(stepped)
                    pending.append(([(numbers[k], members[k], members[k].step, k - chunk.start)
                                     for k in stepped], out))
                    arguments[c] = batches.next(chunk)  # the host prepares, the device computes
                events = [k for k, m in enumerate(members) if m and m.at_event()]
                # Two steps run ahead of the host, so that the device does not wait for it.
                settle(0 if events else 2 * len(population.chunks))
                stopping = interrupted()
                timed = _timed_save_due(first, saved_at, bool(events))
                failed = [k for k, m in enumerate(members) if m and m.failed_now]
                if not (events or stopping or timed or failed):
                    continue
                settle(0)

                # Evaluate first, then save once: a timed save and a new best are one checkpoint.
                scored, running = {}, sum(m is not None for m in members)
                for k in events:
                    member = members[k]
                    if member.failed_now:
                        continue
                    steps = member.steps_in_epoch()
                    line = {"train_loss": float(population.field(k, "loss_sum")) / steps}
                    gradients = population.field(k, "gradient_sum")
                    if gradients:
                        member.log_gradients({n: float(v) / steps for n, v in gradients.items()})
                    if member.validation_due():
                        scores = measure_lib.validate(
                            eval_step, *scored_by(population.get(k)), eval_batches(
                                member.config, self.arrays, member.parts["val"], mesh, resident),
                            member.config)
                        line |= {f"val_{name}": v for name, v in scores.items()}
                        scored[k] = member.judge(scores)
                        population.set(k, {name: getattr(member, name) for name in JUDGED})
                    member.log(line, Clock.now(images), running)
                    progress.logged(numbers[k], {**member.metrics, **member.timing})
                for k, member in enumerate(members):
                    if member is None:
                        continue
                    due = timed or stopping or not member.running
                    if scored.get(k) is not None or (due and member.saved != member.step):
                        member.save(population.get(k), scored.get(k))
                if timed:
                    saved_at = time.monotonic()
                for k, member in enumerate(members):
                    if member is None or member.running and not stopping:
                        continue
                    if not member.running:
                        member.finish()
                    results[numbers[k]] = member.result()
                    member.close()
                    members[k] = None
                    next_run = None if stopping else begin()
                    if next_run is not None:
                        seat(k, next_run)
        return results

    def _measured(self, first: Program, spec, init, member, num_runs, resident) -> Population:
        """Of the fastest program, by a few steps each; of `first` where little work is left.

        The steps are of states of their own: no run moves.
        """
        meshes = {first.mesh: (make_mesh(*first.mesh), resident)}
        batch_size, steps_left = member.config.train.batch_size, member.num_steps - member.step

        def measure(program) -> tuple[Population, float, float]:
            """The compiled program, images per second of all slots, seconds that it took."""
            started = time.monotonic()
            if program.mesh not in meshes:
                mesh = make_mesh(*program.mesh)
                meshes[program.mesh] = mesh, resident_source(
                    self.configs[0], self.arrays, mesh)
            mesh, source = meshes[program.mesh]
            population = Population(spec, program, mesh)
            batches = Batches(program.slots, source, mesh)
            batches.begin(0, member)
            arguments = [batches.next(chunk) for chunk in population.chunks]
            values = traced_values(member.config, spec, member.steps_per_epoch)
            for slot in range(program.slots):
                population.put(slot, jax.device_put(init(values), NamedSharding(mesh, P())))
            preflight.compile_checked(population, arguments[0], member.config)
            once = lambda: [population.step(c, a) for c, a in enumerate(arguments)]
            jax.block_until_ready([once(), once()])
            rounds, began = 0, time.monotonic()
            while rounds < 3 or rounds < 50 and time.monotonic() - began < 1.0:
                jax.block_until_ready(once())
                rounds += 1
            now = time.monotonic()
            population.empty()
            return population, rounds * program.slots * batch_size / (now - began), now - started

        first = first._replace(slots=first.mesh[0])
        # Processes would have to agree on what each of them measured.
        if num_runs == 1 or num_runs * steps_left < 100 or jax.process_count() > 1:
            return Population(spec, first, meshes[first.mesh][0])
        with preflight.refusing(member.config, "train.batch_size"):
            chosen, best, cost = measure(first)
        said = [f"{first}: {best:.4g} images/s"]
        for program in candidates(first, num_runs):
            if num_runs * steps_left * batch_size / best < WORTH * cost * program.slots:
                continue
            try:
                with preflight.refusing(member.config, "train.batch_size"):
                    population, speed, _ = measure(program)
            except DoesNotFit:
                said.append(f"{program}: out of memory")
                break
            said.append(f"{program}: {speed:.4g} images/s")
            if speed > 1.05 * best:
                chosen, best = population, speed
            elif program.mesh == first.mesh:
                break
        reason = "the fastest" if len(said) > 1 else "too little work to measure others"
        terminal.log(f"{num_runs} runs share a program: {'; '.join(said)}; taking "
                      f"{chosen.program} ({reason}; --backend and --slots decide otherwise)")
        return chosen

    def _of_split(self, member) -> list:
        """What is wrong with the run's split and not yet said. Patches count as their image."""
        arrays = self.arrays
        images = types.SimpleNamespace(names=arrays.image_names, groups=arrays.image_groups,
                                       strata=arrays.image_strata)
        if self._pairs is None:
            self._pairs = duplicates.pairs_of(arrays)
        found = checks.of_split(images, {part: np.unique(indices // arrays.grid**2)
                                         for part, indices in member.parts.items()}, self._pairs)
        new = [finding for finding in found if finding not in self._said]
        self._said.update(new)
        return new


def _stored_program(workdir) -> Program | None:
    """The program that a run was begun in, if it can go on in it."""
    stored = read_json(pathlib.Path(workdir) / ENVIRONMENT_FILE, {}).get("program", {})
    if "zeros" in stored:  # of runs begun before the field was renamed
        stored["inactive"] = stored.pop("zeros")
    if not stored.keys() >= set(Program._fields):
        return None
    program = Program(stored["backend"], stored["slots"], tuple(stored["mesh"]),
                      tuple(stored["inactive"]))
    if np.prod(program.mesh) > jax.device_count():
        terminal.log(f"{workdir}: was begun on {np.prod(program.mesh)} devices, goes on on "
                      f"{jax.device_count()}: equal but for rounding")
        return None
    return program


def _begin_state(member, spec, init, sharding):
    """The state of a run: restored, or fresh."""
    values = traced_values(member.config, spec, member.steps_per_epoch)
    values = {k: put(v, sharding) for k, v in values.items()}
    state = member.restore(checkpoint.abstract(jax.eval_shape(init, values), sharding))
    if state is None:
        state = _with_weights(init(values), member.config, sharding)
    else:
        state = state.replace(values=values, **{
            k: put(np.asarray(getattr(member, k), getattr(state, k).dtype), sharding)
            for k in ("waited", "stop")})
    member.plateau = {k: fetch(v)[()] for k, v in state.plateau.items()}
    return state


def _with_weights(state, config, sharding):
    """The fresh state, with the weights of train.weights in place of random ones, pruned."""
    if not config.train.weights and not config.train.prune:
        return state
    found = wanted = {"params": state.params, "batch_stats": state.batch_stats}
    if config.train.weights:
        found = initial_weights.read(config, wanted)
    found = {**found, "params": initial_weights.pruned(config, found["params"])}
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
        if number == signal.SIGINT:  # a second Ctrl-C ends; schedulers say SIGTERM more than once
            signal.signal(number, previous[number])

    if not many and threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, request) for n in (signal.SIGTERM, signal.SIGINT)}

    rounds = itertools.count()

    def interrupted() -> bool:
        if many:
            return multihost_utils.reached_preemption_sync_point(next(rounds))
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


# --- words ---------------------------------------------------------------------------------------


def describe(member, num_runs, population, record) -> list[tuple[str, str]]:
    """The first lines of a program: data, network, devices, cost."""
    config, arrays = member.config, member.arrays
    counts = " / ".join(f"{len(member.parts[p])} {p}" for p in ("train", "val", "test"))
    state, program = population.states[0], population.program
    parameters = sum(x.size for x in jax.tree.leaves(state.params)) // program.width
    compiled = population.compiled
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    changed = config_lib.diff(config_lib.plain(config), config)
    devices = jax.devices()
    rows = [
        ("run", f"{member.folder.path}" + (f" and {num_runs - 1} more" if num_runs > 1 else "")),
        ("config", ", ".join(f"{k}={b!r}" for k, (_, b) in changed.items()) or "the default"),
        ("data", f"{config.data.name}: {len(arrays.names)} images, {counts}; "
                 f"{'x'.join(map(str, arrays.image.shape[1:]))} {arrays.image.dtype}, "
                 f"on the {record['residence']}"),
        ("network", f"{config.model.name}: {parameters:,} parameters"),
        ("devices", f"{len(devices)} {devices[0].device_kind}; {program}"),
        ("length", f"{member.num_steps} steps of {config.train.batch_size} images"
                   + (f", continuing at step {member.step}" if member.step else "")),
    ]
    if cost.get("flops", 0) > 0:
        rows.append(("cost", f"{cost['flops'] / 1e9:.1f} GFLOP per call and device"))
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        rows.append(("memory", f"{used / 2**30:.2f} GiB per device: "
                     f"{memory.argument_size_in_bytes / 2**30:.2f} state and data, "
                     f"{memory.temp_size_in_bytes / 2**30:.2f} temporary"))
    return rows
