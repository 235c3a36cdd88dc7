"""Download, install and first mask, without torch and with: `python -m benchmarks.install`.

Each path is vkrt's wheel with some extras, in a new virtual environment of its own:

- download: bytes of the wheels that pip fetches, vkrt's own among them. No seconds, which would be
  those of the network;
- install: seconds that pip takes to install those files, without network and cache;
- disk: bytes by which that makes the environment grow, bytecode included;
- first mask: seconds from the start of a new `vkrt segment` to its mask's file. Every round runs
  each path once; all files are in the page cache.

torch is the build that the package index in use gives for constraints.txt; the row has its version.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, commit, today
from benchmarks.photo import clicks_on, set_photo
from benchmarks.results import append_rows, check_columns
from vkrt.cli.doctor import cpu_model
from vkrt.export.int8.gate import mask_iou
from vkrt.options import usable_cores

__all__ = ["INSTALLS", "PATHS", "InstallRow", "Place", "check_agreement", "make_row", "size_of"]

INSTALLS = ROOT / "benchmarks" / "install.csv"
# What makes vkrt run, and the demo's photos.
PATHS = {"torch-free": "cpu,demo", "torch": "torch,demo"}
# The same weights on another runtime differ in a few pixels of a mask's edge.
LEAST_IOU = 0.98
DROPPED = ("PYTHONPATH", "VIRTUAL_ENV", "VKRT_BACKEND", "VKRT_EXPORT")
VERSIONS = """
import json
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
print(json.dumps({name: of(name) for name in ("torch", "onnxruntime", "numpy")}))
"""


@dataclass(frozen=True)
class InstallRow:
    """Hold what one way to install vkrt costs.

    Attributes:
        path: a name of PATHS, and `extras` what it installs.
        backend: what then ran the model.
        files, download_bytes: wheels that pip fetched; `own_bytes` of that are vkrt's own.
        installed_bytes: by which the environment grew.
        install_s: seconds of pip, from files that are there.
        first_mask_p20_s, first_mask_p50_s, first_mask_p80_s: seconds of a new process until its
            mask is written, over `rounds` of them.
        torch, onnxruntime, numpy: versions; empty where not installed.
    """

    date: str
    commit: str
    path: str
    extras: str
    backend: str
    files: int
    download_bytes: int
    own_bytes: int
    installed_bytes: int
    install_s: float
    first_mask_p20_s: float
    first_mask_p50_s: float
    first_mask_p80_s: float
    rounds: int
    photo: str
    cpu: str
    cores: int
    torch: str | None
    onnxruntime: str | None
    numpy: str
    python: str


@dataclass
class Place:
    """Hold one path's environment and what was measured in it."""

    path: str
    folder: Path
    download: list[int] = field(default_factory=list)
    installed_bytes: int = 0
    install_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def python(self) -> Path:
        """Return the environment's interpreter."""
        return self.folder / "venv/bin/python"


def run(*command: str | Path, cwd: Path, **extra: str) -> str:
    """Run a command and return its stdout.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    texts = [str(part) for part in command]
    done = subprocess.run(texts, cwd=cwd, env={**kept, **extra}, capture_output=True, text=True)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise RuntimeError(f"{' '.join(texts)[:120]} gave {done.returncode}: {words}")
    return done.stdout


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links count nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def build_wheel(into: Path) -> Path:
    """Return vkrt's wheel, built by way of the source archive as a release is."""
    run(sys.executable, "-m", "build", "--outdir", into, ROOT, cwd=ROOT)
    (wheel,) = into.glob("*.whl")
    return wheel


def install(place: Place, wheel: Path) -> None:
    """Fetch what a path needs and install it from there, measuring both."""
    files = place.folder / "files"
    run(sys.executable, "-m", "venv", place.folder / "venv", cwd=place.folder)
    wanted = f"vkrt[{PATHS[place.path]}] @ {wheel.as_uri()}"
    pip = (place.python, "-m", "pip", "-q", "--no-cache-dir", "--disable-pip-version-check")
    limits = ("-c", "constraints.txt")
    run(*pip, "download", "-d", files, *limits, wanted, cwd=ROOT)
    place.download = [path.stat().st_size for path in files.iterdir()]
    before = size_of(place.folder / "venv")
    start = time.perf_counter()
    run(*pip, "install", "--no-index", "--find-links", files, *limits, wanted, cwd=ROOT)
    place.install_s = time.perf_counter() - start
    place.installed_bytes = size_of(place.folder / "venv") - before


