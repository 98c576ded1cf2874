"""The figures. Each is a function of a workshop (sizes, a folder, the peers) that gives rows of the table."""

from __future__ import annotations

import re
import shutil
import statistics
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import stores
from benchmarks.estate import Estate
from benchmarks.loads import LARGE, SMALL, Load
from benchmarks.measure import Cost, best, run
from benchmarks.servers import Server, mlflow_server, postgres
from benchmarks.stores import Shape
from benchmarks.table import Row
from benchmarks.tools import REPOSITORY, Peers, database, emptied, mlmigrate

BARE_INSERTS = ("insert_sqlite", "insert_adbc")
TEAM = Shape()
MILLION = Shape(runs=100, steps=1000, files=0)
TWO_MILLION = Shape(runs=100, steps=2000, files=0)
HUGE = Shape(runs=1, keys=10, steps=1_000_000, files=0, experiments=1)
MANY = Shape(runs=10_000, steps=20, files=1, size=16 * 1024)
ARTIFACTS = Shape(runs=4000, keys=1, steps=1, params=1, tags=1, files=5, size=4096)
ESTATE = Estate()


@dataclass(frozen=True)
class Sizes:
    """How large each workload is, and how often what is quick is repeated (the best counts)."""

    team: Shape = TEAM
    points: Shape = MILLION
    rows: Shape = TWO_MILLION
    rest: Shape = MILLION
    huge: Shape = HUGE
    many: Shape = MANY
    estate: Estate = ESTATE
    uploads: tuple[Load, Load] = (SMALL, LARGE)
    artifacts: Shape = ARTIFACTS
    repeats: int = 3
    threads: int = 8

    @classmethod
    def smoke(cls) -> Sizes:
        small = Shape(runs=6, keys=3, steps=20, files=1, size=1024)
        plain = replace(small, files=0)
        huge, many = Shape(runs=1, keys=2, steps=5_000, files=0), Shape(runs=50, keys=2, steps=2, files=0)
        uploads = (SMALL.part(0.01), LARGE.part(0.01))
        return cls(small, plain, plain, plain, huge, many, ESTATE.part(100), uploads, small, 1, 2)


@dataclass(frozen=True)
class Shop:
    """Where figures are made. Stores are made once and shared by the figures of one start."""

    folder: Path
    sizes: Sizes
    file_store: Path | None

    @cached_property
    def peers(self) -> Peers:
        return Peers.found()

    @cached_property
    def empty(self) -> Path:
        """An empty database of the current schema, to be copied."""
        file = self.folder / "empty" / "mlflow.db"
        file.parent.mkdir()
        stores.schema(f"sqlite:///{file}", self.folder / "unused")
        return file

    def store(self, shape: Shape) -> Path:
        """The database of this shape."""
        name = re.sub(r"\W+", "_", str(shape))
        file = self.folder / "stores" / name / "mlflow.db"
        if not file.exists():
            say(f"making a store of {shape}")
            stores.sqlite(file.parent, shape, self.empty)
        stores.warm(file.parent)
        return file

    def place(self, name: str) -> Path:
        """A place where nothing is yet."""
        place = self.folder / name
        emptied(place, place.with_name(name + ".ledger"))
        return place

    def repeated(self, measure: Callable[[], Cost]) -> Cost:
        return best([measure() for _ in range(self.sizes.repeats)])

    @contextmanager
    def serving(self, file: Path, workers: int = 0) -> Iterator[Server]:
        log = self.folder / "server.log"
        with mlflow_server(self.peers.mlflow, f"sqlite:///{file}", file.parent / "mlartifacts", log, workers) as server:
            yield server


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def export(shop: Shop, source: str, *more: str) -> Cost:
    """A whole export into an archive that is not there yet."""
    shop.place("archive")
    return export_again(shop, source, *more)


def export_again(shop: Shop, source: str, *more: str) -> Cost:
    """The same command again."""
    archive = shop.folder / "archive"
    return mlmigrate("export", source, str(archive), "--ledger", str(archive) + ".ledger", *more)


def export_database(shop: Shop, file: Path, how: Callable[..., Cost] = export) -> Cost:
    beside = file.parent / "mlartifacts"
    return how(shop, database(file), *(["--artifacts-at", str(beside)] if beside.is_dir() else []))


def in_seconds(cost: Cost, points: int) -> str:
    return f"{cost.wall:.2f} s, {points / cost.wall:,.0f} points/s"


def costs(**named: Cost) -> dict[str, object]:
    return {
        name: {"wall": round(one.wall, 3), "cpu": round(one.cpu, 3), "peak_mib": round(one.peak)}
        for name, one in named.items()
    }


