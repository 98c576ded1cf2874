"""Managed MLflow: addresses, credentials of MLflow's plugins, and services that differ as they are published to.

No managed service is reached here: managed_server.py stands before a local server.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from managed_server import AzureMl, Databricks, SageMaker
from rest_helpers import Database, estate, fresh, ours

from mlmigrate.adapters.base import Context, Limits
from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.mlflow import open_source, open_target, repositories
from mlmigrate.adapters.mlflow.rest import client, managed, plugins
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.wire import Pair, RunData, RunInfo, Runs, WireRun
from mlmigrate.address import parse
from mlmigrate.errors import Refused, UsageError
from mlmigrate.fit import fit_experiment
from mlmigrate.model import Experiment
from mlmigrate.steps import Steps
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.samples import START, series
from sizes import large

ARN = SageMaker.arn


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Makes a package with entry points, as pip would install it."""
    site = tmp_path / "site"

    def make(name: str, code: str, points: dict[str, str]) -> None:
        site.mkdir(exist_ok=True)
        (site / f"{name}.py").write_text(textwrap.dedent(code))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("".join(f"[{group}]\n{point}\n" for group, point in points.items()))
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))

    yield make
    for one in list(sys.modules.values()):
        if str(site) in str(getattr(one, "__file__", "")):
            del sys.modules[one.__name__]


@pytest.fixture
def registered(monkeypatch):
    """MLflow reads its auth plugins once: this makes it read them now, and forget them after the test."""

    def read() -> None:
        from mlflow.tracking.request_auth import registry

        monkeypatch.setattr(registry._request_auth_provider_registry, "_registry", [])
        registry._request_auth_provider_registry.register_entrypoints()
        monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)

    return read


