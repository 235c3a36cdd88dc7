"""The parsers of vkrt that read what others wrote, each with sound files to damage."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.harness import Target
from fuzz.weights_targets import WEIGHTS
from PIL import Image

from vkrt.errors import ImageError

__all__ = ["TARGETS"]

Read = Callable[[Path, bytes], Any]


def as_file(name: str, read: Callable[[Path], Any]) -> Read:
    """Return what writes a content under a name and reads that file."""

    def reader(folder: Path, content: bytes) -> Any:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return reader


# Bundles.


def onnx_seeds(folder: Path) -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper
    from toys import WEIGHT, graph_model

    weight = numpy_helper.from_array(WEIGHT, "w")
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=1)
    for key, value in (("location", "w.data"), ("offset", "0"), ("length", "48")):
        outside.external_data.add(key=key, value=value)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = numpy_helper.from_array(np.array([1, 4], np.int64), "s")
    larger = [
        helper.make_node("Expand", ["x", "s"], ["e"]),
        helper.make_node("Constant", [], ["k"], value_ints=[0, 0]),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
    ]
    models = [
        graph_model([product], [weight]),
        graph_model([product], [outside]),
        graph_model(larger, [weight, shape]),
    ]
    return [model.SerializeToString() for model in models]


def read_graph(path: Path) -> Any:
    from vkrt.onnx_file import read_onnx

    return read_onnx(path)


def toy_folder(folder: Path) -> Path:
    from toys import write_toy

    toy = folder / "toy"
    if not toy.exists():
        write_toy(toy)
        (toy / "w.data").write_bytes(bytes(48))
    return toy


def manifest_seeds(folder: Path) -> list[bytes]:
    return [(toy_folder(folder) / "manifest.json").read_bytes()]


def read_manifest(folder: Path, content: bytes) -> Any:
    from vkrt.bundle import read_bundle

    (folder / "toy" / "manifest.json").write_bytes(content)
    return read_bundle(folder / "toy")


def bundle_seeds(folder: Path) -> list[bytes]:
    toy_folder(folder)
    return onnx_seeds(folder)


def read_sealed(folder: Path, content: bytes) -> Any:
    """Read a bundle whose manifest is true of a damaged graph."""
    from vkrt.bundle import read_bundle

    toy = folder / "toy"
    (toy / "product.onnx").write_bytes(content)
    manifest = json.loads((toy / "manifest.json").read_text())
    manifest["files"] = {
        name: {
            "bytes": len((toy / name).read_bytes()),
            "sha256": hashlib.sha256((toy / name).read_bytes()).hexdigest(),
        }
        for name in ("product.onnx", "w.data")
    }
    (toy / "manifest.json").write_text(json.dumps(manifest))
    return read_bundle(toy)


# Embeddings.

SHAPES = {"image": (1, 4, 3), "high_res_s0": (1, 4, 16, 2), "high_res_s1": (1, 4, 4, 2)}


def embedding_seeds(folder: Path) -> list[bytes]:
    from vkrt.engines.embedding import EmbeddingHeader, write_embedding

    path = folder / "seed.safetensors"
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    write_embedding(path, EmbeddingHeader("sam2.1-nano", "abc", (90, 120), "key"), arrays)
    return [path.read_bytes()]


def read_embedding(path: Path) -> Any:
    from vkrt.engines.embedding import read_embedding

    header, arrays = read_embedding(path, "sam2.1-nano", "abc", SHAPES)
    assert min(header.size) > 0 and all(np.isfinite(a).all() for a in arrays.values())
    return header


# Weights.


def safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    arrays = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    return [save(arrays), save(arrays, metadata={"format": "pt"})]


def torch_seeds(folder: Path) -> list[bytes]:
    import torch

    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4).half()}
    found = []
    for content in (tensors, {"model": tensors}, {"state_dict": tensors, "epoch": 1}):
        stream = io.BytesIO()
        torch.save(content, stream)
        found.append(stream.getvalue())
    return found


def lora_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    stem = "transformer.transformer_blocks.0.attn.to_q"
    arrays = {
        f"{stem}.lora_A.weight": np.ones((2, 8), np.float32),
        f"{stem}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    return [save(arrays), save(arrays, metadata={"lora_alpha": "2", "rank": "2"})]


def read_weights(path: Path) -> Any:
    from vkrt.weights.checkpoint import read_shapes, read_tensors

    shapes = read_shapes(path)
    tensors = read_tensors(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    # Every byte is there.
    return sum(float(tensor.double().abs().sum()) for tensor in tensors.values())


def read_adapter(path: Path) -> Any:
    from vkrt.weights.lora_file import read_lora

    return read_lora(path)


# Tokenizers.

TEXT = "the house's cat \u00e9\ufb01 2 !"


def use(part: str, place: Path) -> Any:
    """Read a tokenizer and let it split a text."""
    from vkrt.media.text import split
    from vkrt.media.tokenizer_files import read_tokenizer

    return split(read_tokenizer(part, place), TEXT)


def few(vocabulary: dict[str, int], merges: str) -> dict[str, int]:
    """Return a vocabulary of CLIP without most of its single bytes, which only take time."""
    return {
        token: number
        for token, number in vocabulary.items()
        if token.isascii() or len(word := token.removesuffix("</w>")) > 1 or word in merges
    }


def clip_seeds(name: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        from vocabularies import write_clip

        place = write_clip(folder / "clip") / "vocab.json"
        merges = place.with_name("merges.txt").read_text()
        place.write_text(json.dumps(few(json.loads(place.read_text()), merges)))
        return [place.with_name(name).read_bytes()]

    return seeds


def spiece_seeds(folder: Path) -> list[bytes]:
    from vocabularies import small_charsmap, t5_message

    charsmap = small_charsmap({"\ufb01": "fi"})
    return [t5_message(each).SerializeToString() for each in (b"", charsmap)]


def tokenizer_seeds(folder: Path) -> list[bytes]:
    from transformers import CLIPTokenizer
    from vocabularies import small_charsmap, write_clip, write_t5_json

    write_t5_json(folder / "t5", small_charsmap({"\ufb01": "fi"}))
    CLIPTokenizer.from_pretrained(write_clip(folder / "two")).save_pretrained(folder / "one")
    found = [json.loads((folder / name / "tokenizer.json").read_text()) for name in ("t5", "one")]
    for content in found:
        vocabulary = content["model"]["vocab"]
        is_list = isinstance(vocabulary, list)
        merges = "".join(map("".join, content["model"].get("merges", ())))
        content["model"]["vocab"] = vocabulary[:60] if is_list else few(vocabulary, merges)
        content["added_tokens"] = content["added_tokens"][-3:]
    return [json.dumps(content).encode() for content in found]


def read_either(path: Path) -> Any:
    content = path.read_bytes()
    return use("clip_l" if b"startoftext" in content else "t5", path)


# Prompts, run lengths and masks.

PROMPTS: list[dict[str, Any]] = [
    {"points": [[10, 20], [30.5, 40]], "labels": [1, 0]},
    {"points": [[[10, 20]], [[30, 40]]], "labels": [[1], [1]], "box": [[1, 2, 30, 40]] * 2},
    {"box": [1, 2, 30, 40], "mask": [[0.5] * 16] * 16},
]


def read_prompts(folder: Path, content: bytes) -> Any:
    from vkrt.limited import parse_json
    from vkrt.media.prompts import prepare

    try:
        value = parse_json(content)
    except ValueError as error:
        raise ImageError(" ".join(str(error).split())) from None
    given = value if isinstance(value, dict) else {"points": value}
    known = {name: given.get(name) for name in ("points", "labels", "box", "mask")}
    batch = prepare((90, 120), 64, **known)
    assert np.isfinite(batch.points).all()
    return batch


def read_typed(folder: Path, content: bytes) -> Any:
    from vkrt.cli.track_prompts import parse_prompts

    text = content.decode("latin-1")
    is_box = text.count(",") > 1
    return parse_prompts([] if is_box else [text], [], [text] if is_box else [], [])


def tracks_seeds(folder: Path) -> list[bytes]:
    from vkrt.media.tracks import TracksWriter

    masks = np.zeros((2, 8, 9), bool)
    masks[0, 2:5, 3:7] = True
    with TracksWriter(folder / "tracks.json", 25.0) as writer:
        for frame in range(2):
            writer.write(frame, [1, 2], masks, [0.5, 0.25], [1.0, -2.0])
    tracks = json.loads((folder / "tracks.json").read_text())
    loose = {"size": [8, 9], "counts": [0, 8, 64]}
    return [json.dumps(tracks).encode(), json.dumps(loose).encode()]


def read_tracks(folder: Path, content: bytes) -> Any:
    """Decode every mask that a file of tracks has, wherever it is."""
    from vkrt.limited import parse_json
    from vkrt.media.rle import Rle, decode

    try:
        waiting = [parse_json(content)]
    except ValueError as error:
        raise ImageError(" ".join(str(error).split())) from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and "counts" in value:
            mask = Rle.from_coco(value)
            if mask.height * mask.width < 10**7:
                assert decode([mask]).sum() == mask.area
        elif isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def text_seeds(folder: Path) -> list[bytes]:
    from vkrt.media.fallback_rle import runs_to_text

    every = ([64], [0, 8, 56], [3, 4, 1, 1, 9, 46, 0, 400, 48], [2**31, 2**31 - 1, 1])
    return [runs_to_text(np.array(runs, np.uint32)) for runs in every]


def read_runs(folder: Path, content: bytes) -> Any:
    """Read counts with the C++ and its stand-in, which must agree."""
    from vkrt.media import fallback_rle
    from vkrt.media.native import operations

    found = []
    for module in (operations, fallback_rle):
        try:
            found.append(module.text_to_runs(content).tolist())
        except ValueError:
            found.append(None)
    assert found[0] == found[1]
    if found[0] is None:
        raise ImageError("damaged")
    runs = np.array(found[0], np.uint32)
    total = int(runs.sum(dtype=np.uint64))
    for height in (1, 7, 64):
        if total % height == 0 and 0 < total < 10**6:
            masks = [
                m.decode_masks([runs], height, total // height) for m in (operations, fallback_rle)
            ]
            assert np.array_equal(*masks)
            assert operations.runs_to_text(operations.encode_masks(masks[0])[0])


CALLS: list[dict[str, Any]] = [
    {"call": call, "shape": [2, 4, 5], "height": 9, "width": 7, "runs": [3, 4, 56]}
    | {"number": 0.5, "area": 3, "threads": 1}
    for call in (
        "upsample",
        "binarize",
        "encode_logits",
        "decode",
        "clean",
        "flip",
        "measure",
        "nms",
    )
]


def call_native(folder: Path, content: bytes) -> Any:
    """Call the C++ with arguments as they come; it raises what Python's own functions do."""
    from vkrt.media.native import operations as c

    try:
        a = json.loads(content)
        shape = tuple(a["shape"])
        if any(isinstance(size, int) and size > 64 for size in shape):
            raise ImageError("not to be made here")
        logits = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        height, width, threads = a["height"], a["width"], a["threads"]
        if isinstance(height, int) and isinstance(width, int) and 2**26 < height * width < 2**31:
            raise ImageError("large, but allowed")
        calls: dict[str, Callable[[], Any]] = {
            "upsample": lambda: c.upsample(logits, height, width, threads),
            "binarize": lambda: c.binarize(
                logits, height, width, a["number"], a["area"], threads, True
            ),
            "encode_logits": lambda: c.encode_logits(
                logits, height, width, a["number"], a["area"], threads
            ),
            "decode": lambda: c.decode_masks(
                [np.array(a["runs"]).astype(np.uint32)], height, width, threads
            ),
            "clean": lambda: c.clean_logits(logits, a["number"], a["area"], a["area"], threads),
            "flip": lambda: c.flip_small(logits > 0, bool(a["number"]), a["area"], threads),
            "measure": lambda: c.measure(logits > 0, threads),
            "nms": lambda: c.nms(logits.reshape(-1, 4), logits.ravel()[::4].copy(), a["number"]),
        }
        return calls[a["call"]]()
    except (
        *(ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
    ) as error:
        raise ImageError(" ".join(str(error).split()) or "refused") from None


# Pictures and clips.


def picture_seeds(folder: Path) -> list[bytes]:
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    found = []
    for mode, kind in (
        *(("RGB", "PNG"), ("RGB", "JPEG"), ("L", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF")),
        *(("RGB", "WEBP"), ("P", "PNG"), ("L", "PPM"), ("I;16", "PNG"), ("L", "TIFF")),
    ):
        picture = Image.fromarray(pixels)
        if mode == "I;16":
            picture = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256)
        elif mode != "RGB":
            picture = picture.convert(mode)
        stream = io.BytesIO()
        picture.save(stream, kind)
        found.append(stream.getvalue())
    return found


def read_photo(folder: Path, content: bytes) -> Any:
    from vkrt.media.image import read_image

    photo = read_image(content)
    assert photo.dtype == np.uint8 and photo.shape[2] == 3


def label_seeds(folder: Path) -> list[bytes]:
    from vkrt.media.labels import write_labels

    write_labels(folder / "labels.png", np.arange(63, dtype=np.uint8).reshape(7, 9))
    return [(folder / "labels.png").read_bytes()]


def read_label_map(path: Path) -> Any:
    from vkrt.media.labels import read_labels

    assert read_labels(path).dtype == np.uint8


def parameter_seeds(folder: Path) -> list[bytes]:
    from vkrt.media.picture import save_png

    save_png(Image.new("RGB", (4, 4)), folder / "made.png", {"seed": 1, "prompt": "a cat"})
    return [(folder / "made.png").read_bytes()]


def read_made(path: Path) -> Any:
    from vkrt.media.picture import read_parameters

    assert isinstance(read_parameters(path), dict)


def clip_files(folder: Path) -> list[bytes]:
    from reels import moving, write_clip

    frames = moving(4, 16, 32)
    clips = [
        write_clip(folder / "seed.mp4", frames),
        write_clip(folder / "seed.avi", frames, "mpeg4"),
    ]
    return [clip.read_bytes() for clip in clips]


def read_clip(folder: Path, content: bytes) -> Any:
    from vkrt.media.video_file import FileFrames

    with FileFrames(io.BytesIO(content), "clip", on_error="skip") as clip:
        for index in range(6):
            if not clip.has(index):
                break
            assert clip.frame(index).shape[2] == 3


def fixed(values: Sequence[Any]) -> Callable[[Path], list[bytes]]:
    """Return what gives values as JSON."""
    return lambda folder: [json.dumps(value).encode() for value in values]


EVERY = (
    Target("onnx", onnx_seeds, as_file("m.onnx", read_graph), "protobuf"),
    Target("manifest", manifest_seeds, read_manifest, "json"),
    Target("bundle", bundle_seeds, read_sealed, "protobuf"),
    Target("embedding", embedding_seeds, as_file("e.safetensors", read_embedding), "safetensors"),
    Target("safetensors", safetensors_seeds, as_file("w.safetensors", read_weights), "safetensors"),
    Target("torch", torch_seeds, as_file("w.pt", read_weights), "zip"),
    Target("lora", lora_seeds, as_file("l.safetensors", read_adapter), "safetensors"),
    Target(
        "vocabulary",
        clip_seeds("vocab.json"),
        as_file("clip/vocab.json", lambda path: use("clip_l", path)),
        "json",
    ),
    Target(
        "merges",
        clip_seeds("merges.txt"),
        as_file("clip/merges.txt", lambda path: use("clip_l", path.with_name("vocab.json"))),
    ),
    Target("tokenizer", tokenizer_seeds, as_file("tokenizer.json", read_either), "json"),
    Target(
        "sentencepiece",
        spiece_seeds,
        as_file("spiece.model", lambda path: use("t5", path)),
        "protobuf",
    ),
    Target("prompts", fixed(PROMPTS), read_prompts, "json"),
    Target("typed", lambda _: [b"10,20@3:1", b"10,20", b"1,2,30,40@0:2"], read_typed),
    Target("tracks", tracks_seeds, read_tracks, "json"),
    Target("runs", text_seeds, read_runs),
    Target("native", fixed(CALLS), call_native, "json"),
    Target("picture", picture_seeds, read_photo),
    Target("labels", label_seeds, as_file("labels.png", read_label_map), "png"),
    Target("parameters", parameter_seeds, as_file("made.png", read_made), "png"),
    Target("clip", clip_files, read_clip),
    *WEIGHTS,
)
TARGETS = {target.name: target for target in EVERY}
