"""Classical methods on drawn cells, against slow twins, and as the model of a whole run."""

import json

import helpers_shapes
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from helpers import tiny_config
from scipy import ndimage
from scipy.stats import multivariate_normal
from skimage.filters import threshold_otsu

from cellseg_jax import classical, cli, data, main, models, predict, train
from cellseg_jax import config as config_lib
from cellseg_jax.classical import CLASSICAL
from cellseg_jax.config.derived import model_options
from cellseg_jax.errors import InputError
from cellseg_jax.inference import evaluate
from cellseg_jax.step.programs import check_model

WITH_POLARITY = [name for name in CLASSICAL if name != "sobel"]
DISCS = [(20, 22, 10), (50, 60, 12), (20, 70, 9), (70, 22, 11), (50, 38, 11), (80, 84, 8)]


def drawn(colours, noise, size=(96, 101), dtype=np.uint8):
    """(truth, image): discs of the second colour on the first, two of which touch."""
    rows, columns = np.indices(size)
    truth = np.any([(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in DISCS], 0)
    image = np.where(truth[..., None], colours[1], colours[0])
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return truth, image.clip(0, np.iinfo(dtype).max).astype(dtype)


def fluorescence(noise=12):
    return drawn(([20], [140]), noise)


def stained(noise=12):
    return drawn(([235, 215, 230], [110, 60, 150]), noise)


def dice(truth, mask):
    return 2 * (truth & mask).sum() / (truth.sum() + mask.sum())


@pytest.mark.parametrize("image", [fluorescence, stained])
@pytest.mark.parametrize("name,least", [
    ("otsu", 0.99), ("kmeans", 0.99), ("mrf", 0.99), ("watershed", 0.98), ("sobel", 0.75)])
def test_every_method_finds_drawn_cells(name, least, image):
    truth, image = image()
    mask = CLASSICAL[name](image)
    assert mask.dtype == bool and mask.shape == truth.shape
    assert dice(truth, mask) > least


# --- polarity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_POLARITY)
def test_polarity_says_which_class_is_foreground(name):
    truth, image = stained()
    dark, bright = (CLASSICAL[name](image, polarity=p) for p in ("dark", "bright"))
    assert dice(truth, dark) > 0.98 and dice(~truth, bright) > 0.98
    np.testing.assert_array_equal(CLASSICAL[name](255 - image, polarity="bright"), dark)


@pytest.mark.parametrize("name", WITH_POLARITY)
def test_auto_takes_the_class_that_is_rarer_at_the_border(name):
    image = np.full((12, 12), 200, np.uint8)
    image[2:10, 2:10] = 50  # dark, most of the image, none of its border
    assert CLASSICAL[name](image)[6, 6] and CLASSICAL[name](255 - image)[6, 6]
    image[:, :8], image[:, 8:] = 50, 200  # now most of the border as well
    mask = CLASSICAL[name](image)
    assert not mask[:, :6].any() and mask[:, 10:].all()
    halves = np.repeat([[50, 200]], 6, 1) * np.ones((12, 1), int)
    assert CLASSICAL[name](halves)[6, 1], "of equals the darker"


# --- odd images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSICAL)
def test_one_colour_has_no_cells(name):
    for colour in (0, 255, [7], [10, 201, 33], [10, 201, 33, 99]):
        image = np.broadcast_to(np.array(colour, np.uint8), (9, 8, np.size(colour)))
        assert not CLASSICAL[name](image).any()


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2, 3), (7, 1, 4), (3, 3, 1)])
def test_tiny_images(name, shape):
    image = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    assert CLASSICAL[name](image).shape == shape[:2]


@pytest.mark.parametrize("name", WITH_POLARITY)
def test_foreground_everywhere_but_one_pixel(name):
    image = np.full((9, 9), 30, np.uint8)
    image[4, 4] = 220
    uncut = {"h": 9.0} if name == "watershed" else {}
    mask = CLASSICAL[name](image, polarity="dark", sigma=0.0, **uncut)
    assert not mask[4, 4] and mask.sum() >= (72 if uncut else 80)


