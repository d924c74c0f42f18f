"""Augmentations: scipy and scikit-image as references, image and label stay aligned."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
import skimage.exposure
import skimage.filters
from scipy import ndimage

from cellseg_jax import augment, crops
from cellseg_jax.augment import AUGMENTATIONS, GEOMETRIC, INTENSITY, Draw, geometric, intensities
from cellseg_jax.augment.draws import draws
from cellseg_jax.augment.smoothing import smoothing

POSES = {"flip_horizontal": (0.5, 1.0), "flip_vertical": (0.5, 1.0), "turn": (0.5, 3.0)}
STRONG = {
    "flip_horizontal": 1, "flip_vertical": 1, "turn": 3, "rotation": 60, "zoom": 0.4,
    "zoom_in": 0.3, "shear": 15, "shift": 0.4, "elastic": 20, "brightness": 0.5, "contrast": 0.5,
    "gamma": 1, "colour_jitter": 0.3, "rgb_shift": 0.3, "blur": 1.5, "noise": 0.2,
}
KEY = jax.random.key(0)
U = jnp.array([0.7, 0.2, 0.9, 0.4], jnp.float32)
DRAW = Draw(KEY, U)


def sample(height=6, width=6):
    """Every pixel of image, label and weight tells where it came from."""
    label = np.arange(height * width, dtype=np.int32).reshape(height, width)
    image = np.stack([label, 255 - label], -1).astype(np.uint8)
    return {"image": image, "label": label, "pixel_weight": label.astype(np.float16), "id": 7}


def keys(n):
    return jax.random.split(KEY, n)


@jax.jit
def _warped(keys, start, settings):
    return jax.vmap(lambda key: augment.warp(key, start, settings))(keys)


def warped(keys, start, settings):
    """One start, as many draws as keys, in numpy."""
    return jax.device_get(_warped(keys, start, settings))


@jax.jit
def coloured(key, image, settings):
    return augment.intensity(key, image, settings)


@jax.jit
def traced_labels(settings):
    """(64, H, W) labels of as many draws, by settings that are traced."""
    return jax.vmap(lambda key: augment.warp(key, sample(), settings)["label"])(keys(64))


def labels(settings, n=64, **size):
    """The same by settings that are Python numbers."""
    label = lambda key: augment.warp(key, sample(**size), settings)["label"]
    return np.asarray(jax.jit(jax.vmap(label))(keys(n)))


@jax.jit
def elastic_fields(keys, sigma):
    """Displacements (down, right), each (n, 121, 118)."""
    return jax.vmap(lambda key: geometric.elastic(Draw(key, U), 1.0, (121, 118), sigma))(keys)


# Whole pixels


@pytest.mark.parametrize(
    "name, expected",
    [("flip_horizontal", np.fliplr), ("flip_vertical", np.flipud), ("turn", np.rot90)])
def test_whole_pixel_equals_hand_value(name, expected):
    out = warped(keys(1), sample(), {name: (1.0, 1.0)})
    for entry in ("image", "label", "pixel_weight"):
        assert out[entry].dtype == sample()[entry].dtype
        np.testing.assert_array_equal(out[entry][0], expected(sample()[entry]))
    assert out["id"] == 7


@pytest.mark.slow
def test_poses_are_all_drawn_and_only_those():
    label = sample()["label"]
    poses = {np.rot90(x, k).tobytes() for x in (label, label.T) for k in range(4)}
    drawn = np.asarray(traced_labels(POSES))  # 64 draws miss one pose with p < 2%, this key none
    assert {x.tobytes() for x in drawn} == poses
    turned = {np.rot90(label, k).tobytes() for k in range(1, 4)}
    assert {x.tobytes() for x in labels({"turn": (1.0, 3)})} == turned


def test_probability_is_the_share_that_changes():
    flipped = (labels({"flip_vertical": (0.3, 1)}, n=2000) != sample()["label"]).any((1, 2))
    assert abs(flipped.mean() - 0.3) < 0.04  # four standard deviations


def test_absent_neighbours_and_python_numbers_change_no_draw():
    flips = {name: pair for name, pair in POSES.items() if name != "turn"}
    np.testing.assert_array_equal(labels(flips), traced_labels(POSES | {"turn": (0.0, 3.0)}))


def test_turn_of_oblong_images_is_the_half_turn():
    half = labels({"turn": (1.0, 3)}, n=2, height=4, width=7)
    np.testing.assert_array_equal(half[1], sample(4, 7)["label"][::-1, ::-1])


# All warps


def draw_of(name, key):
    """The numbers that `name` draws from the sample's key, by the rule the module states."""
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return np.asarray(jax.random.uniform(own, (5,), jnp.float32), np.float64)[1:], own


