"""The COCO files of all images of a folder in one, as tools of COCO expect it."""

import json
import pathlib
from collections.abc import Iterable

from cellseg_jax.data.annotations.coco import OF_FOLDER, OF_IMAGE
from cellseg_jax.files import atomic_file


def write(folders: Iterable[pathlib.Path]) -> None:
    """Write OF_FOLDER in each folder where a file of an image, which stays, is newer.

    Images and annotations are numbered anew; `name` of an image is that of its outputs, `label_id`
    of an annotation the id of the object in its label.
    """
    for folder in folders:
        parts, path = sorted(folder.glob(f"*{OF_IMAGE}")), folder / OF_FOLDER
        newest = max((part.stat().st_mtime_ns for part in parts), default=0)
        if parts and not (path.exists() and path.stat().st_mtime_ns >= newest):
            _write(path, parts)


def _write(path, parts) -> None:
    """One part at a time is in memory."""
    images, categories, count, separator = [], [], 0, "\n"
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for part in parts:
            content = json.loads(part.read_bytes())
            if len(content.get("images", ())) != 1:
                continue  # of a person, beside ours
            images.append(content["images"][0] | {"id": len(images) + 1,
                                                  "name": part.name.removesuffix(OF_IMAGE)})
            categories = content["categories"]
            for one in content["annotations"]:
                count += 1
                file.write(separator + json.dumps(
                    one | {"id": count, "image_id": len(images), "label_id": one["id"]}))
                separator = ",\n"
        rest = json.dumps({"images": images, "categories": categories}, ensure_ascii=False)
        file.write(f"\n], {rest[1:]}\n")
