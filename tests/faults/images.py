"""Bad files among images: one never ends the others, and none takes memory for what it declares."""

import contextlib
import io
import os
import re
import socket
import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
from faults.checkpoints import trained
from faults.table import Fault
from helpers import run_command, tiny_config
from PIL import Image

from cellseg_jax import data
from cellseg_jax.data import lazy, limits, read
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in, segment
from cellseg_jax.inference.options import AS_TRAINED

SIZE = 48


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8))


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, depth=8, colours=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b""))


def saved(kind, **options):
    data = io.BytesIO()
    picture().save(data, kind, **options)
    return bytearray(data.getvalue())


def bmp(width, height):
    content = saved("BMP")
    content[18:26] = struct.pack("<ii", width, height)
    return content


def jpeg(width, height):
    content = saved("JPEG")
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return content


def tiff(width, height, strip=None, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, np.zeros((16, 16), np.uint8), **options)
    content = bytearray(data.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for name, value in (("ImageWidth", width), ("ImageLength", height),
                            ("RowsPerStrip", strip or height)):
            tag = file.pages[0].tags.get(name)
            if tag:
                form = {3: "<H", 4: "<I"}[tag.dtype]
                content[tag.valueoffset : tag.valueoffset + struct.calcsize(form)] = struct.pack(
                    form, min(value, 2 ** (8 * struct.calcsize(form)) - 1))
    return content


LIES = {  # name of the file: its content
    "wide.png": png(100_000, 100_000), "many.png": png(2**31 - 1, 2**31 - 1),
    "flat.png": png(2**31 - 1, 1), "kind.png": png(16, 16, colours=5),
    "packed.png": png(30_000, 30_000), "deep.png": png(20_000, 20_000, depth=16, colours=6),
    "wide.bmp": bmp(50_000, 50_000), "wide.jpg": jpeg(65_000, 65_000),
    "wide.tif": tiff(400_000, 400_000), "packed.tif": tiff(400_000, 400_000, compression="zlib"),
    "lzw.tif": tiff(100_000, 100_000, 100_000, compression="lzw"),
    "tiles.tif": tiff(2**31, 2**31, compression="zlib", tile=(16, 16)),
    "empty.png": b"", "cut.png": bytes(saved("PNG")[:300]),
}


def fifo(place):
    os.mkfifo(place / "fifo.png")


def fifo_of_tiff(place):
    os.mkfifo(place / "fifo.tif")


def fifo_of_microscope(place):
    os.mkfifo(place / "fifo.czi")


def unix_socket(place):
    with contextlib.chdir(place), socket.socket(socket.AF_UNIX) as one:
        one.bind("s.png")  # the whole path may be too long


def link_loop(place):
    (place / "one.png").symlink_to(place / "two.png")
    (place / "two.png").symlink_to(place / "one.png")


def dangling(place):
    (place / "gone.png").symlink_to(place / "nothing.png")


def long_name(place):
    picture().save(place / ("n" * 251 + ".png"))


def not_readable_folder(place):
    (place / "folder.png").mkdir()


STRANGE = (fifo, fifo_of_tiff, fifo_of_microscope, unix_socket, link_loop, dangling, long_name,
           not_readable_folder)


def bad_folder(place, number):
    """A folder with three good images and bad ones."""
    folder = place / "in"
    folder.mkdir()
    for n in range(3):
        picture(n).save(folder / f"good{n}.png")
    if number < len(STRANGE):
        STRANGE[number](folder)
    else:
        name = list(LIES)[number - len(STRANGE)]
        (folder / name).write_bytes(LIES[name])
    return folder


def declared(place, number):
    """Reading a file that declares much is one line with the numbers, and takes no memory."""
    name = list(LIES)[number]
    path = place / name
    path.write_bytes(LIES[name])
    began = time.monotonic()
    for reads in (lambda: lazy.open_images(path)[0].rows(0, 8), lambda: read.read_image(path),
                  lambda: read.read_mask(path)):
        with pytest.raises(InputError) as caught:
            reads()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - began < 2


def limit(place, number):
    """The limit can be set, and the message says how."""
    picture().save(place / "a.png")
    tifffile.imwrite(place / "a.tif", np.zeros((SIZE, SIZE), np.uint8), compression="zlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(limits.VARIABLE, str(SIZE**2 - 1))
        for name in ("a.png", "a.tif"):
            text = f"{place / name}: .*{SIZE}.* the limit is 2,303: .*{limits.VARIABLE}={SIZE**2}"
            with pytest.raises(InputError, match=text):
                read.read_image(place / name)
        patch.setenv(limits.VARIABLE, str(SIZE**2))
        assert read.read_image(place / "a.png").shape == (SIZE, SIZE, 3)
        patch.setenv(limits.VARIABLE, "many")
        with pytest.raises(InputError, match="expected a number of pixels"):
            read.read_image(place / "a.png")


def prediction(place, number):
    """The good images are predicted, the bad one is named."""
    folder = bad_folder(place, number)
    runs = segment.open_runs(str(trained()), (), AS_TRAINED)
    out = place / "out"
    jobs = images_in.find([str(folder)], out)
    images_in.claim(out, runs.made_by, jobs, ["tiff"])
    with contextlib.redirect_stderr(io.StringIO()) as said:
        bad = segment.segment(runs, segment.Work(jobs, out, ["tiff"]))
    assert sorted(p.name for p in out.glob("*.tif")) == [f"good{n}_label.tif" for n in range(3)]
    assert bad == len(re.findall("error: ", said.getvalue())) > 0 or number == 7, said.getvalue()
    assert "Traceback" not in said.getvalue()


def training_data(place, number):
    """Training on a folder with the bad image is refused in one line that names it."""
    folder = bad_folder(place, number)
    (place / "masks").mkdir()
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # a long name
            Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(
                place / "masks" / f"{file.stem}.png")
    folder.rename(place / "images")
    config = tiny_config(data__name="folder", data__root=str(place),
                         data__cache=str(place / "cache"))
    try:
        data.load(config.data)
    except InputError as error:
        assert str(place) in str(error) and "\n" not in str(error)
    else:
        assert number in (6, 7)  # a long name is good, a folder is no image


def folder_loop(place, number):
    """A link to a folder above does not multiply its images."""
    folder = bad_folder(place, 0)
    (folder / "fifo.png").unlink()
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to(folder)
    picture().save(folder / "below" / "more.png")
    for text in (folder, folder / "**" / "*.png"):
        assert len(images_in.find([str(text)], place / "out")) == 4


def large(place, number):
    """A PNG of 20,000 x 20,000 pixels trains and predicts, as image and as mask."""
    for name in ("images", "masks"):
        (place / name).mkdir()
        for n in range(4):
            size = 20_000 if n == 0 else 64
            pixels = np.zeros((size, size), np.uint8)
            pixels[size // 4 : size // 2, size // 4 : size // 2] = 200 if name == "images" else 1
            image = Image.fromarray(pixels)
            if name == "masks" and number:
                image = image.convert("P")
            image.save(place / name / f"{n}.png", compress_level=1)
    (place / "config.py").write_text(
        "from cellseg_jax.config import default\n\ndef get_config():\n    config = default()\n"
        f"    config.data = dict(name='folder', root={str(place)!r}, size=(256, 256),\n"
        "                       split=(0.5, 0.25, 0.25))\n"
        "    config.model = dict(name='unet', channels=(4, 8))\n"
        "    config.train.epochs, config.train.batch_size = 1, 2\n    return config\n")
    cache = {"XDG_CACHE_HOME": str(place / "caches")}
    done = run_command("main", f"--config={place}/config.py", f"--workdir={place}/run", timeout=900,
                       **cache)
    assert done.returncode == 0, done.stderr
    if number:  # prediction reads no mask
        return
    done = run_command("predict", f"--workdir={place}/run", f"--images={place}/images/0.png",
                       "--format=tiff", f"--out={place}/out", timeout=900, **cache)
    assert done.returncode == 0, done.stderr
    with tifffile.TiffFile(place / "out" / "0_label.tif") as label:
        assert label.pages[0].shape == (20_000, 20_000)


COUNT = len(STRANGE) + len(LIES)
FAULTS = (
    Fault("a header that declares too much", "reading", "one line, no memory is taken", declared,
          len(LIES), len(LIES)),
    Fault("more pixels than the limit", "reading", "one line with the numbers and the variable",
          limit, 1, 1),
    Fault("a bad image, FIFO, socket or link", "predict", "the others are predicted, it is named",
          prediction, COUNT),
    Fault("a bad image, FIFO, socket or link", "cache building", "one line names it",
          training_data, COUNT, 3),
    Fault("a loop of folders", "predict", "each image once", folder_loop, 1, 1),
    Fault("a PNG of 20,000 x 20,000 pixels", "training, predict", "works", large, 2),
)
