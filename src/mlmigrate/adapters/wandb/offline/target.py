"""A folder of offline runs as a target: what `wandb sync` can bring to a server.

    DIR/offline-run-<time>-<id>/    a run each; there, whole and proven, or not there
    DIR/artifacts/                  bytes of artifacts
    DIR/sync-1.txt, sync-2.txt ..   the run folders in the order that they must be synced in: who reads after who made

A run that `wandb sync` has brought to a server, or begun to, is never written again under its id: its history would be
there twice.  When it has changed since, it becomes another run ("-2"), and that is told.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlmigrate.adapters.base import Context, Names, Packing, SameNames
from mlmigrate.adapters.wandb.limits import LIMITS
from mlmigrate.adapters.wandb.offline import marks, order
from mlmigrate.adapters.wandb.offline.delivery import Writer
from mlmigrate.adapters.wandb.offline.folders import PARTS
from mlmigrate.adapters.wandb.options import options
from mlmigrate.adapters.wandb.provenance import KEY, of_config
from mlmigrate.adapters.wandb.shape import Collection, Sheet, Version
from mlmigrate.adapters.wandb.writing import Homes, WandbPlace, experiment_sheets, regenerated
from mlmigrate.address import Address
from mlmigrate.errors import Conflict, MigrateError, UsageError
from mlmigrate.model import Arrival, Experiment, Loss, Record, RunRef


def open_target(address: Address, context: Context) -> OfflineTarget:
    """The folder, made by the first run. Raises UsageError for what is no folder."""
    place = Path(address.place).expanduser()
    if place.suffix == ".wandb" or place.is_file():
        raise UsageError(f"wandb:{address.place} is a file; runs are written into a folder.", "Name a folder.")
    return OfflineTarget(place, context)


class OfflineTarget:
    """Runs of ours in a folder. Used by many threads at once."""

    limits = LIMITS
    packing = Packing(runs=200, points=2_000_000, size=1 << 30)

    def __init__(self, root: Path, context: Context) -> None:
        self._root, self._options = root, options(context.settings)
        self._homes = Homes(context.env.get("WANDB_ENTITY", ""))
        self._lock = threading.Lock()
        self._seen: dict[str, marks.Whole] | None = None
        self.unsaid: dict[str, list[Loss]] = {}  # origin -> losses that no pack has told yet
        self._writer = Writer(root.absolute(), self._maker)

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs whose folders are whole."""
        with self._lock:
            self._seen = None
            there = self._there()
        return {
            origin: Arrival(one.mark.id, one.mark.stamp)
            for origin, one in there.items()
            if one.mark.kind != "experiment"
        }

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """A run for each experiment, beside its project."""
        order.sweep(self._root / PARTS)
        delivery = Delivering(self)
        delivery.deliver(experiment_sheets(experiments, self._homes))
        return delivery.losses

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[WandbPlace]:  # noqa: ARG002
        """A pack on its way; its bytes wait on the same disk. One that fails tells nothing: what runs lost that are
        whole all the same is told by the next try.
        """
        parts = self._root / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parts) as folder:
            delivering = Delivering(self)
            try:
                yield WandbPlace(delivering, Path(folder), refs, self._homes, self._options)
            except Exception:
                self.unsaid |= delivering.told
                raise

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:  # noqa: ARG002
        """Writes who read what, now that who made it is here, and the order to sync in."""
        with self._lock:
            runs = list(self._there().values())
        losses = [loss for one in runs if one.mark.unmet for loss in self._meet(one)]
        with self._lock:
            order.write(self._root, list(self._there().values()))
        return losses

    def _meet(self, reader: marks.Whole) -> Iterator[Loss]:
        """Completes the log of a run that was written before the runs whose artifacts it read."""
        met = [one for one in reader.mark.unmet if self._maker(Version(one.name, one.type, digest=one.digest))]
        if reader.synced:
            met = []
        for one in reader.mark.unmet:
            if one not in met:
                because = "the run that made it is not in this folder, so W&B will not show that it was read"
                yield Loss(reader.mark.id, f"used artifact {one.name!r}", because)
        if met:
            uses = [Version(one.name, one.type, project=one.project, digest=one.digest) for one in met]
            mark = self._writer.amend(reader, uses)
            with self._lock:
                self._there()[mark.origin] = marks.Whole(mark, reader.folder)

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        """Names are made so that none meets another."""
        return ()

    def names(self, ids: Mapping[str, str]) -> Names:  # noqa: ARG002
        """Everything is called as it was."""
        return SameNames()

    def close(self) -> None:
        """Holds nothing open."""

    def one(self, sheet: Sheet, losses: list[Loss]) -> str:
        """Writes a run unless it is there; gives its id."""
        with self._lock:
            old = self._there().get(sheet.origin)
        if old is not None and old.mark.stamp == sheet.stamp:
            return old.mark.id
        wanted = self._generation(sheet, old, losses)
        told = of_config(wanted.run.config[KEY])
        mark = marks.Mark(
            sheet.origin,
            sheet.stamp,
            wanted.run.id,
            told.kind if told is not None else "run",
            told.generation if told is not None else 1,
            logged=[(one.name, one.digest) for one in wanted.run.logged],
            used=[(one.name, one.digest) for one in wanted.run.used],
        )
        part = self._writer.write(wanted, mark, losses)
        self._settle(part, mark, old)
        return mark.id

    def _generation(self, sheet: Sheet, old: marks.Whole | None, losses: list[Loss]) -> Sheet:
        """The sheet, under another id where the run's own is on a server with what it was before."""
        if old is None or not old.synced:
            return sheet if old is None or old.mark.generation == 1 else regenerated(sheet, old.mark.generation)
        again = regenerated(sheet, old.mark.generation + 1)
        because = f"it has changed since {old.mark.id} was synced, and what is synced stays: it is {again.run.id} now"
        losses.append(Loss(sheet.run.id, "the run", because))
        return again

    def _settle(self, part: Path, mark: marks.Mark, old: marks.Whole | None) -> None:
        """Gives the folder its name; who else wrote the same run meanwhile, wins."""
        with self._lock:
            final = self._root / part.name
            there = marks.marked(final)
            if there is not None and there.mark.origin == mark.origin and there.mark.stamp == mark.stamp:
                self._writer.drop(part)
            else:
                if final.exists() and (there is None or there.mark.origin != mark.origin):
                    self._writer.drop(part)
                    raise Conflict(f"{final} is there already, and is no run of this copy.", "Copy into a new folder.")
                replaced = old.folder if old is not None and old.folder.exists() else final if final.exists() else None
                self._writer.become(part, replaced)
            if self._seen is not None and (whole := marks.marked(final)) is not None:
                self._seen[mark.origin] = whole

    def _there(self) -> dict[str, marks.Whole]:
        """The runs in the folder by origin; of several generations the last."""
        if self._seen is None:
            whole = sorted(marks.all_marked(self._root), key=lambda one: one.mark.generation)
            self._seen = {one.mark.origin: one for one in whole}
        return self._seen

    def _maker(self, version: Version) -> Path | None:
        """The log of the run here that made this version."""
        with self._lock:
            made = (one for one in self._there().values() if (version.name, version.digest) in one.mark.logged)
            found = next(made, None)
        return found.log if found is not None else None


class Delivering:
    """shape.Delivery for one pack, and what it lost."""

    needs_levels = True  # W&B's own sync takes one after another

    def __init__(self, target: OfflineTarget) -> None:
        self._target = target
        self.told: dict[str, list[Loss]] = {}  # origin of what is whole -> its losses

    @property
    def losses(self) -> list[Loss]:
        """Those of all runs."""
        return [loss for losses in self.told.values() for loss in losses]

    def deliver(self, sheets: Sequence[Sheet]) -> Mapping[str, str]:
        """One run after another; the first error after all of them."""
        ids: dict[str, str] = {}
        first: MigrateError | None = None
        for sheet in sheets:
            losses = self._target.unsaid.pop(sheet.origin, [])
            try:
                ids[sheet.origin] = self._target.one(sheet, losses)
            except MigrateError as error:
                first = first or error
            else:
                self.told[sheet.origin] = losses
        if first is not None:
            raise first
        return ids

    def link(self, collections: Sequence[Collection]) -> Sequence[Loss]:  # noqa: ARG002  only a server has such
        """Nothing: a log has no word for it. The models are whole as records, and a copy to the server links them."""
        return ()
