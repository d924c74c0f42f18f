"""Batches: the device-resident and the streamed path give equal ones, whatever a sample is."""

import jax
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import data
from cellseg_jax.data import order
from cellseg_jax.step.batches import Batches, resident_source
from cellseg_jax.step.mapped import gather as gather_
from cellseg_jax.step.mesh import default_mesh

KINDS = {
    "whole": {},
    "patches": dict(data__size=(64, 32), data__grid=2, data__keep_blank=False),
    "windows": dict(data__fit="random_crop", data__size=(24, 40), data__image_size=(40, 36),
                    data__oversample=0.5),
    "weighted windows": dict(data__fit="random_crop", data__target="boundary"),
    "copies": dict(data__copies=3, data__balance=True),
    "mirrored": dict(data__fit="pad", data__image_size=(32, 33), data__size=(48, 40),
                     data__target="boundary"),
}


class FakeMember:
    """What feed.Batches reads of a run."""

    def __init__(self, config, arrays, start):
        self.config, self.arrays, self.step, self.num_steps = config, arrays, start, start + 3
        self.order = order.order_of(config, arrays, data.split_of(config.data, arrays)["train"])


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_batches_equal_what_the_device_gathers(kind):
    batches = {}
    for residence in ("device", "host"):
        configs = [tiny_config(data__residence=residence, seed=seed, data__threads=1 + 2 * seed,
                               **KINDS[kind]) for seed in (0, 1)]
        arrays = data.load(configs[0].data)
        group = [FakeMember(config, arrays, start=5) for config in configs]
        mesh = default_mesh(2, 8)
        resident = resident_source(configs[0], arrays, mesh)
        stream = Batches(2, resident, mesh)
        for slot, member in enumerate(group):
            stream.begin(slot, member)
        window = configs[0].data.size if configs[0].data.fit == "random_crop" else None
        gather = jax.jit(lambda source, index: jax.vmap(
            lambda i: gather_(source, i, window))(index))
        batches[residence] = []
        for _ in range(3):
            source, index = stream.next(range(2))
            batches[residence].append(
                jax.device_get(source if index is None else gather(source, index)))
            for member in group:
                member.step += 1
    for one, other in zip(*batches.values(), strict=True):
        assert set(one) == set(other)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)
    assert len({batch["image"].tobytes() for batch in batches["host"]}) == 3
