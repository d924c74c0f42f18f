"""The device's side of runs that train together: their states and the compiled step.

A program has a number of slots; a run occupies one until it has ended, and the next run of the
queue takes its place without a recompile. An empty slot holds a stopped state. How the slots are
computed is the back-end:

  loop    one call per run (per device along the mesh axis "member"), one after the other
  unroll  one call for all slots, each written out in it; XLA overlaps them
  vmap    one call for all slots, their convolutions batched: for when one small network does not
          saturate the device; on a CPU batched convolutions become slow grouped ones

Which is fastest depends on network, batch and device, so it is measured (choose_execution.py) where
the work ahead is worth it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax.step.kept import Program
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.mesh import fetch, make_mesh, put
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.state import STOPPED_EARLY, TrainState, init_state
from cellseg_jax.train.execution import Execution

# For a program that runs once: it compiles in a seventh of the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def init_program(spec: Spec, image_shape, sharding) -> Program:
    """The compiled init(values) -> TrainState of one run, placed by `sharding`."""
    options = QUICK_COMPILE if jax.default_backend() == "cpu" else None
    function = jax.jit(lambda values: init_state(spec, values, image_shape), keep_unused=True,
                       out_shardings=sharding, compiler_options=options)
    devices = sorted(sharding.device_set, key=lambda device: device.id)
    return Program(function, devices, "init", spec, image_shape, sharding, options)


class SlotStates:
    """The states of all slots and the compiled step that advances them.

    A chunk is the slots that one call computes; chunk c holds the slots of `chunks[c]`.
    """

    def __init__(self, spec: Spec, execution: Execution):
        self.spec, self.execution = spec, execution
        self.mesh = make_mesh(*execution.mesh)
        self.replicated = NamedSharding(self.mesh, P())
        self.compiled, self.checked = None, False  # checked: by preflight.check
        self._inits = {}  # by shape of an image
        width = execution.width
        self.chunks = [range(k, k + width) for k in range(0, execution.slots, width)]
        self.states = [None] * len(self.chunks)
        how = "unroll" if execution.backend == "loop" else execution.backend
        self._step = Program(map_train(spec, self.mesh, how), self.mesh.devices.flat,
                             "train", spec, how, self.mesh)
        by_member = NamedSharding(self.mesh, P("member"))
        self._spread = jax.jit(lambda state: _spread(state, width), out_shardings=by_member)
        self._place = jax.jit(_place, out_shardings=by_member, donate_argnums=0)
        self._take = jax.jit(_take, out_shardings=self.replicated)

    def init(self, image_shape) -> Program:
        """`init_program` of this program's runs, made once."""
        if image_shape not in self._inits:
            self._inits[image_shape] = init_program(self.spec, image_shape, self.replicated)
        return self._inits[image_shape]

    def compile(self, arguments) -> None:
        """Compile the step for the arguments (Batches.next) of any chunk, once."""
        if self.compiled is None:
            self.compiled = self._step.compiled(self.states[0], *arguments)

    def step(self, chunk: int, arguments) -> dict:
        """One step of the runs of a chunk; {"loss", "lr", "grad_norm", "stop"}, each (width,)."""
        self.states[chunk], out = self.compiled(self.states[chunk], *arguments)
        return out

    def put(self, slot: int, state: TrainState) -> None:
        """The run with this state takes the slot."""
        c, k = divmod(slot, self.execution.width)
        if self.states[c] is None:
            self.states[c] = self._spread(state)
            if self.execution.width == 1:
                return
        self.states[c] = self._place(self.states[c], state, np.int32(k))

    def get(self, slot: int) -> TrainState:
        """The state of the run in the slot."""
        c, k = divmod(slot, self.execution.width)
        return self._take(self.states[c], np.int32(k))

    def sums(self, slot: int) -> tuple[float, dict]:
        """The loss and {layer: mean |gradient|}, each summed over the steps of the epoch."""
        c, k = divmod(slot, self.execution.width)
        states = self.states[c]
        return float(fetch(states.loss_sum)[k]), {
            layer: float(fetch(x)[k]) for layer, x in states.gradient_sum.items()}

    def set(self, slot: int, *, stop: int, lr) -> None:
        """What validations decide on a run: whether it goes on, and at which learning rate."""
        c, k = divmod(slot, self.execution.width)
        states = self.states[c]
        old = {"stop": states.stop, "lr": states.values["lr"]}
        new = {name: put(np.asarray(value, old[name].dtype), self.replicated)
               for name, value in (("stop", stop), ("lr", lr))}
        placed = self._place(old, new, np.int32(k))
        self.states[c] = states.replace(stop=placed["stop"],
                                        values={**states.values, "lr": placed["lr"]})

    def clear(self) -> None:
        """All slots are free again; the step stays compiled."""
        self.states = [None] * len(self.chunks)


def _spread(state: TrainState, width: int) -> TrainState:
    """`width` copies of a state; of several slots, stopped until a run takes them."""
    if width > 1:
        state = state.replace(stop=jnp.int32(STOPPED_EARLY))
    return jax.tree.map(lambda x: jax.lax.broadcast(x, (width,)), state)


# In operations of lax: indexing of jax.numpy takes many times as long to trace, for each leaf.


def _take(states, k):
    """The state of the run at index k."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(
        x, k, keepdims=False, allow_negative_indices=False), states)


def _place(states, state, k):
    """The states with that of one run at index k."""
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(
        x, new, k, 0, allow_negative_indices=False), states, state)
