"""How one side's environment leads to Google Cloud Storage and to Azure.

obstore looks into the process's environment by itself, whichever side it works for.  So every choice is
made here, from the environment that is given, and told to it in so many words; what cannot be told
apart (Google's) is refused when the process's environment says something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlmigrate.errors import UsageError
from mlmigrate.storage.twins import own
from mlmigrate.storage.twins import said as said_by

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig

DEVELOPMENT = (  # what Microsoft gives every emulator
    "AccountName=devstoreaccount1;BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
GOOGLE = {  # what obstore is told -> the variables that say it, the first that is set counting
    "service_account_key": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "service_account": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    "bearer_token": ("GOOGLE_BEARER_TOKEN",),
    "application_credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "skip_signature": ("GOOGLE_SKIP_SIGNATURE",),
}
AZURE: dict[
    str, dict[str, tuple[str, ...]]
] = {  # kind of credentials -> what obstore is told -> the variables that say it
    "access_key": {
        "account_key": ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_MASTER_KEY")
    },
    "sas_token": {"sas_key": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")},
    "bearer_token": {"token": ("AZURE_STORAGE_TOKEN",)},
    "client_secret": {"client_secret": ("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET")},
    "workload_identity": {"federated_token_file": ("AZURE_FEDERATED_TOKEN_FILE",)},
    "azure_cli": {"use_azure_cli": ("AZURE_USE_AZURE_CLI",)},
}
IDENTITY = {  # of whom, for the last four and for a managed identity
    "client_id": ("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"),
    "tenant_id": ("AZURE_STORAGE_TENANT_ID", "AZURE_STORAGE_AUTHORITY_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_ID"),
    "authority_host": ("AZURE_STORAGE_AUTHORITY_HOST", "AZURE_AUTHORITY_HOST"),
    "msi_endpoint": ("AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"),
    "object_id": ("AZURE_OBJECT_ID",),
    "msi_resource_id": ("AZURE_MSI_RESOURCE_ID",),
}
RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(minutes=2)}  # ours come after, and wait longer
TRUE = ("1", "true", "yes", "on")
_URI = re.compile(r"(?P<scheme>gs|az)://(?P<bucket>[^/@]+)(?:/(?P<prefix>.*))?", re.DOTALL | re.IGNORECASE)
_AZURE_URI = re.compile(
    r"(?P<scheme>wasbs|abfss)://(?P<bucket>[^/@]+)@(?P<account>[^/@.]+)\.(?:blob|dfs)\.(?P<suffix>[^/@:]+)"
    r"(?:/(?P<prefix>.*))?",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Way:
    """A place and the way to it. `config` and `client` are obstore's own words."""

    kind: str
    typed: str
    url: str
    store: str
    bucket: str
    prefix: str
    config: Mapping[str, Any] = field(repr=False)
    client: Mapping[str, Any] = field(repr=False)


def way(place: str, env: Mapping[str, str]) -> Way:
    """Where the place is and how it is reached from this environment. Raises UsageError."""
    match = _URI.fullmatch(place) or _AZURE_URI.fullmatch(place)
    if match is None:
        raise UsageError(
            f"{place!r:.200} names no bucket or container.",
            "gs://bucket/prefix, az://container/prefix or wasbs://container@account.blob.core.windows.net/prefix",
        )
    return _google(match, env) if match["scheme"].lower() == "gs" else _azure(match, env)


def opened(found: Way) -> GCSStore | AzureStore:
    """The object of obstore that goes there."""
    from obstore.store import AzureStore, GCSStore  # noqa: PLC0415  slow to import, and only one is used

    config, client = cast("Any", dict(found.config)), cast("ClientConfig", dict(found.client))
    if found.kind == "gs":
        return GCSStore(found.bucket, config=config, client_options=client, retry_config=RETRIES)
    return AzureStore(found.bucket, config=config, client_options=client, retry_config=RETRIES)


def _google(match: re.Match[str], env: Mapping[str, str]) -> Way:
    bucket, prefix = match["bucket"], (match["prefix"] or "").rstrip("/")
    host = env.get("STORAGE_EMULATOR_HOST", "")
    base = env.get("GOOGLE_BASE_URL") or (host if "://" in host or not host else f"http://{host}")
    config: dict[str, Any] = {"base_url": base.rstrip("/")} if base else {}
    said = _google_credentials(match.string, env)
    if not said and base:
        said = {"bearer_token": "none"}  # an emulator wants no credentials, and obstore asks for some
    url = f"gs://{bucket}" + (f"/{prefix}" if prefix else "")
    return Way(
        "gs", url, url, f"gs {base} {bucket}".replace("  ", " "), bucket, prefix, config | said, _client(env, base)
    )


