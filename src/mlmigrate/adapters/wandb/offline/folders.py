"""Where runs lie in a folder: what W&B's SDK left there, in whatever depth.

    offline-run-<YYYYMMDD_HHMMSS>-<id>/     (run-<...> when the SDK had a server besides)
        run-<id>.wandb                      the log
        files/                              files of the run page
    dryrun-<YYYYMMDD_HHMMSS>-<id>/          the same from before 0.10 (or run-<...>): no log, see remains.py
    latest-run                              a link to one of them; a copy of one where links were followed
    sweep-<id>/config-<run id>.yaml         what a sweep chose for a run

Links to folders are never followed: what lies behind them is not in the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlmigrate.adapters.wandb.address import RUN
from mlmigrate.errors import NotFound
from mlmigrate.storage.local import explain

PARTS = ".parts"  # of ours: what is being written
HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"
_TELLING = (HISTORY, "wandb-metadata.json", "wandb-summary.json", "config.yaml")  # of a run without a log
_LOG = re.compile(r"^run-(.+)\.wandb$")
_SWEEP = re.compile(r"^sweep-(.+)$")
_CHOSEN = re.compile(r"^config-(.+)\.yaml$")
_HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Place:
    """A log and what lies beside it. `time` is as the folder's name has it; "" when it is not named so.

    `bare`: there is no log, and `log` is the file that tells most in its stead.
    """

    log: Path
    folder: Path
    id: str
    time: str = ""
    bare: bool = False

    @property
    def files(self) -> Path:
        """The folder of the run's files, which need not be there."""
        return self.log.parent if self.bare else self.folder / "files"

    @property
    def order(self) -> tuple[str, str]:
        """Folders of one run in the order that they were written in; one without a time is the last."""
        return self.time or "~", str(self.log)


@dataclass(slots=True)
class Found:
    """All that lies in a folder. `odd`: what was seen and is no run, and why."""

    places: list[Place] = field(default_factory=list)
    chosen: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)  # run id -> (sweep, file)
    odd: list[tuple[str, str]] = field(default_factory=list)


def find(place: Path) -> Found:
    """Looks through a folder, or at a lone log. Raises NotFound when nothing is there."""
    found = Found()
    if place.is_file():
        found.places.append(_lone(place, found))
        return found
    if not place.is_dir():
        raise NotFound(f"wandb:{place} does not exist.", "Name a folder of W&B runs, or a .wandb file.")
    try:
        _look(place, found)
    except OSError as error:
        raise explain(error, str(place)) or error from error
    found.places.sort(key=lambda one: str(one.log))
    return found


def copies(one: Place, other: Place) -> bool:
    """Whether one log is the other, or the beginning of it: not the same run taken up again, but a copy."""
    with one.log.open("rb") as first, other.log.open("rb") as second:
        head, its = first.read(_HEAD), second.read(_HEAD)
    length = min(len(head), len(its))
    return head[:length] == its[:length]


def _look(folder: Path, found: Found) -> None:
    for here, entries in _walk(folder, found):
        logs = [entry for entry in entries if entry.name.endswith(".wandb")]
        found.places += [_place(here, Path(entry.path), found) for entry in logs if _plain(entry, found)]
        if not logs and RUN.match(here.name):
            _bare(here, found)
        sweep = _SWEEP.match(here.name)
        for entry in entries if sweep else ():
            if (run := _CHOSEN.match(entry.name)) and sweep and _plain(entry, found):
                found.chosen.setdefault(run[1], []).append((sweep[1], Path(entry.path)))


def _bare(folder: Path, found: Found) -> None:
    """A run without a log: what there is of it lies in its folder, or in that of its files."""
    for below in (folder, folder / "files"):
        told = next((below / name for name in _TELLING if (below / name).is_file()), None)
        if told is not None and not below.is_symlink() and not told.is_symlink():
            found.places.append(replace(_place(folder, told, found), bare=True))
            return
    found.odd.append((shown(folder), "it has neither a .wandb file nor anything else that tells of a run"))


def _walk(folder: Path, found: Found) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Each folder with the files in it; not those of a run, which are its own business."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if here == folder:
                raise
            because = "may not" if isinstance(error, PermissionError) else "cannot"
            found.odd.append((shown(here), f"a folder that {because} be read"))
            continue
        files = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
        yield here, files
        of_run = any(entry.name.endswith(".wandb") for entry in files) or RUN.match(here.name) is not None
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != PARTS]
        waiting += [here / name for name in reversed(below) if not (of_run and name in {"files", "logs", "tmp"})]


def _plain(entry: os.DirEntry[str], found: Found) -> bool:
    """Whether it is a file, and no link to one that lies elsewhere."""
    if not entry.is_file(follow_symlinks=False):
        found.odd.append((shown(Path(entry.path)), "a link, or no file: not read"))
        return False
    return True


def _lone(log: Path, found: Found) -> Place:
    return _place(log.absolute().parent, log.absolute(), found)


def _place(folder: Path, log: Path, found: Found) -> Place:
    named, run = _LOG.match(log.name), RUN.match(folder.name)
    id_ = named[1] if named else run[2] if run else log.name.removesuffix(".wandb")
    if not id_.isprintable():
        found.odd.append((shown(log), "its name has characters that are none"))
    id_ = id_.encode("utf-8", "backslashreplace").decode()  # bytes that are no text cannot go anywhere
    return Place(log, folder, id_, run[1] if run else "")


def shown(path: Path) -> str:
    """The path as text that may be shown, whatever bytes it has."""
    return repr(str(path))[1:-1]