def ratio(figure: str, shape: Shape, ours: Cost, theirs: Cost, goal: float) -> Row:
    """How much quicker we are, on the same store."""
    left, right = in_seconds(ours, shape.points), in_seconds(theirs, shape.points)
    return Row(figure, str(shape), left, right, theirs.wall / ours.wall, goal, detail=costs(ours=ours, theirs=theirs))


def times(figure: str, workload: str, ours: Cost, bare: Cost, most: float) -> Row:
    """How many times the bare work we take."""
    left, right = f"{ours.wall:.2f} s", f"{bare.wall:.2f} s"
    return Row(
        figure, workload, left, right, ours.wall / bare.wall, most, at_most=True, detail=costs(ours=ours, bare=bare)
    )


def start(shop: Shop) -> list[Row]:
    """mlmigrate --help."""
    taken = [run([sys.executable, "-m", "mlmigrate", "--help"]).wall for _ in range(3 * shop.sizes.repeats)]
    middle = statistics.median(taken)
    return [Row("--help", "median of " + str(len(taken)), f"{middle:.3f} s", "", middle, 0.25, at_most=True, unit=" s")]


def read_db(shop: Shop) -> list[Row]:
    """A store read directly, beside mlflow-export-import reading it through a default `mlflow server`."""
    return [_read(shop, "read-db, with artifacts", shop.sizes.team, 40)]


def read_points(shop: Shop) -> list[Row]:
    """The same with many points and no artifacts."""
    return [_read(shop, "read-points", shop.sizes.points, 100)]


def _read(shop: Shop, figure: str, shape: Shape, goal: float) -> Row:
    file = shop.store(shape)
    ours = shop.repeated(lambda: export_database(shop, file))
    with shop.serving(_copied(shop, file)) as server:
        theirs = shop.peers.export_all(server.url, shop.place("peer"), shape.runs)
    return ratio(figure, shape, ours, theirs, goal)


def _copied(shop: Shop, file: Path) -> Path:
    """A copy to serve: a server may write into its store."""
    place = shop.place("served")
    shutil.copytree(file.parent, place)
    return place / file.name


def scan(shop: Shop) -> list[Row]:
    """A store read directly, beside a bare scan of its points from ADBC into Parquet."""
    shape = shop.sizes.rows
    file = shop.store(shape)
    ours = shop.repeated(lambda: export_database(shop, file))
    bare = shop.repeated(lambda: bare_command("scan", str(file), str(shop.place("scan.parquet"))))
    return [times("scan", f"{shape.points:,} points", ours, bare, 2)]


def bare_command(name: str, *arguments: str) -> Cost:
    return run([sys.executable, "-m", "benchmarks.bare", name, *arguments])


def write_db(shop: Shop) -> list[Row]:
    """An archive written into a database, beside mlflow-export-import importing through a default `mlflow server`."""
    shape = shop.sizes.team
    archive, peer = _archive(shop, shape), shop.place("peer")
    with shop.serving(_copied(shop, shop.store(shape))) as server:
        shop.peers.export_all(server.url, peer, shape.runs)
    empty = _empty(shop, "import")
    with shop.serving(empty) as server:
        theirs = shop.peers.import_all(server.url, peer)
    wrote = stores.counts(empty)
    if (wrote["runs"], wrote["metrics"]) != (shape.runs, shape.points):
        say(f"import-all wrote {wrote['runs']} runs and {wrote['metrics']} points of {shape.runs} and {shape.points}")
    ours = shop.repeated(lambda: _imported(shop, archive, shape))
    rows = [ratio("write-db, SQLite", shape, ours, theirs, 25)]
    with postgres(shop.place("postgres")) as uri:
        ours = best([_imported_postgres(shop, archive, uri) for _ in range(shop.sizes.repeats)])
    return [*rows, ratio("write-db, PostgreSQL", shape, ours, theirs, 25)]


def _archive(shop: Shop, shape: Shape) -> Path:
    export_database(shop, shop.store(shape))
    kept = shop.place("kept")
    (shop.folder / "archive").rename(kept)
    return kept


def _empty(shop: Shop, name: str) -> Path:
    """A database with nothing in it but its schema."""
    place = shop.place(name)
    place.mkdir()
    return Path(shutil.copy(shop.empty, place / "mlflow.db"))


def _imported(shop: Shop, archive: Path, shape: Shape) -> Cost:
    file = _empty(shop, "imported")
    cost = _import(shop, archive, f"sqlite:///{file}")
    wrote = stores.counts(file)
    if (wrote["runs"], wrote["metrics"]) != (shape.runs, shape.points):
        raise RuntimeError(f"mlmigrate wrote {wrote} of {shape}")
    return cost


