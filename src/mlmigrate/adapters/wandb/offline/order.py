"""In which order the runs of a folder must be synced: who reads an artifact comes after who made it.

One `wandb sync` takes its runs in no order at all.  So there is a list of folders for each turn, and within a turn
the order does not matter; a folder without lineage has one turn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mlmigrate.adapters.wandb.offline.folders import PARTS
from mlmigrate.adapters.wandb.offline.marks import Whole

_OLD = 86_400  # seconds after which nobody writes a part any more


def turns(runs: Sequence[Whole]) -> list[list[Whole]]:
    """The runs in turns."""
    makers: dict[tuple[str, str], set[int]] = {}
    for n, one in enumerate(runs):
        for made in one.mark.logged:
            makers.setdefault((made[0], made[1]), set()).add(n)
    needs = [{m for used in one.mark.used for m in makers.get((used[0], used[1]), ())} for one in runs]
    left, found = set(range(len(runs))), []
    while left:
        ready = sorted(n for n in left if not (needs[n] - {n}) & left) or sorted(left)  # a ring goes at once
        found.append([runs[n] for n in ready])
        left -= set(ready)
    return found


def write(root: Path, runs: Sequence[Whole]) -> None:
    """Writes the lists: sync-1.txt, sync-2.txt .., the absolute path of a folder a line."""
    if not root.is_dir():
        return
    found = turns(sorted(runs, key=lambda one: one.folder.name))
    width = len(str(len(found)))
    names = [f"sync-{n:0{width}}.txt" for n in range(1, len(found) + 1)]
    parts = root / PARTS
    parts.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts) as own:  # another command may write lists here at the same moment
        for name, turn in zip(names, found, strict=True):
            part = Path(own, name)
            part.write_text("".join(f"{one.folder.absolute()}\n" for one in turn), encoding="utf-8")
            os.replace(part, root / name)  # noqa: PTH105  whole, or not at all
    for file in root.glob("sync-*.txt"):
        if file.name not in names:
            file.unlink(missing_ok=True)


def sweep(parts: Path) -> None:
    """Takes away what a crash left, once it is so old that nobody writes it any more."""
    if not parts.is_dir():
        return
    for one in parts.iterdir():
        with suppress(FileNotFoundError):  # another command has just ended with it
            if one.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)
