"""How one side speaks to a W&B server: its key, its proxies, the certificates it believes.

The variables are those of W&B's SDK, of requests and of OpenSSL, as this side's environment has them.
"""

from __future__ import annotations

import netrc
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mlmigrate.errors import BadData, Refused, UsageError

_TRUE = ("true", "1", "yes")
_PLAIN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Network:
    """`proxies` by scheme, "no" among them for the hosts that need none. Certificates: "" for the machine's own."""

    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    bundle: str = ""
    folder: str = ""
    insecure: bool = False

    def proxy(self, scheme: str, host: str) -> str:
        """The proxy for this host, "" for none. This machine is reached without one."""
        bare = host.strip("[]")
        if bare == "localhost" or bare.startswith("127.") or bare == "::1":
            return ""
        if any(_covers(one.strip(), bare) for one in self.proxies.get("no", "").split(",")):
            return ""
        return self.proxies.get(scheme, "")


def _covers(pattern: str, host: str) -> bool:
    """Whether an entry of NO_PROXY is for this host: a domain stands for all below it."""
    name = pattern.lower().lstrip("*").lstrip(".")
    return pattern == "*" or (bool(name) and (host == name or host.endswith("." + name)))


def network(env: Mapping[str, str]) -> Network:
    """What the environment says of the way to any host."""
    proxies = {
        "http": _first(env, "WANDB_HTTP_PROXY", "http_proxy", "HTTP_PROXY"),
        "https": _first(env, "WANDB_HTTPS_PROXY", "https_proxy", "HTTPS_PROXY"),
        "no": _first(env, "no_proxy", "NO_PROXY"),
    }
    return Network(
        {scheme: url for scheme, url in proxies.items() if url},
        _first(env, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"),
        env.get("SSL_CERT_DIR", ""),
        env.get("WANDB_INSECURE_DISABLE_SSL", "").lower() in _TRUE,
    )


def api_key(base_url: str, env: Mapping[str, str]) -> str:
    """The key for this server: WANDB_API_KEY, else what the netrc file has for its host.

    Raises Refused where there is none. A netrc's `default` is not used: it was not meant for this host.
    """
    key = env.get("WANDB_API_KEY", "") or _from_netrc(urlsplit(base_url).netloc, env)
    if not key:
        raise Refused(f"There is no API key for {base_url}.", told(base_url))
    if not _PLAIN.fullmatch(key):
        raise Refused("The API key has characters that no key of W&B has.", told(base_url))
    return key


def told(base_url: str) -> str:
    """What to do where a key is missing or wrong."""
    return (
        "Set WANDB_API_KEY (SOURCE_WANDB_API_KEY or TARGET_WANDB_API_KEY for one side), or have an entry for "
        f"{urlsplit(base_url).netloc} in the netrc file. {base_url}/authorize shows a key"
    )


def authorization(key: str) -> str:
    """The header's value."""
    return "Basic " + b64encode(f"api:{key}".encode()).decode()


def checked_base(base_url: str) -> str:
    """The server's address. Raises UsageError for one that cannot be used, or that holds a login."""
    parts = urlsplit(base_url)
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError("The port of the W&B server is not a number.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageError("The address of the W&B server cannot be understood.", "For example https://wandb.corp")
    if parts.username or parts.password:
        raise UsageError("The address of the W&B server holds a login.", "Set WANDB_API_KEY instead")
    return base_url.rstrip("/")


def _first(env: Mapping[str, str], *names: str) -> str:
    return next((value for name in names if (value := env.get(name, ""))), "")


def _from_netrc(host: str, env: Mapping[str, str]) -> str:
    path = _netrc_file(env)
    try:
        hosts = netrc.netrc(path).hosts
    except FileNotFoundError:
        return ""
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as a netrc file.", "Set WANDB_API_KEY, or mend the file") from error
    found = hosts.get(host)
    return found[2] or "" if found is not None else ""


def _netrc_file(env: Mapping[str, str]) -> Path:
    home = env.get("HOME", "")
    folder = Path(home) if home else Path.home()
    if named := env.get("NETRC", ""):
        return folder / named[2:] if named.startswith("~/") else Path(named)
    plain, windows = folder / ".netrc", folder / "_netrc"
    return windows if windows.exists() and not plain.exists() else plain
