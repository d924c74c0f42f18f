"""Pixels that are not annotated, of label -1: in no loss, and in no count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from helpers import tiny_config
from scipy import ndimage

from cellseg_jax import config as config_lib
from cellseg_jax import losses, targets
from cellseg_jax.step.eval_step import eval_step
from cellseg_jax.step.spec import Spec, make_spec
from cellseg_jax.targets import geometry

SIZE = 12


def label():
    """(1, 12, 12): a cell known all around, one cut off by a region that is not annotated."""
    out = np.zeros((1, SIZE, SIZE), np.int32)
    out[0, 1:5, 1:6] = 1
    out[0, 6:11, 4:9] = 2
    out[0, :, 7:] = -1
    return out


def spec_of(target, **changes) -> Spec:
    config = config_lib.override(tiny_config(), [("data.target", target)])
    return make_spec([config]).replace(ignore=True, inactive=(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["foreground", "boundary", "contour"])
@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_pulls_at_pixels_that_are_not_annotated(target, pooled):
    spec = spec_of(target)
    kind = targets.TARGETS[target]
    names = [name for name in (*losses.LOSSES, *losses.REGRESSION)
             # the softmax of one output; skeletons are of all pixels; no regressed outputs
             if not (name == "cldice" or name in losses.REGRESSION and kind.num_binary is None
                     or name == "cross_entropy" and spec.model["num_outputs"] == 1)]
    spec = spec.replace(loss_options=FrozenDict({
        name: losses.options(name) | {k: pooled for k in losses.options(name) if k == "pooled"}
        for name in names}))
    truth = spec.truth({"label": jnp.asarray(label())})
    logits = jnp.asarray(np.random.default_rng(0).normal(
        size=truth["target"].shape).astype(np.float32))
    hparams = {f"loss.{name}": 1.0 for name in names}
    pull = jax.grad(lambda x: jnp.sum(spec.losses(x, hparams=hparams, **truth)))(logits)
    pull = np.abs(np.asarray(pull)).max(-1)
    assert not pull[label() < 0].any()
    assert (pull[np.asarray(spec.known(label()))] > 0).all()


def test_objects_that_may_go_on_have_no_regressed_outputs():
    known = np.asarray(geometry.whole(jnp.asarray(label())))
    assert known[0, 1:5, 1:6].all() and known[0, :, :4].all()  # 1 ends before it
    assert not known[label() == 2].any() and not known[label() < 0].any()
    near = geometry.far_from_unknown(label(), 2)
    assert not near[0, 1:5, 5].any() and near[0, 1:5, :5].all() and near[0, 0, 6]


@pytest.mark.parametrize("target", [name for name in targets.TARGETS if name != "classes"])
def test_what_is_learned_is_the_same_whatever_lies_where_nothing_is_annotated(target):
    """Cells that are cut off, and cells that cannot be seen at all."""
    rng = np.random.default_rng(1)
    height = ndimage.gaussian_filter(rng.random((40, 40)), 2)
    mask = height > np.quantile(height, 0.55)
    full = geometry.basins(height, mask, 0.0)  # many of them touch
    seen = full.copy()
    seen[12:28, 20:] = -1
    spec, kind = spec_of(target), targets.TARGETS[target]
    true = np.asarray(spec.encode(jnp.asarray(full[None])))
    truth = spec.truth({"label": jnp.asarray(seen[None])})
    wrong = np.abs(np.asarray(truth["target"]) - true) > 1e-4
    count = kind.num_binary or true.shape[-1]
    known = np.asarray(truth["pixel_weight"]) > 0
    assert known.mean() > 0.6 and not wrong[known][:, :count].any()
    if kind.num_binary is not None:
        weight = truth["regression_weight"]
        if kind.regression_weight is not None:
            weight = weight * kind.regression_weight(truth["target"])
        known = np.asarray(weight) > 0
        assert known.mean() > 0.2 and not wrong[known][:, count:].any()


def test_a_label_that_is_annotated_all_over_has_the_same_truth():
    known = np.maximum(label(), 0)
    spec = spec_of("contour")
    plain = spec.replace(ignore=False).truth({"label": known})
    truth = spec.truth({"label": known})
    assert set(plain) == {"target"} and np.all(truth["pixel_weight"] == 1)
    np.testing.assert_array_equal(truth["target"], plain["target"])


def test_weights_of_a_target_are_kept_where_pixels_are_known():
    weight = np.full((1, SIZE, SIZE), 3, np.float16)
    truth = spec_of("boundary").truth({"label": label(), "pixel_weight": weight})
    assert set(np.unique(truth["pixel_weight"])) == {0, 3}


def test_only_configs_that_may_ignore_pixels_compile_for_it():
    config = tiny_config()
    assert not make_spec([config]).ignore
    folder = config_lib.override(config, [("data.name", "folder")])
    assert not make_spec([folder]).ignore
    assert make_spec([config_lib.override(folder, [("data.ignore", "255")])]).ignore
    ctc = config_lib.override(config, [("data.name", "ctc")])
    assert make_spec([config_lib.override(ctc, [("data.partial", "ignore")])]).ignore
    with pytest.raises(Exception, match="eval.report_compat.*not annotated"):
        config_lib.override(folder, [("data.ignore", "255"), ("eval.report_compat", "True")])


def test_a_run_without_it_keeps_its_identity():
    folder = config_lib.override(tiny_config(), [("data.name", "folder")])
    before = folder.copy_and_resolve_references().unlock()
    del before.data["ignore"]
    assert config_lib.identity(before) == config_lib.identity(folder)
    set_ = config_lib.override(folder, [("data.ignore", "255")])
    assert config_lib.identity(set_) != config_lib.identity(folder)


def test_eval_step_counts_annotated_pixels_alone(monkeypatch):
    spec = spec_of("foreground")
    found = np.where(np.arange(SIZE) < 9, 4.0, -4.0) * np.ones((1, SIZE, 1))
    monkeypatch.setattr(Spec, "logits", lambda *_: jnp.asarray(found[..., None], jnp.float32))
    batch = {"label": jnp.asarray(label()), "image": None, "range": None}
    hparams = {name: 1.0 for name in spec.hparams({}) if name.startswith("loss.")}
    out = eval_step(spec.replace(loss_options=FrozenDict()), hparams, {}, batch, 0.5)
    true = np.sum(label() > 0)
    for counts in (out["counts"], out["cells"]):
        assert [int(c[0, 0]) for c in counts] == [true, SIZE * 7 - true, 0, 0]
