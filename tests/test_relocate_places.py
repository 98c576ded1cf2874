"""Addresses compared and made."""

import pytest

from mlmigrate.relocate import places


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("/data/mlruns/1", "file:/data/mlruns/1"),
        ("/data/mlruns/1/", "file:/data/mlruns/1"),
        ("/data//mlruns/./1", "file:/data/mlruns/1"),
        ("file:///data/mlruns/1", "file:/data/mlruns/1"),
        ("file:/data/mlruns/1", "file:/data/mlruns/1"),
        ("file://localhost/data/1", "file:/data/1"),
        ("file:///data/a%20b/%C3%A9", "file:/data/a b/é"),
        ("/data/a%20b", "file:/data/a%20b"),
        ("file:///data/a#b", "file:/data/a#b"),
        ("./mlruns/1", "file:mlruns/1"),
        ("mlruns/1", "file:mlruns/1"),
        ("C:\\Users\\ann\\mlruns\\1", "file:/C:/Users/ann/mlruns/1"),
        ("file:///C:/Users/ann", "file:/C:/Users/ann"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("mlflow-artifacts:/1/x", "mlflow-artifacts:/1/x"),
        ("mlflow-artifacts://host:5000/1", "mlflow-artifacts://host:5000/1"),
        ("models:/m-1", "models:/m-1"),
        ("file://elsewhere/data", ""),
        ("/data/../etc", ""),
        ("s3://bucket/../x", ""),
        ("/data/a\nb", ""),
        ("", ""),
    ],
)
def test_a_place_is_known_however_it_is_written(uri, place):
    assert places.old_place(uri) == place


@pytest.mark.parametrize(
    ("place", "root", "within"),
    [
        ("file:/data/mlruns", "file:/data/mlruns", True),
        ("file:/data/mlruns/1", "file:/data/mlruns", True),
        ("file:/data/mlruns2", "file:/data/mlruns", False),
        ("file:/data", "file:/data/mlruns", False),
        ("s3://bucket/a", "s3://bucket", True),
        ("s3://bucket2/a", "s3://bucket", False),
    ],
)
def test_places_hold_whole_parts(place, root, within):
    assert places.below(place, root) is within


@pytest.mark.parametrize(
    ("kind", "experiment", "id", "place", "root", "key"),
    [
        ("run", "1", "r", "file:/d/1/r/artifacts", "file:/d/1", "1/r/artifacts"),
        ("run", "1", "r", "file:/my/place/r/artifacts", "file:/my/place", "1/r/artifacts"),
        ("run", "1", "r", "file:/d/1/other/way", "file:/d/1", "1/other/way"),
        ("run", "1", "r", "file:/elsewhere", "file:/d/1", "1/r/artifacts"),
        ("run", "1", "r", "file:/d/1/a#b/artifacts", "file:/d/1", "1/r/artifacts"),
        ("run", "1", "r", "file:/d/1", "file:/d/1", "1/r/artifacts"),
        ("model", "1", "m-1", "file:/d/1/models/m-1/artifacts", "file:/d/1", "1/models/m-1/artifacts"),
        ("model", "1", "m-1", "s3://b/x", "", "1/models/m-1/artifacts"),
        ("trace", "1", "tr-1", "s3://b/x", "", "1/traces/tr-1/artifacts"),
        ("run", "..", "r", "file:/d/1/r/artifacts", "file:/d/1", ""),
        ("run", "1", "a/b", "s3://b/x", "", ""),
    ],
)
def test_new_places_are_where_mlflow_would_put_them(kind, experiment, id, place, root, key):
    assert places.key_of(kind, experiment, id, place, root) == key


def test_the_parents_of_a_place_are_its_parts_and_no_more():
    assert list(places.parents("file:/a/b")) == ["file:/a/b", "file:/a"]
    assert list(places.parents("s3://b/k/x")) == ["s3://b/k/x", "s3://b/k", "s3://b"]
