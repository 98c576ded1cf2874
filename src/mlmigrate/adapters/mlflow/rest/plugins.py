"""MLflow's plugin points: who a request comes from, as packages beside MLflow say it.

    mlflow.tracking_store           an address of a scheme of its own -> the server's URL and credentials
    mlflow.request_auth_provider    MLFLOW_TRACKING_AUTH -> an auth object of the package requests
    mlflow.request_header_provider  headers for each request

The requests stay ours.  A plugin reads os.environ, so it is asked under a lock, with the environment
of the side that it is asked for, and only while it is asked for credentials.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import urlsplit

from mlmigrate.adapters.mlflow.repositories import explain
from mlmigrate.errors import MigrateError, Refused, UsageError

STORES, HEADERS = "mlflow.tracking_store", "mlflow.request_header_provider"
FRESH = 300.0  # seconds after which credentials are asked for again: tokens of clouds live for an hour
DOUBTFUL = 30.0  # seconds; a refusal of younger credentials is meant
IN_MEMORY = 8 << 20
T = TypeVar("T")
_ENVIRONMENT = threading.RLock()
_log = logging.getLogger("mlmigrate")


@contextmanager
def environment(env: Mapping[str, str], place: str) -> Iterator[None]:
    """os.environ as one side sees it, with its address as MLflow's tracking URI; then as it was."""
    wanted = {**env, "MLFLOW_TRACKING_URI": place}
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name, value in wanted.items() if os.environ.get(name) != value}
        os.environ.update({name: wanted[name] for name in before})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Fresh(Generic[T]):
    """What a plugin gave, until it is old or refused. Used by several threads."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._given: T | None = None
        self._at = 0.0
        self._dropped = -math.inf  # when something that was given was taken for old

    def get(self) -> T:
        with self._lock:
            if self._given is not None and time.monotonic() - self._at > FRESH:
                self._drop()
            if self._given is None:
                self._given, self._at = self._ask(), time.monotonic()
            return self._given

    def renew(self, began: float) -> bool:
        """Whether it is worth asking once more after a refusal of a request that began then.

        Of those that are refused at once the first has what they bore dropped: the others are no more to blame.
        """
        with self._lock:
            if self._dropped >= began:
                return True
            old = self._given is not None and time.monotonic() - self._at > DOUBTFUL
            if old:
                self._drop()
            return old

    def _drop(self) -> None:
        self._given, self._dropped = None, time.monotonic()


@dataclass(frozen=True, slots=True)
class Plugged:
    """A server as a plugin tells it: credentials may change from call to call, the URL may not."""

    base: str
    headers: Callable[[], Mapping[str, str]] = field(repr=False)
    renew: Callable[[float], bool] = field(repr=False)
    sign: Signer | None = field(default=None, repr=False)
    insecure: bool = False
    server_certificate: str = ""
    client_certificate: str = ""


def schemes() -> set[str]:
    """The schemes of addresses that installed plugins know."""
    return {point.name for point in entry_points(group=STORES)}


def plugged(place: str, env: Mapping[str, str], package: str) -> Plugged:
    """The server that a plugin makes of an address. `package` is the one to install when there is none.

    Raises UsageError when no plugin knows it, Refused when the plugin has no credentials.
    """
    scheme = urlsplit(place).scheme
    store = _store(place, _point(scheme, package), env)
    with _asked(scheme, env, place):
        first = store.get_host_creds()
    fresh: Fresh[Any] = Fresh(lambda: _again(store, scheme, env, place, str(first.host)))
    sign = signer(first.auth, env, place) if getattr(first, "auth", None) else None
    if getattr(first, "aws_sigv4", False):
        sign = sigv4(env, place)
    return Plugged(
        str(first.host).rstrip("/"),
        lambda: _headers(fresh.get()),
        fresh.renew if sign is None else lambda began: any([fresh.renew(began), sign.renew(began)]),
        sign,
        insecure=bool(first.ignore_tls_verification),
        server_certificate=first.server_cert_path or "",
        client_certificate=first.client_cert_path or "",
    )


def databricks(profile: str, env: Mapping[str, str], place: str) -> Plugged:
    """A workspace as Databricks' own package finds it: OAuth, Azure's and Google's logins, the runtime's own.

    Raises Refused when that finds no credentials.
    """
    with _asked("databricks", env, place):
        config = import_module("databricks.sdk.config").Config(**({"profile": profile} if profile else {}))
    organization = getattr(config, "workspace_id", None)
    more = {"x-databricks-org-id": str(organization)} if organization else {}

    def ask() -> Mapping[str, str]:
        with _asked("databricks", env, place):
            return {**config.authenticate(), **more}

    fresh = Fresh(ask)
    return Plugged(str(config.host).rstrip("/"), fresh.get, fresh.renew)


def knows_databricks() -> bool:
    """Whether Databricks' own package is here."""
    return find_spec("databricks") is not None and find_spec("databricks.sdk") is not None


