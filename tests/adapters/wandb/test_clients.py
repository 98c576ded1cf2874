"""Which versions values name, and by what."""

import json

from mlmigrate.adapters.wandb import clients
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.shape import Version


def named(*values):
    found = Named()
    lines = [json.dumps(value).encode() for value in values]
    assert list(found.through(lines)) == lines
    return found


def test_a_table_names_its_version_and_its_collection():
    table = {
        "_type": "table-file",
        "artifact_path": "wandb-client-artifact://aa1/t.table.json",
        "_latest_artifact_path": "wandb-client-artifact://bb2:latest/t.table.json",
    }
    assert named({"key": "t", "value": table}).clients == {"aa1": "bb2"}
    assert named({"deep": [{"x": table}]}, table).clients == {"aa1": "bb2"}


def test_what_is_named_elsewhere_has_no_collection():
    value = {
        "artifact_path": "wandb-client-artifact://aa1/t.json",
        "previous_increments_paths": ["wandb-client-artifact://cc3/t.json", "wandb-client-artifact://dd4/t.json"],
    }
    assert named(value).clients == {"aa1": "", "cc3": "", "dd4": ""}


def test_w_and_b_s_own_numbers_are_told_apart():
    found = named({"artifact_path": "wandb-artifact://41727469666163743a39/t.json"})
    assert (found.clients, found.numbered) == ({}, {"41727469666163743a39"})


def test_strangers_are_those_that_no_version_has():
    found = named(*(f"wandb-client-artifact://{id_}/x" for id_ in ("a", "b", "c")), "wandb-artifact://ff/x")
    assert found.strangers([Version("net", "model", clients=(("a", ""), ("c", "s")))]) == 2


def test_other_texts_name_nothing_and_what_is_no_json_neither():
    found = named("wandb-client-artifact", "see wandb-client-artifact://a/x", 7, None, {"wandb-artifact": 1})
    found.look(b"wandb-client-artifact://a/x")
    found.look("[" * 100_000)
    assert (found.clients, found.numbered) == ({}, set())


def test_ids_that_could_be_anything_else_are_left_out():
    pairs = [("a1", "b2"), ("a1", ""), ("", "b2"), ("a/b", "c"), ("a", "c:latest"), ("a" * 129, "b")]
    assert clients.sound(pairs) == [("a1", "b2"), ("a1", "")]
