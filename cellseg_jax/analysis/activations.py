"""The outputs of a network's modules for some images, and their statistics over a dataset."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cellseg_jax.models.dropout import Dropout
from cellseg_jax.normalize import normalize


def activations(module, variables: dict, image) -> dict[str, jax.Array]:
    """{path of a module: its first output, (N, ..., C)}, in the order in which modules finish.

    "logits" is the whole network's. Dropout, which does nothing here, is left out.
    """
    found = {}

    def keep(next_, args, kwargs, context):
        output = next_(*args, **kwargs)
        if (context.method_name == "__call__" and getattr(output, "ndim", 0) > 2
                and not isinstance(context.module, Dropout)):
            found.setdefault("/".join(context.module.path) or "logits", output)
        return output

    with nn.intercept_methods(keep):
        module.apply(variables, image, train=False)
    return found


def statistics(spec, variables: dict, batches) -> dict[str, dict]:
    """{path of a module: mean, sd, share of zeros, channels, constant channels} of its output.

    A constant channel has one value in all pixels of all images.
    """

    @jax.jit
    def measure(variables, batch):
        image = normalize(batch["image"], batch["range"], spec.dtype)
        found = activations(spec.module({}), variables, image)
        used, out = batch["weight"] > 0, {}
        for name, x in found.items():
            x = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
            counted = used[:, None, None]
            mean = lambda y, counted=counted: jnp.where(counted, y, 0).mean((1, 2)).sum()
            out[name] = {
                "sum": mean(x), "square": mean(x**2), "zeros": mean(x == 0.0),
                "low": jnp.where(counted, x, jnp.inf).min((0, 1)),
                "high": jnp.where(counted, x, -jnp.inf).max((0, 1))}
        return out, used.sum(), {name: n for n, name in enumerate(out)}

    sums, count = {}, 0
    for batch in batches:
        found, used, order = jax.device_get(measure(variables, batch))
        count += int(used)
        for name in sorted(found, key=order.get):  # a jitted function sorts what it returns
            new, old = found[name], sums.get(name)
            sums[name] = {key: np.asarray(x, np.float64) if old is None else
                          {"low": np.minimum, "high": np.maximum}.get(key, np.add)(old[key], x)
                          for key, x in new.items()}
    return {name: {
        "mean": float(s["sum"] / count),
        "sd": float(np.sqrt(max(s["square"] / count - (s["sum"] / count) ** 2, 0))),
        "zeros": float(s["zeros"] / count), "channels": len(s["low"]),
        "constant_channels": int((s["low"] == s["high"]).sum())} for name, s in sums.items()}


def image_and_range(arrays, config, i):
    """The image of sample i and its range, each with a leading axis."""
    return arrays.image[i][None], arrays.range(config.data.normalize)[i][None]


def activations_of(predictor, arrays, rows) -> list[dict[str, np.ndarray]]:
    """`activations` of each of some samples, as numpy arrays, in the order of `rows`."""
    order = []

    @jax.jit
    def run(variables, image, range_):
        image = normalize(image, range_, predictor.network.spec.dtype)
        found = activations(predictor.network.spec.module({}), variables, image)
        order.extend(found)
        return found

    outputs = [jax.device_get(run(
        predictor.network.variables, *image_and_range(arrays, predictor.config, i))) for i in rows]
    return [{name: found[name] for name in order} for found in outputs]
