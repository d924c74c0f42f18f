"""Classical segmentation: five methods without learning, as baselines for the networks.

Every method is CLASSICAL[name](image, **options) -> mask, run on the host:

  image: (H, W, C) of any real dtype, or (H, W). C is 1 or 3, with an alpha channel behind it
    that is not read. Gray is the luminance, see normalize.LUMINANCE. Scale and offset of the
    intensities change nothing.
  mask: (H, W) bool, True in cells.

Which of two classes of pixels are the cells is decided by `polarity`:

  dark: the class of the lower mean luminance, as in stained tissue.
  bright: the other, as in fluorescence.
  auto: the class with fewer of the image's border pixels, the darker one if equal: wrong where
    cells fill most of the border.

Sobel has no polarity. An image of one colour has no cells. `sigma`, in pixels, is that of a
Gaussian that smooths the image first; 0 does not smooth. Hot and dead pixels do not count: each
channel is clipped to twice the range that it has after a median of 3 x 3 pixels. All methods raise
ValueError for a number outside its range, an image of another shape or one with NaN or infinity,
and InputError for an unknown polarity.
"""

import inspect

import numpy as np
import skimage  # whose modules are imported where they are first used
from jaxtyping import ArrayLike, Bool, Real
from scipy import ndimage
from skimage import filters, segmentation

from cellseg_jax import targets
from cellseg_jax.errors import pick
from cellseg_jax.normalize import LUMINANCE

Image = Real[ArrayLike, "h w *c"]
Mask = Bool[np.ndarray, "h w"]
MAX_ROUNDS = 200  # of k-means and ICM, which end by themselves; a guard against rounding
VARIANCE_FLOOR = 1e-4  # of the image's variance: what each class of the MRF has more


# --- the methods ---------------------------------------------------------------------------------


def otsu(image: Image, *, polarity: str = "auto", sigma: float = 0.0) -> Mask:
    """Two classes of gray, by the threshold that minimises the variance within them.

    Every gray value of the image is tried, not the edges of a histogram's bins.

    Source: Otsu 1979, IEEE Transactions on Systems, Man and Cybernetics 9.
    """
    gray = _gray(_colours(image, sigma))
    return _foreground(gray > _otsu_threshold(gray), gray, polarity)


def kmeans(image: Image, *, polarity: str = "auto", sigma: float = 0.0) -> Mask:
    """Two clusters of colours, by Lloyd's iteration from Otsu's two classes: deterministic.

    For gray images the start is the solution, because both minimise the same variance.

    Source: Lloyd 1982, IEEE Transactions on Information Theory 28.
    """
    colours = _colours(image, sigma)
    return _foreground(_clusters(colours), _gray(colours), polarity)


def mrf(
    image: Image, *, polarity: str = "auto", sigma: float = 0.0, beta: float = 1.5
) -> Mask:
    """Markov random field: Gaussian colours in each of two classes, and a smoothness prior.

    Minimises sum_i -log N(colour_i; mean, covariance of the class of i) + beta * (pairs of
    4-neighbours in different classes) by iterated conditional modes, from the clusters of
    k-means, whose means and covariances are kept. While the white squares of a chessboard are
    fixed its black ones do not depend on each other, so each half is one array operation.

    Args:
      beta: cost of a pair in different classes, in nats; 0 is the likelihood alone, 1 to 2 usual.
    Source: Besag 1986, Journal of the Royal Statistical Society B 48.
    """
    _at_least("beta", beta, 0)
    colours = _colours(image, sigma)
    bright = _clusters(colours)
    if _one_class(bright):
        return np.zeros(bright.shape, bool)
    floor = VARIANCE_FLOOR * colours.var((0, 1)).sum() * np.eye(colours.shape[-1])
    cost = [_negative_log_likelihood(colours, colours[members], floor)
            for members in (~bright, bright)]
    bright = _minimised(cost[1] - cost[0], bright, beta)
    return _foreground(bright, _gray(colours), polarity)


