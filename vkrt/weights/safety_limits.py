"""Bounds on what a file may claim, and how its names are shown in messages.

Each is several times what the largest model of vkrt's catalog needs. A file beyond one of them is
refused before it takes more memory or time than its own size explains.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "MAX_AWAITED_FRAMES",
    "MAX_BUNDLE_FILES",
    "MAX_DIMENSIONS",
    "MAX_EMBEDDING_BYTES",
    "MAX_GRAPH_DEPTH",
    "MAX_GRAPH_FIELDS",
    "MAX_GROWTH",
    "MAX_HEADER_BYTES",
    "MAX_HEADER_VALUES",
    "MAX_INDEX_BYTES",
    "MAX_INTEGER_BYTES",
    "MAX_JSON_DEPTH",
    "MAX_JSON_VALUES",
    "MAX_LAYOUT_STEPS",
    "MAX_LOST_FRAMES",
    "MAX_MANIFEST_BYTES",
    "MAX_MEGAPIXELS",
    "MAX_PHOTO_BYTES",
    "MAX_PICKLE_STEPS",
    "MAX_PORTS",
    "MAX_PORT_ELEMENTS",
    "MAX_REUSE",
    "MAX_STAGES",
    "MAX_STEPS",
    "MAX_TENSORS",
    "MAX_TENSOR_DIMENSIONS",
    "MAX_TEXT_GROWTH",
    "MAX_TOKENIZER_BYTES",
    "MAX_TOKEN_CHARACTERS",
    "MAX_VOCABULARY",
    "MIN_ARRAY_ELEMENTS",
    "MOST_MEGAPIXELS",
    "listed",
    "shown",
]

# The largest models that vkrt runs hold some thousand tensors.
MAX_TENSORS = 20_000
# A safetensors header takes some 100 bytes a tensor, but trainers add megabytes of notes.
MAX_HEADER_BYTES = 16 * 1024**2
# A zip directory, a pickle or a shard index takes up to 200 bytes a tensor, and is parsed into
# Python objects some twenty times its size.
MAX_INDEX_BYTES = 4 * 1024**2

# Of a photo or frame that is still to be decoded, unless VKRT_MAX_MEGAPIXELS says otherwise. The
# largest cameras have 150; three bytes a pixel, and some copies.
MAX_MEGAPIXELS = 100
# What that limit can be raised to, and the limit of what is in memory already.
MOST_MEGAPIXELS = 1000
# Of a photo that is read from a stream that can't go back, and so has to be held.
MAX_PHOTO_BYTES = 1024**3
# Steps that are spent on a video's structure, to tell damage from what only looks like it: some
# seconds. After that it is taken as whole.
MAX_LAYOUT_STEPS = 1_000_000
# Placeholders for the frames that a damaged video lost: an hour of film.
MAX_LOST_FRAMES = 100_000
# Packets whose frames a decoder did not give yet; it holds back a few dozen.
MAX_AWAITED_FRAMES = 4096

# A stage takes some kilobytes of a bundle's manifest.
MAX_MANIFEST_BYTES = 1024**2
MAX_BUNDLE_FILES = 1024
MAX_STAGES = 64
MAX_PORTS = 64
# Two for each layer of the largest transformer are 76.
MAX_STEPS = 512
# Of one port with every symbol at 1: a picture of 4096x4096 has 50 million.
MAX_PORT_ELEMENTS = 2**28
MAX_DIMENSIONS = 8

# Fields of protobuf in an .onnx file; the largest stage has some 60,000.
MAX_GRAPH_FIELDS = 250_000
# Graphs lie in attributes of nodes in graphs; ours are flat.
MAX_GRAPH_DEPTH = 64
# How many times as many elements as the largest port an array within a stage may have; the logits
# of the largest attention of SAM 2 are 64 times its memories. Smaller arrays always pass.
MAX_GROWTH = 256
MIN_ARRAY_ELEMENTS = 2**24

# The largest are T5's tokenizer.json, 2.4 MB, and CLIP's, 3.6 MB; parsed they take 50 times that.
MAX_TOKENIZER_BYTES = 16 * 1024**2
# CLIP has 49,408 tokens, T5 32,128.
MAX_VOCABULARY = 300_000
# T5's longest has 16, CLIP's less than 200.
MAX_TOKEN_CHARACTERS = 1024
# How many times as long a tokenizer's normalization may make a text.
MAX_TEXT_GROWTH = 64
# Of any JSON file: ours go five levels deep.
MAX_JSON_DEPTH = 64

# Of sam2.1-large: 1024 / 16 squared places of 256 channels, and two maps of 4 and 16 times these
# with an eighth and a quarter of the channels: 25 MB of float32; larger inputs take more.
MAX_EMBEDDING_BYTES = 2 * 1024**3
# Values in it: every tensor takes some ten, with a number for each dimension.
MAX_HEADER_VALUES = 16 * MAX_TENSORS
# Steps of a pickle: some 35 a tensor, and each makes one object of up to 60 bytes or so.
MAX_PICKLE_STEPS = 1_000_000
# An integer of a pickle: states of random generators take 16 bytes.
MAX_INTEGER_BYTES = 255
# Of a tensor; torch itself handles no more.
MAX_TENSOR_DIMENSIONS = 64
# How often the bytes of a file may come back in its tensors: tied weights come twice.
MAX_REUSE = 4
# A JSON file of a checkpoint: each value takes some 60 bytes as a Python object.
MAX_JSON_VALUES = 200_000

MAX_SHOWN = 5


def shown(text: object, limit: int = 120) -> str:
    """Return a name from a file so that it fits into one line of a message."""
    name = str(text)
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= limit else name[: limit - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Return the first few names and a count of the rest."""
    every = list(names)
    rest = len(every) - MAX_SHOWN
    few = ", ".join(shown(name) for name in every[:MAX_SHOWN])
    return f"{few} and {rest} more" if rest > 0 else few
