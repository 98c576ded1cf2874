"""What a relocation did, in lines and sentences. Pure. The last line answers "is it good?"."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from mlmigrate.address import hide_secrets
from mlmigrate.relocate.copying import Group, Pass
from mlmigrate.relocate.job import Done, Wish
from mlmigrate.relocate.survey import NOT_HERE
from mlmigrate.report import amount, duration, found, several, size, table

SHOWN = 10
ALL = 1_000_000
SOME_FAILED = 3
DIFFERENT = 4


def code(done: Done, *, strict: bool = False) -> int:
    """The exit code: 4 when a check or a sweep found differences, 3 when something could not go."""
    if done.checked is not None and done.checked.findings:
        return DIFFERENT
    if _conflicting(done):
        return DIFFERENT
    if done.failures or any(one.why != NOT_HERE for one in done.held) or done.left:
        return SOME_FAILED
    if done.undone is not None and done.undone.changed:
        return SOME_FAILED
    return SOME_FAILED if strict and (done.held or done.alone) else 0


def lines(done: Done, wish: Wish, *, verbose: bool = False) -> list[str]:
    """Everything, in the order it happened."""
    most = ALL if verbose else SHOWN
    return [*_planned(done, wish, most), *_worked(done, most), *_next(done, wish, most), verdict(done, wish)]


def _planned(done: Done, wish: Wish, most: int) -> Iterator[str]:
    if wish.dry_run or wish.all_of_it or wish.copy_only:
        yield f"{done.store}  ->  {done.to}"
        yield ""
        yield from _places(done.look)
        yield f"{several(done.values, 'URI')} to change; {amount(done.there)} name the new place already."
        if done.proxied:
            yield f"{several(done.proxied, 'URI')} behind a server's proxy stay as they are: only the bytes move."
        yield from _costs(done)
    yield from _list("stay where they are", [f"{one.shown}: {one.why}" for one in done.held], most)
    alone = [f"{kind} {name or owner}: {hide_secrets(value)} {why}" for kind, owner, name, value, why in done.alone]
    yield from _list("are left alone", alone, most)


def _places(look: Pass) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("place", "owners", "files", "size", "to copy", "size")]
    for name, group in sorted(look.groups.items()):
        rows.append((name, amount(group.owners), amount(group.files), size(group.size), *_todo(group)))
    if len(rows) > 1:
        yield from table(rows, right=(1, 2, 3, 4, 5))
        yield ""


def _todo(group: Group) -> tuple[str, str]:
    return amount(group.todo), size(group.todo_size)


def _costs(done: Done) -> Iterator[str]:
    """Requests and bytes, so that a person can multiply by their price."""
    look = done.look
    if not look.todo:
        return
    lists = several(done.lists + look.seen // 1000 + done.listed // 1000 + 1, "LIST")
    if done.target_local:
        yield f"To copy: {size(look.todo_size)} in {several(look.todo, 'GET')} (none where files lie here)."
    elif done.server_side:
        yield f"To copy: {size(look.todo_size)} within the store, {several(look.todo, 'COPY')}, {lists}."
    else:
        puts = several(sum(group.puts for group in look.groups.values()), "PUT")
        heads = several(sum(group.large for group in look.groups.values()), "HEAD")
        read = f"as much down, {several(look.todo, 'GET')}, " if done.source_remote else ""
        yield f"To copy: {size(look.todo_size)} up, {read}{puts}, {heads}, {lists}."


def _worked(done: Done, most: int) -> Iterator[str]:
    if done.copied is not None:
        yield f"copied     {several(done.copied.copied, 'file')}, {size(done.copied.copied_size)}"
    if done.switched is not None and done.switched.edits:
        yield f"switched   {several(done.switched.edits, 'URI')}; writers waited {duration(done.switched.seconds)}"
    if done.swept is not None:
        yield f"swept      {several(done.swept.copied, 'file')}, {size(done.swept.copied_size)}"
        wrote = list(done.swept.wrote.values())
        yield from (f"  {owner.shown} wrote {several(number, 'file')}" for owner, number in wrote[:most])
        yield from _rest(len(wrote), most)
    yield from _list("files were written at both places", _conflicting(done), most)
    if done.checked is not None:
        yield from _checked(done, most)
    if done.undone is not None:
        yield from _undone(done, most)
    if done.deleted is not None:
        yield f"deleted    {several(done.deleted[0], 'file')}, {size(done.deleted[1])}"
        yield from _list("old files are left", done.left, most)
    failures = [f"{owner}, {at}: {message}" for owner, at, _, message in done.failures]
    yield from _list("files are not copied", failures, most)


def _conflicting(done: Done) -> list[str]:
    passes = [one for one in (done.copied, done.swept, done.returned) if one is not None]
    both = [conflict for one in passes for conflict in one.conflicts]
    return list(dict.fromkeys(f"{owner.shown}, {at}: {why}" for owner, at, why in both))


def _checked(done: Done, most: int) -> Iterator[str]:
    checked = done.checked
    assert checked is not None  # noqa: S101  asked for with it
    way = "through MLflow's client" if done.by_client else "directly: MLflow is not installed here"
    sample = "all" if checked.files == checked.of else f"of {amount(checked.of)}, seed {done.seed}"
    yield f"checked    {several(checked.values, 'URI')}; {several(checked.files, 'file')} ({sample}) read {way}"
    if checked.directly and done.by_client:
        yield f"  {several(checked.directly, 'file')} among them read without it: {_why_directly(done)}"
    if checked.changed:
        yield f"  {several(checked.changed, 'file')} among them were written at the new place since"
    yield from (f"  {found(one)}" for one in checked.findings[:most])
    yield from _rest(len(checked.findings), most)


def _why_directly(done: Done) -> str:
    if done.checked is not None and done.checked.lacking:
        return "it lacks a package for that store"
    proxied = "--server leads through the server that they lie behind"
    return proxied if done.proxied else "it corrupts their names"


def _undone(done: Done, most: int) -> Iterator[str]:
    undone = done.undone
    assert undone is not None  # noqa: S101  asked for with it
    yield f"undone     {several(undone.edits, 'URI')}"
    if done.returned is not None and done.returned.copied:
        yield f"returned   {several(done.returned.copied, 'file')}, {size(done.returned.copied_size)}"
    changed = [f"{one.table}.{one.column} of {'/'.join(one.key)}" for one in undone.changed]
    yield from _list("URIs were changed by others since and stay", changed, most)
    stay = [f"{one.kind} {one.name or one.owner or one.experiment}: {one.value}" for one in undone.stay]
    yield from _list("URIs were made at the new place since and stay there", stay, most)


def _next(done: Done, wish: Wish, most: int) -> Iterator[str]:
    """What a person has to do now."""
    if done.switched is not None and done.switched.edits and done.ready:
        yield f"Restart the server with --default-artifact-root {shlex.quote(done.uri)}: else it goes on making new"
        yield "experiments at the old place, and this command moves them when it is run again."
    if done.proxied and done.copied is not None and done.proxy_at:
        yield f"Restart the server with --artifacts-destination {shlex.quote(done.uri)}, then run the same command"
        yield "again: it takes over what was written until then."
    if done.proxied and not done.proxy_at:
        yield "What lies behind the server's proxy was not looked at. Where it is: --from (as --artifacts-destination)."
    if done.active and not wish.undo:
        yield "These were active at the switch and still are; they may go on writing to the old place:"
        yield from (f"  {one}" for one in done.active[:most])
        yield from _rest(len(done.active), most)
        yield f"When they have ended: {command(wish)} --sweep"


def verdict(done: Done, wish: Wish) -> str:
    """One sentence."""
    good = code(done) == 0
    if wish.dry_run:
        return f"Nothing was written. To do it: {command(wish)}"
    if done.undone is not None:
        return _undone_well(done, good=good)
    if not done.ready:
        failed = several(len(done.failures), "file")
        return f"{failed} could not be copied, so no URI was changed. The same command goes on."
    return _good(done, wish) if good else _not_good(done)


def _good(done: Done, wish: Wish) -> str:
    if done.deleted is not None:
        return f"The old files are gone; all of {done.store} is at {done.to}."
    if wish.copy_only:
        return f"All files of {done.store} are at {done.to}; nothing is switched yet. To switch: {command(wish)}"
    if done.unknown:
        return f"{several(done.there, 'URI')} of {done.store} name {done.to}, but {done.ledger} knows of no move."
    if wish.sweep or wish.check is not None:
        return f"All is well: {done.store} has its artifacts at {done.to}."
    if done.proxied and not done.there:
        return f"All artifacts of {done.store} are at {done.to}."
    return f"All artifacts of {done.store} are at {done.to}. To take it back: {command(wish)} --undo"


def _undone_well(done: Done, *, good: bool) -> str:
    if good:
        return f"{done.store} names its old places again."
    return f"{done.store} names its old places again, but for what others changed since (listed above)."


def _not_good(done: Done) -> str:
    different = len(done.checked.findings) if done.checked is not None else 0
    parts = [
        (different + len(_conflicting(done)), "difference"),
        (len(done.failures), "file that could not be copied"),
        (len(done.held), "owner that stays where it is"),
        (len(done.left), "old file that is left"),
    ]
    said = [f"{amount(number)} {_many(noun, number)}" for number, noun in parts if number]
    return f"{done.to} does not have all of {done.store}: {', '.join(said)}, listed above."


def _many(noun: str, number: int) -> str:
    if number == 1:
        return noun
    first, _, rest = noun.partition(" ")
    return f"{first}s {rest.replace('stays where it is', 'stay where they are').replace('is left', 'are left')}".strip()


def command(wish: Wish) -> str:
    """The same command, to be typed again."""
    words = ["mlmigrate", "relocate", wish.store.shown, "--to", hide_secrets(wish.to)]
    if wish.from_:
        words += ["--from", hide_secrets(wish.from_)]
    return " ".join(map(shlex.quote, words))


def _list(what: str, items: Sequence[str], most: int) -> Iterator[str]:
    if items:
        yield f"{amount(len(items))} {what}:"
        yield from (f"  {one}" for one in items[:most])
        yield from _rest(len(items), most)


def _rest(number: int, most: int) -> Iterator[str]:
    if number > most:
        yield f"  ... and {amount(number - most)} more (-v lists all)"
