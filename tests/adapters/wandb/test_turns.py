"""Packs take turns in the order of their places, and at one place in that in which they began."""

from __future__ import annotations

import threading

import pytest

from mlmigrate.adapters.wandb.api.turns import Ticket, Turns


def test_each_waits_for_all_that_began_before_it():
    turns, said = Turns(), []
    begun = [turns.begin(place) for place in (3, 1, 2, 3, 0)]
    tickets = sorted(begun)
    assert [begun.index(ticket) for ticket in tickets] == [4, 1, 2, 0, 3]

    def take(ticket: Ticket) -> None:
        turns.wait(ticket, lambda: None)
        said.append(ticket)
        turns.end(ticket)

    threads = [threading.Thread(target=take, args=(ticket,)) for ticket in reversed(tickets[1:])]
    for thread in threads:
        thread.start()
    turns.end(tickets[0])
    for thread in threads:
        thread.join(60)
    assert said == tickets[1:]


def test_one_that_ended_without_its_turn_is_waited_for_by_nobody():
    turns = Turns()
    first, second, third = turns.begin(5), turns.begin(5), turns.begin(6)
    turns.end(second)
    turns.end(second)
    turns.end(first)
    turns.wait(third, pytest.fail)
    turns.wait((0, 0), pytest.fail)  # one that took no ticket


def test_who_wants_to_stop_meanwhile_is_heard():
    turns = Turns()
    turns.begin(1)
    with pytest.raises(KeyboardInterrupt):
        turns.wait(turns.begin(2), stop)


def stop() -> None:
    raise KeyboardInterrupt
