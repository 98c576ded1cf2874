"""How one side's environment leads to an S3: credentials, region, endpoint and what each request must say.

botocore resolves all of it as it does for everybody else (keys, AWS_PROFILE, SSO, credential_process,
container and instance roles), but from the environment that is given, which is one side's alone.
Variables of ours and of MLflow's beside Amazon's: docs/object-stores.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import create_credential_resolver
from botocore.exceptions import BotoCoreError, CredentialRetrievalError

from mlmigrate.errors import Refused, UsageError
from mlmigrate.storage.twins import own

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential

TRUE = ("1", "true", "yes", "on", "requester")
FRESH = timedelta(minutes=4)  # obstore asks again so often; botocore renews what is about to expire
CONNECTIONS = 64
ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
BY_ITSELF = (*ENDPOINTS[1:], "AWS_ENDPOINT")  # where obstore looks for an endpoint when it is told none
QUICK = frozenset({"StorageClass", "ServerSideEncryption", "SSEKMSKeyId"})  # what obstore can say of an object
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}
_EXAMPLE = 'For example {"StorageClass": "ONEZONE_IA"}'


@dataclass(frozen=True, slots=True)
class Access:
    """How an S3 is reached. `endpoint` is None for Amazon's own, `verify` a CA bundle, True or False.

    extra   arguments of boto3 for everything that is written (MLFLOW_S3_UPLOAD_EXTRA_ARGS and ours)
    """

    session: boto3.session.Session = field(repr=False)
    endpoint: str | None
    region: str
    path_style: bool
    verify: str | bool
    anonymous: bool
    requester_pays: bool
    extra: Mapping[str, Any]

    @property
    def quick(self) -> bool:
        """Whether obstore can say all that is to be said with what is written; else boto3 writes small files too."""
        return QUICK.issuperset(self.extra)

    @property
    def store(self) -> str:
        """Names the store: between two places of one name it can copy by itself."""
        return f"s3 {self.endpoint or 'aws'}"

    def client(self, region: str = "") -> Any:  # noqa: ANN401  boto3 makes its clients' classes as it goes
        """boto3's client. Our own digests go with what is sent, so the body is not hashed once more to sign it."""
        style = "path" if self.path_style else "virtual"
        config = Config(
            signature_version=UNSIGNED if self.anonymous else "s3v4",
            s3={"addressing_style": style, "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 4},
            max_pool_connections=CONNECTIONS,
            ignore_configured_endpoint_urls=True,  # ours is the side's; the process's may be the other's
            **_TIMEOUTS,
        )
        client = self.session.client(
            "s3", region_name=region or self.region, endpoint_url=self.endpoint, verify=self.verify, config=config
        )
        client.meta.events.register("before-call.s3.DeleteObjects", _with_md5)
        return client

    def options(self, bucket: str, region: str = "") -> tuple[S3Config, ClientConfig]:
        """What obstore's store is made with."""
        config: dict[str, Any] = {
            "bucket": bucket,
            "region": region or self.region,
            "virtual_hosted_style_request": not self.path_style,
            "checksum_algorithm": "sha256",
            "skip_signature": self.anonymous,
            "request_payer": self.requester_pays,
            "s3_express": False,
        }
        host = self.endpoint
        if host is None and any(name in os.environ for name in BY_ITSELF):
            host = str(self.client(region).meta.endpoint_url)
        if host is not None:
            if not self.path_style:  # obstore wants the bucket named in it
                scheme, _, rest = host.partition("://")
                host = f"{scheme}://{bucket}.{rest}"
            config["endpoint"] = host
            if "AWS_ENDPOINT_URL_S3" in os.environ:  # would win over what is said so
                config["aws_endpoint_url_s3"] = host
        if encryption := self.extra.get("ServerSideEncryption"):
            config["server_side_encryption"] = encryption
        if key := self.extra.get("SSEKMSKeyId"):
            config["sse_kms_key_id"] = key
        return config, self._client_options()  # type: ignore[return-value]

    def _client_options(self) -> ClientConfig:
        options: dict[str, Any] = {
            "allow_http": (self.endpoint or "").startswith("http://"),
            "connect_timeout": "10s",
            "read_timeout": "10min",  # sending a body counts too: 16 MiB may take long on a slow line
            "timeout": "7days",  # of a whole request: a large body takes its time, a silent one does not
            "pool_max_idle_per_host": str(CONNECTIONS),
        }
        if self.verify is False:
            options["allow_invalid_certificates"] = True
        elif isinstance(self.verify, str):
            options["root_certificate"] = _certificates(self.verify)
        return options  # type: ignore[return-value]

    def provider(self) -> Credentials | None:
        """What gives obstore credentials; None when there are none to give."""
        if self.anonymous:
            return None
        return Credentials(self.session)


class Credentials:
    """Asks botocore for credentials each time that obstore does: it renews those that expire.

    obstore's own provider says that they last for half an hour, whatever they are.
    """

    def __init__(self, session: boto3.session.Session) -> None:
        self._found = session.get_credentials()
        self.config: dict[str, Any] = {}

    def __call__(self) -> S3Credential:
        """The credentials of now."""
        now = self._found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key or "",
            "secret_access_key": now.secret_key or "",
            "token": now.token,
            "expires_at": datetime.now(UTC) + FRESH,
        }


