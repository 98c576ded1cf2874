"""Who we are to an MLflow server: where it is and which headers it gets.

Everything comes from one side's environment (`Context.env`) or from the files that MLflow and
Databricks keep credentials in; what is found here is sent to the configured origin alone.
"""

from __future__ import annotations

import configparser
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlmigrate.errors import NotFound, Refused, UsageError

HEADER_PLUGINS = "mlflow.request_header_provider"
_TRUE = ("true", "1")


@dataclass(frozen=True, slots=True)
class Tls:
    """How far certificates are believed, and which one we show."""

    insecure: bool = False
    server: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """A server's base URL (no credentials in it) and what to send there.

    told   which credential is used, for errors; never more of it than four characters
    more   headers of MLflow's plugins, asked again for each request
    """

    base: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    told: str = "No credentials are set (MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN)."
    tls: Tls = field(default_factory=Tls)
    databricks: bool = False
    more: tuple[Callable[[], Mapping[str, str]], ...] = field(default=(), repr=False)


def login(place: str, env: Mapping[str, str]) -> Login:
    """What `place` (http(s)://..., databricks, databricks://profile) and `env` say about the server."""
    if place.startswith("databricks"):
        return _databricks(place.removeprefix("databricks").removeprefix("://"), env)
    base, user, password = _split(place)
    headers, told = _credentials(user, password, env)
    if workspace := env.get("MLFLOW_WORKSPACE"):
        headers = {**headers, "X-MLFLOW-WORKSPACE": workspace}
    more = _plugins()
    return Login(base, headers, told or Login(base).told, _tls(env), more=more)


def _split(place: str) -> tuple[str, str, str]:
    """Base URL without credentials, and the credentials."""
    parts = urlsplit(place)
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError("The port of the MLflow server is not a number.") from error
    if not parts.hostname:
        raise UsageError("The address of the MLflow server names no host.", "For example mlflow:http://localhost:5000")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = f"{parts.scheme}://{host}" + (f":{port}" if port else "") + parts.path.rstrip("/")
    return base, unquote(parts.username or ""), unquote(parts.password or "")


def _credentials(user: str, password: str, env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Headers, and a sentence about where they come from. The order is MLflow's own, the address first."""
    if user or password:
        return _basic(user, password), f"The address names the user {user!r}."
    user, password = env.get("MLFLOW_TRACKING_USERNAME", ""), env.get("MLFLOW_TRACKING_PASSWORD", "")
    if user and password:
        return _basic(user, password), f"MLFLOW_TRACKING_USERNAME is set, and begins {user[:4]!r}."
    if token := env.get("MLFLOW_TRACKING_TOKEN", ""):
        return {"Authorization": f"Bearer {token}"}, f'MLFLOW_TRACKING_TOKEN is set, and begins "{token[:4]}".'
    file = _home(env) / ".mlflow" / "credentials"
    kept = _ini(file).get("mlflow", {})
    user, password = kept.get("mlflow_tracking_username", ""), kept.get("mlflow_tracking_password", "")
    if user and password:
        return _basic(user, password), f"{file} names a user that begins {user[:4]!r}."
    return {}, ""


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def _databricks(profile: str, env: Mapping[str, str]) -> Login:
    host, token = env.get("DATABRICKS_HOST", ""), env.get("DATABRICKS_TOKEN", "")
    told = f'DATABRICKS_TOKEN is set, and begins "{token[:4]}".'
    if profile or not (host and token):
        file = Path(env.get("DATABRICKS_CONFIG_FILE", "") or _home(env) / ".databrickscfg")
        name = profile or env.get("DATABRICKS_CONFIG_PROFILE", "") or "DEFAULT"
        kept = _ini(file).get(name, {})
        host, token = kept.get("host", ""), kept.get("token", "")
        told = f'The token of profile {name} begins "{token[:4]}".'
        _found(host, token, file, name)
    base = _split(host if "://" in host else f"https://{host}")[0]
    return Login(base, {"Authorization": f"Bearer {token}"}, told, _tls(env), databricks=True)


def _found(host: str, token: str, file: Path, name: str) -> None:
    hint = "Set DATABRICKS_HOST and DATABRICKS_TOKEN, or write host and token into the profile."
    if not host:
        raise NotFound(f"{file} has no profile {name} with a host.", hint)
    if not token:
        raise Refused(f"Profile {name} of {file} has no token.", hint)


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else Path.home()


def _ini(file: Path) -> dict[str, dict[str, str]]:
    """The sections of an ini file; nothing when there is none."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error):
        raise UsageError(f"{file} cannot be read.") from None  # the parser's message would quote the secrets
    return {name: dict(parser[name]) for name in parser.sections()}


def _tls(env: Mapping[str, str]) -> Tls:
    tls = Tls(
        env.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in _TRUE,
        env.get("MLFLOW_TRACKING_SERVER_CERT_PATH", ""),
        env.get("MLFLOW_TRACKING_CLIENT_CERT_PATH", ""),
    )
    for file in (tls.server, tls.client):
        if file and not Path(file).exists():
            raise UsageError(f"There is no certificate {file}.", "MLFLOW_TRACKING_..._CERT_PATH names it.")
    return tls


def _plugins() -> tuple[Callable[[], Mapping[str, str]], ...]:
    """MLflow's request header plugins, if MLflow is here; its own two say nothing that a server needs."""
    points = [point for point in entry_points(group=HEADER_PLUGINS) if not point.value.startswith("mlflow.")]
    if not points or find_spec("mlflow") is None:
        return ()
    return tuple(_asked(point.load()()) for point in points)


def _asked(provider: object) -> Callable[[], Mapping[str, str]]:
    def headers() -> Mapping[str, str]:
        if not provider.in_context():  # type: ignore[attr-defined]  # MLflow's abstract class, not imported here
            return {}
        given: Mapping[str, str] = provider.request_headers()  # type: ignore[attr-defined]
        return given

    return headers
