"""Three definitions of AP, each equal to its library; F1 by size; errors of counts."""

import pathlib
import warnings

import numpy as np
import pytest
from golden import average_precisions as libraries

from cellseg_jax import metrics
from cellseg_jax.inference import object_summary


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).parents[1] / "golden/average_precisions.npz") as file:
        return dict(file)


def objects_of(labels, preds, probs):
    return [metrics.image_objects(*one) for one in zip(labels.astype(int), preds.astype(int),
                                                       probs, strict=True)]


def check_images(found, labels, preds):
    """Ours of each image against StarDist's and Cellpose's."""
    ours = np.array([metrics.average_precision(*pair) for pair in zip(labels, preds, strict=True)])
    empty = ~(labels.any((1, 2)) | preds.any((1, 2)))
    assert empty.any() and not empty.all()
    for name in ("stardist", "cellpose"):
        np.testing.assert_allclose(ours[~empty], np.asarray(found[name])[~empty], rtol=1e-6)
    # where nothing is true and nothing predicted they differ
    assert (ours[empty] == 1).all() and (np.asarray(found["stardist"])[empty] == 0).all()
    assert np.isnan(np.asarray(found["cellpose"])[empty]).all()


def check_pooled(found, labels, preds):
    """Ours of summed counts against StarDist's matching_dataset."""
    counts = [metrics.instance_counts(*pair) for pair in zip(labels, preds, strict=True)]
    total = metrics.InstanceCounts(*map(sum, zip(*counts, strict=True)))
    scores = metrics.instance_scores(total)
    accuracy = np.asarray(found["stardist_accuracy"])
    assert scores["ap50"] == pytest.approx(accuracy[0], rel=1e-6)
    assert scores["ap75"] == pytest.approx(accuracy[5], rel=1e-6)
    assert scores["ap"] == pytest.approx(accuracy.mean(), rel=1e-6)
    assert scores["f1"] == pytest.approx(found["stardist_f1"][0], rel=1e-6)
    assert scores["pq"] == pytest.approx(found["stardist_panoptic_quality"][0], rel=1e-6)


def test_ap_of_images_equals_stardist_and_cellpose(golden):
    check_images(golden, golden["labels"], golden["preds"])


def test_pooled_scores_equal_stardists_dataset(golden):
    check_pooled(golden, golden["labels"], golden["preds"])


def test_image_mean_is_the_mean_of_cellposes_images(golden):
    counts = [metrics.instance_counts(*pair)
              for pair in zip(golden["labels"], golden["preds"], strict=True)]
    of_images = np.where(np.isnan(golden["cellpose"]), 1, golden["cellpose"])
    found = objects_of(golden["labels"], golden["preds"], golden["probs"])
    scores = object_summary.scores(counts, found)
    assert scores["ap50_image_mean"] == pytest.approx(of_images[:, 0].mean(), rel=1e-6)
    assert scores["ap_image_mean"] == pytest.approx(of_images.mean(), rel=1e-6)


def test_coco_ap_equals_pycocotools(golden):
    images = objects_of(golden["labels"], golden["preds"], golden["probs"])
    np.testing.assert_allclose(metrics.coco_ap(images), golden["coco"], rtol=1e-12)
    np.testing.assert_allclose(metrics.coco_ap(images, 3), golden["coco_3"], rtol=1e-12)
    assert golden["coco"][0] > golden["coco_3"][0] > 0


@pytest.mark.weekly
@pytest.mark.parametrize("library", ("stardist.matching", "cellpose.metrics", "pycocotools"))
def test_aps_of_thousand_pairs_equal_their_libraries(library):
    pytest.importorskip(library)
    labels, preds, probs = libraries.pairs(1000, seed=1)
    if library == "pycocotools":
        for some in (slice(0, 1000), *(slice(n, n + 10) for n in range(0, 1000, 10))):
            images = objects_of(labels[some], preds[some], probs[some])
            for most in (None, 4):
                expected = libraries.pycocotools(
                    labels[some], preds[some], probs[some], most or 10**6)
                np.testing.assert_allclose(metrics.coco_ap(images, most), expected, rtol=1e-12)
        return
    name = library.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0 / 0 of empty images
        found = getattr(libraries, name)(labels, preds)
    ours = np.array([metrics.average_precision(*pair) for pair in zip(labels, preds, strict=True)])
    some = labels.any((1, 2)) | preds.any((1, 2))
    np.testing.assert_allclose(ours[some], np.asarray(found[name])[some], rtol=1e-6)
    if name == "stardist":
        check_pooled(found, labels, preds)


