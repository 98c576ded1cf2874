"""Who we are to an MLflow server: where it is and which headers it gets.

Everything comes from one side's environment (`Context.env`) or from the files that MLflow and
Databricks keep credentials in; what is found here is sent to the configured origin alone.
"""

from __future__ import annotations

import configparser
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.mlflow.rest.managed import PLAIN, Service, service_of
from mlmigrate.adapters.mlflow.rest.plugins import (
    Plugged,
    Signer,
    databricks,
    header_plugins,
    knows_databricks,
    plugged,
    signer,
    sigv4,
)
from mlmigrate.errors import NotFound, Refused, UsageError

_ARN = re.compile(r"arn:[\w-]+:sagemaker:[a-z0-9-]+:\d{12}:(mlflow-tracking-server|mlflow-app)/[\w-]+")
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
    sign   an auth plugin, shown each request
    renew  whether the refusal of a request that began then (time.monotonic) is worth asking for credentials once more,
           which are asked for then
    """

    base: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    told: str = "No credentials are set (MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN)."
    tls: Tls = field(default_factory=Tls)
    service: Service = PLAIN
    more: tuple[Callable[[], Mapping[str, str]], ...] = field(default=(), repr=False)
    sign: Signer | None = field(default=None, repr=False)
    renew: Callable[[float], bool] = field(default=lambda _: False, repr=False)

    @property
    def databricks(self) -> bool:
        return self.service.databricks


def login(place: str, env: Mapping[str, str]) -> Login:
    """What `place` and `env` say about the server.

    http(s)://...                       a server
    databricks, databricks://profile    a workspace; databricks-uc: with the registry in Unity Catalog
    arn:..., azureml://..., others      what a plugin of MLflow makes of it
    """
    if re.match("databricks(-uc)?(://|$)", place):
        return _databricks(place, env)
    if not place.startswith(("http://", "https://")):
        return _managed(place, env)
    base, user, password = _split(place)
    headers, told = _credentials(user, password, env)
    sign = _signer(place, env)
    if workspace := env.get("MLFLOW_WORKSPACE"):
        headers = {**headers, "X-MLFLOW-WORKSPACE": workspace}
    renew = sign.renew if sign is not None else lambda _: False
    return Login(
        base, headers, told or Login(base).told, _tls(env), more=header_plugins(env, base), sign=sign, renew=renew
    )


def _signer(place: str, env: Mapping[str, str]) -> Signer | None:
    """What signs requests, in MLflow's own order."""
    if env.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in _TRUE:
        return sigv4(env, place)
    name = env.get("MLFLOW_TRACKING_AUTH", "")
    return signer(name, env, place) if name else None


def _managed(place: str, env: Mapping[str, str]) -> Login:
    """A server that has an address of its own kind."""
    service = service_of(place)
    if place.startswith("arn:") and not _ARN.fullmatch(place):
        raise UsageError(
            "That is no ARN of MLflow on SageMaker.",
            "For example mlflow:arn:aws:sagemaker:REGION:ACCOUNT:mlflow-tracking-server/NAME",
        )
    token = env.get("MLFLOW_TRACKING_TOKEN", "")
    if place.startswith("azureml://") and token:
        return _azure(place, token, service, env)
    return _plugged(plugged(place, env, service.package), service, header_plugins(env, place), env)


def _azure(place: str, token: str, service: Service, env: Mapping[str, str]) -> Login:
    """A workspace with a token that was got elsewhere: what the plugin would send, without it."""
    path = re.sub(r"^/mlflow/v[\d.]+/", "/mlflow/v2.0/", urlsplit(place).path)
    base = _split(f"https://{urlsplit(place).netloc}{path}")[0]
    told = f'MLFLOW_TRACKING_TOKEN is set, and begins "{token[:4]}".'
    return Login(base, {"Authorization": f"Bearer {token}"}, told, _tls(env), service, header_plugins(env, place))


def _plugged(
    given: Plugged, service: Service, more: tuple[Callable[[], Mapping[str, str]], ...], env: Mapping[str, str]
) -> Login:
    base = _split(given.base)[0]
    tls = Tls(given.insecure, given.server_certificate, given.client_certificate)
    tls = tls if tls != Tls() else _tls(env)
    told = "The credentials come from the package that knows such addresses."
    return Login(base, {}, told, tls, service, (given.headers, *more), given.sign, given.renew)


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


def _databricks(place: str, env: Mapping[str, str]) -> Login:
    service, profile = service_of(place), place.partition("://")[2]
    more = header_plugins(env, place)
    host, token = env.get("DATABRICKS_HOST", ""), env.get("DATABRICKS_TOKEN", "")
    told = f'DATABRICKS_TOKEN is set, and begins "{token[:4]}".'
    if profile or not (host and token):
        file = Path(env.get("DATABRICKS_CONFIG_FILE", "") or _home(env) / ".databrickscfg")
        name = profile or env.get("DATABRICKS_CONFIG_PROFILE", "") or "DEFAULT"
        kept = _ini(file).get(name, {})
        told, token = f'The token of profile {name} begins "{kept.get("token", "")[:4]}".', kept.get("token", "")
        known = kept.get("host", "") or (not profile and (host or env.get("DATABRICKS_RUNTIME_VERSION", "")))
        if known and not token and knows_databricks():
            return _plugged(databricks(profile, env, place), service, more, env)
        host = kept.get("host", "")
        _found(host, token, file, name)
    base = _split(host if "://" in host else f"https://{host}")[0]
    return Login(base, {"Authorization": f"Bearer {token}"}, told, _tls(env), service, more)


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
