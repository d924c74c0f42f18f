"""Augmentations: hand values, label and image stay aligned, one key one result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax.augment import AUGMENTATIONS, augment, strengths

EVERY = {"flip_horizontal": (0.5, 1), "flip_vertical": (0.5, 1), "turn": (0.5, 3)}
KEY = jax.random.key(0)


def sample(height=6, width=6):
    """Every pixel of image, label and weight tells where it came from."""
    label = np.arange(height * width, dtype=np.int32).reshape(height, width)
    image = np.stack([label, 255 - label], -1).astype(np.uint8)
    return {"image": image, "label": label, "pixel_weight": label.astype(np.float16), "id": 7}


def once(settings, **size):
    return jax.jit(lambda key: augment(key, sample(**size), settings))(KEY)


def keys(n):
    return jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(n))


@jax.jit
def traced_labels(settings):
    """(64, H, W) labels of as many draws, by settings that are traced."""
    return jax.vmap(lambda key: augment(key, sample(), settings)["label"])(keys(64))


def labels(settings, n=64, **size):
    """The same by settings that are Python numbers."""
    label = lambda key: augment(key, sample(**size), settings)["label"]
    return np.asarray(jax.jit(jax.vmap(label))(keys(n)))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("flip_horizontal", np.fliplr),
        ("flip_vertical", np.flipud),
        ("turn", np.rot90),
    ],
)
def test_augmentation_equals_hand_value(name, expected):
    out = once({name: (1.0, 1)})
    for entry in ("image", "label", "pixel_weight"):
        np.testing.assert_array_equal(out[entry], expected(sample()[entry]))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(6, 6), (4, 7)])
def test_augmentation_keeps_dtype_and_alignment(name, size):
    start = sample(*size)
    for strength in strengths(name, size):
        out = once({name: (1.0, strength)}, height=size[0], width=size[1])
        for entry in ("image", "label", "pixel_weight"):
            assert out[entry].dtype == start[entry].dtype and out[entry].shape == start[entry].shape
        np.testing.assert_array_equal(out["image"][..., 0], out["label"].astype(np.uint8))
        np.testing.assert_array_equal(out["pixel_weight"], out["label"])
        np.testing.assert_array_equal(np.sort(out["label"].ravel()), start["label"].ravel())
        assert out["id"] == 7 and (out["label"] != start["label"]).any()


def test_augment_draws_every_pose_and_only_those():
    label = sample()["label"]
    poses = {np.rot90(x, k).tobytes() for x in (label, label.T) for k in range(4)}
    drawn = np.asarray(traced_labels(EVERY))  # 64 draws miss one pose with p < 2%, this key none
    assert {x.tobytes() for x in drawn} == poses
    turned = {np.rot90(label, k).tobytes() for k in range(1, 4)}
    assert {x.tobytes() for x in labels({"turn": (1.0, 3)})} == turned


def test_augment_probability_is_the_share_that_changes():
    flipped = (labels({"flip_vertical": (0.3, 1)}, n=2000) != sample()["label"]).any((1, 2))
    assert abs(flipped.mean() - 0.3) < 0.04  # four standard deviations


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, 0.0)], ids=["probability", "strength"])
def test_traced_zero_is_identity(pair):
    unchanged = np.broadcast_to(sample()["label"], (64, 6, 6))
    np.testing.assert_array_equal(traced_labels(dict.fromkeys(EVERY, pair)), unchanged)


def test_python_zero_compiles_nothing():
    settings = {name: (0.0, 1) for name in AUGMENTATIONS}
    assert not jax.make_jaxpr(lambda key: augment(key, sample(), settings)["image"])(KEY).eqns


def test_augment_absent_neighbours_and_python_numbers_change_no_draw():
    flips = {name: pair for name, pair in EVERY.items() if name != "turn"}
    np.testing.assert_array_equal(labels(flips), traced_labels(EVERY | {"turn": (0, 3)}))


def test_augment_same_under_jit_and_vmap():
    np.testing.assert_array_equal(
        augment(keys(1)[0], sample(), EVERY)["label"], traced_labels(EVERY)[0]
    )


def test_turn_of_oblong_images_is_the_half_turn():
    half = labels({"turn": (1.0, 3)}, n=2, height=4, width=7)
    np.testing.assert_array_equal(half[1], sample(4, 7)["label"][::-1, ::-1])


def test_augment_rejects_what_means_nothing():
    with pytest.raises(ValueError, match="got strength 1"):
        augment(KEY, sample(4, 7), {"turn": (0.5, 1)})
    with pytest.raises(ValueError, match="got strength 2"):
        augment(KEY, sample(), {"flip_vertical": (0.5, 2)})
    with pytest.raises(ValueError, match="did you mean turn"):
        augment(KEY, sample(), {"turns": (0.5, 1)})
