"""The images that COCO files of a user's own data list, and their annotations."""

import collections
import functools
import unicodedata

from cellseg_jax.data.annotations import coco
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.records import Finding, some
from cellseg_jax.errors import InputError


def listed(files, folder, images) -> tuple[dict, list[Finding]]:
    """({stem: (COCO file, function that reads its annotations)}, errors).

    Args:
      files: of COCO.
      folder: of the images.
      images: {stem: path} of what lies there; the last part of a file_name finds it.
    Raises: InputError if the files list no image at all.
    """
    by_name = collections.defaultdict(list)
    for stem, path in images.items():
        by_name[_plain(path.name)].append(stem)
    found, bad, missing, count = {}, [], [], 0
    for path in files:
        index, kinds = coco.index(depends_on(path)), coco.categories(path)
        bad += _strays(path, index)
        for image in index.images:
            count += 1
            name = _plain(str(image["file_name"]).replace("\\", "/")).rpartition("/")[2]
            stem = next(iter(by_name.get(name, ())), None)
            if stem is None:
                missing.append(name)
            elif stem in found:
                bad.append(Finding("error", str(path), f"lists {name} again; expected each image "
                                                       "once, in one file"))
            else:
                found[stem] = path, functools.partial(
                    _read, path, index.of(image), kinds, (image["height"], image["width"]))
    if not count:
        raise InputError(f"{files[0]}: lists no images")
    if missing:
        bad.append(Finding("error", str(files[0]), f"lists {len(missing)} images that are not in "
                                                   f"'{folder}': {some(missing)}"))
    return found, bad


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes an umlaut as two letters


def _strays(path, index) -> list[Finding]:
    strays = index.strays()
    return [Finding("error", str(path), f"{sum(strays.values()):,} annotations have an image_id "
                    f"that no image of the file has: {some(strays)}; export it again")
            ] if strays else []


def _read(path, places, kinds, size, shape, plane):
    if tuple(size) != shape:
        raise InputError(f"{path}: says {size[0]}x{size[1]} of an image of {shape[0]}x{shape[1]}; "
                         "its polygons do not fit")
    return coco.draw(path, coco.annotations(path, places), kinds, shape)
