"""What pyproject.toml, constraints.txt and the Makefile promise one another."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vkrt
from vkrt import backends, catalog
from vkrt.cli import doctor, failures

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 can't read TOML by itself")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def requirements(project: dict[str, Any]) -> list[Requirement]:
    """Return every requirement of every extra, of the base and of the build."""
    stated = project["project"]
    lists = [stated["dependencies"], *stated["optional-dependencies"].values()]
    texts = [*project["build-system"]["requires"], *(text for part in lists for text in part)]
    return [Requirement(text) for text in texts]


def test_versions_agree(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == vkrt.__version__


def test_base_install_is_small(project: dict[str, Any]) -> None:
    names = {Requirement(text).name for text in project["project"]["dependencies"]}
    assert names == {"numpy", "pillow", "rich", "safetensors", "typer"}


def test_pins_are_exact_and_name_no_host(pins: dict[str, Requirement]) -> None:
    assert str(pins["torch"].specifier) == "==2.13.0"
    for pin in pins.values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert pin.url is None
    assert not re.search(r"://|^-", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_every_requirement_is_pinned_within_its_range(
    project: dict[str, Any], pins: dict[str, Requirement]
) -> None:
    for wanted in requirements(project):
        if wanted.name != "vkrt":
            version = str(pins[canonicalize_name(wanted.name)].specifier).removeprefix("==")
            assert wanted.specifier.contains(version), wanted


def test_extras_that_are_named_exist(project: dict[str, Any]) -> None:
    extras = set(project["project"]["optional-dependencies"])
    named = {extra for extra, _ in doctor.OPTIONAL.values()} | set(failures.EXTRAS.values())
    for candidate in backends.candidates():
        named |= set(re.findall(r"vkrt\[(\w+)\]", candidate.install))
    for wanted in requirements(project):
        named |= wanted.extras if wanted.name == "vkrt" else set()
    assert named and named <= extras


def closure(project: dict[str, Any], *extras: str) -> set[str]:
    """Return the names of all packages that some extras ask for, by way of others too."""
    stated = project["project"]["optional-dependencies"]
    names: set[str] = set()
    for wanted in map(Requirement, (text for extra in extras for text in stated[extra])):
        names |= closure(project, *wanted.extras) if wanted.name == "vkrt" else {wanted.name}
    return names


def test_the_demo_needs_no_torch(project: dict[str, Any]) -> None:
    assert closure(project, "cpu", "demo") == {"onnxruntime", "scikit-image"}
    assert {"torch", "onnx", "onnxruntime", "scikit-image"} <= closure(project, "test")


def test_the_wheel_has_every_file_of_the_demo_model(project: dict[str, Any]) -> None:
    package = ROOT / "vkrt"
    patterns = project["tool"]["setuptools"]["package-data"]["vkrt"]
    packed = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    there = {path for path in (package / "demo/weights").rglob("*") if path.is_file()}
    model = catalog.find("sam2.1-nano")
    assert model.packaged_bundle is not None and model.packaged_bundle.is_dir()
    assert {model.packaged, model.packaged_bundle / "manifest.json"} <= there <= packed


def test_license_is_the_full_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_second_call_installs_nothing(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/pip").touch()

    def planned(target: str) -> str:
        command = ["make", "-n", target]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert "install -q -e '.[cpu,demo]'" in planned("demo")
    assert "install -q -e '.[test,dev]'" in planned("test")
    (tmp_path / ".venv/.demo").touch()
    assert "pip install" not in planned("demo")
    for target in ("train", "bundle"):
        assert "install -q -e '.[test,dev]'" in planned(target)
    (tmp_path / ".venv/.installed").touch()
    assert "pip install" not in planned("demo") + planned("test") + planned("bundle")
    assert "ruff check" in planned("test") and "mypy" in planned("test")
    assert 'pytest -m "not slow"' in planned("test")
    model = catalog.find("sam2.1-nano")
    assert model.packaged_bundle is not None
    place = model.packaged_bundle.relative_to(Path(vkrt.__file__).parent.parent)
    exported = " ".join(planned("bundle").replace("\\\n", " ").split())
    options = f"--precision fp16 --force --out {place}"
    assert f"vkrt export {model.name} {options}" in exported


def test_ci_runs_only_make_targets() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    commands = [
        line for line in lines if line and not line.startswith(("#", "set ", "cd ", "echo "))
    ]
    assert commands == ["make test", "make wheel-check"]
