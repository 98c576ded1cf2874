"""URLs that a server gives: taken apart once, so that what was judged is what is asked.

A server may send us to any public host (its store's), but not into a private network that nobody named: addresses
such as 169.254.169.254 give secrets to whoever asks from there.  A server that is itself private may name private
hosts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, unquote

_URL = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?(/[!-\"$-\[\]-~]*)?(?:\?([!-\"$-~]*))?"
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A URL in parts; `target` is its path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Who is asked."""
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """Host, and port where it is not the usual one."""
        usual = 443 if self.scheme == "https" else 80
        return self.host if self.port == usual else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole."""
        return f"{self.scheme}://{self.netloc}{self.target}"

    @property
    def shown(self) -> str:
        """For messages: the signature stays out."""
        return f"{self.scheme}://{self.netloc}{self.target.partition('?')[0]}"


def spoken(url: str) -> Spoken | None:
    """The parts of a URL that is beyond doubt; None for any other (a login in it, odd characters)."""
    plain = quote(url.partition("#")[0], safe="!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    found = _URL.fullmatch(plain)
    if found is None:
        return None
    scheme, port = found[1].lower(), int(found[3] or 0)
    port = port or (443 if scheme == "https" else 80)
    target = (found[4] or "/") + (f"?{found[5]}" if found[5] is not None else "")
    return Spoken(scheme, found[2].lower(), port, target) if port < 1 << 16 else None


def reachable(url: Spoken, server: Spoken, allow: Sequence[str]) -> bool:
    """Whether a URL that this server gave may be used."""
    return not _private(url.host) or _private(server.host) or _named(url, allow)


def _named(url: Spoken, allow: Sequence[str]) -> bool:
    """Whether a person named it, or what it lies below."""
    if ".." in unquote(url.target.partition("?")[0]).split("/"):
        return False
    return any(url.url.startswith(prefix.rstrip("/") + "/") for prefix in allow if prefix)


def _private(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ip_address(host.strip("[]")).is_global
    except ValueError:
        return False