def watershed(
    image: Image, *, polarity: str = "auto", sigma: float = 1.0, h: float = 1.0, band: float = 2.0
) -> Mask:
    """Otsu's mask, its border moved onto the edges of the image and its touching cells cut apart.

    Markers are the certain parts of Otsu's mask: the cells that its distance transform separates
    (targets.split_by_distance), without pixels within `band` of the background, and the
    background likewise. A watershed of Sobel's gradient assigns the pixels between to one of them.
    Where cells touch, both lose one pixel.

    Args:
      h: pixels a neck must be thinner than a cell to be cut; larger cuts less.
      band: pixels on either side of the mask's border that are uncertain; thinner parts keep
        their innermost pixels.
    Source: Beucher and Meyer 1993, The morphological approach to segmentation.
    """
    _at_least("h", h, 0)
    _at_least("band", band, 0)
    gray = _gray(_colours(image, sigma))
    mask = _foreground(gray > _otsu_threshold(gray), gray, polarity)
    if _one_class(mask):
        return mask
    cells = _certain(targets.split_by_distance(mask, h), band)
    background = cells.max() + 1
    markers = np.where(_certain(targets.components(~mask), band) > 0, background, cells)
    label = segmentation.watershed(filters.sobel(gray), markers, connectivity=1)
    return targets.TARGETS["boundary"].encode(label * (label < background))[..., 0] > 0


def sobel(
    image: Image, *, sigma: float = 1.0, factor: float = 1.0, closing: int = 1
) -> Mask:
    """Edges and what they enclose, whichever side is darker.

    Edges are where the gradient's magnitude exceeds `factor` times Otsu's threshold of it. Gaps
    of about 2 * closing pixels are bridged and holes filled. A cell that the image's border cuts
    is not enclosed, so of it only the edge is found.

    Args:
      factor: below 1 takes fainter edges too.
      closing: radius of the closing, pixels; 0 bridges nothing.
    Source: Sobel's operator as in Duda and Hart 1973, Pattern Classification and Scene Analysis.
    """
    _at_least("factor", factor, 0)
    _at_least("closing", closing, 0)
    magnitude = filters.sobel(_gray(_colours(image, sigma)))
    edges = magnitude > factor * _otsu_threshold(magnitude)
    # Closing at the border needs pixels beyond it.
    closed = skimage.morphology.closing(np.pad(edges, closing),
                                        skimage.morphology.disk(closing))
    closed = closed[closing : closing + edges.shape[0], closing : closing + edges.shape[1]]
    return ndimage.binary_fill_holes(closed)


def options(name: str) -> dict:
    """The options of a method with their defaults, as the config lists them.

    Raises: InputError for an unknown name.
    """
    parameters = inspect.signature(pick(CLASSICAL, name, "config.model.name")).parameters
    return {key: p.default for key, p in parameters.items() if key != "image"}


# --- parts ---------------------------------------------------------------------------------------


def _at_least(name, value, low):
    if not value >= low:
        raise ValueError(f"{name}: got {value}; expected at least {low}")


def _colours(image, sigma):
    """(H, W, 1 or 3) float64 without alpha, smoothed; the darkest value of each channel is 0.

    What lies beyond twice the robust range of a channel is clipped: one hot pixel of 65535 in a
    dark image would be a class of its own.
    """
    _at_least("sigma", sigma, 0)
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4) or not image.size:
        raise ValueError(f"image {image.shape}: expected (H, W, C) with C 1 or 3, alpha behind it")
    colours = image[..., : 1 if image.shape[-1] < 3 else 3].astype(np.float64)
    if not np.isfinite(colours).all():  # a single NaN would leave no cells in the whole image
        raise ValueError(f"image: {np.sum(~np.isfinite(colours))} values are NaN or infinite; "
                         "expected finite ones, give these pixels a value")
    middle = ndimage.median_filter(colours, (3, 3, 1), mode="nearest")
    low, high = middle.min((0, 1)), middle.max((0, 1))
    beyond = np.where(high > low, (high - low) / 2, np.inf)  # else nothing else is in the image
    colours = np.clip(colours, low - beyond, high + beyond)
    colours -= colours.min((0, 1))  # a constant image stays constant under rounding
    return ndimage.gaussian_filter(colours, (sigma, sigma, 0), mode="nearest")