class TestAnswers:
    @pytest.mark.parametrize(
        ("body", "code", "reason"),
        [
            (b'{"error_code": "X", "message": "no"}', "X", "no"),
            (b'{"message": "no"}', "", "no"),
            (b'{"error": {"code": "UserError", "message": "no", "innerError": null}}', "UserError", "no"),
            (b'{"__type": "ThrottlingException", "Message": "no"}', "ThrottlingException", "no"),
            (b'{"detail": "no"}', "", "no"),
            (b'{"error": "no"}', "", "no"),
            (b'{"error_code": 400, "message": {"text": "no"}}', "", ""),
            (b"<html>no</html>", "", ""),
            (b'["no"]', "", ""),
            (b"", "", ""),
        ],
    )
    def test_the_reason_of_an_error_is_found_in_whatever_shape(self, body, code, reason):
        assert client.said(body) == (code, reason)

    @pytest.mark.parametrize(
        ("said", "most"),
        [
            (
                "Param value 'exceeds 9 characters' had length 780, which exceeded length limit of 500",
                (500, "characters"),
            ),
            ("'params[0].value' exceeds the maximum length of 6000 characters", (6000, "characters")),
            ("Tag value is longer than 5,000 bytes.", (5000, "bytes")),
            ("The maximum allowed length is 1000", (1000, "characters")),
            ("Invalid value 500", None),
            ("max_results exceeds 50000", None),
            ("exceeds the maximum length of 0 characters", None),
        ],
    )
    def test_a_limit_is_read_from_what_a_server_says_of_it(self, said, most):
        assert managed.too_long(said) == most

    def test_come_back_at_a_date_is_a_wait(self):
        when = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        assert 3000 < client._after({"Retry-After": when}) <= 3600
        assert client._after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
        assert [client._after({"Retry-After": text}) for text in ("7", "-1", "nan", "soon", "")] == [
            7,
            0,
            None,
            None,
            None,
        ]

    def test_a_batch_is_cut_and_nothing_of_it_is_lost_or_twice(self):
        body = {"run_id": "r", "params": [{"key": str(i), "value": "v"} for i in range(100)], "tags": []}
        body["metrics"] = [{"key": "m", "value": i, "step": i, "timestamp": i} for i in range(900)]
        sent = list(managed.pieces(managed.AZURE_ML, "api/2.0/mlflow/runs/log-batch", body))
        assert max(len(one["metrics"]) for one in sent) == 250
        assert {one["run_id"] for one in sent} == {"r"}
        for name in ("params", "tags", "metrics"):
            assert [one for piece in sent for one in piece[name]] == body[name]

    def test_what_is_counted_in_bytes_is_cut_in_bytes_and_our_marks_never(self):
        cuts, body = managed.Cuts(), {"run_id": "r", "tags": [{"key": "a", "value": "ö" * 60}]}
        assert cuts.learn("set", body, managed.TooLong("a tag exceeds 100 bytes", "", 100, "bytes"))
        assert cuts.fitted("set", body)["tags"] == [{"key": "a", "value": "ö" * 50}]
        ours = {"run_id": "r", "tags": [{"key": "mlmigrate.origin", "value": "x" * 200}]}
        assert cuts.fitted("set", ours) == ours
        assert not cuts.learn("set", ours, managed.TooLong("a tag exceeds 100 bytes", "", 100, "bytes"))
        assert cuts.of("r") == [("tag 'a'", "cut from 60 characters to 100 bytes: the server takes no longer ones")]

    def test_filters_that_a_service_does_not_know_are_done_here(self):
        text = "tags.`mlmigrate.origin` != '' and attributes.start_time >= 5 and attributes.start_time <= 9"
        body = {"filter": text, "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"]}
        asked = managed.asked(managed.AZURE_ML, "api/2.0/mlflow/runs/search", body)
        assert asked == {"order_by": ["start_time ASC"]}
        runs = [run_at(start, tag) for start in (4, 5, 9, 10) for tag in ("o", "", None)]
        kept = managed.answered(managed.AZURE_ML, body, Runs(runs)).runs
        assert kept == [run_at(5, "o"), run_at(9, "o")]

    def test_what_no_service_is_published_to_take_is_lost_and_planned(self):
        for service, taken in (
            (managed.DATABRICKS, {"mlflow.registered_model", "mlflow.logged_model"}),
            (managed.AZURE_ML, {"mlflow.registered_model"}),
        ):
            limits = Server(service.version, service=service).limits
            assert {one.kind for one in limits.holdings if one.how != "lost"} == taken == set(limits.records)
        assert Server((3, 17), service=managed.SAGEMAKER).limits == Server((3, 17)).limits

    def test_experiments_get_a_path_where_a_service_wants_one(self):
        limits = managed.DATABRICKS.narrowed(Limits())
        placed, losses = fit_experiment(Experiment("1", "mine"), limits)
        assert (placed.name, [loss.what for loss in losses]) == ("/Shared/mine", ["name 'mine'"])
        assert fit_experiment(placed, limits) == (placed, [])


def run_at(start: int, tag: str | None) -> WireRun:
    tags = [] if tag is None else [Pair("mlmigrate.origin", tag)]
    return WireRun(RunInfo(run_id=f"{start}{tag}", start_time=start), RunData(tags=tags))


STORE = """
    import os
    from mlflow.utils.rest_utils import MlflowHostCreds

    class Store:
        def __init__(self, store_uri, artifact_uri):
            self.uri = store_uri

        def get_host_creds(self):
            return MlflowHostCreds(os.environ["FAKE_HOST"], token=os.environ["FAKE_TOKEN"])
"""


