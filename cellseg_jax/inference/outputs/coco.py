"""COCO json of one image: its objects as run lengths, exact, with holes and several pieces.

Run lengths rather than polygons, because COCO's tools round polygons in their own way. Annotation
ids are those of the label, areas are pixels, a bbox is (left, top, width, height).
"""

import json

import numpy as np
from pycocotools import mask as coco_mask

from cellseg_jax.files import atomic_file
from cellseg_jax.inference.outputs.files import blocks, objects


def write(path, label, image, probability=None, classes=()) -> None:
    """All objects of (H, W) `label`; see `outputs.write`."""
    label, class_of = objects(label, classes)
    height, width = label.shape
    head = {
        "images": [{"id": 1, "width": width, "height": height,
                    "file_name": image.path.name if image.path else image.name}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes or ("cell",), 1)],
    }
    separator = "\n"
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
        for top, part in blocks(label):
            for number, starts, lengths in _runs(part, top, height):
                annotation = {"id": number, "image_id": 1, "iscrowd": 0,
                              "category_id": int(class_of[number]) if classes else 1,
                              **_segmentation(starts, lengths, height, width)}
                file.write(separator + json.dumps(annotation))
                separator = ",\n"
        file.write("\n]}\n")


def _runs(part, top, height):
    """(id, starts, lengths) of every object: its runs down the columns of the whole image."""
    down = part.T.reshape(-1)
    begins = np.append(True, down[1:] != down[:-1])
    begins[:: part.shape[0]] = True
    place = np.flatnonzero(begins)
    lengths = np.diff(np.append(place, down.size))
    x, y = np.divmod(place, part.shape[0])
    order = np.argsort(down[place], kind="stable")
    order = order[down[place][order] > 0]
    ids, first = np.unique(down[place][order], return_index=True)
    starts, lengths = (x * height + y + top)[order], lengths[order]
    ends = np.append(first, len(order))[1:]
    for number, begin, end in zip(ids, first, ends, strict=True):
        yield int(number), starts[begin:end], lengths[begin:end]


def _segmentation(starts, lengths, height, width):
    joined = starts[1:] > starts[:-1] + lengths[:-1]  # runs of whole columns meet
    begin = starts[np.append(True, joined)]
    end = (starts + lengths)[np.append(joined, True)]
    counts = np.diff(np.concatenate([[0], np.stack([begin, end], -1).ravel(), [height * width]]))
    run_lengths = coco_mask.frPyObjects(
        {"size": [height, width], "counts": counts.tolist()}, height, width)
    left, top = int(starts[0] // height), int((starts % height).min())
    box = [left, top, int(starts[-1] // height) + 1 - left,
           int((starts % height + lengths).max()) - top]
    return {"segmentation": {"size": [height, width], "counts": run_lengths["counts"].decode()},
            "area": int(lengths.sum()), "bbox": box}
