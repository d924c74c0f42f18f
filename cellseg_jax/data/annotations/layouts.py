"""Where the images and the annotations of a user's folder lie, and what to do where neither is.

Nothing is guessed: folders of other names are read if config.data.folders names them, and where
nothing is recognised, `advice` tries what lies there and says which setting would read it.
"""

import itertools
import pathlib
from collections.abc import Callable

from cellseg_jax.data.annotations import suffix_of
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import entries
from cellseg_jax.data.records import some
from cellseg_jax.errors import InputError

FOLDERS = ("labels", "annotations", "rois")  # of annotations, where there is no folder masks
LAYOUT = ("Expected DIR/images/NAME.png and DIR/masks/NAME.png (or .tif), or one of the layouts in "
          "docs/formats.md")
KEY = "config.data.folders"
OF_LABELS = ("mask", "label", "annot", "seg", "truth", "gt", "roi")  # in names of their folders
TRIED = 8  # folders that `advice` looks into


class NoLayout(InputError):
    """A folder in which nothing is recognised."""


def places(root: pathlib.Path, named: str = "") -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(folder of the images, folders of the annotations), which may be the same.

    Args:
      root: of both.
      named: their names in root with commas, the images' first; "" for the usual names, or the
        root itself where all lies in it.
    Raises: InputError for a folder that is not there.
    """
    if named:
        return _named(root, [name.strip() for name in named.split(",")])
    images, masks = root / "images", root / "masks"
    if depends_on(images).is_dir():
        images = _innermost(images)
        if depends_on(masks).is_dir():
            return images, [_innermost(masks)]
        return images, _usual(root) or [images, root]
    if root.absolute().name == "images":
        raise InputError(f"config.data.root: '{root}' is itself the folder of images; pass the "
                         f"one it lies in, --config.data.root='{root.absolute().parent}'")
    return root, [root, *_annotation_folders(root)]


def conditions(root: pathlib.Path) -> dict[str, str]:
    """{name: its two folders, as `named` of `places`} of images/ and masks/ by condition or well.

    Both hold nothing but folders then, whose names belong together; {} of another layout.
    """
    images, others = root / "images", _annotation_folders(root)
    held = entries(images) if others and depends_on(images).is_dir() else []
    if len(held) < 2 or not all(map(_is_plain, held)):
        return {}
    if not any(depends_on(others[0] / path.name).is_dir() for path in held):
        return {}
    return {path.name: f"images/{path.name},{others[0].name}/{path.name}" for path in held}


def _named(root, names):
    if len(names) < 2:
        raise InputError(f"{KEY}: got {names[0]!r}; expected the folder of the images and that of "
                         "the annotations, such as raw,annotated")
    images, *others = (root / name for name in names)
    for path in (images, *others):
        if not depends_on(path).is_dir():
            raise InputError(f"{KEY}: folder '{path}' does not exist; '{root}' holds "
                             f"{_held(root)}")
    return images, others


def _annotation_folders(root) -> list[pathlib.Path]:
    """The folder masks, or those that are usual in its place."""
    masks = root / "masks"
    return [masks] if depends_on(masks).is_dir() else _usual(root)


def _usual(root) -> list[pathlib.Path]:
    return [f for f in (root / name for name in FOLDERS) if depends_on(f).is_dir()]


def _innermost(folder):
    """The folder, or the one that is all that lies in it, as in exports of CVAT."""
    held = entries(folder)
    while len(held) == 1 and _is_plain(held[0]):
        folder = depends_on(held[0])
        held = entries(folder)
    return folder


def _is_plain(path) -> bool:
    return path.is_dir() and suffix_of(path) != ".zarr"


def _held(root) -> str:
    """What lies in a folder, in words."""
    folders = [path.name for path in entries(root) if _is_plain(path)]
    files = [path.name for path in entries(root) if not _is_plain(path)]
    return " and ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in
                        (("folders", folders), ("files", files)) if names) or "nothing"


def advice(root: pathlib.Path, readable: Callable) -> str:
    """What lies in a folder in which nothing is recognised, and the setting that would read it.

    Args:
      readable: (folder, value of data.folders) -> whether it has images, all with annotations.
    """
    below = _inside([root])
    deeper = _inside(below)
    for tried in (below, deeper):
        found = [path for path in tried if readable(path, "")]
        if found:
            return f"'{root}' holds datasets, one folder deeper: {_root_of(found)}"
    names = [path.name for path in below] + ["."]
    pairs = [pair for pair in itertools.permutations(names, 2) if readable(root, ",".join(pair))]
    pairs.sort(key=lambda pair: any(word in pair[0].lower() for word in OF_LABELS))
    if pairs:
        choices = " or ".join(f"--{KEY}={images},{masks}" for images, masks in pairs[:4])
        return (f"'{root}' holds {_held(root)}; name the folder of the images and that of the "
                f"annotations: {choices}")
    return f"'{root}' holds {_held(root)}. {LAYOUT}"


def _inside(folders) -> list[pathlib.Path]:
    """The first folders in some, that of the training before others."""
    found = [path for folder in folders for path in entries(folder) if _is_plain(path)]
    return sorted(found, key=lambda path: not path.name.lower().startswith("train"))[:TRIED]


def _root_of(found) -> str:
    first, *others = [f"--config.data.root='{path}'" for path in found]
    return f"pass {first}" + (
        f" ({some([path.name for path in found[1:]])} can be scored after training by main "
        f"--mode=eval --split=all {others[0]})" if others else "")
