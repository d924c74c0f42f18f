"""Metrics against MONAI, scikit-image, scikit-learn, py-ctcmetrics and torch.

Ten thousand random pairs, empty and full ones among them, where the reference is fast enough to
be asked in the fast suite; the first few hundred there and all of them under --slow elsewhere.
"""

import numpy as np
import pytest
import tifffile
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error
from skimage.metrics import variation_of_information as skimage_vi

from cellseg_jax import metrics
from cellseg_jax.data.synthetic import cells
from cellseg_jax.metrics.report_compat import dithered

COUNTS = [300, pytest.param(10_000, marks=pytest.mark.weekly)]


def random_masks(count, size=16):
    """(2, count, size, size) bool: truth and prediction, of all densities and all empty cases."""
    rng = np.random.default_rng(0)
    density = rng.choice([0, 0.02, 0.3, 0.7, 0.99, 1], (2, count, 1, 1))
    mask, pred = rng.random((2, count, size, size)) < density
    agree = rng.random((count, 1, 1)) < 0.3
    return mask, np.where(agree, mask ^ (rng.random(mask.shape) < 0.03), pred)


def random_labels(count, size=16, ids=6):
    """(2, count, size, size) int: truth and prediction, blocks of ids and noise upon them."""
    rng = np.random.default_rng(0)
    blocks = lambda: np.kron(rng.integers(0, ids, (count, 4, 4)), np.ones((1, 4, 4), int))
    label, pred = blocks(), blocks()
    pred = np.where(rng.random((count, 1, 1)) < 0.7, np.roll(label, (1, 2), (1, 2)), pred)
    noise = rng.random(pred.shape) < rng.choice([0, 0.1, 0.4], (count, 1, 1))
    pred = np.where(noise, rng.integers(0, ids, pred.shape), pred)
    keep = rng.random((2, count, 1, 1)) > 0.05  # else empty
    return label * keep[0], pred * keep[1]


# --- pixels --------------------------------------------------------------------------------------


