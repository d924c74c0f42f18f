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
            # By image: of the sum of squares little is left where a mean is far from 0.
            out[name] = {
                "mean": x.mean((1, 2)), "variance": x.var((1, 2)), "zeros": (x == 0).mean((1, 2)),
                "low": jnp.where(counted, x, jnp.inf).min((0, 1)),
                "high": jnp.where(counted, x, -jnp.inf).max((0, 1))}
        return out, used, {name: n for n, name in enumerate(out)}

    joined = {}
    for batch in batches:
        found, used, order = jax.device_get(measure(variables, batch))
        for name in sorted(found, key=order.get):  # a jitted function sorts what it returns
            new, old = found[name], joined.get(name)
            new |= {key: np.asarray(new[key], np.float64)[used]
                    for key in ("mean", "variance", "zeros")}
            joined[name] = new if old is None else {
                key: {"low": np.minimum, "high": np.maximum}.get(
                    key, lambda a, b: np.concatenate([a, b]))(old[key], x)
                for key, x in new.items()}
    return {name: {
        "mean": float(s["mean"].mean()), "sd": float(np.sqrt(s["variance"].mean()
                                                             + s["mean"].var())),
        "zeros": float(s["zeros"].mean()), "channels": len(s["low"]),
        "constant_channels": int((s["low"] == s["high"]).sum())} for name, s in joined.items()}


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