def _google_credentials(place: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The one credential that is used. Raises UsageError where obstore would find another by itself."""
    found = {key: name for key, names in GOOGLE.items() if (name := said_by(env, names))}
    twins = {key: name for key, name in found.items() if own(env, name)}
    key, name = next(iter((twins or found).items()), ("", ""))
    by_itself = {one for names in GOOGLE.values() for one in names} - {"GOOGLE_APPLICATION_CREDENTIALS"}
    by_itself |= {"SERVICE_ACCOUNT"}
    others = sorted(by_itself.intersection(os.environ) - set(GOOGLE.get(key, ())))
    if others:
        raise UsageError(
            f"{' and '.join(others)} would be used for {place}, beside {name or 'the default credentials'}.",
            f"Unset it, or give it to one side alone: SOURCE_{others[0]} or TARGET_{others[0]}",
        )
    if not key:
        return {}
    return {key: env[name].lower() in TRUE if key == "skip_signature" else env[name]}


def _azure(match: re.Match[str], env: Mapping[str, str]) -> Way:
    named = match.groupdict()
    container, prefix = named["bucket"], (named["prefix"] or "").rstrip("/")
    given = _connection(env)
    account = named.get("account") or given.get("AccountName") or env.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    account = account or env.get("AZURE_STORAGE_ACCOUNT", "")
    if not account:
        raise UsageError(
            f"{match.string} does not say of which account it is.",
            "Set AZURE_STORAGE_ACCOUNT, or AZURE_STORAGE_CONNECTION_STRING",
        )
    if given.get("AccountName", account) != account:
        raise UsageError(
            f"AZURE_STORAGE_CONNECTION_STRING is of account {given['AccountName']!r}, {match.string} of another.",
            "Give each side its own: SOURCE_AZURE_STORAGE_CONNECTION_STRING or TARGET_…",
        )
    suffix = named.get("suffix") or given.get("EndpointSuffix") or "core.windows.net"
    endpoint = _endpoint(account, suffix, given, env)
    path = f"/{prefix}" if prefix else ""
    typed = f"{named['scheme'].lower()}://{match.string.partition('://')[2]}".rstrip("/")
    url = f"wasbs://{container}@{account}.blob.{suffix}{path}" if named["scheme"].lower() == "az" else typed
    config = {"account_name": account, "endpoint": endpoint, **_azure_credentials(env, given)}
    return Way("az", typed, url, f"az {endpoint} {container}", container, prefix, config, _client(env, endpoint))


def _azure_credentials(env: Mapping[str, str], given: Mapping[str, str]) -> dict[str, Any]:
    """The one kind of credentials that is used, and all that obstore would else look for by itself."""
    said: dict[str, Any] = {"use_emulator": False, "use_fabric_endpoint": False, "skip_signature": False}
    if encryption := env.get("AZURE_STORAGE_ENCRYPTION_KEY") or env.get("AZURE_ENCRYPTION_KEY"):
        said["encryption_key"] = encryption
    if env.get("AZURE_SKIP_SIGNATURE", "").lower() in TRUE:
        return said | {"skip_signature": True}
    if "AccountKey" in given:
        return said | {"credential_type": "access_key", "account_key": given["AccountKey"]}
    if "SharedAccessSignature" in given:
        return said | {"credential_type": "sas_token", "sas_key": given["SharedAccessSignature"].lstrip("?")}
    found = {kind: name for kind, words in AZURE.items() for names in words.values() if (name := said_by(env, names))}
    twins = {kind: name for kind, name in found.items() if own(env, name)}
    kind, name = next(iter((twins or found).items()), ("managed_identity", ""))
    if kind not in ("access_key", "sas_token", "bearer_token"):
        said |= {key: env[one] for key, names in IDENTITY.items() if (one := said_by(env, names))}
    for key in AZURE.get(kind, ()):
        said[key] = env[name].lower() in TRUE if key == "use_azure_cli" else env[name].lstrip("?")
    return said | {"credential_type": kind}


def _connection(env: Mapping[str, str]) -> dict[str, str]:
    """What a connection string says; nothing where one of the side's own variables is to win over it."""
    text = env.get("AZURE_STORAGE_CONNECTION_STRING", "")
    keys = [name for words in AZURE.values() for names in words.values() if (name := said_by(env, names))]
    if not text or (any(own(env, name) for name in keys) and not own(env, "AZURE_STORAGE_CONNECTION_STRING")):
        return {}
    if "usedevelopmentstorage=true" in text.lower():
        text = DEVELOPMENT
    pairs = (one.split("=", 1) for one in text.strip().strip(";").split(";") if "=" in one)
    given = {name.strip(): value.strip() for name, value in pairs}
    if "AccountKey" not in given and "SharedAccessSignature" not in given:
        raise UsageError(
            "AZURE_STORAGE_CONNECTION_STRING holds no AccountKey and no SharedAccessSignature.",
            "Copy it whole from the portal (Access keys), in quotes: it has semicolons in it",
        )
    if "AccountName" not in given and (host := re.match(r"https?://([^./]+)\.", given.get("BlobEndpoint", ""))):
        given["AccountName"] = host[1]
    return given


def _endpoint(account: str, suffix: str, given: Mapping[str, str], env: Mapping[str, str]) -> str:
    asked = given.get("BlobEndpoint") or env.get("AZURE_STORAGE_ENDPOINT") or env.get("AZURE_ENDPOINT")
    return (asked or f"{given.get('DefaultEndpointsProtocol', 'https')}://{account}.blob.{suffix}").rstrip("/")


def _client(env: Mapping[str, str], endpoint: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": "10s",
        "read_timeout": "10min",  # sending a body counts too: 16 MiB may take long on a slow line
        "timeout": "7days",  # of a whole request: a large body takes its time, a silent one does not
    }
    if bundle := env.get("REQUESTS_CA_BUNDLE"):
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise UsageError(
                f"The CA bundle {bundle} cannot be read: {error.strerror}.", "REQUESTS_CA_BUNDLE"
            ) from error
    return options
