"""What may not lie in a folder that a program writes and reads: it could come from somebody else.

Names in such a folder are trusted to be files of the folder. A link would lead reading, writing and
deleting out of it, and a FIFO, a socket or a device would make reading wait for ever.
"""

import os
import pathlib
import stat

from cellseg_jax.errors import InputError, os_error_line

KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
         stat.S_IFBLK: "a device"}


def check(folder, *, itself: bool = False) -> None:
    """Walk through a folder, if it is there; links to files and folders inside of it are allowed.

    Args:
      itself: the folder may not be a link either, which is the user's own choice otherwise.
    Raises: InputError for a link that leads out of the folder or nowhere, and for what is neither a
      file nor a folder; or where the folder cannot be read.
    """
    folder = pathlib.Path(folder)
    if itself and folder.is_symlink():
        _refuse_link(folder, folder.parent)
    if not folder.is_dir():
        return
    root, waiting = os.path.realpath(folder), [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except FileNotFoundError:  # another process removed it
            continue
        except OSError as error:
            raise InputError(os_error_line(error)) from error
        for entry in found:
            if entry.is_symlink():
                if not os.path.realpath(entry.path).startswith(root + os.sep):
                    _refuse_link(entry.path, folder)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                check_regular(entry.path)


def check_regular(path) -> None:
    """InputError for what is there and neither a file nor a folder, which to open could hang.

    Raises: InputError for a loop of links too.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(os_error_line(error)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        raise InputError(f"{path}: is {kind}; expected a file, remove it")


def _refuse_link(path, folder) -> None:
    raise InputError(f"{path}: is a link to {os.readlink(path)}, out of {folder}; expected files "
                     "of the folder itself: replace the link by a copy, or remove it")