@pytest.mark.parametrize("name", CLASSICAL)
def test_alpha_is_not_read_and_gray_may_lack_its_channel(name):
    _, image = stained()
    alpha = np.random.default_rng(2).integers(0, 255, image[..., :1].shape).astype(np.uint8)
    expected = CLASSICAL[name](image)
    np.testing.assert_array_equal(CLASSICAL[name](np.concatenate([image, alpha], -1)), expected)
    gray = fluorescence()[1]
    np.testing.assert_array_equal(CLASSICAL[name](gray[..., 0]), CLASSICAL[name](gray))


@pytest.mark.parametrize("name", CLASSICAL)
def test_scale_and_offset_change_nothing(name):
    _, image = stained()
    np.testing.assert_array_equal(
        CLASSICAL[name](image.astype(np.uint16) * 128 + 1000), CLASSICAL[name](image))


@pytest.mark.parametrize("name,options,message", [
    ("otsu", {"sigma": -1.0}, "sigma: got -1.0; expected at least 0"),
    ("mrf", {"beta": -0.5}, "beta: got -0.5"),
    ("watershed", {"band": float("nan")}, "band: got nan"),
    ("sobel", {"closing": -1}, "closing: got -1"),
    ("kmeans", {"polarity": "drak"}, "polarity: got 'drak'.*did you mean dark")])
def test_rejects_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        CLASSICAL[name](np.eye(4), **options)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 5), (2, 4, 4, 1), (0, 4)])
def test_rejects_what_is_no_image(shape):
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match=r"expected \(H, W, C\)"):
        classical.otsu(np.zeros(shape))


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_value_that_is_no_number_is_refused_and_does_not_empty_the_image(name):
    image = np.zeros((9, 9, 2))
    image[3:6, 3:6, 0] = 1
    image[0, 0, 1] = np.nan  # of alpha, which is not read
    CLASSICAL[name](image)
    for value in (np.nan, np.inf):
        image[8, 8, 0] = value
        with pytest.raises(ValueError, match="image: 1 values are NaN or infinite"):
            CLASSICAL[name](image)


# --- slow twins ----------------------------------------------------------------------------------


def test_otsu_matches_skimage_where_bins_are_values():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image = rng.integers(*sorted(rng.choice(256, 2, replace=False)), (40, 30)).astype(np.uint8)
        expected = image > threshold_otsu(image)
        np.testing.assert_array_equal(classical.otsu(image, polarity="bright"), expected)


def test_otsu_minimises_the_variance_within():
    rng = np.random.default_rng(3)
    image = rng.integers(100, 400, (12, 11)).astype(np.uint16)
    within = {t: sum(part.size * part.var() for part in (image[image <= t], image[image > t]))
              for t in np.unique(image)[:-1]}
    best = min(within, key=within.get)
    np.testing.assert_array_equal(classical.otsu(image, polarity="bright"), image > best)


@pytest.mark.parametrize("name", classical.CLASSICAL)
@pytest.mark.parametrize("value", [65535, 0])
def test_one_hot_or_dead_pixel_is_not_what_is_found(name, value):
    truth, image = fluorescence(noise=40)
    image = (image.astype(np.uint16) + 1000) * 4
    expected = classical.CLASSICAL[name](image)
    image[2, 2] = value  # in the background
    found = classical.CLASSICAL[name](image)
    assert expected.sum() > 50 and np.count_nonzero(found != expected) < 25  # of its surroundings


def test_kmeans_is_otsu_on_gray():
    _, image = fluorescence(noise=40)
    np.testing.assert_array_equal(classical.kmeans(image), classical.otsu(image))


