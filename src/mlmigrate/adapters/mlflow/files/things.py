"""Reads the folder of a thing: its meta file, its folders of values, and nothing else; the rest is told.

<thing>/meta.yaml        known fields become columns, others are losses
        tags/<key>       one file a value, its whole text
        ...              what MLflow keeps nothing of is a loss
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH114, PTH118

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.meta import Meta
from mlmigrate.adapters.mlflow.files.runs import escaped
from mlmigrate.errors import BadData
from mlmigrate.model import OURS, Loss

MOST = 64 << 20  # bytes of one value
HERE = "default"  # the one workspace that a file store has


@dataclass(frozen=True, slots=True)
class Told:
    """Where what is read of some things is told. `notes` are odd, and no losses."""

    experiment: str
    losses: list[Loss]
    notes: list[Loss]

    def lose(self, what: str, because: str) -> None:
        """Something does not arrive as it was."""
        self.losses.append(Loss("", what, because, self.experiment))

    def note(self, what: str, because: str) -> None:
        """Something is odd."""
        self.notes.append(Loss("", what, because, self.experiment))


class Thing:
    """One folder. `what` names it in a loss."""

    def __init__(self, folder: str, what: str, told: Told) -> None:
        self.folder, self.what = folder, what
        self.said: Meta = {}
        self.told = told

    def lose(self, part: str, because: str) -> None:
        """Something of it does not arrive as it was."""
        self.told.lose(f"{self.what}, {part}", because)

    def note(self, part: str, because: str) -> None:
        """Something of it is odd."""
        self.told.note(f"{self.what}, {part}", because)

    def load(self, name: str, known: Collection[str], needed: Sequence[str]) -> bool:
        """Reads the meta file; False, and told, when one of the `needed` fields is not in it."""
        found = meta.load(os.path.join(self.folder, name))
        self.said = found.meta
        missing = [field for field in needed if not meta.word(self.said.get(field))]
        if missing or (found.flaw and not self.said):
            self.told.lose(self.what, f"its {name} {f'is {found.flaw}' if found.flaw else f'says no {missing[0]}'}")
            return False
        if found.flaw:
            self.lose(name, f"{found.flaw}: what its whole lines say is kept")
        for field in sorted(self.said.keys() - set(known)):
            self.lose(f"{disk.shown(field)} in {name}", "MLflow knows no such field")
        return True

    def text(self, field: str, default: str | None = None) -> str | None:
        """A field as text; the default for none."""
        value = self.said.get(field)
        return default if value is None else self.valid(str(value), field)

    def time(self, field: str, default: int | None = None) -> int | None:
        """A field as ms since the epoch; the default for none."""
        value = self.said.get(field)
        found = meta.time(value)
        if value is not None and found is None:
            self.lose(field, f"{disk.shown(str(value))} is no time")
        return default if found is None else found

    def valid(self, text: str, part: str) -> str:
        """A text that can be encoded: what cannot becomes an escape, and is told."""
        clean = escaped(text)
        if clean != text:
            self.lose(disk.shown(part), "is no UTF-8: the bytes that are none became escapes")
        return clean

    def without_columns(self, *fields: str) -> None:
        """Tells of fields that say something and that MLflow's tables have no column for."""
        for field in fields:
            if self.said.get(field) not in (None, "", HERE):
                self.lose(f"{field} {disk.shown(str(self.said[field]))!r}", "no table of MLflow's has a column for it")

    def files(self, part: str) -> Iterator[tuple[str, bytes]]:
        """The files in a folder of it: (path, bytes)."""
        place = os.path.join(self.folder, part)
        if os.path.islink(place):
            return  # told by `strays`
        tree = disk.walk(place)
        for path, because in tree.odd:
            tell = self.lose if "link" in because or "regular" in because else self.note
            tell(f"{part}/{disk.shown(path)}", because)
        for file in tree.files:
            try:
                yield file.path, disk.read(file.place, MOST)
            except BadData:
                self.lose(f"{part}/{disk.shown(file.path)}", f"larger than {MOST >> 20} MiB")
            except OSError as error:
                self.lose(f"{part}/{disk.shown(file.path)}", disk.why(error))

    def values(self, part: str) -> dict[str, str]:
        """The values in a folder of it, by key; those that mlmigrate wrote are left out."""
        found: dict[str, str] = {}
        for path, data in self.files(part):
            key = self.valid(path, f"name of {part}/{path}")
            if not key.startswith(OURS):
                found[key] = self.valid(disk.text(data), f"{part}/{path}")
        return found

    def strays(self, known: Callable[[str], bool]) -> None:
        """Tells of what lies in the folder beside its parts."""
        for entry in disk.entries(self.folder):
            if entry.is_symlink():
                self.lose(disk.shown(entry.name), disk.odd_kind(entry))
            elif disk.noise(entry.name):
                self.note(disk.shown(entry.name), "left there by another program")
            elif not known(entry.name):
                self.lose(disk.shown(entry.name), "left behind: MLflow keeps nothing of that name there")


def folders(folder: str, told: Told) -> Iterator[os.DirEntry[str]]:
    """The things in a folder of things; what is none is told."""
    for entry in disk.entries(folder):
        if disk.is_folder(entry):
            yield entry
        elif not disk.noise(entry.name):
            because = disk.odd_kind(entry) if entry.is_symlink() else "left behind: belongs to nothing there"
            told.lose(f"{os.path.basename(folder)}/{disk.shown(entry.name)}", because)  # noqa: PTH119


def experiment_key(id: str) -> int | str:
    """An experiment's id as the tables hold it."""
    return int(id) if id.isascii() and id.isdecimal() and str(int(id)) == id else escaped(id)
