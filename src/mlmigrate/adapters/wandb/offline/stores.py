"""Where the bytes of an artifact lie that a run logged without a server.

    1. where its manifest says            a user's own file, the SDK's staging folder, or our own folder of artifacts
    2. artifacts/ of the folder read      when it was moved since
    3. the SDK's staging folder           $WANDB_DATA_DIR/artifacts/staging/<name>
    4. the SDK's cache                    $WANDB_CACHE_DIR/artifacts/obj/<md5 or xxh128>/<aa>/<rest of the digest>
    5. folders that a person names        by any of these names

Whatever lies there counts only when its digest is that of the manifest.
"""

from __future__ import annotations

import base64
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from mlmigrate.adapters.wandb import digests
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
    _digests: dict[tuple[str, str, str], str] = field(default_factory=dict)  # (path, version, algorithm) -> digest
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, folder: Path, env: Mapping[str, str], others: tuple[str, ...] = ()) -> Stores:
        """The places as one side's environment names them."""
        data, cache = _folder(env, "WANDB_DATA_DIR", "data"), _folder(env, "WANDB_CACHE_DIR", "cache")
        more = tuple(Path(one.removeprefix("file://")).expanduser() for one in others if "://" not in one[7:])
        return cls(folder / OWN, data / "artifacts" / "staging", cache / "artifacts" / "obj", more)

    def find(self, local: str, digest: str, size: int | None, algorithm: str = digests.MD5) -> Bytes | None:
        """The bytes of a manifest's entry: those that lie at `local`, or wherever else they are. None: gone."""
        for path in self._candidates(local, digest, algorithm):
            found = _seen(path)
            right_size = found is not None and size in (None, 0, found.size)
            if found is not None and right_size and self._digest(found, algorithm) == digest:
                return found
        return None

    def _candidates(self, local: str, digest: str, algorithm: str) -> Iterator[Path]:
        names = _names(local)
        if local and Path(local).is_absolute():
            yield Path(local)
        if OWN in names[:-1]:
            below = names[len(names) - names[::-1].index(OWN) :]
            yield self.own.joinpath(*below)
        if names:
            yield self.staging / names[-1]
        plain = digests.of_base64(digest).hex()
        cached = Path(algorithm.lower(), plain[:2], plain[2:]) if plain and digests.hasher(algorithm) else None
        if cached:
            yield self.cache / cached
        for other in self.others:
            if names:
                yield from (other / names[-1], other / "staging" / names[-1], other / OWN / "staging" / names[-1])
            if cached:
                yield other / OWN / "obj" / cached

    def _digest(self, found: Bytes, algorithm: str) -> str:
        key = str(found.path), found.version, algorithm
        with self._lock:
            known = self._digests.get(key)
        if known is None:
            known = _digest_of(found, algorithm)
            with self._lock:
                self._digests[key] = known
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


def _seen(path: Path) -> Bytes | None:
    try:
        real = Path(os.path.realpath(path, strict=True))
        found = real.stat()
    except (OSError, ValueError):
        return None
    return Bytes(real, found.st_size, version_of(found)) if stat.S_ISREG(found.st_mode) else None


def _digest_of(found: Bytes, algorithm: str) -> str:
    """Base64 as manifests have it; "" when it cannot be read as it was, or nothing here makes such digests."""
    digest = digests.hasher(algorithm)
    if digest is None:
        return ""
    try:
        with open_slice(found.path, 0, found.size, found.version) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except MigrateError:
        return ""
    return base64.b64encode(digest.digest()).decode()