def _import(shop: Shop, archive: Path, uri: str) -> Cost:
    ledger, artifacts = shop.place("import.ledger"), shop.place("arrived")
    return mlmigrate("import", str(archive), f"mlflow:{uri}", "--ledger", str(ledger), "--artifacts-to", str(artifacts))


def _imported_postgres(shop: Shop, archive: Path, server: str) -> Cost:
    with _postgres_database(server) as uri:
        return _import(shop, archive, uri)


@contextmanager
def _postgres_database(server: str) -> Iterator[str]:
    """A new database with the current schema, dropped afterwards."""
    import psycopg2  # noqa: PLC0415  only some figures need it

    link = psycopg2.connect(server)
    link.autocommit = True
    link.cursor().execute("create database bench")
    uri = urlsplit(server)._replace(path="/bench").geturl()
    try:
        stores.schema(uri.replace("postgresql:", "postgresql+psycopg2:", 1), Path("/nowhere"))
        yield uri
    finally:
        link.cursor().execute("drop database bench with (force)")
        link.close()


def insert(shop: Shop) -> list[Row]:
    """An archive written into a database, beside a bare bulk insert of the same rows into the same indexed tables."""
    shape = shop.sizes.rows
    archive = _archive(shop, shape)
    columns = stores.columns_of(shop.store(shape), shop.place("columns"))
    stores.warm(columns, archive)
    ours = shop.repeated(lambda: _imported(shop, archive, shape))
    bare = {name: shop.repeated(lambda name=name: _bare_sqlite(shop, name, columns)) for name in BARE_INSERTS}
    quickest = min(bare, key=lambda name: bare[name].wall)
    rows = [times(f"insert, SQLite ({quickest})", f"{shape.points:,} points", ours, bare[quickest], 1.5)]
    with postgres(shop.place("postgres")) as server:
        ours = best([_imported_postgres(shop, archive, server) for _ in range(shop.sizes.repeats)])
        copied = best([_bare_postgres(server, columns) for _ in range(shop.sizes.repeats)])
    return [*rows, times("insert, PostgreSQL (COPY)", f"{shape.points:,} points", ours, copied, 1.5)]


def _bare_sqlite(shop: Shop, name: str, columns: Path) -> Cost:
    file = _empty(shop, "bare")
    return bare_command(name, str(columns), str(file))


def _bare_postgres(server: str, columns: Path) -> Cost:
    with _postgres_database(server) as uri:
        return bare_command("insert_adbc", str(columns), uri)


def rest_read(shop: Shop) -> list[Row]:
    """A server read, with its default workers and with one: many short histories, and artifacts."""
    return [row for workers, goal in ((0, 10), (1, 5)) for row in _rest_read(shop, "rest-read", workers, goal)]


def rest_points(shop: Shop) -> list[Row]:
    """The same with long histories and no artifacts: the server's own work is nearly all there is."""
    return [row for workers, goal in ((0, 10), (1, 5)) for row in _rest_read(shop, "rest-points", workers, goal)]


def _rest_read(shop: Shop, name: str, workers: int, goal: float) -> list[Row]:
    shape = shop.sizes.team if name == "rest-read" else shop.sizes.rest
    figure = f"{name}, {'1 worker' if workers else '4 workers'}"
    with shop.serving(_copied(shop, shop.store(shape)), workers) as server:
        before = server.cpu()
        ours = export(shop, f"mlflow:{server.url}")
        used = server.cpu() - before
        theirs = shop.peers.export_all(server.url, shop.place("peer"), shape.runs)
    return [ratio(figure, shape, ours, theirs, goal), _share(figure, shape, ours, used)]


def _share(figure: str, shape: Shape, ours: Cost, used: float) -> Row:
    """Our processor time beside the server's, for the same work."""
    share = 100 * ours.cpu / used
    left, right = f"{ours.cpu:.2f} s of CPU", f"{used:.2f} s of the server's"
    return Row(
        f"{figure}, CPU",
        str(shape),
        left,
        right,
        share,
        20,
        at_most=True,
        unit=" %",
        detail={"peak_mib": round(ours.peak)},
    )


def rest_write(shop: Shop) -> list[Row]:
    """A server written, beside bare log-batch calls of 1,000 sorted points on the same server."""
    shape = shop.sizes.rest
    archive, columns = _archive(shop, shape), stores.columns_of(shop.store(shape), shop.place("columns"))
    rows = []
    for workers, which in ((0, "4 workers"), (1, "1 worker")):
        with shop.serving(_empty(shop, "bare"), workers) as server:
            bare = bare_command("log_batch", str(columns), server.url, str(shop.sizes.threads))
        file = _empty(shop, "imported")
        with shop.serving(file, workers) as server:
            before = server.cpu()
            ours = mlmigrate(
                "import", str(archive), f"mlflow:{server.url}", "--ledger", str(shop.place("import.ledger"))
            )
            used = server.cpu() - before
        wrote = stores.counts(file)
        if (wrote["runs"], wrote["metrics"]) != (shape.runs, shape.points):
            raise RuntimeError(f"mlmigrate wrote {wrote} of {shape}")
        rows += [
            ratio(f"rest-write, {which}", shape, ours, bare, 0.9),
            _share(f"rest-write, {which}", shape, ours, used),
        ]
    return rows