def test_kmeans_leaves_every_pixel_with_the_nearer_mean():
    _, image = drawn(([120, 40, 90], [120, 90, 40]), 12)  # hues that luminance hardly tells apart
    mask = classical.kmeans(image, polarity="bright")
    pixels = image.astype(float)
    for cluster in (mask, ~mask):
        own, other = pixels[cluster].mean(0), pixels[~cluster].mean(0)
        assert (np.linalg.norm(pixels[cluster] - own, axis=-1)
                <= np.linalg.norm(pixels[cluster] - other, axis=-1)).all()
    truth = drawn(([0], [1]), 0)[0]
    assert dice(truth, classical.kmeans(image)) > 0.98 > 0.9 > dice(truth, classical.otsu(image))


def slow_minimised(cost, label, beta):
    """ICM pixel by pixel, black squares first."""
    label = label.copy()
    height, width = label.shape
    for _ in range(100):
        before = label.copy()
        for parity in (0, 1):
            for y, x in np.ndindex(height, width):
                if (y + x) % 2 != parity:
                    continue
                energy = [0.0, cost[y, x]]
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        energy[1 - label[y + dy, x + dx]] += beta
                if energy[0] != energy[1]:
                    label[y, x] = energy[1] < energy[0]
        if (before == label).all():
            return label
    raise AssertionError("did not settle")


@pytest.mark.parametrize("beta", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(13, 16), (1, 9), (8, 1)])
def test_mrf_minimises_as_a_loop_over_pixels_does(shape, beta):
    rng = np.random.default_rng(4)
    cost = rng.normal(0, 3, shape).round(1)
    label = rng.random(shape) < 0.5
    fast = classical._minimised(cost, label, beta)
    np.testing.assert_array_equal(fast, slow_minimised(cost, label.astype(int), beta) == 1)


def test_mrf_cost_is_the_density_of_a_gaussian():
    _, image = stained()
    colours = image[:9, :7].astype(float)
    members = colours[colours[..., 1] > 210]
    floor = 0.5 * np.eye(3)
    gaussian = multivariate_normal(members.mean(0), np.cov(members.T, bias=True) + floor)
    np.testing.assert_allclose(classical._negative_log_likelihood(colours, members, floor),
                               -gaussian.logpdf(colours) - 1.5 * np.log(2 * np.pi))


def test_mrf_smooths_what_kmeans_leaves_noisy():
    truth, image = fluorescence(noise=60)
    alone, smooth = classical.kmeans(image), classical.mrf(image, beta=1.5)
    assert dice(truth, smooth) > dice(truth, alone) + 0.05
    assert ndimage.label(smooth)[1] < ndimage.label(alone)[1] / 2


def test_watershed_cuts_cells_that_touch():
    truth, image = fluorescence()
    assert ndimage.label(truth)[1] == ndimage.label(classical.otsu(image))[1] == 5
    assert ndimage.label(classical.watershed(image))[1] == 6


def test_watershed_moves_the_border_onto_the_edge():
    truth, _ = drawn(([0], [1]), 0)
    bright = truth & (np.indices(truth.shape)[0] < 35)  # where the one threshold is too low
    image = ndimage.gaussian_filter(60.0 * truth + 100.0 * bright, 2)
    assert dice(truth, classical.watershed(image, sigma=0.0)) > 0.96
    assert dice(truth, classical.otsu(image)) < 0.9


def test_sobel_fills_what_edges_enclose():
    truth, image = drawn(([20], [140]), 0)
    mask = classical.sobel(image, sigma=0.0, closing=0)
    inside = ndimage.binary_erosion(truth)
    outside = ~ndimage.binary_dilation(truth, np.ones((3, 3)))
    outside[80:, 80:] = inside[80:, 80:] = False
    assert mask[inside].all() and not mask[outside].any()
    cut = classical.sobel(image[20:], sigma=0.0, closing=0)  # the border opens the first disc
    assert not cut[2, 22] and cut[50, 22]


# --- as a model ----------------------------------------------------------------------------------

