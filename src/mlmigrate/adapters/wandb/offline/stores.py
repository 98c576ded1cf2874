"""Where the bytes of an artifact lie that a run logged without a server.

    1. where its manifest says            a user's own file, the SDK's staging folder, or our own folder of artifacts
    2. artifacts/ of the folder read      when it was moved since
    3. the SDK's staging folder           $WANDB_DATA_DIR/artifacts/staging/<name>
    4. the SDK's cache                    $WANDB_CACHE_DIR/artifacts/obj/md5/<aa>/<rest of the md5>
    5. folders that a person names        by any of these names

Whatever lies there counts only when its md5 is that of the manifest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from mlmigrate.errors import MigrateError
from mlmigrate.storage.slices import open_slice, version_of

OWN = "artifacts"  # the folder of ours, beside the runs
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bytes:
    """A file that is what a manifest says. `version` is that of the file when it was looked at."""

    path: Path
    size: int
    version: str


@dataclass(slots=True)
class Stores:
    """The places to look in, and what was found of files seen before. Used by many threads at once."""

    own: Path
    staging: Path
    cache: Path
    others: tuple[Path, ...] = ()
    _md5s: dict[tuple[str, str], str] = field(default_factory=dict)  # (path, version) -> md5
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, folder: Path, env: Mapping[str, str], others: tuple[str, ...] = ()) -> Stores:
        """The places as one side's environment names them."""
        data, cache = _folder(env, "WANDB_DATA_DIR", "data"), _folder(env, "WANDB_CACHE_DIR", "cache")
        more = tuple(Path(one.removeprefix("file://")).expanduser() for one in others if "://" not in one[7:])
        return cls(folder / OWN, data / "artifacts" / "staging", cache / "artifacts" / "obj" / "md5", more)

    def find(self, local: str, md5: str, size: int | None) -> Bytes | None:
        """The bytes of a manifest's entry: those that lie at `local`, or wherever else they are. None: gone."""
        for path in self._candidates(local, md5):
            found = _seen(path)
            right_size = found is not None and size in (None, 0, found.size)
            if found is not None and right_size and self._md5(found) == md5:
                return found
        return None

    def _candidates(self, local: str, md5: str) -> Iterator[Path]:
        names = _names(local)
        if local and Path(local).is_absolute():
            yield Path(local)
        if OWN in names[:-1]:
            below = names[len(names) - names[::-1].index(OWN) :]
            yield self.own.joinpath(*below)
        if names:
            yield self.staging / names[-1]
        cached = _hex(md5)
        if cached:
            yield self.cache / cached[:2] / cached[2:]
        for other in self.others:
            if names:
                yield from (other / names[-1], other / "staging" / names[-1], other / OWN / "staging" / names[-1])
            if cached:
                yield other / OWN / "obj" / "md5" / cached[:2] / cached[2:]

    def _md5(self, found: Bytes) -> str:
        key = str(found.path), found.version
        with self._lock:
            known = self._md5s.get(key)
        if known is None:
            known = _md5_of(found)
            with self._lock:
                self._md5s[key] = known
        return known


def _folder(env: Mapping[str, str], variable: str, kind: str) -> Path:
    if env.get(variable):
        return Path(env[variable]).expanduser()
    import platformdirs  # noqa: PLC0415  wandb brings it

    return Path(platformdirs.user_data_dir("wandb") if kind == "data" else platformdirs.user_cache_dir("wandb"))


def _names(local: str) -> list[str]:
    """The parts of a path of whatever system, the harmless ones."""
    pure = PureWindowsPath(local) if "\\" in local and "/" not in local else PurePosixPath(local)
    return [name for name in pure.parts if name not in {"..", ".", "/"} and "\0" not in name]


def _hex(md5: str) -> str:
    """The md5 of 24 characters as 32 digits; "" for what is none."""
    try:
        raw = base64.b64decode(md5, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == 16 else ""  # noqa: PLR2004  bytes of an md5


def _seen(path: Path) -> Bytes | None:
    try:
        real = Path(os.path.realpath(path, strict=True))
        found = real.stat()
    except (OSError, ValueError):
        return None
    return Bytes(real, found.st_size, version_of(found)) if stat.S_ISREG(found.st_mode) else None


def _md5_of(found: Bytes) -> str:
    """Base64 as manifests have it; "" when it cannot be read as it was."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open_slice(found.path, 0, found.size, found.version) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except MigrateError:
        return ""
    return base64.b64encode(digest.digest()).decode()