def _gray(colours):
    """(H, W) luminance."""
    return colours[..., 0] if colours.shape[-1] == 1 else colours @ np.array(LUMINANCE)


def _one_class(mask):
    return mask.all() or not mask.any()


def _foreground(members, gray, polarity):
    """The mask of cells: `members` of one class, or the others, by the rule of the module."""
    foreground_is_dark = pick(POLARITIES, polarity, "polarity")
    if _one_class(members):
        return np.zeros(members.shape, bool)
    dark = members if gray[members].mean() < gray[~members].mean() else ~members
    return dark if foreground_is_dark(dark) else ~dark


def _rare_at_border(dark):
    """Whether the darker class has at most half of the border's pixels."""
    border = np.ones(dark.shape, bool)
    border[1:-1, 1:-1] = False
    return dark[border].mean() <= 0.5


POLARITIES = {"auto": _rare_at_border, "dark": lambda dark: True, "bright": lambda dark: False}


def _otsu_threshold(gray):
    """The value up to which the darker class goes; the only value if there is one."""
    values, counts = np.unique(gray, return_counts=True)
    if len(values) == 1:
        return values[0]
    below, sums = np.cumsum(counts)[:-1].astype(np.float64), np.cumsum(counts * values)
    total, whole = gray.size, sums[-1]
    between = (whole * below - total * sums[:-1]) ** 2 / (below * (total - below))
    return values[np.argmax(between)]


def _clusters(colours):
    """(H, W) bool, the two clusters of k-means."""
    gray = _gray(colours)
    members = gray > _otsu_threshold(gray)
    for _ in range(MAX_ROUNDS):
        if _one_class(members):
            break
        first, second = colours[~members].mean(0), colours[members].mean(0)
        # nearer to the second mean than to the first
        nearer = (colours - (first + second) / 2) @ (second - first) > 0
        if (nearer == members).all():
            break
        members = nearer
    return members


def _negative_log_likelihood(colours, members, floor):
    """(H, W) -log N(colour; mean and covariance of the (n, C) members), without the constant."""
    covariance = np.atleast_2d(np.cov(members.T, bias=True)) + floor
    distance = colours - members.mean(0)
    squared = np.einsum("hwc,cd,hwd->hw", distance, np.linalg.inv(covariance), distance)
    return (squared + np.linalg.slogdet(covariance)[1]) / 2


def _minimised(cost, label, beta):
    """Iterated conditional modes from `label`: True where that costs less, given the neighbours.

    Args:
      cost: (H, W), what True costs more than False without neighbours.
      label: (H, W) bool.
    Returns: (H, W) bool whose cost no change of a single pixel lowers.
    """
    black = np.indices(label.shape).sum(0) % 2 == 0
    for _ in range(MAX_ROUNDS):
        before = label
        for half in (black, ~black):
            votes = np.pad(np.where(label, beta, -beta), 1)
            votes = votes[:-2, 1:-1] + votes[2:, 1:-1] + votes[1:-1, :-2] + votes[1:-1, 2:]
            gain = votes - cost
            label = np.where(half & (gain != 0), gain > 0, label)
        if (label == before).all():
            break
    return label


def _certain(label, band):
    """The label without pixels within `band` of its outside; every object keeps its innermost."""
    distance = ndimage.distance_transform_edt(label > 0)
    deepest = ndimage.maximum(distance, label, np.arange(label.max() + 1))
    return np.where((distance > band) | (distance == deepest[label]), label, 0)


CLASSICAL = {"otsu": otsu, "kmeans": kmeans, "mrf": mrf, "watershed": watershed, "sobel": sobel}
