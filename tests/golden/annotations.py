"""Writes annotations.npz: pixels of outlines as the tools draw them, and a file of Cellpose.

    PYTHONPATH=tests python -m golden.annotations
    (with rasterio 1.4.4, labelme 6.3.1 and cellpose 3.1.1.3 installed)

polygons: json of 60 polygons, lists of rings (outer ring, then holes) of random corners in an
image of 40 x 50, some beyond it, some that cross themselves; rasterio (60, 40, 50) bool =
rasterio.features.rasterize of each. shapes: json of labelme shapes; labelme (n, 40, 50) bool =
labelme.utils.shape_to_mask of each. seg: the bytes of x_seg.npy as cellpose.io.masks_flows_to_seg
writes it for the label (40, 50).
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import tempfile
import types

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
SHAPE = (40, 50)


def polygons(rng):
    """Lists of rings."""
    made = []
    for n in range(60):
        count = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radii = rng.uniform(3, 18, count) if n % 3 else rng.uniform(0, 22, count)
        angles = rng.permutation(angles) if n % 5 == 4 else angles
        centre = rng.uniform(-3, 45, 2)
        outer = centre + np.stack([np.cos(angles), np.sin(angles)], -1) * radii[:, None]
        rings = [outer] + [(outer - centre) * 0.4 + centre] * (n % 2)
        rings = [np.rint(ring) if n % 4 == 3 else ring.round(3) for ring in rings]
        made.append([ring.tolist() for ring in rings])
    return made


def shapes(rng):
    """Shapes of labelme."""
    points = lambda count: rng.uniform(-4, 48, (count, 2)).round(2).tolist()
    made = [("polygon", points(int(rng.integers(3, 8)))) for _ in range(12)]
    made += [(kind, points(2)) for kind in ("rectangle", "circle") for _ in range(6)]
    made += [("oriented_rectangle", points(4)), (None, points(5))]
    made += [("polygon", [[3, 4], [20, 4], [20, 18], [3, 18]]), ("circle", [[20, 20], [26, 20]])]
    return [{"label": f"class {n % 2}", "points": p, "group_id": None, "shape_type": kind,
             "flags": {}} for n, (kind, p) in enumerate(made)]


def seg(label) -> bytes:
    """x_seg.npy as Cellpose writes it."""
    from cellpose import io

    flows = [np.zeros((*SHAPE, 3), np.uint8), np.zeros((2, *SHAPE), np.float32),
             np.zeros(SHAPE, np.float32), np.zeros(SHAPE)]
    with tempfile.TemporaryDirectory() as folder:
        io.masks_flows_to_seg(np.zeros(SHAPE, np.uint8), label, flows, f"{folder}/x.png",
                              channels=[0, 0])
        return pathlib.Path(folder, "x_seg.npy").read_bytes()


def labelme_function():
    """labelme.utils.shape_to_mask, of its file alone: the package needs a screen."""
    for name in ("labelme", "labelme._label_file"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["labelme._label_file"].ShapeDict = dict  # which only annotations name
    path = importlib.metadata.distribution("labelme").locate_file("labelme/utils/shape.py")
    spec = importlib.util.spec_from_file_location("shape", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.shape_to_mask


def main():
    """Write the file."""
    from rasterio import features

    shape_to_mask = labelme_function()
    rng = np.random.default_rng(0)
    made, drawn = polygons(rng), shapes(rng)
    label = np.zeros(SHAPE, np.uint16)
    label[2:8, 3:12], label[10:18, 5:9], label[10:18, 9:40] = 1, 2, 7
    closed = [[ring + ring[:1] for ring in rings] for rings in made]
    rasterio = [features.rasterize([{"type": "Polygon", "coordinates": rings}], SHAPE)
                for rings in closed]
    labelme = [shape_to_mask(SHAPE, one["points"], one["shape_type"]) for one in drawn]
    np.savez_compressed(
        FILE, polygons=json.dumps(made), rasterio=np.array(rasterio, bool),
        shapes=json.dumps(drawn), labelme=np.array(labelme),
        seg=np.frombuffer(seg(label), np.uint8), label=label)


if __name__ == "__main__":
    main()