CONFIG = """
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(32, 32), count=20, image_size=(40, 48), {keys})
    config.model = dict(name="otsu")
    config.eval.panels = 1
    return config
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """main.main of a config of Otsu, with other keys of data, on the command line."""
    monkeypatch.chdir(tmp_path)

    def run(keys, *arguments):
        (tmp_path / "classic.py").write_text(CONFIG.format(keys=keys))
        return cli.run_command(
            main.main, main.define_flags, ["main", "--config=classic.py", *arguments])

    return run


@pytest.mark.parametrize("keys", [
    "fit='center_crop', target='boundary'", "grid=2, channels='gray'"])
def test_main_scores_a_classical_method_as_it_does_a_network(run, tmp_path, capsys, keys):
    assert run(keys) == 0
    assert "otsu learns nothing" in capsys.readouterr().err
    folder = tmp_path / "runs/classic"
    scores = json.loads((folder / "eval/test.json").read_text())
    assert scores["checkpoint_step"] == 0 and "loss" not in scores["metrics"]
    assert scores["metrics_original_size"]["dice_mean"] > 0.5
    rows = (folder / "eval/test_images.csv").read_text().splitlines()
    assert "loss" not in rows[0] and len(rows) == 1 + scores["n_images"]
    assert len(list((folder / "eval/test_predictions").glob("*.png"))) == 1
    page = (folder / "report.html").read_text()
    assert "otsu, which learns nothing," in page and "checkpoint of step" not in page
    when = lambda: {name: (folder / name).stat().st_mtime_ns for name in (
        "eval/test.json", "result.json", "environment.json", "split.json")}
    made = when()
    assert run(keys) == 0
    assert when() == made, "made and scored before"
    assert run(keys, "--config.model.polarity=dark") == 2
    assert "model.polarity was 'auto'" in capsys.readouterr().err


def test_scores_equal_those_of_the_method_alone(tmp_path):
    config = tiny_config(data__cache=str(tmp_path), data__split=(0.5, 0.0, 0.5))
    with config.unlocked():
        config.model = dict(name="kmeans", polarity="auto", sigma=1.0)
    config = config_lib.complete(config)
    assert train.train([config], [tmp_path / "run"])[0].status == "done"
    result = evaluate.evaluate(config, tmp_path / "run")
    arrays = data.load(config.data)
    one = [dice(arrays.label[i] > 0, classical.kmeans(arrays.image[i], sigma=1.0))
           for i in data.split_of(config.data, arrays)["test"]]
    assert result["n_images"] == 20
    assert result["metrics"]["dice_mean"] == pytest.approx(np.mean(one), abs=1e-6)


def test_predict_segments_with_a_classical_run(run, tmp_path):
    assert run("fit='center_crop'") == 0
    truth, image = stained()
    (tmp_path / "in").mkdir()
    iio.imwrite(tmp_path / "in/a.png", image)
    assert cli.run_command(predict.main, predict.define_flags, [
        "predict", "--workdir=runs/classic", "--images=in", "--out=out"]) == 0
    label = tifffile.imread(tmp_path / "out/a_label.tif")
    assert dice(truth, label > 0) > 0.99 and label.max() >= 6


def test_describe_tells_what_the_method_does(run, capsys):
    assert run("", "--mode=describe") == 0
    assert "Otsu 1979" in capsys.readouterr().out


@pytest.mark.parametrize("overrides,message", [
    ({"model.polarity": "black"}, "config.model.polarity: got 'black'; expected one of auto"),
    ({"model.sigma": "-2"}, "config.model.sigma: got -2.0; expected at least 0")])
def test_bad_options_are_one_line(overrides, message, tmp_path):
    config = config_lib.default()
    config.model.name = "otsu"
    config = config_lib.override(config_lib.complete(config), overrides)
    with pytest.raises(InputError, match=message):
        check_model(config)


def test_targets_of_several_outputs_are_refused():
    config = config_lib.default()
    config.model.name, config.data.target = "mrf", "contour"
    with pytest.raises(InputError, match="config.data.target: got 'contour'.*which is what mrf"):
        config_lib.complete(config)


def test_unknown_model_names_networks_and_methods():
    with pytest.raises(InputError, match="config.model.name: got 'otzu'.*unet.*did you mean otsu"):
        model_options("otzu")
    assert not set(models.MODELS) & set(CLASSICAL)
