"""What waits for the end of a command: an end that never came is made up for by the next one, and never again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import wandbserver
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.wandb.api.logged import draft
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.api.target import WandbTarget, open_target
from mlmigrate.adapters.wandb.api.writes import STAMP_RUN
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.shape import File, Sheet, Version, WandbRun
from mlmigrate.address import parse
from mlmigrate.errors import Unavailable
from mlmigrate.model import Loss

pytestmark = pytest.mark.slow


@contextmanager
def command() -> Iterator[WandbTarget]:
    """What one command has open; it knows what is there as a copy does, that asks for it first."""
    target = open_target(parse("wandb:team"), Context("target"))
    try:
        target.arrived()
        yield target
    finally:
        target.close()


def version(word: str, *aliases: str, name: str = "net") -> Version:
    data = word.encode()
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    digest = hashlib.md5(f"wandb-artifact-manifest-v1\nm:{md5}\n".encode()).hexdigest()
    file = File("m", lambda: io.BytesIO(data), len(data))
    return Version(name, "model", digest=digest, files=(file,), aliases=(word, *aliases))


def used(one: Version) -> Version:
    return Version(one.name, one.type, digest=one.digest, version="v0")


def sheet(name: str, project: str = "p", **fields: tuple[Version, ...]) -> Sheet:
    origin = f"wandb:elsewhere/{project}/{name}"
    config = {"lr": 0.1, KEY: as_config(Provenance(origin=origin, native=True))}
    run = WandbRun(id=name, project=project, name=name, config=config, summary={"a": 1}, **fields)  # type: ignore[arg-type]
    return Sheet(run, origin, "stamp", 0, lambda _: iter(()), 0, lambda _: iter(()))


def latest(server: wandbserver.Server, project: str = "p", name: str = "net") -> list[str]:
    """The other alias of whichever version is the latest."""
    found = [one for at, one in server.state()["artifacts"].items() if at.startswith(f"team/{project}/{name}:")]
    (it,) = (set(one["aliases"]) for one in found if "latest" in one["aliases"])
    return sorted(it - {"latest"})


def owed(server: wandbserver.Server) -> dict[str, set[str]]:
    runs = server.state()["runs"].values()
    told = {run["name"]: run["config"][KEY].keys() & {"overtook", "unmade", "missing"} for run in runs}
    return {name: some for name, some in told.items() if some}


def test_latest_is_given_back_by_the_command_after_one_that_was_killed(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),))])
    with command() as target:
        target.sending.deliver([sheet("b", logged=(version("second"),))])
    assert (latest(server), owed(server)) == (["second"], {"b": {"overtook"}})
    with command() as target:
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {})
    run = server.state()["runs"]["team/p/b"]["config"]
    assert (run["lr"], run[KEY]["stamp"]) == (0.1, "stamp")


def test_whose_latest_comes_only_later_waits_for_it(server):
    with command() as target:
        target.sending.deliver([sheet("b", logged=(version("second"),))])
        assert target.finish((), {}) == []
        assert owed(server) == {"b": {"overtook"}}
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),)), sheet("c")])
        target.sending.deliver([sheet("d", logged=(version("third"),))])
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {})


def test_what_somebody_made_the_latest_afterwards_stays_so(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),))])
        target.sending.deliver([sheet("b", logged=(version("second"),))])
    with command() as target:  # another hand, before the end is made up for
        where = Where("team", "p", "a")
        target.sending.artifacts.log(draft(where, None, version("third")))
    with command() as target:
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["third"], {})


def test_what_is_paid_is_not_looked_at_again(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"), version("second")))])
        assert target.finish((), {}) == []
    assert latest(server) == ["first"]
    with command() as target:
        target.sending.artifacts.log(draft(Where("team", "p", "a"), None, version("third")))
        server.forget()
        assert target.finish((), {}) == []
        assert server.requests() == []
    assert latest(server) == ["third"]


def test_of_two_copies_at_different_times_the_newer_says_which_is_the_latest(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),))])
        assert target.finish((), {}) == []
    with command() as target:
        target.sending.deliver([sheet("b", logged=(version("second", "latest"), version("third")))])
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["second"], {})


def test_latest_in_a_collection_that_it_is_linked_into_is_another(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),))])
        artifacts = target.sending.artifacts
        made = artifacts.find(Where("team", "p", "a"), used(version("first")))
        assert made is not None
        target.sending.deliver([sheet("c", "models")])
        artifacts.link(Where("team", "models", "a"), made, "net", ["latest"])
        target.sending.deliver([sheet("b", logged=(version("second"),))])
        assert target.finish((), {}) == []
    assert latest(server) == ["first"]


def test_a_run_that_makes_several_versions_of_its_own_keeps_their_latest(server):
    versions = (version(word, *latest_, name="net-a") for word, latest_ in (("x", ()), ("y", ("latest",)), ("z", ())))
    with command() as target:
        target.sending.deliver([sheet("a", logged=tuple(versions)), sheet("b", logged=(version("w", name="net-b"),))])
        assert owed(server) == {"a": {"overtook"}}
        assert target.finish((), {}) == []
    assert (latest(server, name="net-a"), owed(server)) == (["y"], {})


def test_projects_do_not_mix(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"), version("second")))])
        target.sending.deliver([sheet("b", "q", logged=(version("second"), version("third")))])
        assert target.finish((), {}) == []
    assert (latest(server), latest(server, "q")) == (["first"], ["third"])


def test_a_use_is_told_by_the_command_after_one_that_was_killed(server):
    with command() as target:
        target.sending.deliver([sheet("reader", used=(used(version("first")),))])
    assert owed(server) == {"reader": {"unmade"}}
    with command() as target:
        target.sending.deliver([sheet("maker", logged=(version("first", "latest"),))])
        assert target.finish((), {}) == []
    assert server.state()["artifacts"]["team/p/net:v0"]["consumers"] == ["team/p/reader"]
    assert owed(server) == {}


def test_a_use_of_what_is_nowhere_is_told_once_and_made_when_it_comes(server):
    with command() as target:
        target.sending.deliver([sheet("reader", used=(used(version("first")),))])
        lost = [Loss("reader", "use of the artifact net:v0", "the artifact is not there")]
        assert (target.finish((), {}), owed(server)) == (lost, {"reader": {"missing"}})
    with command() as target:
        assert (target.finish((), {}), owed(server)) == ([], {"reader": {"missing"}})
        target.sending.deliver([sheet("maker", logged=(version("first", "latest"),))])
        assert (target.finish((), {}), owed(server)) == ([], {})
    assert server.state()["artifacts"]["team/p/net:v0"]["consumers"] == ["team/p/reader"]


def test_a_use_that_the_server_refuses_is_told_once_and_stops_nothing(server):
    with command() as target:
        target.sending.deliver([sheet("reader", used=(used(version("first")),))])
        target.sending.deliver([sheet("maker", logged=(version("first", "latest"), version("second")))])
        server.fail("UseArtifact", status=403, times=99)
        (loss,) = target.finish((), {})
        assert (loss.run, loss.what) == ("reader", "use of the artifact net:v0")
        assert (latest(server), owed(server)) == (["first"], {"reader": {"missing"}})
        assert target.finish((), {}) == []
    server.heal()
    with command() as target:
        assert target.finish((), {}) == []
    assert (server.state()["artifacts"]["team/p/net:v0"]["consumers"], owed(server)) == (["team/p/reader"], {})


def test_more_debtors_than_go_into_one_request_all_are_rid_of_it(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"),))])
        target.sending.deliver([sheet(f"b{n}", logged=(version(f"other {n}"),)) for n in range(40)])
        assert len(owed(server)) == 40
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {})


def test_a_server_that_is_away_meanwhile_is_asked_by_the_next_command(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"), version("second")))])
        server.fail("AddAliases", status=500, times=99)
        with pytest.raises(Unavailable):
            target.finish((), {})
    assert (latest(server), owed(server)) == (["second"], {"a": {"overtook"}})
    server.heal()
    with command() as target:
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {})


def test_a_config_that_the_server_tells_from_before_the_stamp_is_not_written_back(server, monkeypatch):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"), version("second")))])
        there = target.there
        behind = [{**node, "config": node["config"].replace('"stamp":"stamp",', "")} for node in there.nodes("p")]
        assert "stamp" not in json.dumps(behind)
        monkeypatch.setattr(there, "nodes", lambda _: iter(behind))
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {"a": {"overtook"}})
    assert server.state()["runs"]["team/p/a"]["config"][KEY]["stamp"] == "stamp"


def test_what_a_stranger_wrote_into_the_provenance_is_no_debt(server):
    with command() as target:
        target.sending.deliver([sheet("a", logged=(version("first", "latest"), version("second"))), sheet("x")])
        bad = {"origin": "x", "stamp": "x", "overtook": {"net": 7}, "heads": {"net": "none"}, "unmade": [1]}
        x = target.there.at("p", "x")
        assert x is not None
        target.client.graphql(STAMP_RUN, {"id": x.bucket, "config": json.dumps({KEY: {"value": bad}})})
    with command() as target:
        assert target.finish((), {}) == []
    assert (latest(server), owed(server)) == (["first"], {"x": {"overtook", "unmade"}})