class TestAddresses:
    @pytest.mark.parametrize(
        ("place", "package"),
        [
            (ARN, "pip install sagemaker-mlflow"),
            (ARN.replace("mlflow-tracking-server", "mlflow-app"), "pip install sagemaker-mlflow"),
            ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/s", "pip install azureml-mlflow"),
            ("somecloud://team", "mlmigrate adapters"),
        ],
    )
    def test_an_address_of_a_plugin_that_is_not_here_says_what_to_install(self, place, package, monkeypatch):
        monkeypatch.setattr(plugins, "entry_points", lambda group: [])
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
        with pytest.raises(UsageError) as error:
            open_source(parse(f"mlflow:{place}"), Context("source"))
        assert package in error.value.hint
        assert error.value.exit_code == 2

    @pytest.mark.parametrize("place", ["arn:aws:s3:::b", "arn:aws:sagemaker:eu:1:mlflow-tracking-server/x", "arn:"])
    def test_another_arn_is_refused_before_any_plugin_sees_it(self, place):
        with pytest.raises(UsageError, match="no ARN of MLflow"):
            open_source(parse(f"mlflow:{place}"), Context("source"))

    def test_a_folder_with_a_colon_stays_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs:2024" / "0").mkdir(parents=True)
        (tmp_path / "runs:2024" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")
        source = open_source(parse("mlflow:./runs:2024"), Context("source"))
        assert [one.name for one in source.experiments()] == ["Default"]

    def test_azures_address_with_a_token_needs_no_plugin(self):
        given = login("azureml://west.api.azureml.ms/mlflow/v1.0/subscriptions/s", {"MLFLOW_TRACKING_TOKEN": "t"})
        assert given.base == "https://west.api.azureml.ms/mlflow/v2.0/subscriptions/s"
        assert given.headers == {"Authorization": "Bearer t"}

    def test_unity_catalog_is_read_and_not_written(self):
        with pytest.raises(UsageError, match="Unity Catalog cannot be written"):
            open_target(parse("mlflow:databricks-uc://team"), Context("target"))


class TestPlugins:
    def test_the_store_of_a_plugin_gives_url_and_credentials_of_its_side(self, plugin, monkeypatch):
        plugin("fake_store", STORE, {"mlflow.tracking_store": "fake = fake_store:Store"})
        monkeypatch.setenv("FAKE_HOST", "http://neither")
        monkeypatch.setenv("SOURCE_FAKE_HOST", "http://from:1")
        monkeypatch.setenv("SOURCE_FAKE_TOKEN", "of-the-source")
        monkeypatch.setenv("TARGET_FAKE_HOST", "http://to:2")
        monkeypatch.setenv("TARGET_FAKE_TOKEN", "of-the-target")
        source, target = (login("fake://team", Context(side).env) for side in ("source", "target"))
        assert (source.base, target.base) == ("http://from:1", "http://to:2")
        shown = [next(iter(one.more))() for one in (source, target)]
        assert shown == [{"Authorization": "Bearer of-the-source"}, {"Authorization": "Bearer of-the-target"}]
        assert plugins.os.environ["FAKE_HOST"] == "http://neither"
        assert "FAKE_TOKEN" not in plugins.os.environ

    def test_a_plugin_that_names_another_host_later_is_not_followed(self, plugin, monkeypatch):
        plugin("fake_store", STORE, {"mlflow.tracking_store": "fake = fake_store:Store"})
        env = {"FAKE_HOST": "http://here:1", "FAKE_TOKEN": "t"}
        given = login("fake://team", env)
        env["FAKE_HOST"] = "http://elsewhere:1"
        with pytest.raises(Refused, match="another host"):
            given.more[0]()

    def test_a_plugin_that_fails_is_told_and_not_a_traceback(self, plugin):
        plugin("fake_store", STORE, {"mlflow.tracking_store": "fake = fake_store:Store"})
        with pytest.raises(Refused, match=r"plugin for fake failed \(KeyError\)"):
            login("fake://team", {})

    def test_a_plugin_for_something_that_is_no_server_is_said(self, plugin):
        code = "class Store:\n    def __init__(self, store_uri, artifact_uri): ...\n"
        plugin("fake_files", code, {"mlflow.tracking_store": "fakefiles = fake_files:Store"})
        with pytest.raises(UsageError, match="is no server's"):
            login("fakefiles://x", {})

    def test_the_auth_that_mlflow_tracking_auth_names_is_shown_each_request(self, plugin, registered):
        code = """
            class Auth:
                def __call__(self, request):
                    request.headers["X-Sum"] = f"{request.method} {request.url} {request.body!r}"
                    return request

            class Provider:
                def get_name(self):
                    return "sums"

                def get_auth(self):
                    return Auth()
        """
        plugin("fake_auth", code, {"mlflow.request_auth_provider": "sums = fake_auth:Provider"})
        registered()
        given = login("http://h:1", {"MLFLOW_TRACKING_AUTH": "sums"})
        url, headers, body = given.sign.sign("POST", "http://h:1/a%20b?c=%2B", {"A": "b"}, b"{}")
        assert (url, body, headers["A"]) == ("http://h:1/a%20b?c=%2B", b"{}", "b")
        assert headers["X-Sum"] == "POST http://h:1/a%20b?c=%2B b'{}'"

    def test_an_auth_that_nobody_has_is_a_usage_error(self):
        given = login("http://h:1", {"MLFLOW_TRACKING_AUTH": "nobody"})
        with pytest.raises(UsageError, match="'nobody'"):
            given.sign.sign("GET", "http://h:1/", {}, None)

    def test_headers_of_plugins_are_sent_and_one_that_fails_is_passed_over(self, plugin):
        code = """
            import os

            class Good:
                def in_context(self): return True
                def request_headers(self): return {"X-Team": os.environ["TEAM"]}

            class Bad(Good):
                def request_headers(self): raise IndexError("no such ARN")
        """
        points = {"mlflow.request_header_provider": "good = fake_headers:Good\nbad = fake_headers:Bad"}
        plugin("fake_headers", code, points)
        given = login("http://h:1", {"TEAM": "blue"})
        assert [one() for one in given.more][:2] == [{"X-Team": "blue"}, {}]


def some_runs(n=5):
    parent = fresh("parent")
    tags = {"mlflow.parentRunId": parent.id, "note": "größe"}
    runs = [
        parent,
        *(fresh(f"run {i}", params={"p": str(i)}, tags=tags) for i in range(n)),
        fresh("gone", deleted=True),
    ]
    return [
        Held(run, series(run, {"m": [(i, START + i, i / 7) for i in range(600)]}), {(run.id, "a/b.txt"): b"x" * 1000})
        for run in runs
    ]


def assert_arrived(server, place, changed=lambda held, what: what):
    """All is in the server's own database."""
    db = Database(server)
    for held in place.held.values():
        row = db.run(held.run)
        assert row[1:6] == (held.run.name, held.run.status, held.run.start, held.run.end, held.run.user)
        assert row[6] == ("deleted" if held.run.deleted else "active")
        assert sum(db.points(row[0]).values()) == (600 if held.points.num_rows else 0)
        assert db.params(row[0]) == held.run.params
        named = {key: value for key, value in ours(db.tags(row[0])).items() if key != "mlflow.parentRunId"}
        assert named == {key: value for key, value in held.run.tags.items() if key != "mlflow.parentRunId"}


def read_back(address: str, ids: set[str]):
    """Runs with points and files, as a source gives them."""
    source = open_source(parse(address), Context("source", Steps(3)))
    refs = [ref for ref in source.refs() if ref.id in ids]
    with source.read(refs) as reading:
        points = sum(len(batch) for batch in reading.points())
        files = [artifact.path for artifact in reading.artifacts()]
        found = {run.id: run for run in reading.runs}, points, files, list(reading.losses)
    source.close()
    return found


@pytest.fixture
def service_of(current):
    """Gives a service before the current server."""
    running = []

    def service(kind, **more):
        running.append(kind(current.url, **more))
        return running[-1]

    yield service
    for one in running:
        one.stop()


@pytest.mark.slow
class TestDatabricks:
    @pytest.fixture
    def service(self, service_of, monkeypatch):
        service = service_of(Databricks)
        monkeypatch.setenv("DATABRICKS_HOST", service.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", service.token)
        return service

    def test_a_copy_arrives_whole_under_shared_and_a_second_does_nothing(self, service, current, tmp_path):
        place = estate(*some_runs())
        (experiment,) = place.experiments()
        service.busy = {"runs/search": 3, "runs/log-batch": 4, "runs/create": 2}
        report = copy(place, parse("mlflow:databricks"), tmp_path / "a")
        assert (report.failed, report.copied) == ((), len(place.held))
        assert f"became '/Shared/{experiment.name}'" in " ".join(loss.because for loss in report.losses)
        assert Database(current).count(f"/Shared/{experiment.name}") == len(place.held)
        assert_arrived(current, place)
        refused = service.refused.copy()
        assert refused.pop("busy") == 9
        assert refused == {}
        again = copy(place, parse("mlflow:databricks"), tmp_path / "b")
        assert (again.copied, again.failed) == (0, ())

    def test_all_runs_are_read_through_small_and_empty_pages_and_a_token_that_ran_out(self, service, current, tmp_path):
        place = estate(*some_runs(9))
        copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
        ids = {Database(current).run(held.run)[0] for held in place.held.values()}
        service.expire, service.busy = {"runs/search"}, {"metrics/get-history": 5}
        runs, points, files, losses = read_back("mlflow:databricks", ids)
        assert (set(runs), points, files, losses) == (ids, 600 * len(ids), ["a/b.txt"] * len(ids), [])
        assert service.refused["token"] == 1

    @large
    def test_a_large_batch_goes_in_calls_of_a_megabyte(self, service, current, tmp_path):
        params = {f"param {i}": "p" * 5900 for i in range(100)}
        tags = {f"tag {i}": "t" * 4900 for i in range(100)}
        place = estate(Held(fresh("large", params=params, tags=tags)))
        report = copy(place, parse("mlflow:databricks"), tmp_path / "l")
        assert report.failed == ()
        assert service.refused["large"] == 0
        (held,) = place.held.values()
        assert Database(current).params(Database(current).run(held.run)[0]) == params

    @large
    def test_a_folder_of_an_experiment_is_made(self, service, tmp_path):
        place = estate(Held(fresh("one")))
        (experiment,) = place.experiments()
        place.add(replace(experiment, name=f"team {tmp_path.name}/{experiment.name}"))
        report = copy(place, parse("mlflow:databricks"), tmp_path / "l")
        assert report.failed == ()
        assert f"/Shared/team {tmp_path.name}" in service.folders

    def test_a_wrong_token_is_refused_with_what_was_used(self, service, monkeypatch):
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-wrong")
        with pytest.raises(Refused) as error:
            open_source(parse("mlflow:databricks"), Context("source"))
        assert 'begins "dapi"' in error.value.hint

    @large
    def test_a_limit_that_nobody_published_is_learned_and_told(self, service, current, tmp_path):
        service.longest = {"param": 300, "tag": 200}
        long = {"param": "exceeds 9 characters " * 30, "tag": "ö" * 900}
        runs = [fresh(f"run {i}", params={"prompt": long["param"]}, tags={"doc": long["tag"]}) for i in range(3)]
        place = estate(*map(Held, runs))
        report = copy(place, parse("mlflow:databricks"), tmp_path / "l")
        assert (report.failed, report.copied) == ((), 3)
        db = Database(current)
        for run in runs:
            id_ = db.run(run)[0]
            assert (db.params(id_)["prompt"], db.tags(id_)["doc"]) == (long["param"][:300], long["tag"][:200])
            told = {loss.what: loss.because for loss in report.losses if loss.run == run.id}
            assert told["param 'prompt'"] == "cut from 630 to 300 characters: the server takes no longer ones"
            assert told["tag 'doc'"] == "cut from 900 to 200 characters: the server takes no longer ones"

    @large
    def test_a_value_that_is_refused_for_another_reason_fails_its_run_alone(self, service, tmp_path):
        bad, good = fresh("bad", params={"p": "x" * 400}), fresh("good")
        service.longest, service.too_long = (
            {"param": 300},
            lambda role, one, most: service.refuse(
                "other", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "That word is not allowed here."}
            ),
        )
        report = copy(estate(Held(bad), Held(good)), parse("mlflow:databricks"), tmp_path / "l")
        assert (report.copied, [failure.run for failure in report.failed]) == (1, [bad.id])
        assert "That word is not allowed here." in report.failed[0].message


SIGNING = """
    import base64, os, time
    from managed_server import signature
    from mlflow import get_tracking_uri
    from mlflow.utils.rest_utils import MlflowHostCreds
    from urllib.parse import urlsplit

    class Store:
        def __init__(self, store_uri, artifact_uri): ...

        def get_host_creds(self):
            return MlflowHostCreds(os.environ["FAKE_SAGEMAKER"], auth="arn")

    class Auth:
        def __init__(self, secret):
            self.secret = secret

        def __call__(self, request):
            parts, when = urlsplit(request.url), str(time.time())
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            body = request.body or b""
            body = body.read() if hasattr(body, "read") else body
            request.headers["Authorization"] = "AWS4-HMAC-SHA256 " + signature(
                self.secret, request.method, path, body, when)
            request.headers["X-Signed-At"] = when
            return request

    class AuthProvider:
        def get_name(self):
            return "arn"

        def get_auth(self):
            with open(os.environ["AWS_SECRET_FILE"], "rb") as file:
                return Auth(file.read())

    class Headers:
        def in_context(self):
            return True

        def request_headers(self):
            return {"x-mlflow-sm-tracking-server-arn": get_tracking_uri()}
"""
POINTS = {
    "mlflow.tracking_store": "arn = fake_sagemaker:Store",
    "mlflow.request_auth_provider": "arn = fake_sagemaker:AuthProvider",
    "mlflow.request_header_provider": "arn = fake_sagemaker:Headers",
}


@pytest.mark.slow
class TestSageMaker:
    @pytest.fixture
    def service(self, service_of, plugin, registered, monkeypatch, tmp_path):
        service = service_of(SageMaker)
        plugin("fake_sagemaker", SIGNING, POINTS)
        registered()
        monkeypatch.setenv("FAKE_SAGEMAKER", service.url)
        (tmp_path / "mine").write_bytes(service.secret)
        (tmp_path / "theirs").write_bytes(b"somebody else's")
        monkeypatch.setenv("AWS_SECRET_FILE", str(tmp_path / "theirs"))
        monkeypatch.setenv("TARGET_AWS_SECRET_FILE", str(tmp_path / "mine"))
        return service

    def test_every_request_of_a_copy_is_signed_by_the_plugin_files_and_all(self, service, current, tmp_path):
        place = estate(*some_runs(3))
        report = copy(place, parse(f"mlflow:{ARN}"), tmp_path / "l")
        assert (report.failed, report.copied) == ((), len(place.held))
        assert service.refused == {}
        assert {method for method, *_ in service.sent} >= {"GET", "POST", "PUT"}
        assert_arrived(current, place)

    def test_the_other_sides_credentials_are_refused(self, service):
        with pytest.raises(Refused, match="signature we calculated"):
            open_source(parse(f"mlflow:{ARN}"), Context("source"))

    def test_credentials_that_ran_out_are_asked_for_again(self, service, monkeypatch, tmp_path):
        source = open_source(parse(f"mlflow:{ARN}"), Context("target", Steps(3)))
        service.secret = b"the next key"
        (tmp_path / "mine").write_bytes(service.secret)
        monkeypatch.setattr(plugins, "DOUBTFUL", 3600.0)
        with pytest.raises(Refused):  # those are a moment old: the refusal is meant
            source.experiments()
        monkeypatch.setattr(plugins, "DOUBTFUL", 0.0)
        assert source.experiments()
        assert service.refused["signature"] == 2
        source.close()

    def test_credentials_that_ran_out_for_many_requests_at_once_stop_none_of_them(self, service, monkeypatch, tmp_path):
        source = open_source(parse(f"mlflow:{ARN}"), Context("target", Steps(3)))
        source._client.login.sign._auth._at -= 60  # of a minute ago
        service.secret = b"the next key"
        (tmp_path / "mine").write_bytes(service.secret)
        let_in, came, all_there = service.let_in, itertools.count(), threading.Barrier(8)

        def together(*request):
            """None is refused before all have come."""
            if next(came) < 8:
                all_there.wait(60)
            let_in(*request)

        monkeypatch.setattr(service, "let_in", together)
        with ThreadPoolExecutor(8) as pool:
            told = {one.result() for one in [pool.submit(source._client.text, "version") for _ in range(8)]}
        assert len(told) == 1
        assert service.refused["signature"] == 8
        source.close()

    def test_no_request_goes_where_another_uri_was_set_in_this_process(self, service, monkeypatch):
        monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", ARN + "-other")
        with pytest.raises(UsageError, match="set_tracking_uri"):
            open_source(parse(f"mlflow:{ARN}"), Context("target"))
        assert service.sent == []


@pytest.mark.slow
class TestAmazonsOwnPlugin:
    """With sagemaker-mlflow installed: its signatures are made again by botocore, from what arrived."""

    def test_each_request_bears_a_signature_that_botocore_makes_too(
        self, service_of, current, registered, tmp_path, monkeypatch
    ):
        pytest.importorskip("sagemaker_mlflow")
        service = service_of(_Checked)
        registered()
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", service.url)
        place = estate(*some_runs(3))
        report = copy(place, parse(f"mlflow:{ARN}"), tmp_path / "l")
        assert (report.failed, report.copied) == ((), len(place.held))
        assert service.refused == {}
        assert_arrived(current, place)


KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "AWS_REGION": "eu-west-1"}


