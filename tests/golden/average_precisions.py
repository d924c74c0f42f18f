"""Writes average_precisions.npz: AP of 50 pairs of labels by StarDist, Cellpose and pycocotools.

    PYTHONPATH=tests python -m golden.average_precisions     (with the three libraries installed)
"""

import contextlib
import io
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SIDE = 24


def pairs(count, seed=0):
    """(labels, preds, probs) of (count, SIDE, SIDE): boxes, of which predictions are moved ones.

    Each tenth label and each tenth prediction is empty, some of the same image. Small boxes give
    many IoUs that are exactly a threshold, probabilities of four values many equal scores.
    """
    rng = np.random.default_rng(seed)
    labels, preds = np.zeros((2, count, SIDE, SIDE), np.uint8)
    for n in range(count):
        boxes = [(*rng.integers(0, SIDE - 6, 2), *rng.integers(2, 9, 2))
                 for _ in range(rng.integers(1, 12))]
        if n % 10:
            _draw(labels[n], boxes)
        if n % 10 and rng.random() < 0.9 or n % 20 == 0:
            moved = [(*np.clip([y, x] + rng.integers(-1, 2, 2), 0, SIDE),
                      *np.maximum([h, w] + rng.integers(-1, 2, 2), 1)) for y, x, h, w in boxes]
            _draw(preds[n], [moved[i] for i in rng.permutation(len(moved))])
    probs = rng.integers(1, 5, (count, SIDE, SIDE)) / 4
    probs[::3] = 1.0
    return labels, preds, probs


def _draw(label, boxes):
    for y, x, h, w in boxes:
        label[y:y + h, x:x + w] = label.max() + 1
    label[:] = np.unique(label, return_inverse=True)[1].reshape(label.shape) + label.min()


def stardist(labels, preds) -> dict:
    """Of each image (n, 10) accuracy; of all together (10,) accuracy, f1, panoptic_quality."""
    from stardist.matching import matching, matching_dataset

    one = [matching(*pair, THRESHOLDS) for pair in zip(labels, preds, strict=True)]
    total = matching_dataset(labels, preds, THRESHOLDS, show_progress=False)
    return {"stardist": [[at.accuracy for at in image] for image in one],
            **{f"stardist_{name}": [getattr(at, name) for at in total]
               for name in ("accuracy", "f1", "panoptic_quality")}}


def cellpose(labels, preds) -> dict:
    """Of each image (n, 10) average_precision."""
    from cellpose.metrics import average_precision

    as_int = lambda images: [image.astype(int) for image in images]
    return {"cellpose": average_precision(as_int(labels), as_int(preds), list(THRESHOLDS))[0]}


def pycocotools(labels, preds, probs, max_detections) -> np.ndarray:
    """(10,) AP of all images together, at the thresholds of COCOeval."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def objects(ids, image, **more):
        for one in np.unique(ids[ids > 0]):
            where = np.asfortranarray(ids == one)
            yield {"image_id": image, "category_id": 1, "segmentation": mask.encode(
                where.astype(np.uint8)), "area": int(where.sum()), "iscrowd": 0,
                **{name: float(values[where].mean()) for name, values in more.items()}}

    truth = COCO()
    annotations = [one for n, label in enumerate(labels, 1) for one in objects(label, n)]
    truth.dataset = {"images": [{"id": n, "height": SIDE, "width": SIDE}
                                for n in range(1, len(labels) + 1)],
                     "categories": [{"id": 1}],
                     "annotations": [{"id": n, **one} for n, one in enumerate(annotations, 1)]}
    found = [one for n, (pred, prob) in enumerate(zip(preds, probs, strict=True), 1)
             for one in objects(pred, n, score=prob)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(1)


def main():
    labels, preds, probs = pairs(50)
    np.savez_compressed(
        FILE, labels=labels, preds=preds, probs=probs, **stardist(labels, preds),
        **cellpose(labels, preds), coco=pycocotools(labels, preds, probs, 10**6),
        coco_3=pycocotools(labels, preds, probs, 3))


if __name__ == "__main__":
    main()
