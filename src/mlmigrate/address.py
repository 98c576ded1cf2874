"""Where a place is: `kind:` and then what that tool itself calls it.

    mlflow:http://localhost:5000    mlflow:sqlite:///mlflow.db    mlflow:./mlruns
    ./archive                       s3://bucket/prefix            no kind: an archive

Secrets may stand in an address (a database password); they are never shown: always print
`address.shown`, never `address.text`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlmigrate.errors import UsageError

OBJECT_STORES = ("s3", "gs", "az")
STORE_SCHEMES = (*OBJECT_STORES, "s3a", "abfss", "wasbs")
_SERVER = re.compile(r"(?i)https?://|databricks\b|uc:")
_FOLDER = re.compile(r"[./~]")  # how paths begin
_KIND = re.compile(r"^([A-Za-z][A-Za-z0-9_+-]+):(.*)$", re.DOTALL)
# greedy: a password may hold "@" and "/"; what stands before Azure's "@" is a container, and no secret
_USERINFO = re.compile(r"(?<=://)(?!(?<=wasbs://|abfss://)[a-z0-9$-]+@[a-z0-9]+\.)(?!/)\S*@")
_SECRET_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd|token|key|secret|sslpassword|access_key|sig)=)[^&\s]*")


@dataclass(frozen=True, slots=True)
class Address:
    """A place: the adapter's name and what that tracker calls the place.

    `many` holds the addresses of a merge, in order; `place` is then empty.
    """

    kind: str
    place: str
    many: tuple[Address, ...] = ()

    @property
    def text(self) -> str:
        """The address as it was typed, secrets and all. Never print it."""
        if self.many:
            return " ".join(one.text for one in self.many)
        return self.place if self.kind == "archive" else f"{self.kind}:{self.place}"

    @property
    def shown(self) -> str:
        """The address with secrets hidden: for messages, ledgers and reports."""
        return hide_secrets(self.text)

    @property
    def far(self) -> bool:
        """Whether its bytes go over a network: a server, or an object store. A merge is, if one of its places is."""
        if self.many:
            return any(one.far for one in self.many)
        server = self.kind == "mlflow" and _SERVER.match(self.place) is not None
        server = server or (self.kind == "wandb" and _FOLDER.match(self.place) is None)
        return server or (self.kind == "archive" and in_store(self.place))

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


def parse(text: str) -> Address:
    """The address that `text` names.

    Raises UsageError for an empty text and for a bare web address.
    """
    if not text.strip():
        raise UsageError("An address is empty.", "Write it as kind:place, for example mlflow:./mlruns")
    found = _KIND.match(text)
    if found is None or found[1] in OBJECT_STORES:
        return Address("archive", text)
    kind, place = found[1], found[2]
    if kind in ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks") or kind.startswith(
        ("postgresql+", "mysql+", "mssql+")
    ):
        raise UsageError(
            f"{hide_secrets(text)} does not say which tracker is there.", f"Perhaps mlflow:{hide_secrets(text)}"
        )
    return Address(kind, place)


def merge(addresses: tuple[Address, ...]) -> Address:
    """One address for several places of one estate; a single one stays itself."""
    return addresses[0] if len(addresses) == 1 else Address("merged", "", addresses)


def in_store(place: str) -> bool:
    """Whether this is a place in an object store."""
    return "://" in place and place.partition("://")[0].lower() in STORE_SCHEMES


def hide_secrets(text: str) -> str:
    """`text` with user:password@ and secret query values replaced by ***."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("***@", text))
