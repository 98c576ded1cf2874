"""Evaluation datasets and scorers arrive at a server: compared column by column, by raw SQL."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import faults
from mlmigrate.adapters.mlflow.objects import BY_NAME, record_of, tree_of
from mlmigrate.adapters.mlflow.rest.write_datasets import holdings
from mlmigrate.errors import Conflict


def _load(file: Path):
    if file.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[file.stem])
    return sys.modules[file.stem]


lab = _load(Path(__file__).with_name("rest_trees.py"))
filled = _load(Path(__file__).parents[1] / "filled.py")
pytestmark = pytest.mark.slow

OWN_TAGS = ("mlmigrate.origin", "mlmigrate.stamp")
# what may differ, and why
EXCEPTIONS = {
    "dataset_id": "the server gives another",
    "dataset_record_id": "the same",
    "digest": "made of the time",
    "created_time": "the server's clock",
    "last_update_time": "the server's clock",
    "scorer_id": "the server gives another",
    "creation_time": "the server's clock",
    "experiment_id": "experiments have other ids",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("datasets") / "mlflow.db"
    made = filled.fill(f"sqlite:///{file}", webhooks=False, suffix=f"-{file.parent.name}")
    with filled._tracking(f"sqlite:///{file}") as client:
        bare = client.create_dataset("bare", made.experiments[:1])
        bare.merge_records([{"inputs": {"b": 1, "a": {"z": [1, None], "ü": 1.0}}, "outputs": "plain text"}])
    return file


@pytest.fixture
def server(current, source):
    """A server that none of these datasets went to: names end otherwise each time."""
    return lab.Lab(current.url, source)


def renamed(some, ending: str):
    """The same datasets under other names and ids, as another source would have them."""
    for record in some:
        tree = tree_of(record)
        name = tree["evaluation_datasets"][0]["name"]
        for rows in tree.values():
            for row in rows:
                for column in ("dataset_id", "source_id"):
                    if row.get(column) == record.id:
                        row[column] = f"{record.id[:-8]}{ending:>08}"
        tree["evaluation_datasets"][0]["name"] = name + ending
        yield record_of(BY_NAME[record.kind], tree)


def datasets(file: Path, name: str) -> list[str]:
    with lab.opened(file) as db:
        return [row["dataset_id"] for row in lab.rows(db, "evaluation_datasets", "name = ?", [name])]


def slim(rows, left_out=EXCEPTIONS) -> list[str]:
    kept = [row for row in rows if row.get("key") not in OWN_TAGS]
    return sorted(json.dumps({k: v for k, v in row.items() if k not in left_out}, sort_keys=True) for row in kept)


def test_every_column_of_every_dataset_is_as_it_was(server, source, current):
    some = list(lab.records(source, "evaluation_dataset"))
    server.write(some)
    experiments = server.known.ids["experiment"]
    with lab.opened(source) as here, lab.opened(current.database) as there:
        for record in some:
            id_ = server.known.ids["evaluation_dataset"][record.id]
            for table in ("evaluation_datasets", "evaluation_dataset_tags", "evaluation_dataset_records"):
                meant = lab.rows(here, table, "dataset_id = ?", [record.id])
                assert slim(lab.rows(there, table, "dataset_id = ?", [id_])) == slim(meant), table
            links = "source_id = ? and source_type = 'evaluation_dataset'"
            rows = lab.rows(here, "entity_associations", links, [record.id])
            meant = {experiments[row["destination_id"]] for row in rows}
            assert {row["destination_id"] for row in lab.rows(there, "entity_associations", links, [id_])} == meant
    assert server.losses == []


def test_a_second_copy_changes_nothing(server, source, current, proxy_of):
    some = list(lab.records(source, "evaluation_dataset", "scorer"))
    server.write(some)
    before = dump(current.database)
    proxy = proxy_of(current.url)
    server.write(some, url=proxy.url)
    assert dump(current.database) == before
    written = {path for method, path in proxy.seen if method != "GET" and not path.endswith("/search")}
    assert written == set()


def dump(file: Path) -> list[list]:
    datasets = ("evaluation_datasets", "evaluation_dataset_tags", "evaluation_dataset_records")
    with lab.opened(file) as db:
        return [lab.rows(db, table) for table in (*datasets, "scorers", "scorer_versions")]


@pytest.mark.parametrize("kind", [faults.LOST, faults.ERROR_AFTER])
def test_lost_answers_make_no_doubles(kind, server, source, current, proxy_of, monkeypatch):
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    ending = " lost" if kind == faults.LOST else " error"
    seen = set()

    def once_each(number, method, path):
        first = (method, path) not in seen and method != "GET"
        seen.add((method, path))
        return kind if first else None

    some = list(renamed(lab.records(source, "evaluation_dataset"), ending))
    for experiment in server.known.ids["experiment"]:  # one where no scorer is yet
        body = {"name": f"{source.parent.name}{ending}{experiment}"}
        made = lab.call(current.url, "2.0/mlflow/experiments/create", body)
        server.known.note("experiment", experiment, made["experiment_id"])
    server.write([*some, *lab.records(source, "scorer")], url=proxy_of(current.url, rule=once_each).url)
    for record in some:
        (there,) = datasets(current.database, tree_of(record)["evaluation_datasets"][0]["name"])
        with lab.opened(current.database) as db:
            found = lab.rows(db, "evaluation_dataset_records", "dataset_id = ?", [there])
        assert len(found) == len(tree_of(record)["evaluation_dataset_records"])
    assert_scorers(server, source, current)


def assert_scorers(server, source, current):
    with lab.opened(source) as here, lab.opened(current.database) as there:
        for row in lab.rows(here, "scorers"):
            experiment = int(server.known.ids["experiment"][str(row["experiment_id"])])
            where = "experiment_id = ? and scorer_name = ?"
            (found,) = lab.rows(there, "scorers", where, [experiment, row["scorer_name"]])
            meant = lab.rows(here, "scorer_versions", "scorer_id = ?", [row["scorer_id"]])
            versions = lab.rows(there, "scorer_versions", "scorer_id = ?", [found["scorer_id"]])
            assert slim(versions) == slim(meant)


def test_every_version_of_every_scorer_is_as_it_was(server, source, current):
    server.write(lab.records(source, "scorer"))
    assert_scorers(server, source, current)
    assert server.losses == []


def test_versions_of_scorers_keep_their_gaps(server, source, current):
    (scorer,) = (one for one in lab.records(source, "scorer") if len(tree_of(one)["scorer_versions"]) == 2)
    tree = tree_of(scorer)
    tree["scorers"][0]["scorer_name"] = "gappy"
    tree["scorer_versions"][0]["scorer_version"], tree["scorer_versions"][1]["scorer_version"] = 2, 5
    gappy = record_of(BY_NAME["mlflow.scorer"], tree)
    for _ in range(2):
        server.write([gappy])
    with lab.opened(current.database) as db:
        (found,) = lab.rows(db, "scorers", "scorer_name = 'gappy'")
        versions = lab.rows(db, "scorer_versions", "scorer_id = ?", [found["scorer_id"]])
    assert [row["scorer_version"] for row in versions] == [2, 5]


def test_a_dataset_of_others_is_joined_renamed_or_refused(server, source, current):
    some = list(renamed(lab.records(source, "evaluation_dataset"), " taken"))
    first = next(record for record in some if "tasting" in record.body)
    name = tree_of(first)["evaluation_datasets"][0]["name"]
    made = lab.call(current.url, "3.0/mlflow/datasets/create", {"name": name, "tags": json.dumps({"theirs": "1"})})
    id_ = made["dataset"]["dataset_id"]
    theirs = [{"inputs": {"question": "q0", "n": 0}, "expectations": {"answer": "theirs"}}]
    lab.call(current.url, f"3.0/mlflow/datasets/{id_}/records", {"records": json.dumps(theirs)})

    server.policy = "fail"
    with pytest.raises(Conflict):
        server.write([first])
    server.policy = "rename"
    server.write([first])
    assert len(datasets(current.database, f"{name}-2")) == 1
    second = replace(first, body=first.body.replace(first.id, "d-" + "5" * 32), id="d-" + "5" * 32)
    server.policy = "merge"
    for _ in range(2):
        server.write([second])
    with lab.opened(current.database) as db:
        rows = lab.rows(db, "evaluation_dataset_records", "dataset_id = ?", [id_])
    answers = {json.loads(row["inputs"])["question"]: json.loads(row["expectations"])["answer"] for row in rows}
    assert answers == {"q0": "theirs", "q1": 1 / 3, "q2": 2 / 3}


def test_links_to_experiments_that_were_not_carried_are_told(server, source, current):
    some = list(renamed(lab.records(source, "evaluation_dataset"), " lonely"))
    del server.known.ids["experiment"]["2"]
    server.write(some)
    assert [loss.because for loss in server.losses] == ["that experiment was not carried"]


def test_versions_that_know_none_say_so():
    lost = {one.kind: one.because for one in holdings((2, 22)) if one.how == "lost"}
    assert lost == {
        "mlflow.dataset": "MLflow's API has no call for a dataset that no run read",
        "mlflow.evaluation_dataset": "MLflow 2.22 knows no evaluation datasets",
        "mlflow.scorer": "MLflow 2.22 knows no scorers",
    }
