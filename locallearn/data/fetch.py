"""Download of published files, only ever on request."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from locallearn.data.files import home, read_verified, sha256
from locallearn.data.published import PUBLISHED, Archive, Published, PublishedFile
from locallearn.errors import DataError

TIMEOUT = 30.0  # seconds that a server may be silent
_CHUNK = 1 << 18  # bytes


def download(name: str, folder: str | None = None) -> Path:
    """Fetch the files of data set `name` that are missing or damaged, and return the folder they are in.

    They go where they are looked for: `folder`, else LOCALLEARN_DATA, else the user's cache; always into the set's own
    subfolder. A file appears only complete and with its checksum verified. DataError says which file could not be had
    from which address and why.
    """
    if name not in PUBLISHED:
        raise DataError(f"{name}: nothing to download; data sets with published files: {', '.join(sorted(PUBLISHED))}")
    place = home(name, folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in _wanted(PUBLISHED[name], place):
            _fetch(PUBLISHED[name].urls, place, file)
    except OSError as error:
        raise DataError(f"{place}: cannot write there: {error}; set `folder:` to a folder of yours") from error
    return place


def _wanted(published: Published, place: Path) -> Sequence[PublishedFile | Archive]:
    """What has to be downloaded: files that are missing or damaged, or the archive that holds them all."""
    wanted = [file for file in published.files if not _intact(place, file)]
    archive = published.archive
    if not wanted or archive is None:
        return wanted
    path = place / archive.name
    return [] if path.is_file() and sha256(path.read_bytes()) == archive.sha256 else [archive]


def _intact(place: Path, file: PublishedFile) -> bool:
    try:
        read_verified(place, file, advice="")
    except DataError:
        return False
    return True


def _fetch(urls: tuple[str, ...], place: Path, file: PublishedFile | Archive) -> None:
    failures = []
    for url in urls:
        part = place / f".{file.name}.{uuid.uuid4().hex}.part"  # of this process alone, beside its target
        try:
            failure = _receive(url + file.name, part, file)
            if failure is None:
                os.replace(part, place / file.name)
                return
            failures.append(f"{url}{file.name}: {failure}")
        finally:
            part.unlink(missing_ok=True)
    raise DataError(
        f"{place / file.name}: could not be downloaded (offline?): {'; '.join(failures)}. "
        f"Fetch it elsewhere (SHA-256 {file.sha256}) and put it into {place}"
    )


def _receive(url: str, part: Path, file: PublishedFile | Archive) -> str | None:
    """Write the file behind `url` to `part`; what went wrong, or None if all is well."""
    import http.client  # imported here: slow, and rarely needed
    import urllib.request

    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "locallearn"})
    with part.open("wb") as target:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                while received <= file.size and (chunk := response.read(_CHUNK)):
                    received += len(chunk)
                    digest.update(chunk)
                    target.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
    if digest.hexdigest() != file.sha256:
        return f"{received} bytes with SHA-256 {digest.hexdigest()}, expected {file.size} with {file.sha256}"
    return None
