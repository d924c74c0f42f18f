from cellseg_jax import config
from cellseg_jax.planning import card


def test_card_of_a_network_that_can_be_counted_by_hand():
    """simple_conv: 4x4 convolutions to 32 and 64 channels, then 32, 64 and 1 per pixel."""
    complete = config.default()
    complete.data = dict(name="synthetic", size=(32, 32), channels="rgb")
    complete.model = dict(name="simple_conv")
    rows = dict(card.rows(config.complete(complete)))
    weights = 16 * 3 * 32 + 32 + 16 * 32 * 64 + 64 + 64 * 32 + 32 + 32 * 64 + 64
    assert rows["parameters"].startswith(f"{weights + 64 + 1:,} ")
    outputs = 32 + 64 + 32 + 64 + 1
    assert rows["activations"] == f"{outputs * 32 * 32 * 4 / 2**20:.1f} MiB per image"
    assert rows["receptive field"] == "7 pixels"
    assert rows["image"] == "32x32, 3 channels -> 1 outputs"
