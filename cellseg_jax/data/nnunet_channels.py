"""The channels of nnU-Net's images by dataset.json, for training and prediction alike."""

import json
import pathlib

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.stacks import ReadOptions, chosen_channels
from cellseg_jax.errors import InputError

IMAGES = ("imagesTr", "imagesTs")


def root_of(path: pathlib.Path) -> pathlib.Path | None:
    """The dataset of nnU-Net that an image file belongs to; None of other files."""
    root = path.parent.parent
    if path.parent.name not in IMAGES or not (root / "dataset.json").is_file():
        return None
    try:
        return root if names(root) else None
    except InputError:  # of another program
        return None


def by_number(path: pathlib.Path, options: ReadOptions) -> ReadOptions:
    """The options to read a file with: names of channels in dataset.json are numbers then."""
    root = root_of(path) if options.channel_index else None
    if not root:
        return options
    return options._replace(channel_index=numbers(root, options.channel_index))


def numbers(root, channel_index: str) -> str:
    """config.data.channel_index with the names of dataset.json as numbers of the files.

    Raises: InputError for a name that is not there, with those that are.
    """
    if not channel_index:
        return ""
    channels, out = names(root), []
    for one in chosen_channels(channel_index):
        # Names may be those of normalisations, the same for all channels.
        named = [number for number, name in channels.items() if str(name).lower() == one.lower()]
        if one not in channels and len(named) != 1:
            raise InputError(f"config.data.channel_index: dataset.json of '{root}' has "
                             f"{len(named) or 'no'} channel{'s' * bool(named)} {one!r}; its "
                             "channels are "
                             + ", ".join(f"{n} {name}" for n, name in channels.items()))
        out.append(one if one in channels else named[0])
    return ",".join(out)


def names(root) -> dict[str, str]:
    """{number: name} of the channels."""
    return described(root, "channel_names", "modality")


def described(root, *keys) -> dict:
    """What dataset.json has under the first of some keys that is there; InputError without."""
    path = depends_on(root / "dataset.json")
    try:
        content = json.loads(path.read_bytes())
        found = next(content[key] for key in keys if key in content)
        return dict(found)
    except (OSError, ValueError, TypeError, StopIteration) as error:
        raise InputError(f"{path}: has no {' or '.join(keys)} ({error!r}); expected the "
                         "dataset.json of nnU-Net") from error
