"""One variant in a process of its own: `python -m benchmarks.child JOB`, JOB being JSON.

Prints its figures as JSON. It imports nothing but what the variant imports, and numpy.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.assets import Assets
from benchmarks.rss import forget_peak, peak_rss_mib, rss_mib
from benchmarks.variants import VARIANTS, import_variant, open_variant

if TYPE_CHECKING:
    from benchmarks.peers.base import Peer

__all__ = ["TASKS", "cold", "growth", "memory"]

# On Linux this clock is one for all processes.
STARTED = time.monotonic()


def assets_in(job: dict[str, Any]) -> Assets:
    """Return the assets that a job names."""
    width, height = job["assets"]["photo_size"]
    fields = {"folder": Path(job["assets"]["folder"]), "photo_size": (width, height)}
    return Assets(**{**job["assets"], **fields})


def photo_in(job: dict[str, Any]) -> Any:
    """Return the photo (H, W, 3) uint8 of a job."""
    import numpy as np

    return np.load(job["photo"])


def cold(job: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each part of the way to the first masks; reading the photo is none."""
    variant = VARIANTS[job["variant"]]
    marks = [time.monotonic()]
    import_variant(variant)
    marks.append(time.monotonic())
    peer = open_variant(variant, assets_in(job), job["threads"])
    marks.append(time.monotonic())
    photo = photo_in(job)
    reading = time.monotonic() - marks[-1]
    embedding = peer.encode(photo)
    marks.append(time.monotonic() - reading)
    peer.click(embedding, *job["click"])
    marks.append(time.monotonic() - reading)
    parts = ("import", "load", "encode", "predict")
    spans = {
        part: after - before for part, (before, after) in zip(parts, pairwise(marks), strict=True)
    }
    return {"start": STARTED - job["asked"], **spans}


def memory(job: dict[str, Any]) -> dict[str, float | None]:
    """Return the peak memory of the whole process, and while it encodes with all loaded."""
    peer = open_variant(VARIANTS[job["variant"]], assets_in(job), job["threads"])
    photo = photo_in(job)
    loading = peak_rss_mib()
    forgotten = forget_peak()
    # Runtimes plan their memory in the first run and take it in the second.
    for _ in range(2):
        peer.encode(photo)
    encoding = peak_rss_mib()
    if loading is None or encoding is None:
        return {"whole": None, "encode": None}
    return {"whole": max(loading, encoding), "encode": encoding if forgotten else None}


def encode_fresh(peer: Peer, photo: Any, turns: range) -> list[float]:
    """Return the seconds of encoding the photo once a turn, each time moved to another place."""
    import numpy as np

    seconds = []
    for turn in turns:
        fresh = np.roll(photo, (turn, turn // photo.shape[1]), axis=(1, 0))
        start = time.perf_counter()
        peer.encode(fresh)
        seconds.append(time.perf_counter() - start)
    return seconds


def growth(job: dict[str, Any]) -> dict[str, Any]:
    """Return by how much memory grows over many encodes, each of another photo, and their seconds.

    Identical photos would hide a leak behind anything that remembers its last input.
    """
    peer = open_variant(VARIANTS[job["variant"]], assets_in(job), job["threads"])
    photo, first = photo_in(job), job["warmups"]
    encode_fresh(peer, photo, range(first))
    gc.collect()
    before = rss_mib()
    seconds = encode_fresh(peer, photo, range(first, first + job["encodes"]))
    gc.collect()
    after = rss_mib()
    grown = None if before is None or after is None else after - before
    return {"seconds": seconds, "rss_growth_mib": grown, "peak_rss_mib": peak_rss_mib()}


TASKS = {"cold": cold, "memory": memory, "growth": growth}


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    print(json.dumps(TASKS[work["task"]](work)))
