"""Where artifacts lie now and where they shall lie: addresses compared, and new ones made. Pure.

An old place is known by one text, however it was written:

    file:/data/mlruns/1        /data/mlruns/1, file:///data/mlruns/1/, file:/data/mlruns/1
    file:mlruns/1              ./mlruns/1: relative to wherever the server was started
    s3://bucket/prefix         s3a://bucket/prefix/ too
    mlflow-artifacts:/1        behind a server's proxy: the address stays, only the bytes move

Places are compared by whole parts: /data/mlruns never holds /data/mlruns2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

PROXY = "mlflow-artifacts:"
DIRECT = ("s3://", "gs://", "az://")
HOSTS = ("abfss://", "wasbs://")  # these name a host, which a person must have named first
FOLDERS = {"model": "models/", "trace": "traces/"}  # below an experiment's place, as MLflow makes them
_USUAL = re.compile(r"(?:/[\w\-][\w.\-]*)+")  # a plain absolute path, which most are
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # one letter is a drive
_DRIVE = re.compile(r"^/?([A-Za-z]:)")
_PLAIN_PART = re.compile(r"[\w.\-+=@,~ ]+")


def old_place(uri: str) -> str:
    """The one text of the place that `uri` names; "" when it is no clean place."""
    if _USUAL.fullmatch(uri):
        return f"file:{uri}"
    if not uri or any(letter < " " for letter in uri):
        return ""
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme[0].lower() == "file:":
        return _folder(uri)
    name = scheme[0].lower()
    rest = uri[len(name) :].rstrip("/")
    name = "s3:" if name == "s3a:" else name
    return name + rest if clean(rest.lstrip("/")) or not rest.strip("/") else ""


def _folder(uri: str) -> str:
    path = uri
    if uri[:5].lower() == "file:":
        parts = urlsplit(uri[5:].replace("#", "%23").replace("?", "%3F"))
        if parts.netloc not in ("", "localhost"):
            return ""
        path = unquote(parts.path)
    if "\0" in path:
        return ""
    if _DRIVE.match(path):
        path = "/" + path.replace("\\", "/").lstrip("/")
    start = "/" if path.startswith("/") else ""
    parts_of = [part for part in path.split("/") if part not in ("", ".")]
    return "" if ".." in parts_of else f"file:{start}{'/'.join(parts_of)}"


def clean(path: str) -> bool:
    """Whether a path is relative and leads nowhere but down."""
    return all(part not in ("", ".", "..") for part in path.split("/"))


def proxied(place: str) -> bool:
    """Whether a server stands before it."""
    return place.startswith(PROXY)


def local(place: str) -> bool:
    """Whether it is said to be a folder."""
    return place.startswith("file:")


def direct(place: str) -> bool:
    """Whether it lies in an object store that we reach ourselves."""
    return place.startswith(DIRECT)


def below(place: str, root: str) -> bool:
    """Whether `place` is `root` or lies below it, by whole parts."""
    return place == root or place.startswith(root.rstrip("/") + "/")


def rest_of(place: str, root: str) -> str:
    """What comes behind `root`; "" when it is `root` itself."""
    return place[len(root.rstrip("/")) + 1 :]


def parents(place: str) -> Iterator[str]:
    """The place and all that it lies below, the longest first."""
    yield place
    at = place
    while (cut := at.rfind("/")) > 0:
        at = at[:cut]
        if not at.endswith(("/", ":")):
            yield at


def bucket_of(place: str) -> tuple[str, str]:
    """s3://bucket and the key behind it."""
    head, _, rest = place.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{head}://{bucket}", key


def name_part(text: str) -> bool:
    """Whether an id may be a part of a key, and of a URI, as it is."""
    return _PLAIN_PART.fullmatch(text) is not None and text not in (".", "..")


def plain(path: str) -> bool:
    """Whether a URI can hold this relative path and every reader takes it for the same."""
    return all(name_part(part) for part in path.split("/"))


def key_of(kind: str, experiment: str, id: str, place: str, root: str) -> str:
    """Where below the new place an owner's files go; "" when its ids cannot be part of a key.

    What lay below its experiment's place keeps the way from there; all else goes where MLflow itself would put it.
    """
    if not name_part(experiment):
        return ""
    if root and below(place, root) and place != root and plain(rest_of(place, root)):
        return f"{experiment}/{rest_of(place, root)}"
    return f"{experiment}/{FOLDERS.get(kind, '')}{id}/artifacts" if name_part(id) else ""


def new_uri(target: str, key: str) -> str:
    """The address as MLflow shall find it in the store."""
    return f"{target}/{key}" if key else target


def nameable(rest: str) -> bool:
    """Whether MLflow can name this in an address: it takes "#", "?" and "%XX" for something else."""
    return not re.search(r"[#?]|%[0-9A-Fa-f]{2}", rest)