def files(shop: Shop) -> list[Row]:
    """A file store read, beside `mlflow migrate-filestore` and beside a walk that reads every byte."""
    store, name = _file_store(shop)
    stores.warm(store)
    ours = shop.repeated(lambda: export(shop, f"mlflow:{store}"))
    bare = shop.repeated(lambda: bare_command("walk", str(store)))
    theirs = shop.peers.migrate_filestore(store, shop.place("migrated.db"))
    end = f"{theirs.wall:.2f} s, ended with {theirs.code}"
    row = Row(
        "files", name, f"{ours.wall:.2f} s", end, theirs.wall / ours.wall, 10, detail=costs(ours=ours, theirs=theirs)
    )
    return [row, times("files, a walk", name, ours, bare, 2)]


def _file_store(shop: Shop) -> tuple[Path, str]:
    """The store that was named (a folder or a tarball), or one made here."""
    given = shop.file_store
    if given is None:
        place = shop.place("files")
        return stores.files(place, shop.sizes.team), str(shop.sizes.team)
    if given.is_dir():
        return given, given.name
    place = shop.place("files")
    with tarfile.open(given) as tar:
        tar.extractall(place, filter="data")
    return next(meta.parent.parent for meta in sorted(place.rglob("meta.yaml"))), given.name.partition(".")[0]


def memory(shop: Shop) -> list[Row]:
    """One huge run and many small ones: peak memory, and ten times the work in hardly more than ten times the time."""
    return [*_growth(shop, shop.sizes.huge, "steps"), *_growth(shop, shop.sizes.many, "runs")]


def _growth(shop: Shop, shape: Shape, part: str) -> list[Row]:
    name = f"{shape.points:,} points in one run" if part == "steps" else f"{shape.runs:,} runs"
    tenth = shop.store(replace(shape, **{part: getattr(shape, part) // 10}))
    small, file = shop.repeated(lambda: export_database(shop, tenth)), shop.store(shape)
    large = shop.repeated(lambda: export_database(shop, file))
    again = shop.repeated(lambda: export_database(shop, file, export_again))
    peak = Row("memory, export", name, f"{large.peak:.0f} MiB", "", large.peak, 400, at_most=True, unit=" MiB")
    rows = [peak, times("ten times the work", name, large, small, 10.5)]
    if part == "runs":
        idle = best([_nothing(shop) for _ in range(1 + shop.sizes.repeats)])
        rows += [_again(name, large, again, 0), _again(name, large, again, idle.wall)]
    inserted = _imported(shop, shop.folder / "archive", shape)
    return [
        *rows,
        Row("memory, import", name, f"{inserted.peak:.0f} MiB", "", inserted.peak, 400, at_most=True, unit=" MiB"),
    ]


def _nothing(shop: Shop) -> Cost:
    """An export of a database with nothing in it: the start of Python, the imports, the opening of both places."""
    archive, ledger = shop.folder / "nothing", shop.folder / "nothing.ledger"
    return mlmigrate("export", database(shop.empty), str(archive), "--ledger", str(ledger))


def _again(name: str, first: Cost, second: Cost, start_up: float) -> Row:
    """What is left of a command when nothing is new; `start_up` is what any command takes before its first look."""
    figure = "second export" + (", but for start-up" if start_up else "")
    left, right = second.wall - start_up, first.wall - start_up
    share = 100 * max(left, 0) / right
    return Row(figure, name, f"{left:.2f} s", f"{right:.2f} s for the first", share, 2, at_most=True, unit=" %")


ALL: dict[str, Callable[[Shop], list[Row]]] = {
    "start": start,
    "read-db": read_db,
    "read-points": read_points,
    "scan": scan,
    "write-db": write_db,
    "insert": insert,
    "rest-read": rest_read,
    "rest-points": rest_points,
    "rest-write": rest_write,
    "files": files,
    "memory": memory,
}


def default_file_store() -> Path | None:
    """A real store beside the repository, where there is one."""
    found = sorted((REPOSITORY.parent / "shared" / "data").glob("fs-keimoriyama*.tar*"))
    return found[0] if found else None