def reference_field(own, size, sigma):
    """(2, H, W) of elastic: scipy's filter of the mirrored numbers, where they are 1 pixel apart;
    else the sum over all of them and their mirror images."""
    spacing = max(s for s in geometric.SPACINGS if s == 1 or s <= sigma)
    cells = -(-np.array(size) // spacing)
    count = 2 * cells.prod()
    bits = np.asarray(jax.random.bits(jax.random.fold_in(own, 1), (-(-count // 4),), jnp.uint32))
    level = np.ravel(bits[:, None] >> np.arange(0, 32, 8) & 255)[:count]
    numbers = (level / 127.5 - 1).reshape(2, *cells)
    if spacing == 1:
        return np.stack([ndimage.gaussian_filter(f, sigma) for f in numbers])
    numbers = np.pad(numbers, ((0, 0), *((n, n) for n in cells)), mode="symmetric")
    for axis, n in enumerate(size, 1):
        place = spacing * (np.arange(-cells[axis - 1], 2 * cells[axis - 1]) + 0.5) - 0.5
        distance = np.arange(n)[:, None] - place
        weight = np.exp(-0.5 * (distance / sigma) ** 2) * (abs(distance) <= int(4 * sigma + 0.5))
        weight /= weight.sum(1, keepdims=True)
        numbers = np.moveaxis(np.tensordot(weight, numbers, (1, axis)), 0, axis)
    return numbers / spacing


def reference_places(names, key, size, sigma):
    """Where each output pixel comes from: one augmentation after the other, in float64."""
    centre = (np.array(size) - 1)[:, None, None] / 2
    place = np.mgrid[: size[0], : size[1]] - centre
    for name in reversed([name for name in GEOMETRIC if name in names]):
        (u, own), s = draw_of(name, key), STRONG[name]
        y, x = place
        if name == "flip_horizontal":
            place = np.stack([y, -x])
        elif name == "flip_vertical":
            place = np.stack([-y, x])
        elif name in ("turn", "rotation"):
            angle = (2 * u[0] - 1) * np.deg2rad(s)
            if name == "turn":
                square = size[0] == size[1]
                angle = np.pi / 2 * (np.floor(u[0] * s) + 1 if square else 2)
            place = np.stack([y * np.cos(angle) + x * np.sin(angle),
                              x * np.cos(angle) - y * np.sin(angle)])
        elif name == "zoom":
            place = place / (1 + s) ** (1 - 2 * u[0])
        elif name == "zoom_in":
            place = place / (1 + s) ** u[0]
        elif name == "shear":
            slope = np.tan(np.deg2rad((2 * u - 1) * s))
            place = np.stack([y + slope[0] * x, x + slope[1] * y])
        elif name == "shift":
            place = np.stack([y + (2 * u[0] - 1) * s * size[0], x + (2 * u[1] - 1) * s * size[1]])
        else:
            place = place + s * reference_field(own, size, sigma)
    return place + centre


def start_of(size, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, np.iinfo(dtype).max, (*size, 3)).astype(dtype),
            "label": rng.integers(0, 500, size).astype(np.uint16),
            "pixel_weight": rng.uniform(1, 11, size).astype(np.float16)}


def only(names, sigma):
    """Settings of all warps, those not in `names` off by a traced 0: one program for all."""
    return {n: (float(n in names), float(STRONG[n])) for n in GEOMETRIC} | {"elastic_sigma": sigma}


@pytest.mark.parametrize("size, sigma, dtype", [
    ((21, 30), 2.0, np.uint8),
    pytest.param((16, 16), 4.0, np.uint16, marks=pytest.mark.slow),
    pytest.param((1, 5), 0.25, np.uint8, marks=pytest.mark.slow)])
def test_warp_matches_scipy(size, sigma, dtype):
    start, largest = start_of(size, dtype), np.iinfo(dtype).max
    sample_ = lambda x, places, order: ndimage.map_coordinates(
        x.astype(float), places, order=order, mode="mirror")
    for names in [GEOMETRIC, *([name] for name in GEOMETRIC)]:
        out = warped(keys(4), start, only(names, sigma))
        assert out["image"].dtype == np.float32
        assert out["label"].dtype == np.uint16 and out["pixel_weight"].dtype == np.float16
        for row in range(4):
            places = reference_places(names, keys(4)[row], size, sigma)
            for c in range(3):  # float32 places are good to 1e-6 of the side
                np.testing.assert_allclose(
                    out["image"][row, ..., c] / largest,
                    sample_(start["image"][..., c], places, 1) / largest, atol=1e-5)
            np.testing.assert_allclose(  # to the precision of float16
                out["pixel_weight"][row], sample_(start["pixel_weight"], places, 1), rtol=1e-3)
            tie = (np.abs(places % 1 - 0.5) < 1e-4).any(0)  # may fall to either pixel
            np.testing.assert_array_equal(
                out["label"][row][~tie], sample_(start["label"], places, 0)[~tie])


@pytest.mark.parametrize("sigma", [4.0, *(pytest.param(s, marks=pytest.mark.slow)
                                         for s in (3.9, 8.0, 14.0))])
def test_elastic_field_matches_its_sum_and_the_statistics_of_simard(sigma):
    """Standard deviation 0.163 / sigma at every pixel, correlation exp(-d^2 / (4 sigma^2))."""
    fields = np.stack(elastic_fields(keys(256), sigma), 1)
    for row in (0, 1):
        expected = reference_field(keys(256)[row], (121, 118), sigma)
        np.testing.assert_allclose(fields[row], expected, atol=1e-5 * expected.std())
    far = fields[..., 40:-40, 40:-40].astype(np.float64)  # the mirrors double the border's variance
    variance = (far**2).mean()
    # 256 draws of two fields of few independent pixels: four standard deviations are 8 %.
    assert abs(np.sqrt(variance) * sigma / (12**-0.5 / np.pi**0.5) - 1) < 0.02 * sigma**0.5
    for distance in (int(sigma), int(2 * sigma)):
        for moved, stayed in ((far[..., distance:], far[..., :-distance]),
                              (far[..., distance:, :], far[..., :-distance, :])):
            expected = np.exp(-((distance / sigma) ** 2) / 4)
            assert abs((moved * stayed).mean() / variance - expected) < 0.05


@pytest.mark.slow
def test_elastic_field_has_one_standard_deviation_whatever_the_spacing():
    """Exactly, from the matrices: that of a pixel is the norm of its row of weights."""
    for spacing in geometric.SPACINGS:
        for sigma in (max(spacing, 2), 1.7 * max(spacing, 2)):
            norm = np.linalg.norm(smoothing(200, sigma, spacing)[80:120], axis=1)
            expected = (2 * np.pi**0.5 * sigma) ** -0.5
            np.testing.assert_allclose(norm / spacing**0.5, expected, rtol=5e-4)


def test_traced_zero_is_identity():
    start = start_of((21, 30))
    normalised = np.float32(start_of((8, 8))["image"]) / 200 - 0.1
    normalised = np.concatenate([normalised, normalised[..., :1]], -1)
    out = warped(keys(4), start, only((), 2.0))
    out_1 = warped(keys(4), start, {n: (1.0, 0.0) for n in GEOMETRIC} | {"elastic_sigma": 2.0})
    for entry, value in start.items():
        np.testing.assert_array_equal(out[entry], np.stack([value] * 4))
        np.testing.assert_array_equal(out_1[entry], np.stack([value] * 4))
    for zero in ((0.0, 0.3), (1.0, 0.0)):
        settings = dict.fromkeys(INTENSITY, zero)
        np.testing.assert_array_equal(coloured(KEY, normalised, settings), normalised)


def test_python_zero_compiles_nothing():
    settings = {name: (0.0, 1) for name in AUGMENTATIONS}
    assert not jax.make_jaxpr(lambda key: augment.warp(key, sample(), settings)["image"])(KEY).eqns
    image = jnp.zeros((6, 6, 3))
    assert not jax.make_jaxpr(lambda key: augment.intensity(key, image, settings))(KEY).eqns


def test_warp_keeps_label_and_image_aligned():
    """The label warped as an image says the same as the warped label, at edges too."""
    y, x = np.mgrid[:21, :30]
    label = np.where(np.hypot(y - 9, x - 13) < 7, 5, 0).astype(np.uint16)
    start = {"image": np.stack([label * 40] * 3, -1).astype(np.uint8), "label": label,
             "pixel_weight": label.astype(np.float16)}
    names = ("rotation", "zoom_in", "shear", "shift", "elastic")
    draws = []
    for seed in range(5):
        many = jax.random.split(jax.random.key(seed), 4)
        out = warped(many, start, only(names, 4.0))
        inside, soft = out["label"] == 5, out["image"][..., 0] / 200
        assert set(np.unique(out["label"])) == {0, 5}
        assert (inside == (soft > 0.5)).mean() > 0.98  # the two differ in corners of outlines
        assert inside[soft > 0.99].all() and not inside[soft < 0.01].any()
        np.testing.assert_allclose(out["pixel_weight"], 5 * soft, atol=1e-2)
        draws += list(np.asarray(inside.sum((1, 2))))
    assert len(set(draws)) > 10  # each draw is another one, and the same key gives the same
    again = warped(many, start, only(names, 4.0))
    np.testing.assert_array_equal(again["image"], out["image"])


@pytest.mark.parametrize("settings", [
    {"rotation": (1, 180)}, {"zoom": (1, 3.0)}, {"shift": (1, 1.0)},
    pytest.param({"shear": (1, 40), "elastic": (1, 40), "elastic_sigma": 4.0},
                 marks=pytest.mark.slow)])
def test_mirrored_copies_of_instances_are_instances(settings):
    """As connected pieces are: of cells inside the image, and of some that a mirror cuts."""
    label = np.zeros((40, 50), np.uint16)
    for n, (y, x) in enumerate(((6, 8), (5, 30), (20, 20), (33, 9), (32, 41), (18, 40)), 1):
        label[y - 3 : y + 3, x - 3 : x + 4] = 9 * n
    label[14:24, :6], label[:3, 17:23], label[:7, 45:] = 7, 8, 65000
    start = {"image": label[..., None], "label": label}
    keys = jax.random.split(KEY, 12)
    joined, apart = (np.asarray(jax.jit(jax.vmap(lambda key, own=own: augment.warp(
        key, start, settings, copies_apart=own)["label"]))(keys)) for own in (False, True))
    assert joined.dtype == np.uint16 and apart.dtype == np.int32
    more = 0
    for before, after in zip(joined, apart, strict=True):
        pieces = sum(ndimage.label(before == i, np.ones((3, 3)))[1] for i in np.unique(before)[1:])
        np.testing.assert_array_equal(before > 0, after > 0)
        ids = np.unique(after)[1:]
        assert all(len(np.unique(before[after == i])) == 1 for i in ids)
        # The border of the view may cut the way between two pieces of one instance.
        assert pieces - 2 <= len(ids) <= pieces
        more += len(ids) - len(np.unique(before)[1:])
    assert more > 12


def test_mirrored_copies_are_the_same_in_patches_of_an_image():
    label = np.zeros((24, 36), np.int32)
    label[5:9, 6:11], label[14:20, 20:26], label[:4, 25:30], label[22, 3:5] = 3, 900, 7, 5
    start, settings = {"image": label[..., None], "label": label}, {"shift": (1, 0.8)}
    stored = {name: crops.to_grid(values, 3) for name, values in start.items()}
    warp = lambda *given: augment.warp(*given, copies_apart=True)["label"]
    whole = jax.jit(lambda key: warp(key, start, settings))
    cut = jax.jit(jax.vmap(lambda key, cell: warp(
        key, stored, settings, augment.Patch(3, jnp.uint32(0), cell)), (None, 0)))
    for key in jax.random.split(KEY, 5):
        for one, other in zip(crops.to_grid(np.asarray(whole(key)), 3),
                              np.asarray(cut(key, jnp.arange(9))), strict=True):
            pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
            assert len(pairs) == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.slow
def test_there_are_no_other_ids_beside_very_large_ones():
    label = np.zeros((24, 36), np.int32)
    label[5:9, 6:11] = 2**31 - 1
    start, settings = {"image": label[..., None], "label": label}, {"shift": (1, 0.8)}
    one, other = (augment.warp(KEY, start, settings, copies_apart=apart)["label"]
                  for apart in (False, True))
    np.testing.assert_array_equal(one, other)


def test_draws_are_the_same_under_x64(float64):
    settings = only(GEOMETRIC, 2.0)
    drawn = jax.jit(lambda: draws(KEY, list(GEOMETRIC), settings))()
    for name, (strength, draw) in drawn.items():
        assert strength.dtype == draw.u.dtype == np.float32
        np.testing.assert_array_equal(draw.u, np.float32(draw_of(name, KEY)[0]))
    start = {"image": np.zeros((4, 4, 1), np.uint8)}
    settings = {"rotation": (jnp.float64(1), jnp.float64(30))}
    assert jax.eval_shape(_warped, keys(1), start, settings)["image"].dtype == np.float32
    image = jnp.ones((4, 4, 3), jnp.float64)
    out = jax.eval_shape(coloured, KEY, image, {name: (1.0, 0.5) for name in INTENSITY})
    assert out.dtype == np.float64


# Colours


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(0, 1, (20, 26, 3)).astype(np.float32)


def test_colours_equal_hand_values(image):
    out = {name: np.asarray(jax.jit(INTENSITY[name])(DRAW, STRONG[name], image)) for name in
           ("brightness", "contrast", "rgb_shift")}
    np.testing.assert_allclose(out["brightness"], image * 1.2, rtol=1e-6)
    mean = image.mean()
    np.testing.assert_allclose(out["contrast"], mean + (image - mean) * 1.2, atol=1e-6)
    np.testing.assert_allclose(out["rgb_shift"] - image, np.broadcast_to(
        [0.12, -0.18, 0.24], image.shape), atol=1e-6)


def test_gamma_matches_skimage(image):
    expected = skimage.exposure.adjust_gamma(image, 2**0.4)
    np.testing.assert_allclose(intensities.gamma(DRAW, 1.0, image), expected, atol=1e-5)
    assert (intensities.gamma(DRAW, 1.0, image - 2) == 0).all()


def test_blur_matches_skimage(image):
    expected = skimage.filters.gaussian(image, 0.7 * 1.5, mode="reflect", channel_axis=-1)
    np.testing.assert_allclose(jax.jit(intensities.blur)(DRAW, 1.5, image), expected, atol=1e-5)


def test_saturation_and_hue_match_skimage(image):
    image[0, 0], image[0, 1] = 0.3, (0.5, 0.5, 0.1)  # gray, and two channels alike
    for factor, turns in ((0.6, 0.21), (1.7, -0.4), (0.0, 0.5)):
        hsv = skimage.color.rgb2hsv(image)
        hsv[..., 0] = (hsv[..., 0] + turns) % 1
        hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
        out = jax.jit(intensities._saturation_hue)(image, factor, turns)
        np.testing.assert_allclose(out, skimage.color.hsv2rgb(hsv), atol=1e-5)


def test_colour_jitter_is_its_four_parts(image):
    jitter = jax.jit(intensities.colour_jitter)
    parts = image * (1 + 0.3 * 0.4)
    parts = parts.mean() + (parts - parts.mean()) * (1 - 0.3 * 0.6)
    expected = jax.jit(intensities._saturation_hue)(parts, 1 + 0.3 * 0.8, -0.3 * 0.2)
    np.testing.assert_allclose(jitter(DRAW, 0.3, image), expected, atol=1e-5)
    np.testing.assert_allclose(  # gray has neither saturation nor hue
        jitter(DRAW, 0.3, parts[..., :1]), intensities.contrast(
            Draw(KEY, U[1:]), 0.3, intensities.brightness(DRAW, 0.3, parts[..., :1])), atol=1e-6)


def test_noise_is_gaussian():
    noise = np.asarray(jax.jit(intensities.noise)(DRAW, 0.2, np.zeros((100, 100, 3), np.float32)))
    assert abs(noise.std() / (0.7 * 0.2) - 1) < 0.02 and abs(noise.mean()) < 0.004
    assert abs((np.abs(noise) < 0.7 * 0.2).mean() - 0.683) < 0.01
    z = np.moveaxis(noise / (0.7 * 0.2), -1, 0)
    assert np.isfinite(z).all() and abs((z**4).mean() - 3) < 0.15
    for one, other in ((z[0], z[1]), (z[:, 1:], z[:, :-1]), (z[..., 1:], z[..., :-1])):
        assert abs((one * other).mean()) < 0.04  # four standard deviations of 10,000 draws


@pytest.mark.parametrize("channels", [1, 4])
def test_colour_leaves_alpha_and_keeps_the_dtype(channels):
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, channels)).astype(np.float32)
    settings = {name: (1.0, float(STRONG[name])) for name in INTENSITY}
    out = coloured(KEY, image, settings)
    assert out.shape == image.shape and out.dtype == np.float32
    assert (np.asarray(out[..., :3]) != image[..., :3]).mean() > 0.9
    np.testing.assert_array_equal(out[..., 3:], image[..., 3:])
    assert jax.eval_shape(coloured, KEY, jnp.bfloat16(image), settings).dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, coloured(KEY, image, settings))


@pytest.mark.parametrize("channels", [
    2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_all_of_chosen_channels_change(channels):
    image = np.random.default_rng(0).uniform(0.1, 1, (8, 8, channels)).astype(np.float32)
    for name in INTENSITY:
        settings = {name: (1.0, float(STRONG[name]))}
        out = np.asarray(augment.intensity(KEY, image, settings, channels))
        assert all((out[..., c] != image[..., c]).any() for c in range(channels)), name


@pytest.mark.parametrize("channels", [3, 4, 5, 8])
def test_shifts_do_not_depend_on_whether_they_are_applied(channels):
    image = np.full((1, 1, channels), 0.5, np.float32)
    moved = np.asarray(jax.vmap(lambda key: augment.intensity(
        key, image, {"rgb_shift": (0.3, 0.2)}, channels))(jax.random.split(KEY, 4000)))[:, 0, 0]
    applied = np.abs(moved - 0.5).max(1) > 0
    assert 0.27 < applied.mean() < 0.33
    shifts = (moved[applied] - 0.5) / 0.2
    assert np.abs(shifts.mean(0)).max() < 0.07  # four standard deviations
    assert np.abs(np.corrcoef(shifts.T) - np.eye(channels)).max() < 0.12


# What may be asked for


def test_check_says_what_was_expected():
    assert not any(augment.check(name, s, (64, 64)) for name, s in STRONG.items())
    assert augment.check("turn", 1, (4, 7)) == "a strength among (2, 3) at size (4, 7)"
    assert "from 0 to 180 (degrees)" in augment.check("rotation", 181, (8, 8))
    assert "at most 2, a quarter" in augment.check("elastic_sigma", 2.5, (8, 9))
    assert "from 0 to 2 (pixels)" in augment.check("blur", 3, (8, 9))
    for name in AUGMENTATIONS:
        assert augment.check(name, -0.5, (8, 8)), name


def test_warp_rejects_what_means_nothing():
    with pytest.raises(ValueError, match="got 1; expected a strength among"):
        augment.warp(KEY, sample(4, 7), {"turn": (0.5, 1)})
    with pytest.raises(ValueError, match="augment gamma: got -1"):
        augment.intensity(KEY, jnp.zeros((4, 4, 3)), {"gamma": (0.5, -1)})
    with pytest.raises(ValueError, match="did you mean turn"):
        augment.warp(KEY, sample(), {"turns": (0.5, 1)})


@pytest.mark.parametrize("name", augment.PRESETS)
def test_presets_pass_the_check(name):
    size = (512, 512)
    settings = augment.preset(name, size)
    for entry, value in settings.items():
        number = value if entry in augment.OPTIONS else value[1]
        assert not augment.check(entry, number, size)
    jax.eval_shape(lambda: augment.warp(KEY, {"image": jnp.zeros((*size, 4))}, settings))


def test_preset_of_em_grows_with_the_image():
    assert augment.preset("em", (512, 512))["elastic"] == (1, 1024)
    assert augment.preset("em", (256, 256))["elastic_sigma"] == pytest.approx(20.48)
    with pytest.raises(ValueError, match="did you mean livecell"):
        augment.preset("livecel", (8, 8))


@pytest.mark.parametrize("settings", [
    {"flip_horizontal": (1, 1), "flip_vertical": (0.5, 1), "turn": (0.5, 2)},
    {"rotation": (1, 180), "zoom_in": (1, 0.5), "shift": (1, 0.3)},
    pytest.param({"shear": (1, 20), "elastic": (1, 60), "elastic_sigma": 4.0},
                 marks=pytest.mark.slow), {}])
def test_a_patch_is_cut_from_the_warped_image(settings):
    """Of two stored images the second: every patch is that of crops.to_grid, up to rounding."""
    first = start_of((24, 36))
    images = [first, {name: values[::-1, ::-1] for name, values in first.items()}]
    stored = {name: np.concatenate([crops.to_grid(one[name], 3) for one in images])
              for name in images[0]}
    whole = jax.jit(lambda key: augment.warp(key, images[1], settings))(KEY)
    cut = jax.jit(jax.vmap(lambda cell: augment.warp(
        KEY, stored, settings, augment.Patch(3, jnp.uint32(9), cell))))(jnp.arange(9))
    for name, values in whole.items():
        expected = crops.to_grid(np.asarray(values), 3)
        assert cut[name].dtype == values.dtype
        if name == "label":  # rounding may decide which of two pixels is nearer
            assert (np.asarray(cut[name]) != expected).mean() < 0.005
        else:
            np.testing.assert_allclose(np.asarray(cut[name], np.float32), expected,
                                       rtol=2e-3 if name == "pixel_weight" else 1e-5, atol=1e-3)
