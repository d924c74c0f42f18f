"""One hash of the content of a dataset, independent of where its files are."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import zlib

from cellseg_jax.errors import InputError
from cellseg_jax.files import write_atomic

THREADS = 2
VERSION = 2  # of what is hashed: kept hashes of another one are not read


def content_fingerprint(records, directory: pathlib.Path, dataset: str, options: dict) -> str:
    """Hash of names, groups and bytes of all files, wherever they lie and whenever written.

    Records without files are made from the options alone, which then stand for the content.
    The hash is kept in `directory` by (path, size, mtime, ctime) of the files, so that a second
    start costs one stat call per file. A file changed within the clock tick of its ctime, at equal
    size, goes unseen.
    """
    if not any(record.files for record in records):
        names = [record.name for record in records]
        made = json.dumps([dataset, options, names], sort_keys=True)
        return hashlib.blake2b(made.encode(), digest_size=16).hexdigest()
    try:
        memo = directory / "fingerprints" / _stat_hash(records)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            kept, _, checksum = memo.read_text().partition(" ")
            if checksum == _checksum(kept):
                return kept
        fingerprint = _byte_hash(records)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    with contextlib.suppress(OSError):  # a read-only cache makes the next start slow, not wrong
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memo, f"{fingerprint} {_checksum(fingerprint)}")
    return fingerprint


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def contents(path: pathlib.Path) -> list[pathlib.Path]:
    """The file itself, or all files below a folder, such as of a Zarr array."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _stat_hash(records) -> str:
    hash_ = hashlib.blake2b(b"%d" % VERSION, digest_size=16)
    for record in records:
        hash_.update(repr((record.name, record.group)).encode())
        for path in (part for file in record.files for part in contents(file)):
            stat = os.stat(path)
            hash_.update(f"{os.path.abspath(path)}\n{stat.st_size} {stat.st_mtime_ns} "
                         f"{stat.st_ctime_ns}\n".encode())
    return hash_.hexdigest()


def _byte_hash(records) -> str:
    def digest(path):
        if path.is_dir():
            return b"".join(str(part.relative_to(path)).encode() + digest(part)
                            for part in contents(path))
        with open(path, "rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).digest()

    paths = list(dict.fromkeys(path for record in records for path in record.files))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:  # records may share a file
        digests = dict(zip(paths, pool.map(digest, paths), strict=True))
    hash_ = hashlib.blake2b(digest_size=16)
    for record in records:
        hash_.update(repr((record.name, record.group)).encode())
        for path in record.files:
            hash_.update(path.name.encode() + digests[path])
    return hash_.hexdigest()
