"""Labels made elsewhere (by Cellpose, StarDist, a person) in the place of a network's.

A run of model.name="labels" is the folder model.folder: it is scored as what a network segments
at an image's original size is. Only what needs no probabilities is: there is no loss and no
calibration, and the options of config.eval that decode do not apply.
"""

import collections
import hashlib
import pathlib

import numpy as np

from cellseg_jax import crops, metrics
from cellseg_jax.data.annotations import arrays
from cellseg_jax.data.annotations.pairing import ENDINGS
from cellseg_jax.data.read import read_mask
from cellseg_jax.data.records import some
from cellseg_jax.data.resize import FITS
from cellseg_jax.data.scale import rescaled
from cellseg_jax.errors import InputError
from cellseg_jax.inference.measure import Scores
from cellseg_jax.inference.original_size import cell_counts, surface_scores
from cellseg_jax.inference.summary import Measured
from cellseg_jax.report import terminal

SUFFIXES = (".tif", ".tiff", ".png", ".npy")
MAX_ID = 2**31 - 1


class LabelFolder:
    """The label files of some images.

    A file belongs to the image of its path below the folder, or of its last part where no other
    image ends so, without suffix and one of ENDINGS.

    Args:
      config: with model.folder; "{seed}" in it is config.seed, so that each repeat of a row of a
        study may have a folder of its own.
      arrays: data.Arrays.
      indices: of the images that need a label.
    Raises: InputError where there is no such folder, an image has no label or two.
    """

    def __init__(self, config, arrays, indices):
        self.config, self.arrays, self.indices = config, arrays, indices
        self.folder = folder_of(config)
        files_of = _files_of(self.folder, arrays.image_names)
        self.used = {path for files in files_of.values() for path in files}
        names = [arrays.image_names[i] for i in indices]
        chosen = [files_of[name] for name in names]
        missing = [name for name, files in zip(names, chosen, strict=True) if not files]
        if missing:
            raise InputError(
                f"config.model.folder: {self.folder} has no label for {len(missing)} of "
                f"{len(names)} images: {some(missing)}; expected NAME{', NAME'.join(SUFFIXES)} "
                f"or NAME{ENDINGS[0]}.tif and the like for each")
        double = [files for files in chosen if len(files) > 1]
        if double:
            raise InputError(f"config.model.folder: {len(double)} images have several labels, such "
                             f"as {some(path.name for path in double[0])}; keep one of them, and "
                             "no images")
        self.files = [files[0] for files in chosen]

    def note_others(self) -> None:
        """One line on files that belong to no image of the dataset."""
        others = [path.name for path in _files(self.folder) if path not in self.used]
        if others:
            terminal.log(f"{self.folder}: {len(others)} files have the name of no image and are "
                         f"left out: {some(others)}")

    @property
    def content(self) -> str:
        """A hash of the labels that are scored."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def label(self, n: int) -> np.ndarray:
        """(H, W) int32 instance ids of the n-th image, at its original size.

        Raises: InputError for another size, or what are no ids.
        """
        i = self.indices[n]
        return read_label(self.files[n], tuple(self.arrays.original_sizes[i][:2].tolist()))

    def as_seen(self, n: int, label) -> np.ndarray:
        """The label at data.size, cropped or resized as the image is for a network."""
        i, config = self.indices[n], self.config.data
        image = np.zeros((*label.shape, 1), np.uint8)
        image, label = rescaled(image, label, float(self.arrays.scales[i]))
        return FITS[config.fit](image, label, config.size, self.arrays.image_names[i])[1]

    def measured(self) -> Measured:
        """What is scored of all images."""
        original, small, objects, found, surfaces = [], [], [], [], []
        cells = self.arrays.grid**2
        for n, i in enumerate(self.indices):
            truth, label = self.arrays.original_label(i), self.label(n)
            original.append(cell_counts(truth, label))
            seen = crops.from_grid(self.arrays.label[i * cells : (i + 1) * cells])
            small.append(cell_counts(np.asarray(seen, np.int32), self.as_seen(n, label)))
            objects.append(metrics.instance_counts(truth, label))
            found.append(metrics.image_objects(truth, label, np.ones(label.shape)))
            if self.config.eval.surface:
                surfaces.append(surface_scores(truth, label > 0, label, self.config))
        joined = lambda counts: metrics.Counts(
            *(np.concatenate(c).astype(np.float64) for c in zip(*counts, strict=True)))
        small = joined(small)
        return Measured(Scores(None, small, small), joined(original), objects, surfaces, [], {},
                        np.asarray(self.arrays.image_groups)[self.indices],
                        np.asarray(self.arrays.image_strata)[self.indices], found)


def folder_of(config) -> pathlib.Path:
    """The folder of labels of a config.

    Raises: InputError if there is none.
    """
    folder = pathlib.Path(config.model.folder.replace("{seed}", str(config.seed)))
    if not config.model.folder or not folder.is_dir():
        raise InputError(f"config.model.folder: got {str(folder)!r}; expected a folder of label "
                         "images, one for each image that is scored")
    return folder


def read_label(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) int32 instance ids of a TIFF, PNG or npy file.

    Raises: InputError in one line if it cannot be read, has another size or holds no ids.
    """
    if path.suffix.lower() == ".npy":
        label = arrays.read(path)
    else:
        label = read_mask(path)
        if (label != label[..., :1]).any():
            raise InputError(f"{path}: is a colour image; expected one id per pixel")
        label = label[..., 0]
    if label.shape != size:
        raise InputError(f"{path}: label is {'x'.join(map(str, label.shape))}, its image "
                         f"{size[0]}x{size[1]}; expected labels at the image's original size")
    if not (label >= 0).all() or label.max(initial=0) > MAX_ID or (label % 1 != 0).any():
        raise InputError(f"{path}: expected instance ids, whole numbers from 0 to 2^31 - 1; got "
                         f"{label.dtype} from {label.min()} to {label.max()}")
    return label.astype(np.int32)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def _by_name(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """{path below the folder without suffix, also without ending, and the last part: files}."""
    found = collections.defaultdict(list)
    for path in _files(folder):
        whole = path.relative_to(folder).with_suffix("").as_posix()
        names = {whole, *(whole.removesuffix(end) for end in ENDINGS)}
        for name in names | {name.rpartition("/")[2] for name in names}:
            found[name].append(path)
    return found


def _files_of(folder: pathlib.Path, names) -> dict[str, list[pathlib.Path]]:
    """{image: its label files}; a file with the exact name of another image is that one's."""
    found, last = _by_name(folder), {name: name.rpartition("/")[2] for name in names}
    count = collections.Counter(last.values())
    chosen = {}
    for name in names:
        files = found.get(name) or (found.get(last[name], []) if count[last[name]] == 1 else [])
        chosen[name] = [path for path in files if path.stem == last[name] or path.stem not in count]
    return chosen
