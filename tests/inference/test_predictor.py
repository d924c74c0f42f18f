"""Trained networks in use: whole or in bands, halo or blended, views, ensembles, one compile."""

import contextlib
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import metrics, normalize, targets, train
from cellseg_jax.data import lazy, resize
from cellseg_jax.errors import InputError
from cellseg_jax.inference import predictor, segment, stitch_labels
from cellseg_jax.inference.ensemble import Ensemble
from cellseg_jax.inference.options import PredictOptions
from cellseg_jax.inference.predictor import Predictor, run_config
from cellseg_jax.inference.row_bands import Rows
from cellseg_jax.inference.trained_run import TrainedRun
from cellseg_jax.step.programs import cached
from cellseg_jax.targets.geometry import in_reading_order

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: (config, folder)}: resized and cropped runs of a moment, and twins of these."""
    folder = tmp_path_factory.mktemp("runs")
    crop = dict(data__fit="random_crop", data__channels="gray", data__normalize="percentile")
    configs = {
        "resized": tiny_config(train__steps=2),
        "twin": tiny_config(train__steps=2, seed=1, optimizer__lr=2e-3, optimizer__clip=1.0),
        "cropped": tiny_config(train__steps=60, optimizer__lr=1e-2, **crop),
        "cropped twin": tiny_config(train__steps=2, seed=1, **crop),
    }
    for name, config in configs.items():
        train.train([config], [folder / name])
    return {name: (config, folder / name) for name, config in configs.items()}


def picture(size, seed=0, channels=1, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    small = rng.random((size[0] // 12 + 2, size[1] // 12 + 2, channels))
    smooth = resize.resize_image(small.astype(np.float32), size)
    return (np.iinfo(dtype).max * (0.1 + 0.6 * smooth + 0.1 * rng.random((*size, channels)))
            ).astype(dtype)


class Compilations:
    """Counts what XLA compiles, or loads from its cache, while it is open."""

    def __enter__(self):
        self.count = 0
        self._heard = lambda event, _, **__: self._hear(event)
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def _hear(self, event):
        self.count += event == COMPILED

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._heard)


@pytest.mark.slow
def test_runs_that_compute_alike_compile_once(runs):
    batch = picture((32, 32), channels=4, dtype=np.uint8)[None]
    range_ = normalize.image_ranges(batch[0], "minmax")[None]
    first = Predictor(runs["resized"][1], runs["resized"][0])
    first.network(batch, range_)
    programs = cached.cache_info().misses
    second = Predictor(runs["twin"][1], runs["twin"][0])
    with Compilations() as seen:
        out = second.network(batch, range_)
    assert seen.count == 0 and cached.cache_info().misses == programs
    assert second.network.eval_step is first.network.eval_step
    assert np.abs(out - first.network(batch, range_)).max() > 0


OPTIONS = [PredictOptions(), PredictOptions(1.0), PredictOptions(0.6), PredictOptions(1.7),
           PredictOptions(2.9), PredictOptions(0, 0, "all", True), PredictOptions(0, 0, "flips")]


@pytest.mark.parametrize("name, options", [
    pytest.param(name, options, marks=(pytest.mark.weekly, pytest.mark.slow)[(n + k) % 2])
    for n, name in enumerate(("resized", "cropped")) for k, options in enumerate(OPTIONS)])
def test_bands_equal_the_whole(runs, name, options):
    config, folder = runs[name]
    run, image = Predictor(folder, config), picture((150, 110))
    whole = run.image_probs(image, options)
    read = []
    banded = lazy.from_array(image)
    rows = lambda start, stop: read.append(stop - start) or image[start:stop]
    bands = list(run.bands(banded._replace(rows=rows),
                          options._replace(band_pixels=1000)))
    assert whole.shape == (150, 110, 1 + options.uncertain) and len(bands) > 1
    np.testing.assert_allclose(np.concatenate(bands), whole, atol=2e-6)
    assert max(read) < 75 or options.scale == 0.6
    if options.uncertain:
        assert 0 < np.sqrt(whole[..., -1].max()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 192), (243, 131)])
def test_a_halo_gives_what_the_whole_image_gives(runs, size):
    config, folder = runs["cropped"]
    run, image = Predictor(folder, config), picture(size)
    halo = run.network.reach()
    untiled = run.network(image[None], normalize.image_ranges(image, "percentile")[None])[0]
    cropped = run.image_probs(image, PredictOptions(1.0, halo))
    if size == (256, 192):  # else zeros are added beyond the image, here a percentile, rounded
        np.testing.assert_allclose(cropped, untiled, atol=1e-5)
    inside = np.s_[: size[0] - 2 * halo, : size[1] - 2 * halo]
    np.testing.assert_allclose(cropped[inside], untiled[inside], atol=1e-5)
    little = run.image_probs(image, PredictOptions(1.0, run.network.stride()))
    assert np.abs(little - untiled).max() > 1e-3  # the test can fail
    if size == (256, 192):
        run.tile = (128, 128)
        counts = metrics.pixel_counts(untiled[None] > 0.5, run.image_probs(image)[None] > 0.5)
        assert metrics.dice(counts).item() > 0.99


@pytest.mark.slow
def test_several_images_are_predicted_as_each_alone(runs):
    for name in ("resized", "cropped"):
        run = Predictor(runs[name][1], runs[name][0])
        many = [picture(size, n, dtype=dtype) for n, (size, dtype) in enumerate(
            [((20, 33), np.uint8), ((70, 50), np.uint16), ((32, 32), np.uint8)])]
        for image, probs in zip(many, run.probs(many), strict=True):
            np.testing.assert_allclose(probs, run.image_probs(image), atol=2e-6)


@pytest.mark.slow
def test_views_are_a_mean_and_a_spread(runs):
    run = Predictor(runs["cropped"][1], runs["cropped"][0])
    image = picture((32, 32))
    views = []
    for flip in (lambda x: x, lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::-1, ::-1]):
        views.append(flip(run.image_probs(flip(image))))
    out = run.image_probs(image, PredictOptions(0, 0, "flips", True))
    np.testing.assert_allclose(out[..., :1], np.mean(views, 0), atol=2e-6)
    np.testing.assert_allclose(out[..., 1:], np.var(views, 0), atol=2e-6)
    with pytest.raises(InputError, match="--halo: this run sees an image as a whole"):
        Predictor(runs["resized"][1], runs["resized"][0]).check(PredictOptions(0, 8))


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_runs(runs):
    members = [Predictor(runs[name][1], runs[name][0]) for name in runs]
    image = picture((90, 70))
    each = [member.image_probs(image) for member in members]
    (out,) = Ensemble(members).probs([image], PredictOptions(uncertain=True))
    np.testing.assert_allclose(out[..., :1], np.mean(each, 0), atol=1e-6)
    np.testing.assert_allclose(out[..., 1:], np.var(each, 0), atol=1e-6)
    small = PredictOptions(uncertain=True, band_pixels=900)
    bands = list(Ensemble(members).bands(lazy.from_array(image), small))
    np.testing.assert_allclose(np.concatenate(bands), out, atol=2e-6)
    other = Predictor(runs["resized"][1], runs["resized"][0])
    other.config = other.config.copy_and_resolve_references()
    with other.config.unlocked():
        other.config.data.target = "contour"
    with pytest.raises(InputError, match="config.data.target is 'foreground' in one run"):
        Ensemble([members[0], other])


@pytest.mark.parametrize("others, refused", [(("b", "a"), True), (("a", "b"), False), ((), False)])
def test_classes_of_another_order_are_not_averaged(others, refused):
    members = [mock.Mock(config=config_lib.changed(config_lib.default(), {
        "data.name": "folder", "data.labels": "classes", "data.target": "classes",
        "data.num_classes": 3, "data.classes": names})) for names in (("a", "b"), others)]
    with (pytest.raises(InputError, match="classes are a, b in one run and b, a in another")
          if refused else contextlib.nullcontext()):
        Ensemble(members)


def test_probabilities_of_cells_and_of_membranes_are_not_averaged():
    members = [mock.Mock(config=config_lib.changed(config_lib.default(), {
        "data.name": "isbi2012", "data.foreground": foreground}))
        for foreground in ("cell", "membrane")]
    with pytest.raises(InputError, match="config.data.foreground is 'cell' in one run and 'membra"):
        Ensemble(members)
    members[0].config = config_lib.changed(config_lib.default(), {"data.name": "folder"})
    with pytest.raises(InputError, match="config.data.foreground is 'cell' in one run and 'membra"):
        Ensemble(members)


def test_runs_that_decode_in_other_ways_say_whose_counts(capsys):
    members = [mock.Mock(config=config_lib.changed(config_lib.default(), {
        "eval.threshold": threshold, "eval.nms": threshold, "eval.min_size": 5}))
        for threshold in (0.4, 0.5, 0.6)]
    segment._note_decoding(members)
    out, err = capsys.readouterr()
    assert (out + err).strip() == (
        "config.eval.threshold: is 0.4 in the first run, which counts, and 0.5, 0.6 in others; "
        "pass --config.eval.threshold=... to choose")


@pytest.mark.parametrize("target, options, count", [
    ("foreground", {"decode": "components"}, 87), ("foreground", {"decode": "watershed"}, 88),
    ("foreground", {"decode": "components", "min_size": 250}, 74), ("classes", {}, 1)])
def test_large_images_are_decoded_in_blocks(monkeypatch, target, options, count):
    """88 discs of 200 to 620 pixels, some of them on seams, two of which a bridge joins."""
    rows, columns = np.mgrid[:400, :300]
    probs = np.zeros((400, 300, 1 + (target == "classes")), np.float32)
    for n, (y, x) in enumerate(np.ndindex(11, 8)):
        radius = 8 + n % 7
        probs[(rows - 36 * y - 20) ** 2 + (columns - 36 * x - 24) ** 2 <= radius**2, -1] = 0.9
    probs[120:136, 60:96, -1] = 0.9  # a bridge on a seam
    run = Predictor.__new__(Predictor)
    run.config, run.target = tiny_config(), targets.TARGETS[target]
    run.config.data.target = target
    whole = run.decode(probs, **options)
    monkeypatch.setattr(stitch_labels, "MOST_VALUES", 0)
    monkeypatch.setattr(predictor, "IN_MEMORY_PIXELS", 400 * 300 - 1)
    blocks = run.decode(probs, **options)
    np.testing.assert_array_equal(in_reading_order(blocks), in_reading_order(whole))
    assert blocks.dtype == whole.dtype == np.int32
    assert whole.max() == count


@pytest.mark.parametrize("target, key, value", [
    ("contour", "threshold", 0.3), ("foreground", "nms", 0.2), ("star", "watershed_h", 2.0),
    ("distance", "decode", "components"), ("flow", "smooth", 0.0)])
def test_options_that_would_change_nothing_are_refused(tmp_path, target, key, value):
    config = config_lib.changed(config_lib.default(), {"data.target": target})
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    with pytest.raises(InputError, match=f"config.eval.{key}: nothing reads it in a run with"):
        run_config(tmp_path, [(f"eval.{key}", str(value))])
    assert run_config(tmp_path, [("eval.min_size", "7")]).eval.min_size == 7
    run = TrainedRun(mock.Mock(spec=["predictor"], predictor=mock.Mock(
        spec=["config", "workdir"], config=config, workdir=tmp_path)))
    with pytest.raises(InputError, match=f"config.eval.{key}: nothing reads it"):
        run.predict(np.zeros((8, 8), np.uint8), **{key: value})


@pytest.mark.weekly
@pytest.mark.parametrize("model", [
    dict(name="unetr", hidden_size=32, mlp_dim=32, num_layers=1, num_heads=2, feature_size=4),
    dict(name="unet_classic", channels=(4, 8), norm="instance"),
])
def test_what_looks_at_the_whole_image_has_no_halo_that_suffices(tmp_path, model):
    config = tiny_config(train__steps=2, data__fit="random_crop", data__channels="gray")
    with config.unlocked():
        config.model = model
    from cellseg_jax import config as config_lib

    config = config_lib.complete(config)
    train.train([config], [tmp_path])
    run, image = Predictor(tmp_path, config), picture((128, 128))
    with pytest.raises(InputError, match="--halo: .* leave --halo out"):
        run.network.reach()
    untiled = run.network(image[None], normalize.image_ranges(image, "minmax")[None])[0]
    cropped = run.image_probs(image, PredictOptions(1.0, 16))
    print(f"{model['name']}: halo 16 differs from untiled by", np.abs(cropped - untiled).max())
    assert cropped.shape == untiled.shape


@pytest.mark.parametrize("heights", [(7, 5, 8), (1,) * 20, (20,), (12, 8)])
def test_rows_of_bands_may_overlap_or_leave_a_gap(heights):
    whole = np.arange(60).reshape(20, 3)
    rows = Rows(np.split(whole, np.cumsum(heights)[:-1]))
    for start, stop in ((0, 3), (2, 9), (9, 12), (13, 15), (13, 20)):  # row 12 is not asked for
        np.testing.assert_array_equal(rows(start, stop), whole[start:stop])
        np.testing.assert_array_equal(rows(start, stop, np.s_[1:]), whole[start:stop, 1:])
