"""The manifest of a bundle: what manifest.json says, read with suspicion and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

from vkrt.errors import CheckpointError
from vkrt.limited import TooLargeError, parse_json, read_limited
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile, Piece, Step, check_steps
from vkrt.weights.safety_limits import (
    MAX_BUNDLE_FILES,
    MAX_DIMENSIONS,
    MAX_MANIFEST_BYTES,
    MAX_PORT_ELEMENTS,
    MAX_PORTS,
    MAX_STAGES,
    MAX_STEPS,
)

__all__ = [
    "GET_AGAIN",
    "MANIFEST",
    "SAM2",
    "SCHEMA",
    "SD35",
    "Header",
    "Manifest",
    "digest_of",
    "read_manifest",
    "write_manifest",
]

# Raised with every change of the manifest, and of the stages or ports that engines ask for; not
# for a field that older versions may ignore and newer ones do without.
SCHEMA = 1
# The families of models; bundles that were written before there was a second one do not say.
SAM2, SD35 = "sam2", "sd35"
MANIFEST = "manifest.json"
CHUNK = 1024**2

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
GET_AGAIN = "get or export the bundle again"


@dataclass(frozen=True)
class Header:
    """Say what a bundle holds.

    Attributes:
        vkrt: the version that wrote it.
        model: catalog name of the model.
        image_size: side of its square input, in pixels; 0 of a family that takes any size.
        precision: "fp32"; "fp16" for weights stored so and arithmetic in fp32; "int8" where the
            image encoder, or the transformer that makes pictures, computes its products so.
        fingerprint: digest of the weights that it was made from, as embeddings carry it.
        preprocessing: mean and std of each channel, of values in [0, 1], and the kind of resize.
        parity: the figures that the export measured, one record per stage and output.
        quantization: what an int8 export chose for each product and what masks or latents lose by
            it; empty for another precision.
        family: SAM2 or SD35: which engine it is for.
        settings: what else the engine of that family needs, its config among it.
    """

    vkrt: str
    model: str
    image_size: int
    precision: str
    fingerprint: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    parity: Sequence[Mapping[str, Any]] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)
    family: str = SAM2
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Hold what a manifest says, in the right form but not yet held against the files.

    Attributes:
        header: what the bundle holds.
        files: size in bytes and sha256 of each file by name; all lie directly in the folder.
        stages: by name; the module of each is the path of one of the files, with steps where
            there are some.
    """

    header: Header
    files: Mapping[str, tuple[int, str]]
    stages: Mapping[str, Stage]


def read_manifest(folder: Path) -> Manifest:
    """Return what the manifest of a folder says.

    Raises:
        CheckpointError: it is missing, huge, damaged or of another schema, or names a file
            outside the folder.
    """
    path = folder / MANIFEST
    content = read_json(path)
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: update vkrt"
        )
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has an unknown schema: {GET_AGAIN}")
    try:
        entries = at_most(MAX_BUNDLE_FILES, content["files"], "files")
        files = {plain_name(name): parse_file(entry) for name, entry in entries.items()}
        stages = at_most(MAX_STAGES, content["stages"], "stages")
        return Manifest(
            header=parse_header(content),
            files=files,
            stages={n: parse_stage(folder, n, e, files) for n, e in stages.items()},
        )
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path} is not one that `vkrt export` wrote ({what:.200}): {GET_AGAIN}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of bounded size."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} is no bundle, it has no {path.name}: "
            "give a folder that `vkrt export` wrote"
        )
    try:
        content = parse_json(read_limited(path, MAX_MANIFEST_BYTES))
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise CheckpointError(f"{path} can't be read ({reason}): check its rights") from None
    except TooLargeError as error:
        raise CheckpointError(
            f"{path} is larger than any manifest ({error}): {GET_AGAIN}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error!s:.80}): {GET_AGAIN}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no manifest: {GET_AGAIN}")
    return content


def parse_header(content: dict[str, Any]) -> Header:
    """Return what the manifest says of the whole bundle."""
    records = dict.fromkeys(("preprocessing", "quantization", "settings"), dict)
    kinds = {"image_size": int, "parity": list, **records}
    names = [known.name for known in fields(Header)]
    # Older bundles lack these.
    stated = {"quantization": {}, "family": SAM2, "settings": {}, **content}
    return Header(**{name: expect(stated[name], kinds.get(name, str)) for name in names})


def parse_file(entry: Any) -> tuple[int, str]:
    """Return the size and sha256 of a file."""
    return expect(entry["bytes"], int), expect(entry["sha256"], str)


