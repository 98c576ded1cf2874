"""Addresses as they are typed and as they are shown."""

from __future__ import annotations

import pytest

from mlmigrate.address import Address, hide_secrets, merge, parse
from mlmigrate.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("mlflow:http://localhost:5000", "mlflow", "http://localhost:5000"),
        ("mlflow:sqlite:///mlflow.db", "mlflow", "sqlite:///mlflow.db"),
        ("mlflow:./mlruns", "mlflow", "./mlruns"),
        ("mlflow:", "mlflow", ""),
        ("./archive", "archive", "./archive"),
        ("archive:./archive", "archive", "./archive"),
        ("s3://bucket/prefix", "archive", "s3://bucket/prefix"),
        ("/abs/with:colon", "archive", "/abs/with:colon"),
    ],
)
def test_a_place_is_a_kind_and_what_the_tool_calls_it(text: str, kind: str, place: str) -> None:
    assert parse(text) == Address(kind, place)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mlflow:postgresql://me:s3cret@host/db", "mlflow:postgresql://***@host/db"),
        ("mlflow:postgresql://me:s3/cr@et@host/db", "mlflow:postgresql://***@host/db"),
        ("mlflow:https://host:5000?token=s3cret&x=1", "mlflow:https://host:5000?token=***&x=1"),
        ("mlflow:postgresql://host/db?user=me&password=s3cret", "mlflow:postgresql://host/db?user=me&password=***"),
        ("mlflow:sqlite:////home/me@work/x.db", "mlflow:sqlite:////home/me@work/x.db"),
    ],
)
def test_secrets_are_hidden_when_shown(text: str, shown: str) -> None:
    assert (parse(text).shown, str(parse(text)), "s3cret" in repr(parse(text))) == (shown, shown, False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wasbs://box-1@acct.blob.core.windows.net/p", "wasbs://box-1@acct.blob.core.windows.net/p"),
        ("abfss://box@acct.dfs.core.windows.net/p", "abfss://box@acct.dfs.core.windows.net/p"),
        ("wasbs://me:s3cret@acct.blob.core.windows.net/p", "wasbs://***@acct.blob.core.windows.net/p"),
        (
            "https://acct.blob.core.windows.net/box?sv=1&sig=s3cret",
            "https://acct.blob.core.windows.net/box?sv=1&sig=***",
        ),
    ],
)
def test_a_container_of_azure_is_no_secret_and_its_signature_is(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


@pytest.mark.parametrize("text", ["", "http://localhost:5000", "sqlite:///x.db", "postgresql+psycopg2://a/b"])
def test_what_names_no_tracker_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_several_places_are_one_address() -> None:
    one, two = parse("mlflow:./a"), parse("mlflow:./b")
    assert merge((one,)) == one
    assert merge((one, two)).shown == "mlflow:./a mlflow:./b"
