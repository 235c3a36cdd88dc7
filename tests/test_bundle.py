"""Bundles: what is written is read back, and whatever was tampered with is refused unread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from toys import HEADER, edit, graph_model, product_stage, reseal, write_toy

from vkrt.bundle import building, is_bundle, read_bundle
from vkrt.errors import CheckpointError, OutputError
from vkrt.manifest import MANIFEST, MAX_MANIFEST_BYTES, write_manifest
from vkrt.onnx_file import read_onnx
from vkrt.onnx_graph import OnnxFile
from vkrt.stage import Port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a bundle of one stage."""
    write_toy(tmp_path / "toy")
    return tmp_path / "toy"


def refused(folder: Path, words: str) -> None:
    """Expect one line with these words."""
    with pytest.raises(CheckpointError) as caught:
        read_bundle(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# What is written is read back.


def test_a_bundle_is_read_back(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.header == HEADER
    assert set(bundle.bytes) == {"product.onnx"}
    assert bundle.bytes["product.onnx"] == (folder / "product.onnx").stat().st_size
    stage = bundle.stages["product"]
    assert stage.module == folder / "product.onnx"
    assert stage.inputs == (Port("x", ("n", 4)),)
    assert stage.outputs == (Port("y", ("n", 3)),)


def test_every_part_of_a_port_is_kept(tmp_path: Path) -> None:
    ports = (
        Port("x", ("n", 4), bounds=(-1.5, 2.0), exact=True),
        Port("labels", ("n",), "int32", bounds=(-1, 3)),
    )
    with building(tmp_path / "b") as part:
        stage = product_stage(part)
        model = onnx.load(stage.module)
        model.graph.input.append(helper.make_tensor_value_info("labels", TensorProto.INT32, ["n"]))
        onnx.save(model, stage.module)
        write_manifest(part, HEADER, [type(stage)("s", stage.module, ports, stage.outputs)])
    assert read_bundle(tmp_path / "b").stages["s"].inputs == ports


def test_what_int8_chose_comes_back(tmp_path: Path) -> None:
    chosen = {"weight_bits": 7, "masks": {"iou": 0.99}, "products": [{"name": "a", "rows": 3}]}
    with building(tmp_path / "b") as part:
        write_manifest(part, replace(HEADER, quantization=chosen), [product_stage(part)])
    assert read_bundle(tmp_path / "b").header.quantization == chosen


def test_a_bundle_from_before_int8_is_read(folder: Path) -> None:
    edit(folder, lambda content: content.pop("quantization"))
    assert read_bundle(folder).header == HEADER


def test_what_is_no_bundle(folder: Path, tmp_path: Path) -> None:
    assert is_bundle(folder) and not is_bundle(tmp_path) and not is_bundle("nowhere")
    assert not is_bundle(folder / MANIFEST)
    refused(tmp_path, "no bundle")


def test_a_stage_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no stage 'decoder'"):
        read_bundle(folder).stages["decoder"]


def test_reading_needs_neither_numpy_nor_onnx(folder: Path) -> None:
    code = (
        "import sys; from vkrt.bundle import read_bundle; read_bundle(sys.argv[1]);"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# What was tampered with is refused.


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_changed_byte(folder: Path, place: float) -> None:
    path = folder / "product.onnx"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    refused(folder, "was changed")


def test_a_cut_or_grown_file(folder: Path) -> None:
    path = folder / "product.onnx"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(content)
        refused(folder, "was changed")


def test_a_missing_file(folder: Path) -> None:
    (folder / "product.onnx").unlink()
    refused(folder, "lacks product.onnx")


def test_a_folder_or_pipe_in_place_of_a_file(folder: Path) -> None:
    path = folder / "product.onnx"
    path.unlink()
    path.mkdir()
    refused(folder, "no file")
    path.rmdir()
    os.mkfifo(path)
    refused(folder, "no file")


def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    path = folder / "product.onnx"
    path.rename(tmp_path / "outside.onnx")
    path.symlink_to(tmp_path / "outside.onnx")
    refused(folder, "a link out of its folder")


def rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that calls the stage's file by another name."""

    def change(content: dict[str, Any]) -> None:
        content["files"] = {name: content["files"]["product.onnx"]}
        content["stages"]["product"]["file"] = name

    return change


def set_at(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that puts a value at a place in the manifest."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


FILE = ("files", "product.onnx")
STAGE = ("stages", "product")
CHANGES = {
    "a newer schema": (set_at(2, "schema"), "update vkrt"),
    "schema 0": (set_at(0, "schema"), "unknown schema"),
    "a schema of text": (set_at("1", "schema"), "unknown schema"),
    "no schema": (lambda c: c.pop("schema"), "unknown schema"),
    "a file above": (rename_file("../product.onnx"), "outside the folder"),
    "a file below": (rename_file("sub/product.onnx"), "outside the folder"),
    "an absolute file": (rename_file("/etc/hostname"), "outside the folder"),
    "a Windows path": (rename_file("..\\product.onnx"), "outside the folder"),
    "a drive": (rename_file("C:product.onnx"), "outside the folder"),
    "the folder above": (rename_file(".."), "outside the folder"),
    "a name of nothing": (rename_file(""), "outside the folder"),
    "a name with NUL": (rename_file("a\0"), "outside the folder"),
    "a file of no digest": (set_at("other.onnx", *STAGE, "file"), "no digest of 'other.onnx'"),
    "another digest": (set_at("0" * 64, *FILE, "sha256"), "was changed"),
    "another size": (set_at(1, *FILE, "bytes"), "was changed"),
    "a digest of null": (set_at(None, *FILE, "sha256"), "not one that `vkrt export` wrote"),
    "a size of truth": (set_at(True, *FILE, "bytes"), "not one that"),
    "no files": (lambda c: c.pop("files"), "no 'files'"),
    "a list of files": (set_at([], "files"), "not one that"),
    "no stages": (lambda c: c.pop("stages"), "no 'stages'"),
    "a stage of text": (set_at("x", *STAGE), "not one that"),
    "no inputs": (lambda c: c["stages"]["product"].pop("inputs"), "no 'inputs'"),
    "a port of nothing": (set_at([{}], *STAGE, "inputs"), "no 'dtype'"),
    "an unknown dtype": (
        lambda c: c["stages"]["product"]["inputs"][0].update(dtype="object"),
        "dtype 'object'",
    ),
    "a negative size": (
        lambda c: c["stages"]["product"]["inputs"][0].update(shape=[-1]),
        "shape (-1,)",
    ),
    "bounds of text": (
        lambda c: c["stages"]["product"]["inputs"][0].update(bounds=["a", "b"]),
        "not one that",
    ),
    "bounds beyond floats": (
        lambda c: c["stages"]["product"]["inputs"][0].update(bounds=[10**400, 1]),
        "not one that",
    ),
    "bounds that are none": (
        lambda c: c["stages"]["product"]["inputs"][0].update(bounds=[1, 0]),
        "bounds from 1.0 to 0.0",
    ),
    "a port of terabytes": (
        lambda c: c["stages"]["product"]["inputs"][0].update(shape=[2**20, 2**20]),
        "shape (1048576, 1048576)",
    ),
    "too many axes": (
        lambda c: c["stages"]["product"]["inputs"][0].update(shape=[1] * 9),
        "shape (1, 1",
    ),
    "too many inputs": (
        lambda c: c["stages"]["product"].update(inputs=c["stages"]["product"]["inputs"] * 65),
        "65 inputs, 64 at most",
    ),
    "too many files": (
        lambda c: c["files"].update({f"f{i}": c["files"]["product.onnx"] for i in range(1024)}),
        "1025 files, 1024 at most",
    ),
    "too many stages": (
        lambda c: c["stages"].update({f"s{i}": c["stages"]["product"] for i in range(64)}),
        "65 stages, 64 at most",
    ),
    "too many steps": (
        lambda c: c["stages"]["product"].update(steps=[{}] * 513),
        "513 steps, 512 at most",
    ),
    "no model": (lambda c: c.pop("model"), "no 'model'"),
    "a size of text": (set_at("64", "image_size"), "not one that"),
    "preprocessing of text": (set_at("x", "preprocessing"), "not one that"),
    "quantization of a list": (set_at([], "quantization"), "not one that"),
    "quantization of null": (set_at(None, "quantization"), "not one that"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_a_changed_manifest(folder: Path, case: str) -> None:
    change, words = CHANGES[case]
    edit(folder, change)
    refused(folder, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "no manifest"),
        (b"7", "no manifest"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "damaged"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "larger than any manifest"),
    ],
)
def test_a_manifest_that_is_none(folder: Path, content: bytes, words: str) -> None:
    (folder / MANIFEST).write_bytes(content)
    refused(folder, words)


def test_a_pipe_in_place_of_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    refused(folder, "no bundle")


# Data outside the .onnx file itself.


def outside(location: str) -> TensorProto:
    """Return a tensor that is kept in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="48")
    return tensor


def of_initializer(location: str) -> onnx.ModelProto:
    return graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [outside(location)])


def of_constant(location: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=outside(location)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return graph_model(nodes, [])


def of_branch(location: str) -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])],
        [outside(location)],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return graph_model([node], [numpy_helper.from_array(np.array(True), "c")])


def of_sparse(location: str) -> onnx.ModelProto:
    model = graph_model([], [])
    model.graph.sparse_initializer.add().values.CopyFrom(outside(location))
    return model


def of_function(location: str) -> onnx.ModelProto:
    model = graph_model([], [])
    node = helper.make_node("Constant", [], ["w"], value=outside(location))
    function = helper.make_function("own", "f", [], ["w"], [node], [helper.make_opsetid("", 20)])
    model.functions.append(function)
    return model


PLACES = [of_initializer, of_constant, of_branch, of_sparse, of_function]


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "unlisted", "./product.onnx"])
@pytest.mark.parametrize("model", PLACES)
def test_external_data_elsewhere(
    folder: Path, model: Callable[[str], onnx.ModelProto], location: str
) -> None:
    (folder / "unlisted").write_bytes(bytes(48))
    (folder / "product.onnx").write_bytes(model(location).SerializeToString())
    reseal(folder)
    refused(folder, repr(location))


def test_external_data_of_the_bundle(folder: Path) -> None:
    (folder / "product.onnx").write_bytes(of_initializer("w.data").SerializeToString())
    (folder / "w.data").write_bytes(bytes(48))
    edit(folder, set_at({}, "files", "w.data"))
    reseal(folder)
    assert set(read_bundle(folder).bytes) == {"product.onnx", "w.data"}
    (folder / "w.data").write_bytes(bytes(47) + b"1")
    refused(folder, "w.data was changed")


def test_a_node_that_loads_files_itself(folder: Path) -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../engine"
    )
    (folder / "product.onnx").write_bytes(graph_model([node], []).SerializeToString())
    reseal(folder)
    refused(folder, "EPContext")


def test_data_beyond_the_end_of_a_file(folder: Path) -> None:
    (folder / "product.onnx").write_bytes(of_initializer("w.data").SerializeToString())
    (folder / "w.data").write_bytes(bytes(47))
    edit(folder, set_at({}, "files", "w.data"))
    reseal(folder)
    refused(folder, "keeps data beyond the end of w.data")


@pytest.mark.parametrize(
    "operator", ["Loop", "Scan", "RandomNormal", "SequenceAt", "StringNormalizer", "Optional"]
)
@pytest.mark.parametrize("domain", ["", "own.ops"])
def test_an_operator_that_no_export_writes(folder: Path, operator: str, domain: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    (folder / "product.onnx").write_bytes(graph_model([node], []).SerializeToString())
    reseal(folder)
    refused(folder, f"its operator {domain}{'.' * bool(domain)}{operator} is none")


def test_a_known_operator_of_another_domain(folder: Path) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], domain="own.ops")
    (folder / "product.onnx").write_bytes(graph_model([node], []).SerializeToString())
    reseal(folder)
    refused(folder, "its operator own.ops.MatMul is none")


def test_a_graph_in_a_graph(folder: Path) -> None:
    inner = helper.make_graph([], "g", [], [])
    node = helper.make_node("Add", ["x", "x"], ["y"], body=inner)
    (folder / "product.onnx").write_bytes(graph_model([node], []).SerializeToString())
    reseal(folder)
    refused(folder, "its operator Add is none")


def test_files_that_change_after_they_were_read(folder: Path) -> None:
    stage = read_bundle(folder).stages["product"]
    stage.check()
    path = folder / "product.onnx"
    content = path.read_bytes()
    (folder / "other").write_bytes(content)
    os.replace(folder / "other", path)
    with pytest.raises(CheckpointError, match=r"product\.onnx was changed or replaced"):
        stage.check()
    path.unlink()
    with pytest.raises(CheckpointError, match="load it again"):
        stage.check()


@pytest.mark.parametrize("content", [b"", b"\x3a\xff", b"\x3b", b"\xff" * 20, b"\x3a\x05\x2a\x7f"])
def test_an_onnx_file_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "product.onnx").write_bytes(content)
    reseal(folder)
    refused(folder, "not a readable .onnx")


def test_a_graph_nested_too_deeply(folder: Path) -> None:
    content = b""
    for _ in range(60):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    (folder / "product.onnx").write_bytes(b"\x3a" + varint(len(content)) + content)
    reseal(folder)
    refused(folder, "nested too deeply")


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        assert isinstance(read_onnx(path), OnnxFile)
    except CheckpointError as error:
        assert "\n" not in str(error)


# Writing: whole or not at all.


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), building(tmp_path / "b") as part:
        (part / "half").write_bytes(b"...")
        _ = 1 / 0
    assert not names(tmp_path)


def test_what_does_not_verify_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), building(tmp_path / "b") as part:
        write_manifest(part, HEADER, [product_stage(part)])
        (part / "product.onnx").write_bytes(b"changed")
    assert not names(tmp_path)


def test_a_target_is_replaced_only_by_force(folder: Path, tmp_path: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(OutputError, match="--force"):
        write_toy(folder)
    with pytest.raises(ZeroDivisionError), building(folder, force=True):
        _ = 1 / 0
    assert (folder / MANIFEST).read_bytes() == before
    (folder / "stale").touch()
    write_toy(folder, force=True)
    assert names(folder) == {MANIFEST, "product.onnx"} and names(tmp_path) == {"toy"}


def test_force_replaces_nothing_but_bundles(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    (tmp_path / "file").touch()
    for name in ("home", "file"):
        with pytest.raises(OutputError, match="no bundle"):
            write_toy(tmp_path / name, force=True)
    assert names(tmp_path) == {"home", "file"} and names(tmp_path / "home") == {"letter"}


def test_a_target_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_toy(tmp_path / "nowhere" / "b")
    with pytest.raises(OutputError, match="can't be written"):
        write_toy(tmp_path / ("n" * 300))


def test_an_older_bundle_survives_a_failed_rename(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.rename, []

    def rename(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match=r"No space left.*finished bundle is in .*toy-2$"):
        write_toy(folder, force=True)
    assert read_bundle(folder).header == HEADER and names(folder.parent) == {"toy", "toy-2"}
    assert read_bundle(folder.with_name("toy-2")).header == HEADER


def test_what_another_program_put_there_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "b"
    said = r"made by another program meanwhile: the finished bundle is in .*b-2$"
    with pytest.raises(OutputError, match=said), building(target) as part:
        write_manifest(part, HEADER, [product_stage(part)])
        target.mkdir()
        (target / "letter").touch()
    assert names(tmp_path) == {"b", "b-2"} and names(target) == {"letter"}
    assert read_bundle(tmp_path / "b-2").header == HEADER


def test_two_builders_of_one_bundle(tmp_path: Path) -> None:
    with building(tmp_path / "b") as part:
        write_manifest(part, HEADER, [product_stage(part)])
        with ThreadPoolExecutor(1) as other:
            refused = other.submit(write_toy, tmp_path / "b").exception()
        assert isinstance(refused, OutputError) and "another vkrt is writing" in str(refused)
    assert names(tmp_path) == {"b"} and read_bundle(tmp_path / "b").header == HEADER


def test_a_bundle_can_be_moved(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    assert read_bundle(tmp_path / "elsewhere").header == HEADER
    assert str(tmp_path) not in json.dumps(
        json.loads((tmp_path / "elsewhere" / MANIFEST).read_text())
    )
