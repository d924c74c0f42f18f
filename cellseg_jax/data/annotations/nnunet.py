"""Raw data of nnU-Net: imagesTr/NAME_0000.png, labelsTr/NAME.png and dataset.json.

The files NAME_0000, NAME_0001, ... are the channels of one image, or NAME_0000 holds all of them,
as pictures in colour do. Labels are classes, numbered in dataset.json; the class "ignore" marks
pixels that are not annotated: config.data.ignore names it.
"""

import re

from cellseg_jax.data.decode import MASK_SUFFIXES, SUFFIXES
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.nnunet_channels import described, names
from cellseg_jax.data.read import entries, pixels_of
from cellseg_jax.data.records import Finding
from cellseg_jax.data.stacks import AS_IT_IS
from cellseg_jax.errors import InputError

CHANNEL = re.compile("(.+)_([0-9]{4})")


def is_raw(root) -> bool:
    """Whether a folder is a dataset of nnU-Net."""
    return depends_on(root / "imagesTr").is_dir() and depends_on(root / "labelsTr").is_dir()


def listed(root) -> tuple[dict, list[Finding]]:
    """({name: (image files by channel, label file)}, errors of files that belong to none)."""
    channels = len(names(root))
    labels, images, bad = {}, {}, []
    for path in entries(root / "labelsTr"):
        if path.suffix.lower() in MASK_SUFFIXES:
            _add(labels, path.stem, path, bad)
        else:
            bad.append(_strange(path))
    for path in entries(root / "imagesTr"):
        match = CHANNEL.fullmatch(path.stem)
        if path.suffix.lower() in SUFFIXES and match:
            _add(images.setdefault(match[1], {}), int(match[2]), path, bad)
        else:
            bad.append(_strange(path))
    for name in sorted(labels.keys() - images.keys()):
        bad.append(Finding("error", str(labels[name]), f"label without an image {name}_0000"))
    for name, files in images.items():
        first = next(iter(files.values()))
        if name not in labels:
            bad.append(Finding("error", str(first), f"image without a label {name} in labelsTr"))
        elif sorted(files) != list(range(channels)) and not (
                list(files) == [0] and _holds(first, channels)):
            bad.append(Finding("error", str(first), f"the channels of {name} are "
                               f"{', '.join(f'{n:04d}' for n in sorted(files))}; expected "
                               f"{channels}, from 0000 on, as dataset.json says, or one file "
                               "with all of them"))
    wrong = {finding.where for finding in bad}
    return {name: (tuple(files[n] for n in sorted(files)), labels[name])
            for name, files in sorted(images.items())
            if name in labels and str(next(iter(files.values()))) not in wrong}, bad


def _holds(path, channels) -> bool:
    """Whether an image has so many channels."""
    try:
        return all(one.shape[-1] == channels for one in pixels_of(path, AS_IT_IS._replace(
            channel_index=",".join(map(str, range(channels))))))
    except InputError:
        return False


def _add(files, key, path, bad) -> None:
    if key in files:
        bad.append(Finding("error", str(path), f"ambiguous, {files[key].name} has the same stem; "
                                               "keep one of the two"))
    else:
        files[key] = path


def check(root, options) -> None:
    """InputError unless the options of the dataset are what dataset.json says of the labels."""
    named = described(root, "labels")
    values = {name: value for name, value in named.items() if isinstance(value, int)}
    unknown = values.pop("ignore", None)
    ignore = "" if unknown is None else str(unknown)
    highest = max(values.values(), default=1)
    if options.labels == "instances":
        raise InputError("config.data.labels: got instances; the labels of nnU-Net are classes, "
                         f"{values}: set config.data.labels=classes and config.data.num_classes="
                         f"{highest + 1}, or config.data.labels=binary where there is one")
    if ignore != options.ignore:
        raise InputError(f"config.data.ignore: got {options.ignore!r}; dataset.json of '{root}' "
                         f"says that {ignore or 'nothing'} is not annotated: set "
                         f"config.data.ignore={ignore!r}")


def _strange(path) -> Finding:
    return Finding("error", str(path), "expected NAME_0000 as image and NAME as label, as "
                   f"{', '.join(MASK_SUFFIXES)}; volumes (.nii.gz) are not read, save their slices")