def test_coco_ap_by_hand():
    """Two true objects; ranked: right, wrong, right: precision 1 up to recall 1/2, then 2/3."""
    label, pred = np.zeros((2, 6, 12), int)
    label[:2, :2], label[:2, 4:6] = 1, 2
    pred[:2, :2], pred[4:, :2], pred[:2, 4:6] = 1, 2, 3
    probs = np.choose(pred, (0.0, 0.9, 0.8, 0.7))
    one = metrics.image_objects(label, pred, probs)
    np.testing.assert_allclose(one.score, (0.9, 0.8, 0.7))
    np.testing.assert_allclose(metrics.coco_ap([one]), (51 + 50 * 2 / 3) / 101)
    assert np.isnan(metrics.coco_ap([metrics.image_objects(label * 0, pred, probs)])).all()
    assert (metrics.coco_ap([metrics.image_objects(label, pred * 0, probs)]) == 0).all()


def test_pixels_that_are_not_annotated_hold_no_objects():
    label, pred = np.zeros((2, 8, 8), int)
    label[:2, :2], label[4:] = 1, -1
    pred[:2, :2], pred[5:7, 2:5] = 5, 9
    one = metrics.image_objects(label, pred, np.where(pred == 5, 0.5, 1.0))
    assert one.score.tolist() == [0.5] and not one.area_spurious.size
    np.testing.assert_array_equal(metrics.coco_ap([one]), 1)


def test_f1_by_size_by_hand():
    """Areas 1, 4, 9; the middle one is missed, and a spurious one of area 9 is predicted."""
    label, pred = np.zeros((2, 12, 12), int)
    label[0, 0], label[2:4, 2:4], label[6:9, 6:9] = 1, 2, 3
    pred[0, 0], pred[6:9, 6:9], pred[9:12, 0:3] = 1, 2, 3
    one = metrics.image_objects(label, pred, np.ones(pred.shape))
    edges = metrics.size_edges([one])
    assert edges == pytest.approx((3, 17 / 3))
    assert metrics.f1_by_size(metrics.size_counts(one, edges)) == {
        "f1_small": 1.0, "f1_medium": 0.0, "f1_large": pytest.approx(2 / 3)}
    nothing = metrics.image_objects(label * 0, pred * 0, np.ones(pred.shape))
    assert metrics.size_edges([nothing]) == ()
    assert np.isnan([*metrics.f1_by_size(metrics.size_counts(nothing, edges)).values()]).all()


def test_f1_of_size_classes_covers_all_objects(golden):
    images = objects_of(golden["labels"], golden["preds"], golden["probs"])
    whole = sum(len(one.area_true) for one in images)
    missed = sum((~one.found).sum() for one in images)
    spurious = sum(len(one.area_spurious) for one in images)
    assert 2 * (whole - missed) / (2 * (whole - missed) + missed + spurious) == pytest.approx(
        golden["stardist_f1"][0])


def test_count_scores_by_hand():
    label, pred = np.zeros((2, 6, 12), int)
    label[:2, :2], label[:2, 2:5], label[4:, :9] = 1, 2, 3
    pred[:2, :1], pred[:2, 1:5] = 1, 1
    pred[4:, :3], pred[4:, 3:6], pred[4:, 6:9] = 2, 3, 4  # no third reaches IoU 0.5
    more = pred.copy()
    more[:2, 9:] = 5
    scores = lambda label, *preds: object_summary.scores(
        [metrics.instance_counts(label, one) for one in preds],
        [metrics.image_objects(label, one, np.ones(one.shape)) for one in preds])
    found = scores(label, pred, more)
    # each time one prediction covers two true objects, and the larger is matched to it
    assert {name: found[name] for name in (
        "count_error", "count_error_relative", "merge_rate", "split_rate")} == {
        "count_error": 1.5, "count_error_relative": 3 / 6, "merge_rate": 2 / 6,
        "split_rate": 2 / 6}
    nothing = scores(label * 0, pred)
    assert nothing["count_error"] == 4 and np.isnan(nothing["merge_rate"])
