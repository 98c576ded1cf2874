"""file_stream: the lines of a run's history, events, summary and console.

`offset` counts lines of that file. Lines at an offset that is there already take the old ones' place, so a request
that is sent again changes nothing; an offset past the end is refused for history and events, since lines would be
missing (W&B's client never does it). Of wandb-summary.json only the last line counts; console lines may come in
any order, what lies between is empty.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from .store import Refused, Run, Store, loads, now, step_of

LINE_BYTES = 10 * 2**20
REQUEST_BYTES = 32 * 2**20
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"
OUTPUT = "output.log"


class Chunk(msgspec.Struct, forbid_unknown_fields=True):
    offset: int
    content: list[str]


class Message(msgspec.Struct, forbid_unknown_fields=True):
    files: dict[str, Chunk] = {}
    uploaded: list[str] = []
    preempting: bool | None = None
    complete: bool | None = None
    exitcode: int | None = None


_MESSAGE = msgspec.json.Decoder(Message)


def take(store: Store, run: Run, body: bytes) -> dict[str, Any]:
    """Takes all of a request or, where it raises Refused, nothing."""
    if len(body) > REQUEST_BYTES:
        raise Refused(f"request of {len(body)} bytes is too large", 413)
    try:
        message = _MESSAGE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"invalid file_stream request: {error}") from None
    checked = {name: _checked(store, run, name, chunk) for name, chunk in message.files.items()}
    for name, chunk in message.files.items():
        _put(store, run, name, chunk, checked[name])
    run.uploaded += message.uploaded
    run.heartbeat = now()
    if message.complete:
        run.complete, run.exitcode = True, message.exitcode or 0
        run.state = "failed" if run.exitcode else "finished"
    elif message.files or not run.complete:
        run.state, run.complete = "running", False
    return {"exitcode": None, "limits": {}}


def _checked(store: Store, run: Run, name: str, chunk: Chunk) -> list[int]:
    """The steps of these lines, where they are history. Raises Refused for what may not be taken."""
    if name not in (HISTORY, EVENTS, SUMMARY, OUTPUT):
        raise Refused(f"unknown file {name!r}")
    if chunk.offset < 0:
        raise Refused(f"offset {chunk.offset} of {name}")
    long = next((line for line in chunk.content if len(line) > LINE_BYTES), None)
    if long is not None:
        raise Refused(f"line of {len(long)} bytes in {name} is too large", 413)
    if name in (HISTORY, EVENTS):
        there = len(run.history if name == HISTORY else run.events)
        if chunk.offset > there:
            raise Refused(f"offset {chunk.offset} of {name}, which has {there} lines")
    if name == HISTORY:
        return _steps(store, run, chunk)
    if name != OUTPUT:
        for line in chunk.content:
            loads(line)
    return []


def _steps(store: Store, run: Run, chunk: Chunk) -> list[int]:
    steps = [step_of(line) for line in chunk.content]
    if any('""' in line and "" in loads(line) for line in chunk.content):
        raise Refused("history line with an empty key")
    if store.strict_steps:
        end = chunk.offset + len(steps)
        before, after = run.steps[max(chunk.offset - 1, 0) : chunk.offset], run.steps[end : end + 1]
        row = [*before, *steps, *after]
        wrong = next((b for a, b in itertools.pairwise(row) if b <= a), None)
        if wrong is not None:
            raise Refused(f"_step {wrong} of {run.path} is not past the step before it")
    return steps


def _put(store: Store, run: Run, name: str, chunk: Chunk, steps: list[int]) -> None:
    end = chunk.offset + len(chunk.content)
    if name == HISTORY:
        if chunk.offset < run.counted:
            run.counts, run.counted = {}, 0
        run.history[chunk.offset : end] = chunk.content
        run.steps[chunk.offset : end] = steps
        run.ordered = store.strict_steps or run.steps == sorted(run.steps)
    elif name == EVENTS:
        run.events[chunk.offset : end] = chunk.content
    elif name == OUTPUT:
        run.output += [""] * (chunk.offset - len(run.output))
        run.output[chunk.offset : end] = chunk.content
    elif chunk.content:
        run.summary = chunk.content[-1]
