"""Scores of images at their original size, gathered while probabilities arrive."""

import jax
import numpy as np
from scipy.special import logit

from cellseg_jax import crops, data, metrics, targets
from cellseg_jax.config import derived
from cellseg_jax.data.scale import as_image
from cellseg_jax.inference.decoding_table import DecodingTable
from cellseg_jax.inference.options import PredictOptions
from cellseg_jax.inference.predictor import annotated
from cellseg_jax.metrics import report_compat


class OriginalSize:
    """Scores of images at their original size, image by image, and their calibration.

        scores = OriginalSize(predictor, arrays, indices)
        for probs in ...:    # (h, w, K) of each image in turn, as the network sees it
            scores.add(probs)

    Args:
      predictor: Predictor of the run.
      arrays: data.Arrays.
      indices: of the images in them.

    Attributes:
      objects: metrics.InstanceCounts of each image; empty where labels have no instances.
      found: metrics.ImageObjects of each image, likewise.
      surfaces: `surface_scores` of each image; empty unless eval.surface.
      decodings: DecodingTable of the same images.
      soft: {metrics.SOFT_SCORES: (1, K)} of each image; empty if nothing learned, or a share.
      report2: report_compat.report2_scores of each image; empty unless eval.report_compat.
    """

    def __init__(self, predictor, arrays, indices):
        self.predictor, self.arrays, self.indices = predictor, arrays, indices
        config = predictor.config
        self._source = data.records_of(config.data) if config.data.fit != "resize" else None
        self._counts, self._calibration = [], []
        self.decodings = DecodingTable(predictor)
        self.objects, self.found, self.surfaces, self.soft, self.report2 = [], [], [], [], []

    def add(self, probs) -> None:
        """Score the next image, given its probabilities at data.size."""
        i = self.indices[len(self._counts)]
        config, label = self.predictor.config, self.arrays.original_label(i)
        self._add_as_seen(probs, i)
        if self._source is None:
            probs = self.predictor.resized(probs, label.shape)
        else:  # a cropped run saw only a part: tile the whole image
            factors = self.arrays.tables.get("scale")
            options = PredictOptions(scale=0.0 if factors is None else float(factors[i]))
            probs = self.predictor.image_probs(as_image(self._source[i]), options)
        target, of_instances = self.predictor.target, derived.has_cells(config)
        regressed = target.num_binary is not None
        found = self.predictor.decode(probs) if of_instances or regressed else None
        self._counts.append(pixel_counts(self.predictor, label, probs, found))
        if of_instances:
            self.objects.append(metrics.instance_counts(label, found))
            self.decodings.add(label, probs, self.objects[-1])
            self.found.append(metrics.image_objects(
                label, found, np.asarray(target.cell_probs(probs))))
        if config.eval.surface:
            cells = found > 0 if regressed else np.asarray(
                target.cell_mask(probs, config.eval.threshold))[..., 0]
            self.surfaces.append(surface_scores(label, cells, found, config))

    def _add_as_seen(self, probs, i) -> None:
        """Scores of probabilities and report 2's, which are taken at data.size."""
        config, cells = self.predictor.config, self.arrays.grid**2
        seen = crops.from_grid(self.arrays.label[i * cells : (i + 1) * cells])
        network = self.predictor.network
        if network.learned:
            self._calibration.append(jax.device_get(
                network.calibration_counts(seen[None], probs[None])))
            if not self.predictor.target.is_share:
                self.soft.append(jax.device_get(network.soft_scores(seen[None], probs[None])))
        if config.eval.report_compat:
            self.report2.append(report_compat.report2_scores(
                seen > 0, logit(np.clip(probs[..., 0].astype(np.float64), 1e-7, 1 - 1e-7)),
                "bce" if config.loss.bce else ""))

    @property
    def counts(self) -> metrics.Counts:
        """Pixel counts (n, K) of all images."""
        return metrics.Counts(*_joined(self._counts))

    @property
    def calibration(self) -> list[np.ndarray]:
        """The fields of metrics.CalibrationCounts, (n, K, bins) each; none if nothing learned."""
        return _joined(self._calibration)


def _joined(counts) -> list[np.ndarray]:
    return [np.concatenate(c).astype(np.float64) for c in zip(*counts, strict=True)]


def pixel_counts(predictor, label, probs, found) -> metrics.Counts:
    """Of (1, K): an image. Where outputs are regressed, a user's mask is that of the cells found.

    Args:
      found: what `probs` are decoded to; read where outputs are regressed.
    """
    if predictor.target.num_binary is None:
        return predictor.counts(label, probs)
    return cell_counts(label, found)


def cell_counts(label, found) -> metrics.Counts:
    """Of (1, 1): cell or not by two labels, where the first is annotated."""
    return metrics.pixel_counts(*((x > 0)[None, ..., None] for x in (label, found)),
                                annotated(label))


def surface_scores(label, cells, found, config) -> dict:
    """SURFACE_DEFINITIONS of one image; NaN or inf where the image is excluded.

    Pixels that are not annotated are background in both, so that outlines that end there agree.

    Args:
      label: (H, W) integers.
      cells: (H, W) bool, what is predicted to be cell.
      found: (H, W) instance ids; read where labels hold instances.
    """
    mask, unknown = label > 0, label < 0
    pred = cells & ~unknown
    out = {"hausdorff95": metrics.hausdorff95(mask, pred),
           "surface_dice": metrics.surface_dice(mask, pred, config.eval.surface)}
    if derived.label_kind(config) == "classes":
        return out
    if not derived.has_cells(config):
        if config.data.get("foreground") == "membrane":  # the cells are what it parts
            mask, pred = ~mask, ~pred
        label, found = targets.components(mask), metrics.thin_borders(targets.components(pred))
        label = np.where(unknown, -1, label)
    return out | {"rand_error": metrics.rand_error(label, found),
                  "information_error": metrics.information_error(label, found),
                  "variation_of_information": sum(metrics.variation_of_information(label, found))}
