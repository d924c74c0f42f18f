"""OME sets: images in several TIFFs, whose OME-XML says which planes lie in which file.

Each file of a set may describe the whole; or one of them does, or a companion file beside them,
NAME.companion.ome, and the others name it (BinaryOnly) or have no OME-XML at all. A companion that
describes many images, such as the fields of a plate, makes a set of each; images that share a file
are one set. The XML is a stranger's: only files beside it are opened.
"""

import functools
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple
from xml.etree import ElementTree

import tifffile

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.errors import InputError
from cellseg_jax.files.strangers import check_regular

COMPANION = ".companion.ome"
SUFFIXES = (".tif", ".tiff")
OME_SUFFIXES = (".ome.tif", ".ome.tiff")  # of files whose own OME-XML may name others
UUIDS = ".//{*}TiffData/{*}UUID"


class OmeSet(NamedTuple):
    """The files that an image is read from."""

    files: tuple[pathlib.Path, ...]  # TIFFs in their order; the file alone if it is of no set
    described: pathlib.Path | None = None  # the file with their OME-XML, if they have none
    problem: str = ""  # why it cannot be read

    @property
    def first(self) -> pathlib.Path:
        """The file that is read, and the others with it: the first that is there."""
        return next((path for path in self.files if path.exists()), self.files[0])

    def others(self, path: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """All files but one."""
        files = self.files if self.described is None else (*self.files, self.described)
        return tuple(dict.fromkeys(file for file in files if file != path))


def set_of(path) -> OmeSet:
    """The set that a file is of.

    Looked for in what companion files beside it list, and in files of OME_SUFFIXES that can be
    opened.
    """
    path = pathlib.Path(path)
    if not path.name.lower().endswith(SUFFIXES) or path.is_dir():
        return OmeSet((path,))
    try:
        described, root = _description(path)
        names = () if root is None else file_names(root)
        files = tuple(path.with_name(name) for name in names if is_plain(name))
        if path not in files or (len(files) == 1 and not described):
            return OmeSet((path,))
        try:
            check_names(root, path, described)
        except InputError as error:
            return OmeSet(files, described, str(error))
        return OmeSet(files, described)
    except InputError as error:
        return OmeSet((path,), problem=str(error))
    except Exception:  # as in decode.named, when it is read
        return OmeSet((path,))


def is_companion(path) -> bool:
    """Whether this is a companion file of at least one TIFF that is there."""
    path = pathlib.Path(path)
    if not path.name.lower().endswith(COMPANION) or not path.is_file():
        return False
    try:
        return any((path.parent / name).exists() for name in _read(path))
    except InputError:
        return True  # said where its TIFFs are read


def open_described(path) -> tifffile.TiffFile:
    """A TIFF, opened with the OME-XML of another file where that one describes it.

    Raises: InputError where the other file is missing or does not fit.
    """
    path = pathlib.Path(path)
    described = _listing(path)
    if described is None:
        tiff = tifffile.TiffFile(path)
        try:
            described = _named_by(tiff, path)
            if described is None:
                return tiff
        except BaseException:
            tiff.close()
            raise
        tiff.close()
    root = _of(described, path)
    check_names(root, path, described)
    xml = ElementTree.tostring(root, encoding="unicode")
    # tifffile would prefer descriptions of the single file.
    tiff = tifffile.TiffFile(path, omexml=xml, is_shaped=False, is_mmstack=False)
    try:
        if len(tiff.series) != len(root.findall("{*}Image")) or any(
                series.kind != "ome" for series in tiff.series):
            raise InputError(f"does not hold the planes that {described.name} describes; export "
                             "both again")
    except BaseException:
        tiff.close()
        raise
    return tiff


def file_names(root) -> tuple[str, ...]:
    """The files that OME-XML, or an Image in it, names, in their order."""
    names = (uuid.get("FileName") for uuid in root.iterfind(UUIDS))
    return tuple(dict.fromkeys(name for name in names if name))


def is_plain(name: str) -> bool:
    """Whether this is the name of a file, which leads into no other folder."""
    return bool(name) and name == pathlib.PurePath(name).name != ".."


def check_names(root, path: pathlib.Path, described: pathlib.Path | None = None) -> None:
    """InputError where OME-XML names a file of another folder, or one of a set is missing.

    Args:
      described: the file that it is from, if that is another than the one at `path`.
    """
    for data in root.iterfind(".//{*}TiffData"):
        uuid = data.find("{*}UUID")
        if not described and (uuid is None or uuid.text == root.get("UUID")):
            continue  # a plane of the file itself, which is not looked for
        name = "" if uuid is None else uuid.get("FileName", "")
        if not is_plain(name):
            raise InputError(f"the OME-XML of {(described or path).name} names {name!r} as the "
                             "file of a plane; expected the name of a file beside it: export the "
                             "set again into one folder")
        check_regular(path.with_name(name))
    names = file_names(root)
    missing = [name for name in names if not path.with_name(name).exists()]
    if len(names) > 1 and path.name in names and missing:
        raise InputError(f"is of a set of {len(names)} files, of which {missing[0]} is missing; "
                         "copy it there, or export the set as one OME-TIFF")


# --- descriptions ---------------------------------------------------------------------------------


def _description(path: pathlib.Path):
    """(the other file that describes a TIFF or None, the OME-XML of its set or None)."""
    described = _listing(path)
    if described is None and path.name.lower().endswith(OME_SUFFIXES):
        with tifffile.TiffFile(path) as tiff:
            described = _named_by(tiff, path)
            if described is None:
                return None, _own(tiff)
    return described, None if described is None else _of(described, path)


def _listing(path) -> pathlib.Path | None:
    """The companion file beside a TIFF that lists it."""
    listed = [file for file in _companions(path.parent) if path.name in _read(file)]
    if len(listed) > 1:
        raise InputError(f"is listed by {listed[0].name} and {listed[1].name}; keep one of the two")
    return listed[0] if listed else None


def _named_by(tiff, path) -> pathlib.Path | None:
    """The file that a TIFF says has its OME-XML."""
    root = _own(tiff) if tiff.is_ome and "BinaryOnly" in tiff.ome_metadata else None
    binary = None if root is None else root.find("{*}BinaryOnly")
    if binary is None:
        return None
    name = binary.get("MetadataFile", "")
    what = f"is a part of the set that {name!r} describes, which"
    if not is_plain(name):
        raise InputError(f"{what} is not the name of a file beside it; export the set again into "
                         "one folder")
    described = path.with_name(name)
    if not described.is_file():
        raise InputError(f"{what} is missing; copy it there, or export the set as one OME-TIFF")
    if path.name not in _read(described):
        raise InputError(f"{what} does not list it; was a file renamed? Export the set again")
    return described


def _companions(folder) -> list[pathlib.Path]:
    """The companion files of a folder, which is not listed again while it is unchanged."""
    names = _companion_names(os.path.abspath(folder), os.stat(folder).st_mtime_ns)
    return [folder / name for name in names]


@functools.lru_cache(maxsize=64)
def _companion_names(folder, changed) -> tuple[str, ...]:
    return tuple(sorted(name for name in os.listdir(folder) if name.lower().endswith(COMPANION)
                        and not name.startswith(".")))


def _own(tiff):
    """The OME-XML of an open TIFF; None where it has none, or one that cannot be read."""
    try:
        return ElementTree.fromstring(tiff.ome_metadata) if tiff.is_ome else None
    except ElementTree.ParseError:
        return None


def _of(described, path):
    """The OME-XML of the set of a TIFF alone, out of the file that describes it."""
    root = ElementTree.Element("OME")  # without the UUID of a file that is not the one opened
    root.extend(_read(described)[path.name])
    return root


def _read(described: pathlib.Path) -> dict[str, list]:
    """{name of a TIFF: elements of the OME-XML that describe its set}."""
    check_regular(depends_on(described))
    stat = os.stat(described)
    return _sets(os.path.abspath(described), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _sets(path, size, changed) -> dict[str, list]:
    name = os.path.basename(path)
    try:
        if name.lower().endswith(SUFFIXES):
            with tifffile.TiffFile(path) as tiff:
                root = _own(tiff)
        else:
            root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, tifffile.TiffFileError) as error:
        raise InputError(f"{name} beside it cannot be read as OME-XML ({error}); copy it again, or "
                         "move it away") from error
    if root is None:
        raise InputError(f"{name} beside it has no OME-XML; export the set again")
    notes = root.findall("{*}StructuredAnnotations")  # axes beside X, Y, Z, C and T
    return {file: [*notes, *images] for file, images in _grouped(root.iterfind("{*}Image")).items()}


def _grouped(images: Iterable) -> dict[str, list]:
    """{name of a TIFF: the images of its set}: those that share a file, and so on."""
    sets = {}
    for image in images:
        names = [pathlib.PurePath(name).name or name for name in file_names(image)]
        group = next((sets[name] for name in names if name in sets), [])
        for name in names:
            other = sets.get(name, group)
            if other is not group:
                group.extend(other)
                sets |= {key: group for key, one in sets.items() if one is other}
            sets[name] = group
        group.append(image)
    return sets
