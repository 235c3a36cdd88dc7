"""Build the source archive and the wheel, install the wheel in a clean environment, use all of it.

`python .ci/check_wheel.py` needs `build`. First only the base install: no torch, and the command
line works. Then the cpu extra alone: the packaged model segments a picture, still without torch.
Then every extra: every module of the source tree is in the wheel and can be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where each package lies in the tree, as setup.py maps it.
PLACES = {"vkrt": ROOT / "vkrt", "vkrt.kernels": ROOT / "kernels", "vkrt.export": ROOT / "export"}
EXTRAS = "torch,hub,demo,bench"
# Of the environment, what would let the checks see this checkout or another backend.
DROPPED = ("PYTHONPATH", "VIRTUAL_ENV", "VKRT_BACKEND", "VKRT_EXPORT")

BASE_CHECK = """
import sys, vkrt
from vkrt.media import native
assert native.available(), f"the wheel has no C++: {native.why_missing()}"
assert "torch" not in sys.modules
print("import vkrt:", vkrt.__file__)
"""
CPU_CHECK = """
import importlib.util, numpy as np, vkrt
assert importlib.util.find_spec("torch") is None, "the cpu extra brings torch"
photo = np.full((120, 160, 3), 60, np.uint8)
drawn = np.hypot(*np.ogrid[-60:60, -90:70]) < 35
photo[drawn] = (230, 180, 60)
sam = vkrt.load("sam2.1-nano")
out = sam.encode(photo).predict(points=[[90, 60]])
mask = out.masks[out.best]
iou = (mask & drawn).sum() / (mask | drawn).sum()
assert sam.backend == "onnx" and iou > 0.8, (sam.backend, iou)
print(f"segmented without torch: IoU {iou:.2f}")
"""
IMPORT_CHECK = """
import importlib, pkgutil, sys, vkrt
wanted = set(sys.argv[1].split(","))
def refuse(name): raise ImportError(name)
found = {"vkrt"} | {m.name for m in pkgutil.walk_packages(vkrt.__path__, "vkrt.", onerror=refuse)}
absent = sorted(wanted - found)
assert not absent, f"not in the wheel: {absent}"
for name in sorted(found):
    importlib.import_module(name)
print(f"imported {len(found)} modules")
"""


def say(text: str) -> None:
    """Print what happens next, at once."""
    print(f"-- {text}", flush=True)


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a command and return its stdout; leave if it exits with another code than `code`."""
    kept = {k: v for k, v in os.environ.items() if k not in DROPPED}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True)
    if done.returncode != code:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        sys.exit(f"FAILED ({done.returncode}, wanted {code}): {' '.join(map(str, command))[:200]}")
    return done.stdout


def source_modules() -> set[str]:
    """Return the dotted name of every module in the source tree."""
    names = set()
    for package, folder in PLACES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            names.add(".".join((package, *(p for p in parts if p != "__init__"))))
    return names


def check_contents(wheel: Path) -> None:
    """Refuse a wheel that lacks the package's data or carries what does not belong in it."""
    names = zipfile.ZipFile(wheel).namelist()
    weights = [p for p in (ROOT / "vkrt/demo/weights").rglob("*") if p.is_file()]
    data = [path.relative_to(ROOT).as_posix() for path in weights]
    absent = [name for name in data if name not in names]
    strays = [n for n in names if not n.startswith(("vkrt/", "vkrt-"))]
    if absent or strays or "vkrt/py.typed" not in names:
        sys.exit(
            f"FAILED: the wheel lacks {absent or 'nothing'} and has also {strays or 'nothing'}"
        )


def check_base(python: Path, elsewhere: Path) -> None:
    """Use the base install, which has no torch."""
    print(run(python, "-c", BASE_CHECK, cwd=elsewhere), end="")
    vkrt = python.with_name("vkrt")
    run(vkrt, "--help", cwd=elsewhere)
    listed = json.loads(run(vkrt, "models", "--json", cwd=elsewhere))
    report = json.loads(run(vkrt, "doctor", "--json", cwd=elsewhere, code=1))
    if not listed or report["torch"] is not None or not report["missing"]:
        sys.exit("FAILED: vkrt models or vkrt doctor say nothing useful without torch")


def check_cpu(python: Path, elsewhere: Path) -> None:
    """Use the install with the cpu extra alone."""
    print(run(python, "-c", CPU_CHECK, cwd=elsewhere), end="")
    report = json.loads(run(python.with_name("vkrt"), "doctor", "--json", cwd=elsewhere))
    if not report["demo_model"]["bundle"] or report["torch"] is not None:
        sys.exit("FAILED: vkrt doctor does not see the packaged bundle")


def main() -> None:
    """Run every check; exit non-zero at the first that fails."""
    with tempfile.TemporaryDirectory(prefix="vkrt-wheel-") as name:
        elsewhere = Path(name)
        say("build the source archive, and the wheel from it")
        run(sys.executable, "-m", "build", "--outdir", elsewhere / "dist", ROOT, cwd=ROOT)
        (wheel,) = (elsewhere / "dist").glob("*.whl")
        check_contents(wheel)

        say(f"install {wheel.name} alone")
        run(sys.executable, "-m", "venv", elsewhere / "venv", cwd=elsewhere)
        python = elsewhere / "venv/bin/python"
        pip = (python, "-m", "pip", "install", "-q", "-c", "constraints.txt")
        run(*pip, wheel, cwd=ROOT)
        check_base(python, elsewhere)

        say("add what a CPU needs, and run the packaged model")
        run(*pip, f"vkrt[cpu] @ {wheel.as_uri()}", cwd=ROOT)
        check_cpu(python, elsewhere)

        say(f"install it with {EXTRAS} and import every module")
        run(*pip, f"vkrt[{EXTRAS}] @ {wheel.as_uri()}", cwd=ROOT)
        wanted = ",".join(sorted(source_modules()))
        print(run(python, "-c", IMPORT_CHECK, wanted, cwd=elsewhere), end="")
        run(python, "-m", "pip", "check", cwd=elsewhere)
    say("the wheel is whole")


if __name__ == "__main__":
    main()