def parse_stage(folder: Path, name: str, entry: Any, files: Collection[str]) -> Stage:
    """Return a stage whose module is the path of its file, one of `files`."""
    path = parse_path(folder, entry["file"], files)
    inputs = tuple(map(parse_port, at_most(MAX_PORTS, entry["inputs"], "inputs")))
    outputs = tuple(map(parse_port, at_most(MAX_PORTS, entry["outputs"], "outputs")))
    found = at_most(MAX_STEPS, entry.get("steps", ()), "steps")
    steps = tuple(parse_step(folder, step, files) for step in found)
    if steps:
        check_steps(steps, [port.name for port in inputs], [port.name for port in outputs])
    return Stage(name, CutFile(path, steps) if steps else path, inputs, outputs)


def parse_path(folder: Path, name: Any, files: Collection[str]) -> Path:
    """Return the path of a file, one of `files`."""
    file = plain_name(name)
    if file not in files:
        raise ValueError(f"no digest of {file!r}")
    return folder / file


def parse_step(folder: Path, entry: Any, files: Collection[str]) -> Step:
    """Return a step of a stage: a piece where it names a file, else an attention."""
    inputs = tuple(expect(name, str) for name in entry["inputs"])
    outputs = tuple(expect(name, str) for name in entry["outputs"])
    if "file" in entry:
        return Piece(parse_path(folder, entry["file"], files), inputs, outputs)
    (output,) = outputs
    # Bundles say so only where it is not fp32.
    return Attention(inputs, (output,), expect(entry.get("precision", "fp32"), str))


def parse_port(entry: Any) -> Port:
    """Return a port."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r}")
    shape = tuple(size if isinstance(size, str) else expect(size, int) for size in entry["shape"])
    fixed = [size for size in shape if isinstance(size, int)]
    if min(fixed, default=0) < 0 or prod(fixed) > MAX_PORT_ELEMENTS or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape {shape}")
    bounds = None
    if entry["bounds"] is not None:
        low, high = map(float, entry["bounds"])
        if not isfinite(low) or not low <= high < inf:
            raise ValueError(f"bounds from {low} to {high}")
        bounds = (low, high)
    return Port(expect(entry["name"], str), shape, entry["dtype"], bounds, bool(entry["exact"]))


def at_most(most: int, values: Any, what: str) -> Any:
    """Return values if there are not too many.

    Raises:
        ValueError: there are.
    """
    if len(values) > most:
        raise ValueError(f"{len(values)} {what}, {most} at most")
    return values


def expect(value: Any, kind: type) -> Any:
    """Return a value of the wanted type.

    Raises:
        TypeError: it has another.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} where a {kind.__name__} belongs")
    return value


def plain_name(name: Any) -> str:
    """Return the name of a file directly in the folder.

    Raises:
        ValueError: it leads elsewhere, on this system or another.
    """
    text = expect(name, str)
    # "\\" and ":" lead elsewhere on Windows.
    if text in ("", ".", "..") or set(text) & set("/\\:\0"):
        raise ValueError(f"{text!r:.80} is outside the folder")
    return text


def write_manifest(folder: Path, header: Header, stages: Iterable[Stage]) -> None:
    """Write the manifest of a folder that holds everything else.

    Args:
        folder: every file in it becomes part of the bundle.
        header: what it holds.
        stages: their modules are paths in the folder, or CutFiles of some.
    """
    entries = {
        stage.name: {
            "file": stage.module.name,
            "inputs": [asdict(port) for port in stage.inputs],
            "outputs": [asdict(port) for port in stage.outputs],
            **steps_of(stage),
        }
        for stage in stages
    }
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": digest_of(p)} for p in paths}
    content = {"schema": SCHEMA, **asdict(header), "stages": entries, "files": files}
    text = json.dumps(content, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def steps_of(stage: Stage) -> dict[str, Any]:
    """Return what the manifest says of a stage's steps: nothing where it is not cut."""
    if not isinstance(stage.module, CutFile):
        return {}
    return {"steps": [step_entry(step) for step in stage.module.steps]}


def step_entry(step: Step) -> dict[str, Any]:
    """Return what the manifest says of a step."""
    arrays = {"inputs": list(step.inputs), "outputs": list(step.outputs)}
    if isinstance(step, Piece):
        return {"file": step.path.name, **arrays}
    return arrays if step.precision == "fp32" else {**arrays, "precision": step.precision}


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
