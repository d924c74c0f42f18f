"""usage.py beside an exported program: a script that runs it on an image."""

from cellseg_jax import targets
from cellseg_jax.crops import round_up
from cellseg_jax.normalize import range_of

USAGE = '''"""Probabilities of one image: python usage.py IMAGE OUT.npy{factor}

Needs numpy, Pillow and {needs}. OUT.npy is (height, width, {outputs}) float32.
{notes}"""

import pathlib
import sys

if len(sys.argv) != {words}:
    sys.exit(__doc__)

import numpy as np
{imports}

here = pathlib.Path(__file__).parent
{load}


def resized(image, size):
    """Bilinear between pixel centres, without anti-aliasing."""
    for axis, new in enumerate(size):
        old = image.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        below = place.astype(int)
        weight = (place - below).reshape(-1, *[1] * (image.ndim - axis - 1))
        above = image.take(np.minimum(below + 1, old - 1), axis)
        image = image.take(below, axis) * (1 - weight) + above * weight
    return image


if sys.argv[1].endswith(".npy"):
    image = np.load(sys.argv[1])
else:
    file = Image.open(sys.argv[1])
    if getattr(file, "n_frames", 1) > 1:
        sys.exit(f"{{sys.argv[1]}} has {{file.n_frames}} planes; expected one{planes}")
    if any(";16" + order in str(file.tile) for order in "BLN") and file.mode.startswith("RGB"):
        sys.exit(f"{{sys.argv[1]}} has colours of 16 bit, of which Pillow reads 8; expected them "
                 "as an .npy file (height, width, channels)")
    image = np.asarray(file)
image = image.astype(image.dtype.newbyteorder("="))
if image.dtype not in (np.uint8, np.uint16):
    sys.exit(f"{{sys.argv[1]}} has pixels of {{image.dtype}}; expected uint8 or uint16")
image = image.reshape(*image.shape[:2], -1)
if image.shape[2] != {channels}:
    sys.exit(f"{{sys.argv[1]}} has {{image.shape[2]}} channels; expected {channels}; "
             {hint!r})
size = image.shape[:2]

# What the network sees is normalised by the range of the whole image.
{range}
{alpha}scale = np.where(high > low, 1 / np.where(high > low, high - low, 1), 0)
{resize}image = ((image - low) * scale).astype(np.float32)

seen = image.shape[:2]
{pad}{call}
probs = probs[: seen[0], : seen[1]]
np.save(sys.argv[2], resized(probs, size).astype(np.float32))
'''
# The lines that find low and high: of all colours together, or of chosen channels one by one.
TOGETHER = """colour = image[..., :3]
low, high = (np.full({channels}, float(bound)) for bound in ({range}))"""
EACH = """low, high = np.array([[*({range})] for colour in np.moveaxis(image, -1, 0)], float).T"""
# Lines for a factor that only the user knows, and of the script's head.
FACTOR = """image = np.rint(resized(image, [max(1, round(n * float(sys.argv[3]))) for n in size]))
"""
ABOUT_FACTOR = "IMAGE is resized by FACTOR first, so that {}.\n"
IN_PIXELS = "Outputs in pixels, and directions, are those of the resized image the network sees.\n"
PAD = """rows, columns = {}, {}
{}image = np.pad(image, ((0, rows), (0, columns), (0, 0)){})
"""
MIRRORED = ', mode="reflect"'  # as prediction pads images below a tile; networks pad with 0
TOO_LARGE = """if min(rows, columns) < 0:
    sys.exit(f"{seen} pixels are more than the program takes: cut the image into tiles")
"""
# The lines of the script that differ between formats.
PROGRAMS = {
    "onnx": {
        "needs": "onnxruntime",
        "imports": "import onnxruntime\nfrom PIL import Image",
        "load": 'session = onnxruntime.InferenceSession(here / "model.onnx")',
        "call": 'image = np.moveaxis(image, -1, 0)[None]\n'
                'probs = np.moveaxis(session.run(None, {"image": image})[0][0], 0, -1)',
    },
    "stablehlo": {
        "needs": "jax",
        "imports": "from jax import export, jit\nfrom PIL import Image",
        "load": 'data = bytearray((here / "model.stablehlo").read_bytes())\n'
                "program = jit(export.deserialize(data).call)",
        "call": "probs = np.asarray(program(image[None]))[0]",
    },
}


def usage(about: dict, config) -> str:
    """A script that runs the export on an image, without this package.

    Args:
      about: export.json, see `exporting.describe`.
      config: of the run.
    """
    form, range_ = about["format"], range_of(config.data.normalize, config.data.percentiles)
    channels = len(about["input"]["channels"])
    alpha = "low[3], high[3] = 0, np.iinfo(image.dtype).max\n"
    resize, aim = "", ""
    if config.data.fit == "resize":
        resize = f"image = np.rint(resized(image, {tuple(config.data.size)}))\n"
    elif config.data.diameter:
        aim = f"its median cell has a diameter of {config.data.diameter:g} pixels"
    elif config.data.pixel_size:
        aim = f"its pixels are {config.data.pixel_size:g} um"
    resize = FACTOR if aim else resize
    notes = (ABOUT_FACTOR.format(aim) if aim else "") + (
        IN_PIXELS if resize and targets.TARGETS[config.data.target].rescaled else "")
    each = bool(config.data.channel_index)
    if each:
        hint = f"these are {', '.join(about['input']['channels'])}, maybe of an .npy file"
        bounds = EACH.format(range=range_.python.replace("image.m", "colour.m"))
    else:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        hint = f"8 bit: Image.open(IN).convert({mode!r}).save(OUT) makes it so"
        bounds = TOGETHER.format(channels=channels, range=range_.python)
    return USAGE.format(
        **PROGRAMS[form], channels=channels, hint=hint,
        planes=f", made as the run's data.z={config.data.z}" if config.data.z else "",
        outputs=len(about["output"]["channels"]), range=bounds,
        alpha=alpha if channels == 4 and range_.alpha_apart and not each else "",
        resize=resize, factor=" FACTOR" if aim else "", words=4 if aim else 3, notes=notes,
        pad=_padding(about["input"]["shape"], form,
                     () if config.data.fit == "resize" else config.data.size))


def _padding(shape, form: str, tile) -> str:
    """The lines that bring an image to a size that the program takes.

    Args:
      tile: (H, W) that prediction cuts images to; () where it resizes them.
    """
    height, width = shape[2:] if form == "onnx" else shape[1:3]
    mode = MIRRORED if tile else ""
    if isinstance(height, int):
        return PAD.format(f"{height} - seen[0]", f"{width} - seen[1]", TOO_LARGE, mode)
    multiple = int(height.split("*")[0]) if "*" in height else 1
    if tile:
        return PAD.format(*(f"max({round_up(side, multiple)} - seen[{n}], -seen[{n}] % {multiple})"
                            for n, side in enumerate(tile)), "", mode)
    return PAD.format(*(f"-seen[{n}] % {multiple}" for n in (0, 1)), "", mode) * (multiple > 1)
