"""The accounts of MLflow's basic-auth app: users, roles and permissions, in a database of their own.

A row is a record of kind "mlflow.auth.<table>". Passwords stay: what is kept of them is of use to
nobody but an attacker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mlmigrate.adapters.mlflow.sql.connect import SQLITE, Database
from mlmigrate.adapters.mlflow.sql.rows import Rows, quoted
from mlmigrate.adapters.mlflow.sql.stamps import digest, stamps
from mlmigrate.errors import NotFound
from mlmigrate.model import Loss, Record, RunRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.schema import Shape

KIND = "mlflow.auth."
REF = "@accounts"
FILE = "basic_auth.db"  # how MLflow calls it, beside its own database or in the folder it was started in
_USERS, _PASSWORD = "users", "password_hash"
_ROLES = frozenset(["roles", "role_permissions", "user_role_assignments"])


def tables(shape: Shape) -> list[str]:
    """The tables of the app, those that others refer to first; none where this is another database."""
    if not (shape.has(_USERS, _PASSWORD) and shape.has(_USERS, "username")):
        return []
    found = [name for name in shape.tables if name in _ROLES or name.endswith("_permissions")]
    return [_USERS, *sorted(found, key=lambda name: (name != "roles", name))] if found else []


def beside(place: Database) -> Database | None:
    """The accounts that lie beside a SQLite database."""
    if place.file is None or place.file.name == FILE:
        return None
    file = place.file.with_name(FILE)
    found = Database(SQLITE, f"sqlite:///{file}", file)
    try:
        found.check_file()
    except NotFound:  # there is none, or it is something else
        return None
    return found


def ref(session: Session, shape: Shape, identity: str) -> Iterator[RunRef]:
    """What stands for all accounts; nothing where there are none."""
    names = tables(shape)
    count = sum(int(session.rows(f"SELECT count(*) AS n FROM {quoted(name)}")[0][0]) for name in names)  # noqa: S608
    if count:
        marks = [stamps(session, shape, name, "''", f"{quoted(name)} t", "1 = 1").get("", "") for name in names]
        stamp = digest(" ".join(marks))
        yield RunRef("", REF, "accounts", f"mlflow:{REF}:{identity}", stamp, points=count, kind="records")


def stays(session: Session, shape: Shape) -> Iterator[Loss]:
    """That passwords do not travel."""
    if tables(shape):
        count = int(session.rows(f"SELECT count(*) AS n FROM {_USERS}")[0][0])  # noqa: S608 - a name of ours
        if count:
            yield Loss("", f"the passwords of {count} users", "stay where they are: each user needs a new one")


def read(session: Session, shape: Shape) -> Iterator[Record]:
    """All rows, without passwords."""
    rows = Rows(session, shape)
    for table in tables(shape):
        hidden = (_PASSWORD,) if table == _USERS else ()
        for number, row in enumerate(rows.read(table, hidden=hidden)):
            yield Record(f"{KIND}{table}", f"{table}/{number}", "", msgspec.json.encode(row).decode())