def test_pixel_metrics_match_monai():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    mask, pred = random_masks(10_000)
    counts = metrics.pixel_counts(mask[..., None], pred[..., None])
    counts = metrics.Counts(*(np.asarray(c, np.float64)[:, 0] for c in counts))
    y, p = (torch.tensor(m[:, None], dtype=torch.float64) for m in (mask, pred))
    table = monai.get_confusion_matrix(p, y)[:, 0].numpy()  # tp, fp, tn, fn
    for ours, theirs in zip((counts.tp, counts.fp, counts.tn, counts.fn), table.T, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    expected = {
        "dice": monai.compute_dice(p[:500], y[:500], ignore_empty=False),
        "iou": monai.compute_iou(p[:500], y[:500], ignore_empty=False),
        "accuracy": monai.compute_confusion_matrix_metric("accuracy", torch.tensor(table)),
    }
    for name, values in expected.items():
        ours = getattr(metrics, name)(counts)[: len(values)]
        np.testing.assert_allclose(ours, values.numpy().reshape(-1), atol=1e-6, err_msg=name)
    # MONAI computes in float32; the formulas in float64 of its own counts leave nothing open.
    tp, fp, tn, fn = table.T.astype(np.float64)
    empty = tp + fp + fn == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        exact = {
            "dice": np.where(empty, 1, 2 * tp / (2 * tp + fp + fn)),
            "iou": np.where(empty, 1, tp / (tp + fp + fn)),
            "precision": np.where(empty, 1, np.nan_to_num(tp / (tp + fp))),
            "recall": np.where(empty, 1, np.nan_to_num(tp / (tp + fn))),
            "accuracy": (tp + tn) / 256,
            "conformity": np.where(empty, 1, 1 - (fp + fn) / tp),
        }
    for name, values in exact.items():
        np.testing.assert_allclose(
            getattr(metrics, name)(counts), values, atol=1e-12, rtol=1e-12, err_msg=name)
    assert empty.sum() > 100 and ((tp + fn == 0) & ~empty).sum() > 100


def test_pixel_metrics_match_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    mask, pred = random_masks(60)
    counts = metrics.pixel_counts(mask[..., None], pred[..., None])
    counts = metrics.Counts(*(np.asarray(c, np.float64)[:, 0] for c in counts))
    for name, theirs in (("dice", "f1"), ("iou", "jaccard"), ("precision", "precision"),
                         ("recall", "recall")):
        score = getattr(sklearn, f"{theirs}_score")
        expected = [score(m.ravel(), p.ravel(), zero_division=float(not (m | p).any()))
                    for m, p in zip(mask, pred, strict=True)]
        np.testing.assert_allclose(getattr(metrics, name)(counts), expected, rtol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class")
def test_surface_metrics_match_monai(count):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    halves = np.split(np.stack(random_masks(count)), 2, 1)
    for (mask, pred), spacing, tolerance in zip(halves, (1.0, (0.5, 2.0)), (1.0, 2.1), strict=True):
        y, p = (torch.tensor(m[:, None]) for m in (mask, pred))
        expected = monai.compute_hausdorff_distance(
            p, y, include_background=True, percentile=95, spacing=spacing)[:, 0].numpy()
        ours = np.array([metrics.hausdorff95(*pair, spacing=spacing)
                         for pair in zip(mask, pred, strict=True)])
        one_empty = mask.any((1, 2)) != pred.any((1, 2))
        both_empty = ~(mask | pred).any((1, 2))
        assert np.all(ours[one_empty] == np.inf) and np.all(ours[both_empty] == 0)
        rest = ~one_empty & ~both_empty
        # MONAI takes percentiles in float32.
        np.testing.assert_allclose(ours[rest], expected[rest], rtol=1e-5, atol=3e-5)
        expected = monai.compute_surface_dice(
            p, y, [tolerance], include_background=True, spacing=spacing)[:, 0].numpy()
        assert np.isnan(expected[both_empty]).all()
        ours = [metrics.surface_dice(*pair, tolerance, spacing=spacing)
                for pair in zip(mask, pred, strict=True)]
        np.testing.assert_allclose(ours, np.where(both_empty, 1, expected), atol=1e-6)


# --- instances -----------------------------------------------------------------------------------


def coco_ious(label, pred):
    """(I, J) IoU of all pairs, through run-length codes."""
    codes = lambda ids: [coco_mask.encode(np.asfortranarray(ids == i, np.uint8))
                         for i in np.unique(ids[ids > 0])]
    true, found = codes(label), codes(pred)
    return np.reshape(coco_mask.iou(found, true, [0] * len(true)), (len(found), len(true))).T


def dense_matches(ious, threshold):
    """Matched pairs and their IoU, by one assignment over the whole matrix."""
    good = ious >= threshold
    rows, cols = linear_sum_assignment(good + np.where(good, ious, 0) / (2 * sum(ious.shape) + 1),
                                       maximize=True)
    matched = good[rows, cols]
    return matched.sum(), ious[rows, cols][matched].sum()


@pytest.mark.parametrize("count", COUNTS)
def test_average_precision_and_match_match_independent_matching(count):
    for label, pred in zip(*random_labels(count), strict=True):
        ious = coco_ious(label, pred)
        expected = []
        for threshold in (0.1, *metrics.THRESHOLDS):
            tp, total = dense_matches(ious, threshold)
            objects = sum(ious.shape)
            expected.append(tp / (objects - tp) if objects else 1)
            if threshold <= 0.5:
                found = metrics.match(label, pred, iou=threshold)
                assert (found.tp, found.tp + found.fn, found.tp + found.fp) == (tp, *ious.shape)
                pq = total / (objects / 2) if objects else 1
                assert found.pq == pytest.approx(pq, abs=1e-9)
                assert found.f1 == pytest.approx(2 * tp / objects if objects else 1, abs=1e-12)
        np.testing.assert_allclose(metrics.average_precision(label, pred), expected[1:], atol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
def test_partition_scores_match_scikit_image(count):
    options = dict(background_alone=False)
    for label, pred in zip(*random_labels(count), strict=True):
        for ignore in ((), (0,)):
            if ignore and not label.any():
                continue  # no say here, an error there
            options["foreground_only"] = bool(ignore)
            error = adapted_rand_error(label, pred, ignore_labels=ignore)[0]
            assert metrics.rand_error(label, pred, **options) == pytest.approx(error, abs=1e-9)
            expected = skimage_vi(label, pred, ignore_labels=ignore)
            np.testing.assert_allclose(
                metrics.variation_of_information(label, pred, **options), expected, atol=1e-9)


def ctc_scores(folder, frames):
    """(SEG, DET) of py-ctcmetrics over frames of (truth, prediction)."""
    representations = pytest.importorskip("ctc_metrics.utils.representations")
    from ctc_metrics.metrics import det, seg
    found = []
    for label, pred in frames:
        for name, ids in (("truth", label), ("pred", pred)):
            tifffile.imwrite(folder / f"{name}.tif", ids.astype(np.uint16))
        found.append(representations.match(str(folder / "truth.tif"), str(folder / "pred.tif")))
    truth, pred, mapped_truth, mapped_pred, ious = map(list, zip(*found, strict=True))
    no_tracks = np.zeros((0, 4), int)
    operations = representations.count_acyclic_graph_correction_operations(
        no_tracks, no_tracks, truth, pred, mapped_truth, mapped_pred)
    return seg(truth, ious), det(**operations)


def our_scores(frames):
    counts = (metrics.instance_counts(*frame) for frame in frames)
    total = metrics.InstanceCounts(*map(sum, zip(*counts, strict=True)))
    scores = metrics.instance_scores(total)
    return scores["seg"], scores["det"]


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_seg_and_det_match_ctc_metrics_on_random_sequences(tmp_path, count):
    label, pred = random_labels(count, ids=20)
    label[:, 0], pred[:, 0] = 0, 0  # the reference takes the smallest id for background
    for start in range(0, count, 20):  # sequences of 20 frames
        frames = list(zip(label[start : start + 20], pred[start : start + 20], strict=True))
        np.testing.assert_allclose(our_scores(frames), ctc_scores(tmp_path, frames), atol=1e-9)


def with_mistakes(label):
    """A prediction: cells lost, merged, moved and invented."""
    ids = np.unique(label[label > 0])
    names = np.arange(label.max() + 1)
    names[ids[::5]] = 0
    for one, other in zip(ids[1::7], ids[2::7], strict=False):
        names[one] = names[other]
    pred = np.roll(names[label], (3, -4), (0, 1))
    pred[:6, :6] = label.max() + 1
    return pred


@pytest.mark.parametrize("dataset, sequence, truth, frames", [
    ("DIC-C2DH-HeLa", "01", "SEG/man_seg", ("021", "067")),
    ("DIC-C2DH-HeLa", "01", "TRA/man_track", ("021", "022", "067")),
    ("Fluo-N2DL-HeLa", "02", "SEG/man_seg", ("078", "079")),
    ("Fluo-N2DL-HeLa", "02", "TRA/man_track", ("078", "079")),
])
def test_seg_and_det_match_ctc_metrics_on_real_data(
        real_data, tmp_path, dataset, sequence, truth, frames):
    """Silver truth, as it is and with mistakes, as prediction of the gold truth."""
    root = real_data / "ctc" / dataset
    read = lambda path: tifffile.imread(path).astype(np.int32)
    pairs = [(read(root / f"{sequence}_GT" / f"{truth}{frame}.tif"),
              read(root / f"{sequence}_ST" / "SEG" / f"man_seg{frame}.tif")) for frame in frames]
    for change in (lambda x: x, with_mistakes):
        changed = [(label, change(pred)) for label, pred in pairs]
        ours = our_scores(changed)
        np.testing.assert_allclose(ours, ctc_scores(tmp_path, changed), atol=1e-9)
        assert 0 <= min(ours) and ours[0] < 1


def test_aji_matches_per_object_masks_on_synthetic_cells():
    """The loop of Kumar et al. over masks of objects, on images of crowded cells."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        label, _ = cells(
            rng, (96, 96), radius=6, elongation=1.3, coverage=0.4, clustering=0.5)
        pred = with_mistakes(label)
        ious = coco_ious(label, pred)
        true, found = (np.unique(x[x > 0]) for x in (label, pred))
        intersection, union, used = 0, 0, set()
        for i, row in zip(true, ious, strict=True):
            if row.max() == 0:
                union += (label == i).sum()
                continue
            used.add(found[row.argmax()])
            both = [label == i, pred == found[row.argmax()]]
            intersection += np.logical_and(*both).sum()
            union += np.logical_or(*both).sum()
        union += sum((pred == j).sum() for j in found if j not in used)
        assert metrics.aji(label, pred) == pytest.approx(intersection / union, abs=1e-12)
        assert metrics.aji_plus(label, pred) >= 0


# --- probabilities -------------------------------------------------------------------------------


def test_dithering_matches_torch_conversion():
    """Report 2 went through torch: float.mul(255).byte(), then PIL. Logits wrap around."""
    torch = pytest.importorskip("torch")
    from PIL import Image
    rng = np.random.default_rng(0)
    for values in (rng.random((40, 50)), rng.uniform(-12, 12, (40, 50))):
        values = values.astype(np.float32)
        levels = torch.tensor(values).mul(255).byte().numpy()
        np.testing.assert_array_equal(dithered(values), np.asarray(
            Image.fromarray(levels).convert("1")))


def test_calibration_matches_numpy_histograms():
    rng = np.random.default_rng(0)
    probs = rng.random((10, 32, 32, 1)).astype(np.float32)
    target = (rng.random(probs.shape) < probs**2).astype(np.float32)
    counts = metrics.calibration_counts(target, probs)
    counts = metrics.CalibrationCounts(*(np.asarray(c, np.float64).sum((0, 1)) for c in counts))
    edges = np.arange(16) / 15
    expected = [np.histogram(probs, edges, weights=w)[0] for w in (None, probs, target)]
    np.testing.assert_allclose(counts, expected, rtol=1e-5)
    assert metrics.expected_calibration_error(counts) == pytest.approx(1 / 6, abs=0.01)