def _point(scheme: str, package: str) -> EntryPoint:
    found = [point for point in entry_points(group=STORES) if point.name == scheme]
    if not found:
        hint = f"pip install {package}" if package else "mlmigrate adapters says which kinds of address there are."
        raise UsageError(f"No installed plugin of MLflow knows addresses of {scheme}:.", hint)
    if find_spec("mlflow") is None:
        raise UsageError(f"Addresses of {scheme}: need MLflow.", 'pip install "mlmigrate[mlflow]"')
    return found[0]


def _store(place: str, point: EntryPoint, env: Mapping[str, str]) -> Any:  # noqa: ANN401  # a class of MLflow's
    with _asked(point.name, env, place):
        store = point.load()(store_uri=place, artifact_uri=None)
    if not hasattr(store, "get_host_creds"):
        raise UsageError(f"The plugin for {point.name}: is no server's: it gives no address to send requests to.")
    return store


def _again(store: Any, scheme: str, env: Mapping[str, str], place: str, host: str) -> Any:  # noqa: ANN401
    with _asked(scheme, env, place):
        given = store.get_host_creds()
    if str(given.host) != host:
        raise Refused(f"The plugin for {scheme}: names another host now ({urlsplit(str(given.host)).netloc}).")
    return given


def _headers(given: Any) -> Mapping[str, str]:  # noqa: ANN401
    """As MLflow makes them of a host's credentials."""
    if given.username and given.password:
        return {"Authorization": "Basic " + b64encode(f"{given.username}:{given.password}".encode()).decode()}
    return {"Authorization": f"Bearer {given.token}"} if given.token else {}


@contextmanager
def _asked(what: str, env: Mapping[str, str], place: str) -> Iterator[None]:
    """A plugin at work: in its side's environment, and with its errors as ours."""
    with environment(env, place):
        try:
            _same_place(place)
            yield
        except MigrateError:
            raise
        except Exception as error:  # a plugin may raise anything
            raise _explained(error, what) from error


def _explained(error: Exception, what: str) -> MigrateError:
    known = None if type(error).__module__ == "mlflow.exceptions" else explain(error, what)
    said = " ".join(str(error).split())[:200]
    return known or Refused(f"The plugin for {what} failed ({type(error).__name__}): {said}")


def _same_place(place: str) -> None:
    """A plugin for a scheme of its own asks MLflow which server is meant: it must not hear of another one."""
    if place.startswith(("http", "databricks")):
        return
    if import_module("mlflow").get_tracking_uri() != place:
        raise UsageError("mlflow.set_tracking_uri was called in this process, and MLflow's plugins would follow it.")


