"""What the contract server refuses, keeps and tells, asked by hand: what passes against it means something."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import time
from typing import Any

import pyarrow.parquet as pq
import pytest
import urllib3

import wandbserver

pytestmark = pytest.mark.slow

UPSERT = """mutation UpsertBucket($id: String, $name: String, $project: String, $entity: String, $config: JSONString,
  $tags: [String!], $state: String, $displayName: String, $summaryMetrics: JSONString) {
  upsertBucket(input: {id: $id, name: $name, modelName: $project, entityName: $entity, config: $config, tags: $tags,
    state: $state, displayName: $displayName, summaryMetrics: $summaryMetrics}) {
    bucket { id name displayName historyLineCount } inserted } }"""
CREATE = """mutation CreateArtifact($input: CreateArtifactInput!) { createArtifact(input: $input) {
  artifact { id state artifactSequence { latestArtifact { id } } } } }"""
MANIFEST = """mutation CreateArtifactManifest($artifactID: ID!, $digest: String!, $upload: Boolean!) {
  createArtifactManifest(input: {artifactID: $artifactID, name: "wandb_manifest.json", digest: $digest,
    entityName: "team", projectName: "p", runName: "r", type: FULL}) {
    artifactManifest { id file { id uploadUrl @include(if: $upload) uploadHeaders @include(if: $upload) } } } }"""
FILES = """mutation CreateArtifactFiles($artifactFiles: [CreateArtifactFileSpecInput!]!) {
  createArtifactFiles(input: {artifactFiles: $artifactFiles, storageLayout: V2}) { files { edges { node {
    storagePath uploadUrl uploadHeaders uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } }
    artifact { id } } } } } }"""
COMPLETE = """mutation CompleteMultipartUploadArtifact($completedParts: [UploadPartsInput!]!, $artifactID: ID!,
  $storagePath: String!, $uploadID: String!) { completeMultipartUploadArtifact(input: {
    completeMultipartAction: Complete, completedParts: $completedParts, artifactID: $artifactID,
    storagePath: $storagePath, uploadID: $uploadID}) {
    digest } }"""
COMMIT = "mutation CommitArtifact($id: ID!) { commitArtifact(input: {artifactID: $id}) { artifact { id digest } } }"
USE = "mutation UseArtifact($input: UseArtifactInput!) { useArtifact(input: $input) { artifact { id } } }"
DELETE = "mutation DeleteRun($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }"
RUN_FILES = """mutation CreateRunFiles($files: [String!]!) { createRunFiles(input: {entityName: "team",
  projectName: "p", runName: "r", files: $files}) { runID uploadHeaders files { name uploadUrl } } }"""
PAGE = """query HistoryPage($minStep: Int64!, $maxStep: Int64!, $pageSize: Int!) {
  project(name: "p", entityName: "team") { run(name: "r") {
    history(minStep: $minStep, maxStep: $maxStep, samples: $pageSize) } } }"""


class Client:
    """A client that knows nothing: it sends what a test says."""

    def __init__(self, server: wandbserver.Server, key: str = wandbserver.KEY) -> None:
        self.server = server
        self.http = urllib3.PoolManager(retries=False, timeout=120)
        self.auth = {"Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode()}

    def ask(self, query: str, **variables: Any) -> tuple[int, Any]:
        """The status, and the data; or the first error's message."""
        url = f"{self.server.url}/graphql"
        reply = self.http.request("POST", url, json={"query": query, "variables": variables}, headers=self.auth)
        told = reply.json()
        return reply.status, told["errors"][0]["message"] if told.get("errors") else told["data"]

    def get(self, query: str, **variables: Any) -> Any:
        """The data of an answer that is no error."""
        status, data = self.ask(query, **variables)
        assert status == 200, data
        return data

    def run(self, name: str = "r", project: str = "p", entity: str = "team", **more: Any) -> Any:
        return self.get(UPSERT, name=name, project=project, entity=entity, **more)["upsertBucket"]

    def refused(self, **variables: Any) -> tuple[int, str]:
        status, message = self.ask(UPSERT, **{"name": "r", "project": "p", "entity": "team", **variables})
        return status, message

    def stream(self, body: Any, run: str = "r", **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.server.url}/files/team/p/{run}/file_stream"
        reply = self.http.request("POST", url, body=data, headers={**self.auth, **headers})
        return reply.status, reply.json()

    def rows(self, offset: int, *rows: Any, run: str = "r") -> int:
        """The status of sending these lines of history."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        return self.stream({"files": {"wandb-history.jsonl": {"offset": offset, "content": lines}}}, run)[0]

    def put(self, url: str, data: bytes, headers: list[str] | None = None, **more: str) -> int:
        given = dict(header.split(":", 1) for header in headers or [])
        return self.http.request("PUT", url, body=data, headers={**given, **more}).status

    def create(self, digest: str, name: str = "a", **more: Any) -> Any:
        given = {"entityName": "team", "projectName": "p", "runName": "r", "artifactTypeName": "data"}
        given |= {"artifactCollectionName": name, "digest": digest, "enableDigestDeduplication": True, **more}
        return self.get(CREATE, input=given)["createArtifact"]["artifact"]

    def files(self, id: str, **files: bytes) -> list[Any]:
        specs = [{"artifactID": id, "name": name, "md5": md5(data)} for name, data in files.items()]
        return [edge["node"] for edge in self.get(FILES, artifactFiles=specs)["createArtifactFiles"]["files"]["edges"]]

    def manifest(self, id: str, manifest: bytes) -> int:
        told = self.get(MANIFEST, artifactID=id, digest=md5(manifest), upload=True)
        file = told["createArtifactManifest"]["artifactManifest"]["file"]
        return self.put(file["uploadUrl"], manifest, file["uploadHeaders"])

    def log(self, name: str = "a", **files: bytes) -> str:
        """A version with these files, committed: its id."""
        manifest, digest = manifest_of(**files)
        made = self.create(digest, name)
        for node, data in zip(self.files(made["id"], **files), files.values(), strict=True):
            if node["uploadUrl"]:
                assert self.put(node["uploadUrl"], data, node["uploadHeaders"]) == 200
        assert self.manifest(made["id"], manifest) == 200
        self.get(COMMIT, id=made["id"])
        return str(made["id"])


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def manifest_of(**files: bytes) -> tuple[bytes, str]:
    """A manifest, and the digest of a version with it."""
    contents = {name: {"digest": md5(data), "size": len(data)} for name, data in files.items()}
    whole = "wandb-artifact-manifest-v1\n" + "".join(f"{name}:{md5(files[name])}\n" for name in sorted(files))
    told = {"version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    return json.dumps({**told, "contents": contents}).encode(), hashlib.md5(whole.encode()).hexdigest()


@pytest.fixture(scope="module")
def running():
    with wandbserver.running() as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    running.latency(0)
    return running


@pytest.fixture
def client(server):
    return Client(server)


class TestWhoAsks:
    def test_a_wrong_key_is_not_logged_in(self, server):
        assert Client(server, "wrong").refused() == (401, "user is not logged in")
        assert Client(server, "wrong").stream({})[0] == 401
        assert server.state()["runs"] == {}

    def test_an_entity_that_is_not_there_is_not_found(self, client):
        assert client.refused(entity="nobody") == (404, "entity nobody not found during upsertBucket")

    def test_an_entity_of_others_is_forbidden(self, client):
        assert client.refused(entity="forbidden") == (403, "permission denied")

    def test_the_viewer_has_a_default_entity_and_teams(self, client):
        viewer = client.get("query Viewer { viewer { entity username teams { edges { node { name } } } } }")["viewer"]
        assert (viewer["entity"], viewer["username"]) == ("team", "tester")
        assert [edge["node"]["name"] for edge in viewer["teams"]["edges"]] == ["team", "other"]


class TestOperations:
    def test_what_the_sdk_never_asks_for_is_refused(self, client):
        status, message = client.ask('{ project(name: "p", entityName: "team") { secrets } }')
        assert (status, message) == (400, "Cannot query field 'secrets' on type 'Project'.")

    def test_an_argument_that_the_sdk_never_gives_is_refused(self, client):
        status, message = client.ask('mutation { upsertBucket(input: {name: "r", createdAt: "2020"}) { inserted } }')
        assert status == 400
        assert "'createdAt' is not defined" in message

    def test_a_variable_that_does_not_fit_is_refused(self, client, server):
        assert client.refused(tags=5)[0] == 400
        assert server.state()["runs"] == {}

    def test_text_that_is_no_graphql_is_refused(self, client):
        assert client.ask("select 1")[0] == 400

    def test_the_operation_name_may_be_empty(self, client, server):
        body = {"query": "query Viewer { viewer { entity } }", "operationName": "", "variables": {}}
        reply = client.http.request("POST", f"{server.url}/graphql", json=body, headers=client.auth)
        assert reply.json() == {"data": {"viewer": {"entity": "team"}}}
        assert server.requests() == [("POST", "Viewer")]


class TestRuns:
    def test_a_run_is_made_once_and_then_changed(self, client, server):
        first, again = client.run(), client.run(displayName="named")
        assert (first["inserted"], again["inserted"]) == (True, False)
        assert first["bucket"]["id"] == again["bucket"]["id"]
        run = server.state()["runs"]["team/p/r"]
        assert (run["display"], run["state"], run["user"]) == ("named", "running", "tester")

    def test_the_id_of_a_deleted_run_is_burnt(self, client, server):
        made = client.run()
        client.get(DELETE, id=made["bucket"]["id"])
        assert client.refused() == (
            409,
            "run team/p/r was previously created and deleted; try a new run name",
        )
        assert client.rows(0, {"_step": 0}) == 409
        assert server.state()["projects"]["team/p"]["deleted"] == ["r"]

    def test_a_config_is_replaced_as_a_whole(self, client, server):
        client.run(config='{"a": {"value": 1}}')
        client.run(config='{"b": {"value": [1, {"c": null}]}}')
        assert server.state()["runs"]["team/p/r"]["config"] == {"b": [1, {"c": None}]}

    @pytest.mark.parametrize("config", ['{"a": {"value": NaN}}', '{"a": {"value": Infinity}}', "{", "[]", '{"a": 1}'])
    def test_a_config_that_is_no_json_or_no_config_is_refused(self, client, server, config):
        assert client.refused(config=config)[0] == 400
        assert server.state()["runs"] == {}

    def test_a_config_over_ten_mebibytes_is_refused(self, client):
        config = json.dumps({"a": {"value": "x" * 10 * 2**20}})
        assert client.refused(config=config)[0] == 413

    @pytest.mark.parametrize(("tag", "status"), [("", 400), ("x" * 64, 200), ("x" * 65, 400), ("a=b / c", 200)])
    def test_tags_have_1_to_64_characters(self, client, tag, status):
        assert client.refused(tags=[tag])[0] == status

    @pytest.mark.parametrize("name", ["a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", " a", "x" * 129])
    def test_names_of_runs_and_projects_have_their_characters(self, client, name):
        assert client.refused(name=name)[0] == 400
        if name != " a":
            assert client.refused(project=name)[0] == 400

    def test_a_state_must_be_one(self, client):
        assert client.refused(state="done")[0] == 400

    def test_the_server_tells_when_a_run_was_made(self, client, server):
        client.run()
        created = server.state()["runs"]["team/p/r"]["created"]
        assert abs(time.time() - time.mktime(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60

    def test_a_test_may_set_what_no_client_can(self, client, server):
        client.run()
        server.set("team/p/r", state="crashed", created="2020-01-01T00:00:00Z")
        query = '{ project(name: "p", entityName: "team") { run(name: "r") { state createdAt } } }'
        told = {"state": "crashed", "createdAt": "2020-01-01T00:00:00Z"}
        assert client.get(query)["project"]["run"] == told

    def test_lists_are_paged_filtered_and_ordered(self, client):
        for n in range(5):
            client.run(f"r{n}", config=json.dumps({"lr": {"value": n}}))
        query = """query Runs($cursor: String, $filters: JSONString, $order: String, $perPage: Int) {
          project(name: "p", entityName: "team") { runCount(filters: $filters)
            runs(filters: $filters, after: $cursor, first: $perPage, order: $order) {
              edges { node { name } cursor } pageInfo { endCursor hasNextPage } } } }"""
        first = client.get(query, perPage=2, order="+created_at")["project"]["runs"]
        assert [edge["node"]["name"] for edge in first["edges"]] == ["r0", "r1"]
        assert first["pageInfo"]["hasNextPage"]
        rest = client.get(query, perPage=9, order="+created_at", cursor=first["pageInfo"]["endCursor"])["project"]
        assert [edge["node"]["name"] for edge in rest["runs"]["edges"]] == ["r2", "r3", "r4"]
        some = client.get(query, filters='{"$or": [{"config.lr": {"$gte": 4}}, {"name": "r0"}]}')["project"]
        assert [edge["node"]["name"] for edge in some["runs"]["edges"]] == ["r4", "r0"]
        assert some["runCount"] == 2
        assert client.ask(query, filters='{"nonsense": 1}')[0] == 400


class TestFileStream:
    @pytest.fixture(autouse=True)
    def _run(self, client):
        client.run()

    def _history(self, server):
        return server.state()["runs"]["team/p/r"]["history"]

    def test_lines_are_kept_as_they_were_sent(self, client, server):
        lines = ['{"_step": 0, "a": 1e-320, "b":NaN}', '{"b": -Infinity,"_step":5}']
        assert client.rows(0, *lines) == 200
        assert self._history(server) == lines

    def test_lines_sent_again_at_their_offset_change_nothing(self, client, server):
        for _ in range(2):
            assert client.rows(0, {"_step": 0}, {"_step": 1}) == 200
        assert self._history(server) == ['{"_step": 0}', '{"_step": 1}']

    def test_lines_at_an_offset_that_is_there_take_the_old_ones_place(self, client, server):
        client.rows(0, {"_step": 0}, {"_step": 1}, {"_step": 2})
        assert client.rows(1, {"_step": 1, "a": 1}) == 200
        assert self._history(server) == ['{"_step": 0}', '{"_step": 1, "a": 1}', '{"_step": 2}']

    def test_a_gap_is_refused(self, client, server):
        assert client.rows(1, {"_step": 0}) == 400
        assert self._history(server) == []

    @pytest.mark.parametrize("row", [{"a": 1}, {"_step": -1}, {"_step": 1.5}, {"_step": "1"}, {"_step": True}, "[]"])
    def test_a_line_without_a_step_is_refused(self, client, server, row):
        assert client.rows(0, {"_step": 0}, row) == 400
        assert self._history(server) == []

    def test_a_step_that_is_not_past_the_one_before_is_refused(self, client, server):
        assert client.rows(0, {"_step": 3}) == 200
        assert client.rows(1, {"_step": 3}) == 400
        assert client.rows(1, {"_step": 5}, {"_step": 4}) == 400
        server.switch(strict_steps=False)
        assert client.rows(1, {"_step": 3}, {"_step": 1}) == 200
        assert server.state()["runs"]["team/p/r"]["steps"] == [3, 3, 1]

    def test_an_empty_key_is_refused(self, client):
        assert client.rows(0, {"_step": 0, "": 1}) == 400
        assert client.rows(0, {"_step": 0, "empty": ""}) == 200

    def test_a_line_over_ten_mebibytes_is_refused(self, client):
        assert client.rows(0, {"_step": 0, "a": "x" * 10 * 2**20}) == 413

    def test_a_run_that_is_not_there_has_no_stream(self, client):
        assert client.rows(0, {"_step": 0}, run="nope") == 404

    @pytest.mark.parametrize(
        "body",
        [b"{", b'{"files": {"x": {"offset": 0, "content": []}}}', b'{"done": true}', b'{"files": {"x": {}}}'],
    )
    def test_what_is_no_such_request_is_refused(self, client, body):
        assert client.stream(body)[0] == 400

    def test_a_request_may_be_packed(self, client, server):
        body = {"files": {"wandb-history.jsonl": {"offset": 0, "content": ['{"_step": 0}']}}}
        assert client.stream(gzip.compress(json.dumps(body).encode()), **{"Content-Encoding": "gzip"})[0] == 200
        assert self._history(server) == ['{"_step": 0}']

    def test_a_run_ends_with_its_exit_code(self, client, server):
        for code, state in ((0, "finished"), (1, "failed")):
            assert client.stream({"complete": True, "exitcode": code}) == (200, {"exitcode": None, "limits": {}})
            assert server.state()["runs"]["team/p/r"]["state"] == state

    def test_the_last_line_of_the_summary_counts(self, client, server):
        client.stream({"files": {"wandb-summary.json": {"offset": 0, "content": ['{"a": 1}', '{"a": NaN}']}}})
        assert server.state()["runs"]["team/p/r"]["summary"] == '{"a": NaN}'
        query = '{ project(name: "p", entityName: "team") { run(name: "r") { summaryMetrics } } }'
        assert json.loads(client.get(query)["project"]["run"]["summaryMetrics"]) == {"a": "NaN"}

    def test_console_lines_may_come_in_any_order(self, client, server):
        client.stream({"files": {"output.log": {"offset": 2, "content": ["c"]}}})
        client.stream({"files": {"output.log": {"offset": 0, "content": ["a"]}}})
        assert server.state()["runs"]["team/p/r"]["output"] == ["a", "", "c"]


class TestReadingHistory:
    @pytest.fixture(autouse=True)
    def _run(self, client):
        client.run()

    def _page(self, client, first, last, size=1000):
        lines = client.get(PAGE, minStep=first, maxStep=last, pageSize=size)["project"]["run"]["history"]
        return [json.loads(line) for line in lines]

    def test_a_page_is_a_range_of_steps_without_its_end(self, client):
        client.rows(0, *({"_step": step} for step in (0, 5, 10, 10**13)))
        assert self._page(client, 0, 10) == [{"_step": 0}, {"_step": 5}]
        assert self._page(client, 10, 11) == [{"_step": 10}]
        assert self._page(client, 11, 10**12) == []

    def test_more_rows_than_were_asked_for_are_sampled(self, client):
        client.rows(0, *({"_step": step} for step in range(100)))
        assert [row["_step"] for row in self._page(client, 0, 100, size=4)] == [0, 33, 66, 99]

    def test_what_is_no_json_number_is_told_as_a_string(self, client):
        client.rows(0, '{"_step": 0, "a": NaN, "b": [Infinity], "c": {"d": -Infinity}, "e": "NaN"}')
        assert self._page(client, 0, 1) == [
            {"_step": 0, "a": "NaN", "b": ["Infinity"], "c": {"d": "-Infinity"}, "e": "NaN"}
        ]

    def test_exported_lines_are_parquet_and_the_rest_is_live(self, client, server):
        client.rows(0, *({"_step": step, "a": step / 2, "b": float("nan"), "s": str(step)} for step in range(10)))
        server.export("team/p/r", 4, 3)
        query = """{ project(name: "p", entityName: "team") { run(name: "r") {
          parquetHistory(liveKeys: ["_step"]) { parquetUrls liveData } } } }"""
        told = client.get(query)["project"]["run"]["parquetHistory"]
        assert told["liveData"] == [{"_step": 7}, {"_step": 8}, {"_step": 9}]
        tables = [pq.read_table(io.BytesIO(client.http.request("GET", url).data)) for url in told["parquetUrls"]]
        assert [table["_step"].to_pylist() for table in tables] == [[0, 1, 2, 3], [4, 5, 6]]
        assert tables[1]["a"].to_pylist() == [2.0, 2.5, 3.0]
        assert [row["_step"] for row in self._page(client, 0, 100)] == [7, 8, 9]
        server.switch(whole_pages=True)
        assert [row["_step"] for row in self._page(client, 0, 100)] == list(range(10))

    def test_columns_are_rows_that_have_all_keys_up_to_the_last_step(self, client):
        client.rows(0, {"_step": 0, "a": 1}, {"_step": 1, "b": 2}, {"_step": 2, "a": 3, "b": {"c": 4}})
        query = """query SampledHistoryPage($specs: [JSONString!]!) { project(name: "p", entityName: "team") {
          run(name: "r") { sampledHistory(specs: $specs) historyKeys historyLineCount } } }"""
        specs = [{"keys": ["_step", "a"], "minStep": 0, "maxStep": 2}, {"keys": ["b.c"]}]
        run = client.get(query, specs=[json.dumps(spec) for spec in specs])["project"]["run"]
        assert run["sampledHistory"] == [[{"_step": 0, "a": 1}, {"_step": 2, "a": 3}], [{"b.c": 4}]]
        assert (run["historyLineCount"], run["historyKeys"]["lastStep"]) == (3, 2)
        assert run["historyKeys"]["keys"]["a"]["typeCounts"] == [{"type": "number", "count": 2}]
        assert set(run["historyKeys"]["keys"]) == {"_step", "a", "b", "b.c"}

    def test_system_metrics_are_sampled(self, client):
        lines = [json.dumps({"_runtime": n, "system.cpu": n}) for n in range(10)]
        client.stream({"files": {"wandb-events.jsonl": {"offset": 0, "content": lines}}})
        query = """query RunFullHistory($n: Int) {
          project(name: "p", entityName: "team") { run(name: "r") { events(samples: $n) } } }"""
        events = client.get(query, n=3)["project"]["run"]["events"]
        assert [json.loads(line)["system.cpu"] for line in events] == [0, 4, 9]
        assert client.get(query, n=10)["project"]["run"]["events"] == lines


class TestFiles:
    @pytest.fixture(autouse=True)
    def _run(self, client):
        client.run()

    def _url(self, client, name="a/b.txt"):
        return client.get(RUN_FILES, files=[name])["createRunFiles"]["files"][0]["uploadUrl"]

    def test_a_file_is_there_when_its_bytes_were_put(self, client, server):
        url = self._url(client)
        assert server.state()["runs"]["team/p/r"]["files"] == {}
        assert client.put(url, b"hello") == 200
        assert server.state()["runs"]["team/p/r"]["files"] == {"a/b.txt": {"md5": md5(b"hello"), "size": 5}}
        assert server.blob(md5(b"hello")) == b"hello"

    def test_a_url_that_nobody_signed_or_that_expired_is_denied(self, client, server):
        url = self._url(client)
        assert client.put(url[:-1], b"x") == 403
        server.expire()
        assert client.put(url, b"x") == 403
        assert server.state()["runs"]["team/p/r"]["files"] == {}

    def test_a_signed_url_with_our_key_on_it_is_refused(self, client):
        assert client.put(self._url(client), b"x", **client.auth) == 400

    def test_bytes_that_do_not_have_their_md5_are_refused(self, client):
        assert client.put(self._url(client), b"x", **{"Content-MD5": md5(b"y")}) == 400

    @pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../b"])
    def test_a_file_lies_below_its_run(self, client, name):
        assert client.ask(RUN_FILES, files=[name])[0] == 400

    def test_a_url_for_reading_gives_ranges_and_needs_no_key(self, client):
        client.put(self._url(client), b"0123456789")
        query = """{ project(name: "p", entityName: "team") { run(name: "r") { fileCount files {
          edges { node { name sizeBytes md5 url directUrl } } } } } }"""
        run = client.get(query)["project"]["run"]
        file = run["files"]["edges"][0]["node"]
        assert (run["fileCount"], file["name"], file["sizeBytes"], file["md5"]) == (
            1,
            "a/b.txt",
            10,
            md5(b"0123456789"),
        )
        assert client.http.request("GET", file["directUrl"]).data == b"0123456789"
        assert client.http.request("GET", file["directUrl"], headers={"Range": "bytes=2-4"}).data == b"234"
        assert client.http.request("GET", file["url"], headers=client.auth).data == b"0123456789"
        assert client.http.request("GET", file["url"]).status == 401


class TestArtifacts:
    @pytest.fixture(autouse=True)
    def _run(self, client):
        client.run()

    def test_a_version_counts_when_it_is_committed(self, client, server):
        client.log(one=b"1", two=b"2")
        artifact = server.state()["artifacts"]["team/p/a:v0"]
        assert (artifact["producer"], artifact["aliases"], artifact["type"]) == ("team/p/r", ["latest"], "data")
        assert {name: entry["digest"] for name, entry in artifact["manifest"].items()} == {
            "one": md5(b"1"),
            "two": md5(b"2"),
        }

    def test_latest_is_the_last_one_committed(self, client, server):
        client.log(one=b"1")
        client.log(one=b"2")
        members = server.state()["collections"]["team/p/a"]["members"]
        assert {version: member["aliases"] for version, member in members.items()} == {"v0": [], "v1": ["latest"]}

    def test_the_same_content_is_the_same_version(self, client, server):
        first = client.log(one=b"1")
        again = client.create(manifest_of(one=b"1")[1])
        assert (again["id"], again["state"]) == (first, "COMMITTED")
        assert list(server.state()["artifacts"]) == ["team/p/a:v0"]

    def test_bytes_that_a_version_of_it_has_are_not_asked_for_again(self, client):
        first = client.log(one=b"1")
        made = client.create(manifest_of(one=b"1", two=b"2")[1])
        one, two = client.files(made["id"], one=b"1", two=b"2")
        assert (one["uploadUrl"], one["artifact"]["id"]) == (None, first)
        assert (two["uploadUrl"] is None, two["artifact"]["id"]) == (False, made["id"])

    def test_bytes_other_than_declared_are_refused(self, client):
        made = client.create(manifest_of(one=b"1")[1])
        (node,) = client.files(made["id"], one=b"1")
        assert client.put(node["uploadUrl"], b"2", node["uploadHeaders"]) == 400
        assert client.put(node["uploadUrl"], b"1") == 403  # the headers are part of what was signed
        assert client.put(node["uploadUrl"], b"1", node["uploadHeaders"]) == 200

    def test_a_commit_with_missing_bytes_is_refused(self, client, server):
        manifest, digest = manifest_of(one=b"1")
        made = client.create(digest)
        client.files(made["id"], one=b"1")
        assert client.ask(COMMIT, id=made["id"]) == (400, "artifact a has no manifest")
        client.manifest(made["id"], manifest)
        assert client.ask(COMMIT, id=made["id"]) == (400, "artifact a: one was not uploaded")
        assert server.state()["artifacts"] == {}
        assert [one["state"] for one in server.state()["pending"].values()] == ["PENDING"]

    def test_a_commit_with_another_digest_is_refused(self, client):
        made = client.create("0" * 32)
        client.manifest(made["id"], manifest_of()[0])
        status, message = client.ask(COMMIT, id=made["id"])
        assert (status, "its manifest has digest" in message) == (400, True)

    def test_a_commit_of_nothing_is_not_found(self, client):
        assert client.ask(COMMIT, id="QXJ0aWZhY3Q6OTk=")[0] == 404

    def test_a_commit_sent_again_changes_nothing(self, client, server):
        version = client.log(one=b"1")
        client.get(COMMIT, id=version)
        assert list(server.state()["artifacts"]) == ["team/p/a:v0"]

    @pytest.mark.parametrize(
        ("given", "status"),
        [
            ({"artifactCollectionName": "a/b"}, 400),
            ({"artifactCollectionName": "x" * 129}, 400),
            ({"artifactTypeName": "a:b"}, 400),
            ({"aliases": [{"artifactCollectionName": "a", "alias": "a:b"}]}, 400),
            ({"aliases": [{"artifactCollectionName": "a", "alias": "v3"}]}, 400),
            ({"tags": [{"tagName": "a/b"}]}, 400),
            ({"metadata": json.dumps(dict.fromkeys(map(str, range(101))))}, 400),
            ({"metadata": '{"a": NaN}'}, 400),
            ({"projectName": "nope"}, 404),
            ({"runName": "nope"}, 404),
            ({"digestAlgorithm": "MANIFEST_XXH128"}, 400),
            ({"artifactTypeName": "other"}, 409),
        ],
    )
    def test_names_and_sizes_have_their_bounds(self, client, given, status):
        client.log(one=b"1")
        right = {"entityName": "team", "projectName": "p", "runName": "r", "artifactTypeName": "data"}
        right |= {"artifactCollectionName": "a", "digest": "0" * 32}
        assert client.ask(CREATE, input=right | given)[0] == status

    def test_a_run_uses_a_version(self, client, server):
        version = client.log(one=b"1")
        client.run("r2")
        given = {"entityName": "team", "projectName": "p", "runName": "r2", "artifactID": version}
        for _ in range(2):
            client.get(USE, input=given)
        assert server.state()["artifacts"]["team/p/a:v0"]["consumers"] == ["team/p/r2"]
        assert client.ask(USE, input={**given, "runName": "nope"})[0] == 404

    def test_a_large_file_comes_in_parts(self, client, server):
        data, parts = b"abcdef", [b"abc", b"def"]
        manifest, digest = manifest_of(one=data)
        made = client.create(digest)
        told = [{"partNumber": n, "hexMD5": hashlib.md5(part).hexdigest()} for n, part in enumerate(parts, 1)]
        spec = {"artifactID": made["id"], "name": "one", "md5": md5(data), "uploadPartsInput": told}
        edges = client.get(FILES, artifactFiles=[spec])["createArtifactFiles"]["files"]["edges"]
        node = edges[0]["node"]
        upload = node["uploadMultipartUrls"]
        given = {"completedParts": told, "artifactID": made["id"], "storagePath": node["storagePath"]}
        assert client.put(upload["uploadUrlParts"][0]["uploadUrl"], parts[0]) == 200
        assert client.ask(COMPLETE, **given, uploadID=upload["uploadID"])[0] == 400
        assert client.put(upload["uploadUrlParts"][1]["uploadUrl"], b"xxx") == 400
        assert client.put(upload["uploadUrlParts"][1]["uploadUrl"], parts[1]) == 200
        done = client.get(COMPLETE, **given, uploadID=upload["uploadID"])
        assert done["completeMultipartUploadArtifact"]["digest"] == md5(data)
        client.manifest(made["id"], manifest)
        client.get(COMMIT, id=made["id"])
        assert server.blob(md5(data)) == data


class TestFaults:
    def test_a_fault_befalls_an_operation_by_its_name(self, client, server):
        server.fail("UpsertBucket", 500, times=2)
        assert [client.refused()[0] for _ in range(3)] == [500, 500, 200]

    def test_a_fault_may_wait_for_its_turn_and_tell_when_to_come_back(self, client, server):
        client.run()
        server.fail("file_stream", 429, headers={"Retry-After": "3"}, skip=1)
        assert client.rows(0, {"_step": 0}) == 200
        url = f"{server.url}/files/team/p/r/file_stream"
        reply = client.http.request("POST", url, body=b"{}", headers=client.auth)
        assert (reply.status, reply.headers["Retry-After"]) == (429, "3")

    def test_what_is_done_may_be_lost_on_its_way_back(self, client, server):
        client.run()
        server.fail("file_stream", after=True)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.rows(0, {"_step": 0})
        assert server.state()["runs"]["team/p/r"]["history"] == ['{"_step": 0}']

    def test_a_connection_may_end_before_anything_is_done(self, client, server):
        server.fail("upsertBucket", 0)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            client.run()
        assert server.state()["runs"] == {}

    def test_an_answer_may_hang(self, client, server):
        server.fail("Viewer", hang=0.3)
        start = time.monotonic()
        assert client.get("query Viewer { viewer { entity } }") == {"viewer": {"entity": "team"}}
        assert time.monotonic() - start > 0.29

    @pytest.mark.parametrize("match", ["PUT", "PUT file", "*"])
    def test_uploads_fail_by_their_kind(self, client, server, match):
        client.run()
        url = client.get(RUN_FILES, files=["a"])["createRunFiles"]["files"][0]["uploadUrl"]
        server.fail("PUT artifact", 500)
        server.fail(match, 403)
        assert client.put(url, b"x") == 403
        server.heal()
        assert client.put(url, b"x") == 200

    def test_every_answer_may_be_late(self, client, server):
        server.latency(0.1)
        start = time.monotonic()
        client.run()
        assert time.monotonic() - start > 0.1

    def test_requests_are_told_as_they_came(self, client, server):
        client.run()
        client.rows(0, {"_step": 0})
        assert server.requests() == [("POST", "UpsertBucket"), ("POST", "file_stream")]
        assert [one["status"] for one in server.log()] == [200, 200]
        assert server.log()[0]["variables"]["name"] == "r"


class TestSpeed:
    def test_a_request_costs_about_a_millisecond(self, client):
        """Many runs are copied in tests. Of the last fifty the fastest counts, since the machine may be busy."""
        client.run()
        took = []
        for n in range(100):
            start = time.monotonic()
            client.run(f"r{n}", config='{"a": {"value": 1}}')
            client.rows(0, *({"_step": step, "a": 0.5, "b": 1} for step in range(50)), run=f"r{n}")
            took.append(time.monotonic() - start)
        assert min(took[50:]) < 0.04
