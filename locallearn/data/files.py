"""Where published files are looked for, and the check of every file before any use."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

from locallearn.data.published import PUBLISHED, Published, PublishedFile
from locallearn.errors import DataError

VARIABLE = "LOCALLEARN_DATA"


def use_data(folder: str | None) -> None:
    """Look for published data sets there, in this process and in those that it starts."""
    if folder:
        os.environ[VARIABLE] = folder


def home(name: str, folder: str | None = None) -> Path:
    """Where the files of data set `name` belong, and where a download puts them.

    A subfolder of `folder`, else of the folder in LOCALLEARN_DATA, else of the user's cache; the folder itself if it
    already has the subfolder's name.
    """
    root, subfolder = _root(folder), PUBLISHED[name].folder
    return root if root.name == subfolder else root / subfolder


def locate(name: str, folder: str | None = None) -> Path:
    """The folder with the files: `home`, or the folder above it if that has more of them."""
    return max(home(name, folder), _root(folder), key=lambda place: len(present(name, place)))


def present(name: str, place: Path) -> list[Path]:
    """Those files of data set `name`, gzipped, unpacked or within their archive, that exist in the folder `place`."""
    archive = _archive(name, place)
    found = (_existing(place, file) or archive for file in PUBLISHED[name].files)
    return [path for path in found if path]


def _root(folder: str | None) -> Path:
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "locallearn")
    chosen = folder or os.environ.get(VARIABLE) or cache
    return Path(os.path.expanduser(chosen)).absolute()


def _existing(place: Path, file: PublishedFile) -> Path | None:
    paths = (place / file.name, place / file.unpacked_name)
    return next((path for path in paths if os.path.isfile(path)), None)  # False, too, for a forbidden folder


def _archive(name: str, place: Path) -> Path | None:
    archive = PUBLISHED[name].archive
    path = archive and place / archive.name
    return path if path and os.path.isfile(path) else None


def read_published(name: str, folder: str | None = None, unverified: bool | None = None) -> list[bytes]:
    """The unpacked contents of all files of data set `name`, in the table's order, once every checksum is right.

    unverified: whether files of the right size are taken whatever their checksum; None for data sets that never do.
    """
    place, files = locate(name, folder), PUBLISHED[name].files
    advice = f"set `folder:` or the variable {VARIABLE} to a folder with intact files, or set `download: true`"
    if unverified is not None:
        advice += ", or `unverified: true` to use files that are not the published ones, which every result will say"
    archive = _archive(name, place)
    try:
        return [read_verified(place, file, advice, bool(unverified)) for file in files]
    except DataError:
        if archive is None:
            raise
    return _unarchived(archive, PUBLISHED[name], advice, bool(unverified))


def _unarchived(path: Path, published: Published, advice: str, unverified: bool) -> list[bytes]:
    """The files within an archive; one packed again by somebody else is as good as the published one."""
    found: dict[str, bytes] = {}
    sizes = {f"{published.folder}/{file.name}": file.size for file in published.files}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                if member.isfile() and member.name.removeprefix("./") in sizes:
                    name = member.name.removeprefix("./")
                    stream = tar.extractfile(member)
                    found[Path(name).name] = stream.read(sizes[name] + 1) if stream else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); delete it, then {advice}") from error
    for file in published.files:
        if file.name not in found:
            raise DataError(f"{path}: holds no {published.folder}/{file.name}; delete it, then {advice}")
        content = found[file.name]
        if not (len(content) == file.size if unverified else sha256(content) == file.sha256):
            raise _damaged(path / published.folder / file.name, content, (file.size, file.sha256), advice)
    return [found[file.name] for file in published.files]


def read_verified(place: Path, file: PublishedFile, advice: str, unverified: bool = False) -> bytes:
    """The unpacked content of one file in the folder `place`; DataError if it is missing, truncated or altered.

    A file packed again by somebody else is as good as the published one if its content is. unverified: take any of the right size.
    """
    path = _existing(place, file)
    if path is None:
        raise DataError(f"{place / file.name}: missing (expected SHA-256 {file.sha256}); {advice}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {advice}") from error
    content = raw if path.name == file.unpacked_name else _gunzip(raw, file.unpacked_size)
    packed = path.name == file.name
    if content is not None and (
        sha256(content) == file.unpacked_sha256
        or (packed and sha256(raw) == file.sha256)
        or (unverified and len(content) == file.unpacked_size)
    ):
        return content
    size, checksum = (file.size, file.sha256) if packed else (file.unpacked_size, file.unpacked_sha256)
    raise _damaged(path, raw, (size, checksum), advice)


def _damaged(path: Path, raw: bytes, expected: tuple[int, str | None], advice: str) -> DataError:
    size, checksum = expected
    what = f"truncated ({len(raw)} of {size} bytes)" if len(raw) < size else f"altered ({len(raw)} bytes)"
    return DataError(f"{path}: {what}: SHA-256 is {sha256(raw)}, expected {checksum}; delete it, then {advice}")


def _gunzip(raw: bytes, size: int) -> bytes | None:
    """What a gzipped file holds, or None if it is damaged or holds more than `size` bytes (never unpacked)."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(size)
            return content if not file.read(1) else None
    except (OSError, EOFError, zlib.error):
        return None


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()
