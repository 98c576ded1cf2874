"""Versions keep their numbers where W&B can give them: they are made in their order, and what differs is told."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

import wandbserver
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.wandb.api.sending import Sending
from mlmigrate.adapters.wandb.api.target import WandbTarget, open_target
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.shape import File, Sheet, Version, WandbRun
from mlmigrate.address import parse
from mlmigrate.errors import Damaged
from mlmigrate.model import Loss

pytestmark = pytest.mark.slow


@contextmanager
def target() -> Iterator[WandbTarget]:
    found = open_target(parse("wandb:team"), Context("target"))
    try:
        yield found
    finally:
        found.close()


def version(number: int, name: str = "net", *, gone: str = "") -> Version:
    data = f"{name} {number}".encode()
    file = File("m", None if gone else lambda: io.BytesIO(data), len(data), gone=gone)
    return Version(name, "model", version=f"v{number}", files=(file,), aliases=(f"was {number}",))


def sheet(id_: str, *logged: Version, started: int = 0) -> Sheet:
    origin = f"wandb:elsewhere/p/{id_}"
    run = WandbRun(
        id_,
        project="p",
        config={KEY: as_config(Provenance(origin=origin, native=True))},
        logged=logged,
        started=started,
    )
    return Sheet(run, origin, "stamp", 0, lambda _: iter(()), 0, lambda _: iter(()))


def numbers(server: wandbserver.Server, name: str = "net") -> dict[int, int]:
    """The number that each version had -> the one that it has."""
    found = (one for at, one in server.state()["artifacts"].items() if at.startswith(f"team/p/{name}:"))
    told = {one["version"]: [alias for alias in one["aliases"] if alias.startswith("was ")] for one in found}
    return {int(alias.removeprefix("was ")): number for number, (alias,) in told.items()}


def test_versions_of_many_runs_are_made_in_the_order_of_their_numbers(server):
    runs = [sheet(f"r{n}", version(n), version(39 - n, "other")) for n in (*range(39, 0, -2), *range(0, 40, 2))]
    with target() as it, it.sending.pack(1) as sending:
        sending.deliver(runs)
    assert numbers(server) == numbers(server, "other") == {n: n for n in range(40)}
    assert sending.losses == []


def test_versions_that_had_no_number_are_made_in_the_order_in_which_their_runs_began(server):
    runs = [sheet(f"r{n}", replace(version(n), version=""), started=n) for n in (*range(39, 0, -2), *range(0, 40, 2))]
    with target() as it, it.sending.pack(1) as sending:
        sending.deliver(runs)
    assert (numbers(server), sending.losses) == ({n: n for n in range(40)}, [])


def test_versions_of_one_run_too_and_one_without_a_number_waits_for_none(server):
    plain = Version("plain", "model", files=version(0).files)
    with target() as it, it.sending.pack(1) as sending:
        sending.deliver([sheet("a", version(2), plain, version(0), version(1))])
    assert numbers(server) == {0: 0, 1: 1, 2: 2}
    assert server.state()["runs"]["team/p/a"]["config"][KEY]["stamp"] == "stamp"


def test_a_number_that_cannot_be_kept_is_told(server):
    with target() as it, it.sending.pack(1) as sending:
        sending.deliver([sheet("a", version(1)), sheet("b", version(7)), sheet("c", version(2))])
    assert numbers(server) == {1: 0, 2: 1, 7: 2}
    assert sorted(sending.losses, key=lambda loss: loss.run) == [
        Loss(run, f"number v{was} of the artifact net", f"it is v{here} here: W&B numbers versions as they come")
        for run, was, here in (("a", 1, 0), ("b", 7, 2), ("c", 2, 1))
    ]


def test_a_version_that_is_bad_fails_its_run_and_stops_no_other(server):
    with target() as it, it.sending.pack(1) as sending, pytest.raises(Damaged, match="lost"):
        sending.deliver([sheet("a", version(1, gone="lost")), sheet("b", version(2)), sheet("c", version(0))])
    assert numbers(server) == {0: 0, 2: 1}
    told = {name[-1]: run["config"][KEY].get("stamp") for name, run in server.state()["runs"].items()}
    assert told == {"a": None, "b": "stamp", "c": "stamp"}


def test_what_was_lost_in_a_pack_that_failed_is_told_by_the_next_try_and_once(server):
    runs = [sheet("a", version(1, gone="lost")), sheet("b", version(2)), sheet("c", version(0))]
    lost = [Loss("b", "number v2 of the artifact net", "it is v1 here: W&B numbers versions as they come")]
    with target() as it:
        with pytest.raises(Damaged, match="lost"), it.sending.pack(1) as sending:
            sending.deliver(runs)
        with it.sending.pack(1) as sending:
            sending.deliver(runs[1:])
        assert sending.losses == lost
        with it.sending.pack(1) as sending:
            sending.deliver(runs[1:])
        assert sending.losses == []


def test_so_is_what_was_lost_before_the_delivery_that_failed(server):
    def carry(sending: Sending) -> None:
        sending.deliver([sheet("b", version(2))])
        sending.deliver([sheet("a", version(3, gone="lost"))])

    with target() as it:
        with pytest.raises(Damaged, match="lost"), it.sending.pack(1) as sending:
            carry(sending)
        with it.sending.pack(1) as sending:
            sending.deliver([sheet("b", version(2))])
    assert [loss.what for loss in sending.losses] == ["number v2 of the artifact net"]


def test_of_packs_at_once_the_one_that_comes_first_makes_its_versions_first(server):
    with target() as it, it.sending.pack(2) as second, it.sending.pack(1) as first:
        later = threading.Thread(target=second.deliver, args=([sheet("b", version(1))],))
        later.start()
        later.join(1)
        assert (later.is_alive(), numbers(server)) == (True, {})
        first.deliver([sheet("a", version(0))])
        later.join(60)
    assert numbers(server) == {0: 0, 1: 1}
    assert [*first.losses, *second.losses] == []


def test_a_pack_that_ends_early_holds_up_nobody(server):
    with target() as it:
        with it.sending.pack(1):
            pass
        with it.sending.pack(2) as second:
            second.deliver([sheet("b", version(0))])
    assert numbers(server) == {0: 0}
