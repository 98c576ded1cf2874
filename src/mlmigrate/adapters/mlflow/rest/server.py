"""What a server is and can do: probed, not assumed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlmigrate.adapters.base import Limits
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.managed import PLAIN, Service
from mlmigrate.adapters.mlflow.rest.wire import Experiments, ServerInfo
from mlmigrate.errors import MigrateError, NotFound, Refused, Unavailable

_VERSION = re.compile(r"^(\d+)\.(\d+)")
UNKNOWN = (1, 0)  # before /version was there: up to 2.1


@dataclass(frozen=True, slots=True)
class Server:
    """`version` is (1, 0) for servers that do not tell, up to 2.1; `store` is "" before 3.9."""

    version: tuple[int, int]
    store: str = ""
    service: Service = PLAIN

    @property
    def distinct(self) -> bool:
        """Whether its store cannot hold a point twice. A database cannot; a folder can."""
        return self.store == "SqlStore"

    @property
    def finds_ids(self) -> bool:
        """Whether runs can be searched for by their ids."""
        return self.version >= (2, 2)

    @property
    def limits(self) -> Limits:
        """What it can hold, measured on servers of many versions."""
        version = self.version
        plain = Limits(
            key_chars=r"/\w.\- :" if version >= (2, 16) else r"/\w.\- ",
            key_length=250,
            key_paths=True,
            param_length=6000 if version >= (2, 8) else 500 if version >= (2, 2) else 250,
            tag_length=8000 if version >= (2, 17) else 5000,
            name_length=250,
            user_length=256,
            experiment_tag_length=20_000 if version >= (3, 16) else 5000,
            experiment_name_length=256,
            infinities=False,
            distinct_points=True,
            nulls=False,
            negative_times=False,
            blank_names=False,
            blank_starts=False,
            micros=False,
            point_links=False,
            types=False,
            inputs=version >= (2, 4),
            experiment_times=False,
            deleted_times=False,
            system=False,
            records=(),
            owned_artifacts=False,
            clean_files=True,
            ids=False,
        )
        from mlmigrate.adapters.mlflow.rest.holdings import with_holdings  # noqa: PLC0415  writers import this module

        return self.service.narrowed(with_holdings(plain, version))


def probe(client: Client) -> Server:
    """Who answers. Raises NotFound when it is no MLflow server, Refused when it does not let us in."""
    service = client.login.service
    version = _version(client) if service.tells else UNKNOWN
    if version == UNKNOWN and service.version is not None:
        version = service.version
    _is_mlflow(client)
    return Server(version, _store(client) if service.tells and version >= (3, 9) else "", service)


def _version(client: Client) -> tuple[int, int]:
    try:
        found = _VERSION.match(client.text("version"))
    except NotFound:
        return UNKNOWN
    except Refused:
        if client.login.service.version is None:
            raise
        return UNKNOWN  # services let nobody in but to the paths of their interface
    return (int(found[1]), int(found[2])) if found else UNKNOWN


def _is_mlflow(client: Client) -> None:
    """Asks for something that needs the credentials and that no other server has."""
    try:
        client.post("api/2.0/mlflow/experiments/search", Experiments, {"max_results": 1})
    except NotFound:
        _is_old_mlflow(client)


def _is_old_mlflow(client: Client) -> None:
    try:
        client.get("api/2.0/mlflow/experiments/list", Experiments)
    except NotFound as error:
        raise NotFound(
            f"{client.login.base} is no MLflow server.", "Give the address that MLFLOW_TRACKING_URI would have."
        ) from error


def _store(client: Client) -> str:
    try:
        return client.get("api/3.0/mlflow/server-info", ServerInfo).store_type
    except Unavailable:
        raise
    except MigrateError:
        return ""
