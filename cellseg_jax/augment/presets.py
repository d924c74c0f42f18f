"""The settings of the reports' own recipes."""

from cellseg_jax.errors import pick


def _nuclei(size):
    return {}  # report 0 augments nothing


def _small_unet(size):
    # Report 1: rotation, zoom-in, flips; amounts unstated. Nuclei have no preferred direction.
    return {"flip_horizontal": (0.5, 1), "flip_vertical": (0.5, 1), "rotation": (0.5, 180),
            "zoom_in": (0.5, 0.5)}


def _ebhi(size):
    return {"flip_horizontal": (0.5, 1), "flip_vertical": (0.7, 1), "rotation": (0.6, 30)}


def _ebhi_copies(size):
    # Report 2's stored copies. Its "one of blur and colour jitter" (together 0.5) is two
    # independent draws here, its 3x3 box blur a Gaussian of at most the same variance, its
    # jitter the tool's default. It fills rotated corners with a constant; here they are mirrored.
    return {"rotation": (0.9, 40), "flip_horizontal": (0.5, 1), "flip_vertical": (0.1, 1),
            "rgb_shift": (0.9, 25 / 255), "blur": (0.25, 0.8), "colour_jitter": (0.25, 0.2)}


def _em(size):
    # Report 3: affine, brightness, elastic; the numbers of the code that it names. That code
    # draws three points +-0.08 W away: each entry of the affine matrix then has the standard
    # deviation 0.1, which these rotations, zooms and shears share. Brightness is unstated.
    width = size[1]
    return {"rotation": (1, 7), "zoom": (1, 0.12), "shear": (1, 7), "shift": (1, 0.08),
            "elastic": (1, 2 * width), "elastic_sigma": 0.08 * width, "brightness": (1, 0.2)}


def _livecell(size):
    # Report 4: elastic and rotation, amounts unstated: the middle of the usual sigma 4 to 10 and
    # alpha 34 to 100, and report 2's rotation.
    return {"elastic": (1, 67), "elastic_sigma": 7, "rotation": (1, 30)}


PRESETS = {"nuclei": _nuclei, "small_unet": _small_unet, "ebhi": _ebhi,
           "ebhi_copies": _ebhi_copies, "em": _em, "livecell": _livecell}


def preset(name: str, size) -> dict:
    """The settings of a report's own recipe for images of size (H, W), in pixels."""
    return pick(PRESETS, name, "augment.preset")(size)
