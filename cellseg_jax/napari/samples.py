"""Sample data of the viewer: the built-in synthetic cells, with their exact labels."""

from cellseg_jax.data import synthetic

SIZE = (128, 128)  # of the images that configs/quickstart.py trains on
SEED = 5  # an image of either look with some nuclei that touch


def fluorescence() -> list[tuple]:
    """Nuclei that glow in the dark: a gray image and its labels, as napari's layer tuples."""
    return _sample("fluorescence")


def stained() -> list[tuple]:
    """Purple nuclei on pinkish tissue: an rgb image and its labels, as napari's layer tuples."""
    return _sample("stained")


def _sample(look: str) -> list[tuple]:
    [record] = synthetic.records(count=1, image_size=SIZE, looks=(look,), seed=SEED)
    sample = record.read()
    rgb = look == "stained"  # alpha is opaque and left out
    pixels = sample.image[..., :3] if rgb else sample.image[..., 0]
    return [(pixels, {"name": f"synthetic {look}", "rgb": rgb}, "image"),
            (sample.label, {"name": f"true labels of {look}", "visible": False}, "labels")]