class Signer:
    """An auth object of requests: it is shown each request, and gives the headers to send."""

    def __init__(self, ask: Callable[[], Callable[[Any], Any]]) -> None:
        self._auth: Fresh[Callable[[Any], Any]] = Fresh(ask)
        self.renew = self._auth.renew

    def sign(
        self, method: str, url: str, headers: Mapping[str, str], body: object
    ) -> tuple[str, dict[str, str], bytes | BinaryIO | None]:
        """URL, headers and body to send. Raises Refused when the auth object sends us elsewhere."""
        requests = import_module("requests")
        data = _readable(body)
        plain = requests.Request(method, url, headers={**headers, "Connection": "keep-alive"}, data=data).prepare()
        plain.url = url  # not quoted again
        signed = self._auth.get()(plain)
        if data is not None and not isinstance(data, bytes):
            data.seek(0)
        there = signed.url or url
        if urlsplit(there)[:2] != urlsplit(url)[:2]:
            raise Refused("The auth plugin sends a request to another host.")
        left_out = ("connection", "transfer-encoding")  # the connection's own
        kept = {str(name): _text(value) for name, value in signed.headers.items() if name.lower() not in left_out}
        return there, kept, data


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _readable(body: object) -> bytes | BinaryIO | None:
    """A body that can be read twice: once to sign it, once to send it."""
    if body is None or isinstance(body, bytes):
        return body
    file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # the request closes it
    chunks = iter(lambda: body.read(1 << 20), b"") if hasattr(body, "read") else body
    for chunk in chunks:  # type: ignore[attr-defined]  # a file or chunks
        file.write(chunk)
    file.seek(0)
    return file  # type: ignore[return-value]  # a binary file in all but name


def signer(name: str, env: Mapping[str, str], place: str) -> Signer:
    """The auth plugin of this name. Raises UsageError when there is none."""
    if find_spec("mlflow") is None:
        raise UsageError("MLFLOW_TRACKING_AUTH needs MLflow.", 'pip install "mlmigrate[mlflow]"')

    def ask() -> Callable[[Any], Any]:
        with _asked(name, env, place), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow warns where we say it below
            auth: Callable[[Any], Any] | None = import_module("mlflow.tracking.request_auth.registry").fetch_auth(name)
        if auth is None:
            raise UsageError(f"No installed plugin of MLflow is called {name!r}.", "MLFLOW_TRACKING_AUTH names one.")
        return auth

    return Signer(ask)


def sigv4(env: Mapping[str, str], place: str) -> Signer:
    """What signs requests for Amazon's API gateway, as MLFLOW_TRACKING_AWS_SIGV4 asks for."""
    if find_spec("botocore") is None:
        raise UsageError("MLFLOW_TRACKING_AWS_SIGV4 needs botocore.", 'pip install "mlmigrate[mlflow]"')

    def ask() -> Callable[[Any], Any]:
        with _asked("AWS", env, place):
            session = import_module("botocore.session").Session()
            region, credentials = session.get_config_variable("region"), session.get_credentials()
        region = region or env.get("AWS_REGION", "")
        if credentials is None or not region:
            raise Refused(f"No AWS {'region' if credentials else 'credentials'} are found to sign requests with.")
        sign = import_module("botocore.auth").SigV4Auth(credentials, "execute-api", region)
        request = import_module("botocore.awsrequest").AWSRequest

        def auth(plain: Any) -> Any:  # noqa: ANN401  # requests' PreparedRequest
            headers = {key: value for key, value in plain.headers.items() if key.lower() != "connection"}
            signed = request(method=plain.method, url=plain.url, data=plain.body or b"", headers=headers)
            sign.add_auth(signed)
            plain.headers = signed.headers
            return plain

        return auth

    return Signer(ask)


def header_plugins(env: Mapping[str, str], place: str) -> tuple[Callable[[], Mapping[str, str]], ...]:
    """MLflow's request header plugins, if MLflow is here; its own two say nothing that a server needs."""
    points = [point for point in entry_points(group=HEADERS) if not point.value.startswith("mlflow.")]
    if not points or find_spec("mlflow") is None:
        return ()
    return tuple(_header_plugin(point, env, place) for point in points)


def _header_plugin(point: EntryPoint, env: Mapping[str, str], place: str) -> Callable[[], Mapping[str, str]]:
    """As MLflow does, one that fails is passed over: those of other services fail at each address."""

    def ask() -> Mapping[str, str]:
        try:
            with _asked(point.name, env, place):
                provider = point.load()()
                return dict(provider.request_headers()) if provider.in_context() else {}
        except MigrateError as error:
            _log.info("The request header plugin %s gives nothing here: %s", point.name, error.message)
            return {}

    return ask