def first_mask(place: Place, photo: Path, point: str) -> None:
    """Segment the photo in a new process, and note how long its mask took."""
    out = place.folder / "mask.png"
    out.unlink(missing_ok=True)
    command = (place.python.with_name("vkrt"), "segment", photo, "--point", point)
    # The clock of the files' dates.
    start = time.time()
    told = run(
        *(*command, "--out", out, "--json"),
        cwd=place.folder,
        VKRT_CACHE=str(place.folder / "cache"),
    )
    place.seconds.append(out.stat().st_mtime - start)
    place.report = json.loads(told)
    with Image.open(out) as picture:
        place.mask = np.asarray(picture) > 0


def check_agreement(places: Sequence[Place]) -> None:
    """Refuse figures of masks that are empty or not the same.

    Raises:
        RuntimeError: they are.
    """
    first = places[0].mask
    for place in places:
        if first is None or place.mask is None or not place.mask.any():
            raise RuntimeError(f"{place.path} gave an empty mask: nothing is written")
        if mask_iou(place.mask, first) < LEAST_IOU:
            raise RuntimeError(
                f"the masks of {place.path} and {places[0].path} have an IoU of only "
                f"{mask_iou(place.mask, first):.3f}: nothing is written"
            )


def make_row(place: Place, wheel: Path, versions: dict[str, str]) -> InstallRow:
    """Return the row of a path."""
    size = place.report["photo"]
    p20, p50, p80 = (float(v) for v in np.percentile(place.seconds, (20, 50, 80)))
    return InstallRow(
        date=today(),
        commit=commit(),
        path=place.path,
        extras=PATHS[place.path],
        backend=place.report["backend"],
        files=len(place.download),
        download_bytes=sum(place.download),
        own_bytes=wheel.stat().st_size,
        installed_bytes=place.installed_bytes,
        install_s=place.install_s,
        first_mask_p20_s=p20,
        first_mask_p50_s=p50,
        first_mask_p80_s=p80,
        rounds=len(place.seconds),
        photo=f"{size['width']}x{size['height']}",
        cpu=cpu_model(),
        cores=usable_cores(),
        python=platform.python_version(),
        torch=versions["torch"],
        onnxruntime=versions["onnxruntime"],
        numpy=versions["numpy"],
    )


def measure(paths: Sequence[str], rounds: int, photo: Path | None) -> list[InstallRow]:
    """Return a row for each path."""
    log = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="vkrt-install-") as name:
        folder = Path(name)
        log.print("building the wheel")
        wheel = build_wheel(folder / "dist")
        if photo is None:
            photo = folder / "photo.png"
            Image.fromarray(set_photo()).save(photo)
        with Image.open(photo) as picture:
            point = clicks_on(np.empty((picture.height, picture.width)), 1)[0]
        places = [Place(path, folder / path) for path in paths]
        for place in places:
            log.print(f"fetching and installing with {PATHS[place.path]}")
            place.folder.mkdir()
            install(place, wheel)
        for turn in range(rounds):
            log.print(f"first masks, round {turn + 1} of {rounds}")
            for place in places:
                first_mask(place, photo.resolve(), f"{point[0]:.0f},{point[1]:.0f}")
        check_agreement(places)
        return [
            make_row(place, wheel, json.loads(run(place.python, "-c", VERSIONS, cwd=place.folder)))
            for place in places
        ]


def show(rows: Sequence[InstallRow]) -> None:
    """Print the rows as a table."""
    table = Table("path", "extras", "download", "on disk", "install", "first mask", "backend")
    for row in rows:
        megabytes = (f"{size / 1e6:.0f} MB" for size in (row.download_bytes, row.installed_bytes))
        seconds = f"{row.install_s:.1f} s", f"{row.first_mask_p50_s:.2f} s"
        table.add_row(row.path, row.extras, *megabytes, *seconds, row.backend)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main(
    paths: Annotated[str, typer.Option(help="Which to measure, with commas.")] = ",".join(PATHS),
    rounds: Annotated[int, typer.Option(min=1, help="New processes of each path.")] = 9,
    photo: Annotated[Path | None, typer.Option(help="Photo; None: one that is drawn.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write install.csv.")] = False,
) -> None:
    """Measure what vkrt costs to install, and how soon it gives a first mask."""
    wanted = [path.strip() for path in paths.split(",")]
    try:
        unknown = ", ".join(path for path in wanted if path not in PATHS)
        if unknown:
            raise ValueError(f"unknown paths {unknown}: choose of {', '.join(PATHS)}")
        if not dry:
            check_columns(INSTALLS, InstallRow)
        rows = measure(wanted, rounds, photo)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"benchmarks.install: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    show(rows)
    if not dry:
        append_rows(INSTALLS, rows)


if __name__ == "__main__":
    typer.run(main)
