"""Writes qupath.npz: objects as QuPath itself writes them, and the pixels that lie in them.

    PYTHONPATH=tests QUPATH_CLASSES=DIRS python -m golden.qupath
    (with JPype1 and numpy installed; JVM=libjvm.so of Java 21 or newer)

The classes are of qupath-core 0.5.1 (github.com/qupath/qupath, 4e6bfc31), with what it needs, apart
by colons. KIND_json: bytes of PathIO.exportObjectsAsGeoJSON; KIND_label (120, 160): the pixels
whose centre is inside of each object that readObjectsFromGeoJSON finds there, as Java 2D fills it
with STROKE_PURE, ids in the order of the file.
"""

import os
import pathlib
import tempfile

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
SHAPE = (120, 160)
KINDS = {"annotation": ("rectangle", "ellipse", "polygon", "hole"), "cell": ("ellipse", "polygon"),
         "detection": ("polygon", "hole", "rectangle")}
CLASSES = ("Tumor", "Stroma", "Tumor: Positive")


def main():
    """Write the file."""
    import jpype

    jpype.startJVM(os.environ["JVM"], "-Djava.awt.headless=true",
                   "--enable-native-access=ALL-UNNAMED",
                   classpath=os.environ["QUPATH_CLASSES"].split(":"))
    of = lambda name: jpype.JClass(f"qupath.lib.{name}")
    make, rois, classes = of("objects.PathObjects"), of("roi.ROIs"), of("objects.classes.PathClass")
    plane, tools = of("regions.ImagePlane").getDefaultPlane(), of("roi.RoiTools")
    rng, made = np.random.default_rng(0), {}

    def outline(kind, x, y):
        size = [float(v) for v in (x - 8 + rng.random(), y - 8 + rng.random(),
                                   *rng.uniform(4, 14, 2))]
        if kind == "rectangle":
            return rois.createRectangleROI(*size, plane)
        if kind == "ellipse":
            return rois.createEllipseROI(*size, plane)
        points = jpype.java.util.ArrayList()
        for angle in np.sort(rng.uniform(0, 2 * np.pi, 7)):
            radius = rng.uniform(3, 6 if kind == "hole" else 9)
            points.add(of("geom.Point2")(float(x + radius * np.cos(angle)),
                                         float(y + radius * np.sin(angle))))
        polygon = rois.createPolygonROI(points, plane)
        if kind == "polygon":
            return polygon
        around = rois.createEllipseROI(x - 8.0, y - 8.0, 16.0, 16.0, plane)
        return tools.combineROIs(around, polygon, tools.CombineOp.SUBTRACT)

    for what, kinds in KINDS.items():
        objects = jpype.java.util.ArrayList()
        for y in np.arange(12.0, SHAPE[0] - 9, 20):
            for x in np.arange(12.0, SHAPE[1] - 9, 20):
                number = objects.size()
                roi = outline(kinds[number % len(kinds)], float(x), float(y))
                kind = classes.fromString(CLASSES[number % 3])
                if what == "cell":
                    nucleus = rois.createEllipseROI(x - 2.0, y - 2.0, 4.0, 4.0, plane)
                    objects.add(make.createCellObject(roi, nucleus, kind, None))
                else:
                    new = getattr(make, f"create{what.title()}Object")
                    objects.add(new(roi, kind))
        made[f"{what}_json"], back = written(objects, of("io.PathIO"), jpype)
        made[f"{what}_label"] = np.zeros(SHAPE, np.uint8)
        for number, one in enumerate(back, 1):
            made[f"{what}_label"][filled(one.getROI().getShape(), jpype)] = number
    np.savez_compressed(FILE, **made)


def filled(shape, jpype):
    """(120, 160) bool: pixels whose centre is inside."""
    awt = lambda name: jpype.JClass(f"java.awt.{name}")
    image = awt("image.BufferedImage")(SHAPE[1], SHAPE[0], 10)  # TYPE_BYTE_GRAY
    graphics, hints = image.createGraphics(), awt("RenderingHints")
    graphics.setRenderingHint(hints.KEY_STROKE_CONTROL, hints.VALUE_STROKE_PURE)
    graphics.setColor(awt("Color").WHITE)
    graphics.fill(shape)
    return np.array(image.getRaster().getDataBuffer().getData(), np.int8).reshape(SHAPE) != 0


def written(objects, path_io, jpype):
    """Bytes of a FeatureCollection, and the objects read from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a.geojson"
        stream = jpype.java.io.FileOutputStream(str(path))
        path_io.exportObjectsAsGeoJSON(stream, objects,
                                       path_io.GeoJsonExportOptions.FEATURE_COLLECTION)
        stream.close()
        back = path_io.readObjectsFromGeoJSON(jpype.java.io.FileInputStream(str(path)))
        return np.fromfile(path, np.uint8), back


if __name__ == "__main__":
    main()
