"""The figures of an estate of models and traces: there and back again, and beside a peer on what that carries."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import estate as estates
from benchmarks import stores
from benchmarks.estate import Estate
from benchmarks.figures import Shop, costs, say
from benchmarks.measure import Cost
from benchmarks.table import Row
from benchmarks.tools import database, mlmigrate

# What the peer carries of an estate. It stops at the first trace, and at the first run that read a model, and then
# leaves out the rest of the experiment.
PEERS_PART = {"traces": 0, "reading": False}
TENTH = 10


@dataclass(frozen=True)
class Trip:
    """A database into an archive, the archive into a new database, and both databases compared."""

    export: Cost
    load: Cost
    verify: Cost

    @property
    def copy(self) -> float:
        return self.export.wall + self.load.wall

    @property
    def peak(self) -> float:
        return max(self.export.peak, self.load.peak, self.verify.peak)


def estate(shop: Shop) -> list[Row]:
    """Models, versions and traces from a database into an archive and from there into another, verified."""
    return _round_trip(shop, shop.sizes.estate)


def estate_peer(shop: Shop) -> list[Row]:
    """The part of it that mlflow-export-import carries, beside export-all + import-all of a tenth of that part."""
    return [_beside_the_peer(shop, replace(shop.sizes.estate, **PEERS_PART))]


def _store(shop: Shop, estate: Estate) -> Path:
    """The database of this estate, made once."""
    file = shop.folder / "stores" / re.sub(r"\W+", "_", repr(estate)) / "mlflow.db"
    if not file.exists():
        say(f"making an estate of {estate}")
        estates.make(file.parent, estate, shop.empty)
    stores.warm(file.parent)
    return file


def _round_trip(shop: Shop, estate: Estate) -> list[Row]:
    file, name = _store(shop, estate), str(estate)
    trip = min((_trip(shop, file) for _ in range(shop.sizes.repeats)), key=lambda one: one.copy + one.verify.wall)
    whole, told = trip.copy + trip.verify.wall, costs(export=trip.export, load=trip.load, verify=trip.verify)
    legs = f"{trip.export.wall:.2f} + {trip.load.wall:.2f} + {trip.verify.wall:.2f} s"
    share = trip.verify.wall / trip.copy
    left, right = f"{trip.verify.wall:.2f} s", f"{trip.copy:.2f} s for the copy"
    return [
        Row("estate, export + import + verify", name, legs, "", whole, 60, at_most=True, unit=" s", detail=told),
        Row("estate, verify", name, left, right, share, 1, at_most=True, detail=told),
        Row("estate, memory", name, f"{trip.peak:.0f} MiB", "", trip.peak, 400, at_most=True, unit=" MiB", detail=told),
    ]


def _trip(shop: Shop, file: Path) -> Trip:
    archive, copy = shop.place("archive"), shop.place("arrived") / "mlflow.db"
    beside = ["--artifacts-at", str(file.parent / "mlartifacts")]
    export = mlmigrate("export", database(file), str(archive), "--ledger", str(archive) + ".ledger", *beside)
    copy.parent.mkdir()
    ledger = shop.place("import.ledger")
    load = mlmigrate("import", str(archive), database(copy), "--ledger", str(ledger))
    verify = mlmigrate("verify", database(file), database(copy), *beside)
    _check(file, copy)
    return Trip(export, load, verify)


def _check(source: Path, copy: Path) -> None:
    """As many rows in every table, and as many files: counted by raw SQL, whatever verify says."""
    meant, found = estates.tables(source), estates.tables(copy)
    wrong = {name: (meant.get(name, 0), found.get(name, 0)) for name in meant | found}
    wrong = {name: pair for name, pair in wrong.items() if pair[0] != pair[1]}
    if wrong:
        raise RuntimeError(f"mlmigrate wrote other rows than there were: {wrong}")
    files = [sum(one.is_file() for one in (file.parent / "mlartifacts").rglob("*")) for file in (source, copy)]
    if files[0] != files[1]:
        raise RuntimeError(f"mlmigrate wrote {files[1]} of {files[0]} files")


def _beside_the_peer(shop: Shop, whole: Estate) -> Row:
    """Time for each object that arrived: ours at full size, theirs on a tenth of it."""
    ours = min((_trip(shop, _store(shop, whole)) for _ in range(shop.sizes.repeats)), key=lambda one: one.copy)
    part = whole.part(TENTH)
    export, load, arrived = _peer(shop, part)
    our_time, their_time = ours.copy / whole.objects, (export.wall + load.wall) / arrived
    return Row(
        "estate, beside export-all + import-all",
        f"{whole}; the peer: {part}",
        f"{ours.copy:.2f} s, {1000 * our_time:.3g} ms an object",
        f"{export.wall:.2f} + {load.wall:.2f} s, {1000 * their_time:.3g} ms for each of {arrived} that arrived "
        f"of {part.objects}",
        their_time / our_time,
        100,
        detail=costs(export=ours.export, load=ours.load, their_export=export, their_load=load),
    )


def _peer(shop: Shop, part: Estate) -> tuple[Cost, Cost, int]:
    """What the peer takes from one default server to another, and how many objects are there then."""
    folder = shop.place("peer")
    with shop.serving(_store(shop, part)) as server:
        export = shop.peers.export_all(server.url, folder, part.runs)
    there = shop.place("served") / "mlflow.db"
    there.parent.mkdir()
    there.write_bytes(shop.empty.read_bytes())
    with shop.serving(there) as server:
        load = shop.peers.import_all(server.url, folder)
    found = estates.tables(there)
    kinds = ("runs", "logged_models", "registered_models", "model_versions")
    meant = estates.tables(_store(shop, part))
    say("import-all wrote " + ", ".join(f"{found.get(kind, 0)} of {meant[kind]} {kind}" for kind in kinds))
    return export, load, sum(found.get(kind, 0) for kind in kinds)