class _Checked(SageMaker):
    """Amazon's own signatures."""

    def let_in(self, method, path, headers, body):
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        named = {name.lower(): value for name, value in headers.items()}
        signed = named["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
        kept = {name: named[name] for name in signed if name in named}
        request = AWSRequest(method=method, url=self.url + path, data=body, headers=kept)
        request.context["timestamp"] = named["x-amz-date"]
        keys = Credentials(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        made = SigV4Auth(keys, "sagemaker-mlflow", "eu-west-1")
        text = made.string_to_sign(request, made.canonical_request(request))
        right = named["authorization"].endswith("Signature=" + made.signature(text, request))
        if not right or hashlib.sha256(body).hexdigest() != named["x-amz-content-sha256"]:
            self.refuse("signature", 403, {"message": "The request signature we calculated does not match"})
        if named.get("x-mlflow-sm-tracking-server-arn") != self.arn:
            self.refuse("arn", 403, {"message": "Which server?"})


@pytest.mark.slow
class TestAzureMl:
    @pytest.fixture
    def address(self, service, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", service.token)
        real = login

        def plain(place, env):
            """TLS is the one thing that is missing here."""
            given = real(place, env)
            return replace(given, base=given.base.replace("https:", "http:"))

        monkeypatch.setattr("mlmigrate.adapters.mlflow.rest.source.login", plain)
        monkeypatch.setattr("mlmigrate.adapters.mlflow.rest.target.login", plain)
        return f"mlflow:{service.url.replace('http', 'azureml', 1)}{service.workspace.replace('v2.0', 'v1.0')}"

    @pytest.fixture
    def service(self, service_of):
        return service_of(AzureMl, page=3)

    def test_a_copy_arrives_with_its_limits_told_beforehand(self, service, address, current, tmp_path):
        place = estate(*some_runs(), Held(fresh("long", params={"prompt": "p" * 800}, tags={"doc": "t" * 3000})))
        report = copy(place, parse(address), tmp_path / "a")
        assert (report.failed, report.copied) == ((), len(place.held))
        assert service.refused == {}
        told = {loss.what: loss.because for loss in report.losses if loss.run}
        assert told["param 'prompt'"].startswith("cut from 800 to 500 characters; whole text kept")
        assert told["tag 'doc'"].startswith("cut from 3000 to 1000 characters; whole text kept")
        again = copy(place, parse(address), tmp_path / "b")
        assert (again.copied, again.failed) == (0, ())

    def test_files_of_unknown_size_are_files_of_unknown_size(self):
        """azureml-mlflow says -1 of every file."""
        listed = [SimpleNamespace(path="a.txt", is_dir=False, file_size=-1)]
        repository = SimpleNamespace(list_artifacts=lambda path: listed)
        assert list(repositories._listed(repository, "azureml://x", "")) == [("a.txt", None)]

    def test_runs_with_nulls_and_other_ids_are_read(self, service, address, current, tmp_path):
        place = estate(*some_runs(4))
        copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
        ids = {"frosty_" + Database(current).run(held.run)[0] for held in place.held.values()}
        runs, points, files, losses = read_back(address, ids)
        assert (set(runs), points, files, losses) == (ids, 600 * len(ids), ["a/b.txt"] * len(ids), [])
