"""Runs that train together on the devices: the slots of one compiled program.

A program has a number of slots; a run sits in one until it has ended, and the next run of the
queue takes its place without a recompile. An empty slot holds an inert state. How the slots are
computed is the program's back-end:

  loop    one call per run (per device along the mesh axis "member"), one after the other
  unroll  one call for all slots, each written out in it; XLA overlaps them
  vmap    one call for all slots, their convolutions batched: for devices that small networks
          leave idle; on a CPU batched convolutions become slow grouped ones

Which is fastest depends on network, batch and device, so `candidates` are measured (train.py)
where the work ahead is worth it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.mesh import fetch, put
from cellseg_jax.step.state import STOPPED_EARLY, init_state
from cellseg_jax.train.execution import Program

# For a program that runs once: it compiles in a seventh of the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def init_program(spec, image_shape, sharding):
    """The compiled init(values) -> step.TrainState of one run, placed by `sharding`."""
    return jax.jit(lambda values: init_state(spec, values, image_shape),
                   out_shardings=sharding,
                   compiler_options=QUICK_COMPILE if jax.default_backend() == "cpu" else None)


class Population:
    """The states of a program's slots and the compiled step that advances them.

    A chunk is the slots that one call computes; chunk c holds the slots of `chunks[c]`.
    """

    def __init__(self, spec, program: Program, mesh):
        self.program = program
        width = program.width
        self.chunks = [range(k, k + width) for k in range(0, program.slots, width)]
        self.states = [None] * len(self.chunks)
        self.compiled = None
        everywhere, by_member = NamedSharding(mesh, P()), NamedSharding(mesh, P("member"))
        self._everywhere = everywhere
        how = "unroll" if program.backend == "loop" else program.backend
        self._step = map_train(spec, mesh, how)
        inert = jnp.int32(STOPPED_EARLY)
        spread = lambda s: jax.tree.map(
            lambda x: jnp.broadcast_to(x, (width, *x.shape)), s if width == 1 else
            s.replace(stop=inert))
        put_at = lambda states, one, k: jax.tree.map(lambda x, new: x.at[k].set(new), states, one)
        self._spread = jax.jit(spread, out_shardings=by_member)
        self._place = jax.jit(put_at, out_shardings=by_member, donate_argnums=0)
        self._take = jax.jit(lambda states, k: jax.tree.map(lambda x: x[k], states),
                             out_shardings=everywhere)

    def compile(self, arguments) -> None:
        """Compile the step for the arguments (feed.Batches.next) of any chunk, once."""
        if self.compiled is None:
            self.compiled = self._step.lower(self.states[0], *arguments).compile()

    def step(self, chunk: int, arguments) -> dict:
        """One step of the runs of a chunk; {"loss", "lr", "grad_norm", "stop"}, each (width,)."""
        self.states[chunk], out = self.compiled(self.states[chunk], *arguments)
        return out

    def put(self, slot: int, state) -> None:
        """The run with this state takes the slot."""
        c, k = divmod(slot, self.program.width)
        if self.states[c] is None:
            self.states[c] = self._spread(state)
            if self.program.width == 1:
                return
        self.states[c] = self._place(self.states[c], state, np.int32(k))

    def empty(self) -> None:
        """All slots are free again; the program stays compiled."""
        self.states = [None] * len(self.chunks)

    def get(self, slot: int):
        """The state of the run in the slot."""
        c, k = divmod(slot, self.program.width)
        return self._take(self.states[c], np.int32(k))

    def field(self, slot: int, name: str):
        """A small field of the state of the run in the slot, on the host."""
        c, k = divmod(slot, self.program.width)
        return jax.tree.map(lambda x: fetch(x)[k], getattr(self.states[c], name))

    def set(self, slot: int, fields: dict) -> None:
        """Small leaves of the slot's state, {field of TrainState: value or dict of values}."""
        c, k = divmod(slot, self.program.width)
        here = {name: getattr(self.states[c], name) for name in fields}
        new = jax.tree.map(lambda old, value: put(np.asarray(value, old.dtype), self._everywhere),
                           here, fields)
        self.states[c] = self.states[c].replace(**self._place(here, new, np.int32(k)))