def access(env: Mapping[str, str]) -> Access:
    """How S3 is reached from this environment.

    Raises UsageError for settings that cannot be understood, Refused when no credentials are found.
    """
    try:
        session = _session(env)
        endpoint = _endpoint(session, env)
        region = _region(session, env)
        s3 = session.get_scoped_config().get("s3") or {}
        ca = env.get("AWS_CA_BUNDLE") or env.get("REQUESTS_CA_BUNDLE") or session.get_scoped_config().get("ca_bundle")
        anonymous = _set(env, "AWS_NO_SIGN_REQUEST") or _set(env, "MLMIGRATE_S3_ANONYMOUS")
        found = None if anonymous else session.get_credentials()
    except CredentialRetrievalError as error:
        raise Refused("The program that is to give credentials for S3 fails.", "Run that credential_process") from error
    except BotoCoreError as error:
        raise UsageError(f"The settings for S3 cannot be used: {error}", "aws configure list shows them") from error
    if found is None and not anonymous:
        raise Refused(
            "No credentials for S3 are found.",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_NO_SIGN_REQUEST=true for public ones",
        )
    return Access(
        boto3.session.Session(botocore_session=session),
        endpoint.rstrip("/") if endpoint else None,
        region,
        _path_style(env, s3.get("addressing_style", "") if isinstance(s3, dict) else "", endpoint),
        False if _set(env, "MLFLOW_S3_IGNORE_TLS") else (ca or True),
        anonymous,
        _set(env, "MLMIGRATE_S3_REQUESTER_PAYS") or _set(env, "AWS_REQUEST_PAYER"),
        _extra(env),
    )


def _session(env: Mapping[str, str]) -> Any:  # noqa: ANN401  botocore has no types
    """A session that looks into `env`, where botocore looks into the process's environment by itself."""
    session = botocore.session.Session()
    for name, variable in (("config_file", "AWS_CONFIG_FILE"), ("credentials_file", "AWS_SHARED_CREDENTIALS_FILE")):
        if variable in env:
            session.set_config_variable(name, env[variable])
    profile = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE")
    if profile:
        session.set_config_variable("profile", profile)
    if region := env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"):
        session.set_config_variable("region", region)
    if keys := _keys(env):
        session.set_credentials(*keys)
        return session
    resolver = create_credential_resolver(session, region_name=session.get_config_variable("region"))
    for provider in resolver.providers:
        for attribute in ("environ", "_environ"):
            if isinstance(getattr(provider, attribute, None), type(os.environ)):
                setattr(provider, attribute, env)
    session.register_component("credential_provider", resolver)
    return session


def _keys(env: Mapping[str, str]) -> tuple[str, str, str | None] | None:
    """The keys that the environment holds. They win over a profile, as everywhere, but not over one side's own."""
    key, secret, token = (
        env.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    ours = own(env, "AWS_ACCESS_KEY_ID")
    if not key or not secret or (own(env, "AWS_PROFILE") and not ours):
        return None
    if ours and not own(env, "AWS_SESSION_TOKEN"):
        token = ""  # it belongs to other keys
    return key, secret, token or None


def _endpoint(session: Any, env: Mapping[str, str]) -> str | None:  # noqa: ANN401  as above
    """A side's own first, be it empty; then that of its own profile; then as everywhere."""
    for name in ENDPOINTS:
        if own(env, name):
            return env[name] or None
    if own(env, "AWS_PROFILE") and (found := _configured(session, {})):
        return found
    if found := env.get("MLFLOW_S3_ENDPOINT_URL"):
        return found
    ignored = _set(env, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    return None if ignored else _configured(session, env)


def _configured(session: Any, env: Mapping[str, str]) -> str | None:  # noqa: ANN401  as above
    provider = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3", env)
    found: str | None = provider.provide()
    return found


def _region(session: Any, env: Mapping[str, str]) -> str:  # noqa: ANN401  as above
    found = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or session.get_config_variable("region")
    return str(found or "us-east-1")


def _path_style(env: Mapping[str, str], of_profile: str, endpoint: str | None) -> bool:
    """Amazon wants the bucket in the host's name; others seldom have a name for each bucket."""
    style = env.get("MLMIGRATE_S3_ADDRESSING") or of_profile
    if style in ("path", "virtual"):
        return style == "path"
    return endpoint is not None and ".amazonaws.com" not in endpoint


def _extra(env: Mapping[str, str]) -> dict[str, Any]:
    """What is said with everything that is written."""
    text = env.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS", "")
    try:
        given = json.loads(text) if text else {}
    except ValueError as error:
        raise UsageError(
            "MLFLOW_S3_UPLOAD_EXTRA_ARGS is no JSON.", 'For example {"StorageClass": "ONEZONE_IA"}'
        ) from error
    if not isinstance(given, dict):
        raise UsageError("MLFLOW_S3_UPLOAD_EXTRA_ARGS is no JSON object.", _EXAMPLE)
    ours = {
        "StorageClass": env.get("MLMIGRATE_S3_STORAGE_CLASS", ""),
        "ServerSideEncryption": env.get("MLMIGRATE_S3_SSE") or env.get("AWS_SERVER_SIDE_ENCRYPTION", ""),
        "SSEKMSKeyId": env.get("MLMIGRATE_S3_SSE_KMS_KEY_ID") or env.get("AWS_SSE_KMS_KEY_ID", ""),
    }
    extra = given | {name: value for name, value in ours.items() if value}
    if "SSEKMSKeyId" in extra:
        extra.setdefault("ServerSideEncryption", "aws:kms")
    return extra


def _with_md5(params: dict[str, Any], **_: object) -> None:
    """Older stores want it with this one request, and know no other checksum."""
    md5 = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(md5).decode()


def _set(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() in TRUE


def _certificates(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii", errors="ignore")
    except OSError as error:
        raise UsageError(f"The CA bundle {file} cannot be read: {error.strerror}.", "See AWS_CA_BUNDLE") from error
