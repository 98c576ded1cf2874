"""Chooses figures, makes them, prints them."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import traceback
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.estate_figures import estate, estate_peer
from benchmarks.figures import ALL as FIGURES
from benchmarks.figures import Shop, Sizes, default_file_store, say
from benchmarks.objects import ALL as OBJECTS
from benchmarks.relocate_figures import relocate
from benchmarks.table import Row, markdown, write_json
from benchmarks.wandb_figures import ALL as WANDB

ALL = {**FIGURES, "estate": estate, "estate-peer": estate_peer, **OBJECTS, "relocate": relocate, **WANDB}


def main() -> int:
    arguments = _arguments()
    if arguments.list:
        print("\n".join(f"{name:12} {figure.__doc__}" for name, figure in ALL.items()))
        return 0
    sizes = Sizes.smoke() if arguments.smoke else replace(Sizes(), repeats=arguments.repeats, threads=arguments.threads)
    sizes = _scaled(sizes, arguments.scale)
    rows: list[Row] = []
    broken = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
        store = None if arguments.smoke else arguments.file_store or default_file_store()
        shop = Shop(Path(folder), sizes, store)
        for name in arguments.figure or ALL:
            say(f"{name}: {ALL[name].__doc__}")
            try:
                rows += ALL[name](shop)
            except Exception:  # noqa: BLE001  one figure that cannot be made must not cost the others
                broken.append(name)
                traceback.print_exc()
    machine = _machine(sizes)
    print(markdown(rows))
    print(", ".join(f"{key} {value}" for key, value in machine.items() if key != "sizes"))
    if arguments.json:
        write_json(rows, arguments.json, machine)
    if broken:
        say(f"not made: {', '.join(broken)}")
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures mlmigrate beside its peers.")
    parser.add_argument("figure", nargs="*", type=_figure, help="which figures (all of them)")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--smoke", action="store_true", help="tiny: does every figure still run?")
    parser.add_argument("--scale", type=float, default=1.0, help="so much of each workload (1.0)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often our commands and bare ones run; the best counts"
    )
    parser.add_argument("--threads", type=int, default=8, help="of the bare client of log-batch")
    parser.add_argument("--file-store", type=Path, help="a folder or a tarball of a file store")
    parser.add_argument("--folder", type=Path, help="where stores are made (the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="write all figures into this file too")
    return parser.parse_args()


def _figure(name: str) -> str:
    if name not in ALL:
        raise argparse.ArgumentTypeError(f"there is no figure {name!r}; there are: {', '.join(ALL)}")
    return name


def _scaled(sizes: Sizes, factor: float) -> Sizes:
    if factor == 1:
        return sizes
    parts = {name: getattr(sizes, name) for name in ("team", "points", "rows", "rest", "many", "artifacts")}
    scaled = {name: replace(shape, runs=max(10, int(shape.runs * factor))) for name, shape in parts.items()}
    huge = replace(sizes.huge, steps=max(100, int(sizes.huge.steps * factor)))
    small, large = (load.part(factor) for load in sizes.uploads)
    return replace(sizes, **scaled, huge=huge, estate=sizes.estate.part(1 / factor), uploads=(small, large))


def _machine(sizes: Sizes) -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "Linux": platform.release(),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("mlmigrate", "mlflow", "pyarrow")},
        "sizes": sizes,
    }


if __name__ == "__main__":
    raise SystemExit(main())
