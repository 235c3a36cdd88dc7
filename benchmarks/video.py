"""Speed of tracking in its steady state: `python -m benchmarks.video`.

vkrt and transformers have the same random weights, get the same frames and run in the same rounds,
one frame each. Before anything is timed, their masks must agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file

import vkrt
from benchmarks.agreement import DisagreementError
from benchmarks.arithmetic import stage_flops
from benchmarks.cases import PAUSE, Figures
from benchmarks.machine import describe_machine
from benchmarks.measure import measure
from benchmarks.peak import peaks, product_of
from benchmarks.peers.ours import cache_at
from benchmarks.peers.tracking import OursTracking, TrackingPeer, TransformersTracking
from benchmarks.peers.transformers_video import video_model, video_twin
from benchmarks.photo import clicks_on, set_photo
from benchmarks.results import RESULTS, SpeedRow, append_rows, check_columns
from benchmarks.rows import ratios_of, show, times_of
from vkrt import VkrtError, catalog
from vkrt.exporting import export_model
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stage_set import all_stages

__all__ = ["main", "moving_frames", "track_flops"]

SIZE = (960, 540)  # width and height of the frames
FRAMES = 12
STEADY = 10  # frames before the first that is timed: by then the bank of recent frames is full
# transformers keeps memories in bfloat16, so that masks differ where a logit is about zero.
MASK_ERROR = 0.01
# What an int8 export may lose of its masks' IoU, 0.02, is about as much of the pixels at most. That
# is asked for here, in the frames that are timed: the export's own gate asks about scenes, on which
# the masks of random weights mean nothing and hang by a hair.
INT8_MASK_ERROR = 0.02
PEERS = ("vkrt", "vkrt-onnx", "vkrt-onnx-int8", "vkrt-openvino", "transformers")


def moving_frames(count: int = FRAMES) -> list[np.ndarray]:
    """Return frames (H, W, 3) uint8: a window that moves over the set photo."""
    width, height = SIZE
    photo = set_photo()
    return [
        np.ascontiguousarray(photo[8 * i : 8 * i + height, 16 * i : 16 * i + width])
        for i in range(count)
    ]


def track_flops(config: Sam2Config, objects: int) -> int:
    """Return the operations of vkrt's steady frame: encoder, memory and decoder of each object."""
    stages = all_stages(Sam2(config).eval().requires_grad_(False))
    memory = config.memory
    sizes = {"images": 1, "objects": objects, "points": 2}
    sizes |= {"slots": memory.num_maskmem, "pointers": memory.max_obj_ptrs}
    names = ("image_encoder", "memory_attention", "track_decoder", "memory_encoder")
    return sum(stage_flops(stages[name], **sizes) for name in names)


def enter(
    model: catalog.Model, names: Sequence[str], folder: Path, threads: int
) -> dict[str, TrackingPeer]:
    """Return the peers by name, all with the same random weights."""
    config = model.config
    oracle = video_model(config)
    checkpoint = folder / "checkpoint.safetensors"
    save_file(video_twin(oracle, config).state_dict(), checkpoint)
    entrants: dict[str, TrackingPeer] = {}
    for name in names:
        if name == "transformers":
            entrants[name] = TransformersTracking(oracle, config.image_size)
            continue
        backend, precision = settings_of(name)
        source = checkpoint
        if precision == "int8":
            source = folder / f"{name}.vkrt"
            export_model(
                model.name,
                source,
                checkpoint,
                precision=precision,
                image_size=config.image_size,
                allow_loss=True,
            )
        with cache_at(folder):
            sam = vkrt.load(
                model.name,
                source,
                backend=backend,
                precision=precision,
                device="cpu",
                threads=threads,
                image_size=config.image_size,
                embedding_cache_bytes=0,
            )
        entrants[name] = OursTracking(sam, name, precision)
    return entrants


def settings_of(name: str) -> tuple[str, str]:
    """Return the backend and the precision of a peer of ours, such as "vkrt-onnx-int8"."""
    _, *stated = name.split("-")
    return stated[0] if stated else "eager", stated[1] if len(stated) > 1 else "fp32"


def advance(
    entrants: dict[str, TrackingPeer], frames: Sequence[np.ndarray], objects: int
) -> dict[str, float]:
    """Bring all peers to their steady state; return each one's share of pixels unlike the first's.

    Raises:
        DisagreementError: masks differ on more than MASK_ERROR (INT8_MASK_ERROR) of the pixels.
    """
    clicks = clicks_on(frames[0], objects)
    worst = dict.fromkeys(entrants, 0.0)
    for index in range(STEADY):
        frame = frames[index % len(frames)]
        masks = {
            name: peer.step(frame) if index else peer.begin(frame, clicks)
            for name, peer in entrants.items()
        }
        first = next(iter(masks.values()))
        for name, found in masks.items():
            worst[name] = max(worst[name], float((found != first).mean()))
            most = INT8_MASK_ERROR if entrants[name].precision == "int8" else MASK_ERROR
            if worst[name] > most:
                raise DisagreementError(
                    f"{name}'s masks of frame {index} differ on {worst[name]:.2%} of the pixels"
                )
    return worst


def stepper(peer: TrackingPeer, frames: Iterator[np.ndarray]) -> Callable[[], object]:
    """Return a call that tracks the next frame."""
    return lambda: peer.step(next(frames))


def run(
    model: catalog.Model,
    entrants: dict[str, TrackingPeer],
    objects: int,
    rounds: int,
    found_peaks: dict[str, float],
) -> list[SpeedRow]:
    """Return the rows of one number of objects.

    Raises:
        DisagreementError: the masks of two peers differ.
    """
    frames = moving_frames()
    worst = advance(entrants, frames, objects)
    calls = {name: stepper(peer, cycle(frames)) for name, peer in entrants.items()}
    samples = measure(calls, rounds, warmups=1, pause=PAUSE)
    figures = {name: Figures(len(seconds), seconds) for name, seconds in samples.items()}
    case, machine = f"track-{objects}", describe_machine()
    work = track_flops(model.config, objects)
    rows = []
    for name, peer in entrants.items():
        times = times_of(figures[name])
        ours = name != "transformers"
        rows.append(
            SpeedRow(
                case=case,
                model=model.name,
                image_size=model.config.image_size,
                photo="{}x{}".format(*SIZE),
                variant=name,
                backend=peer.backend,
                device="cpu",
                precision=peer.precision,
                peak_rss_mib=None,
                rss_growth_mib=None,
                gflops=work / times["p50_ms"] / 1e6 if ours and times["p50_ms"] else None,
                peak_gflops=found_peaks[product_of(peer.backend, peer.precision)],
                max_rel_error=worst[name],
                **times,
                **ratios_of(case, name, figures),
                **machine,
            )
        )
    return rows


def main(
    model: Annotated[str, typer.Option(help="Catalog name.")] = "sam2.1-tiny",
    image_size: Annotated[int | None, typer.Option(help="Side of the model's input.")] = None,
    objects: Annotated[str, typer.Option(help="Numbers of objects, comma-separated.")] = "1,8",
    peers: Annotated[str, typer.Option(help=f"Of {', '.join(PEERS)}.")] = "vkrt,transformers",
    rounds: Annotated[int, typer.Option(min=1, help="Frames that are timed.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each peer.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write results.csv.")] = False,
) -> None:
    """Measure a steady frame of tracking."""
    names = [name.strip() for name in peers.split(",")]
    try:
        if not set(names) <= set(PEERS):
            raise ValueError(f"unknown peer in {peers}: choose of {', '.join(PEERS)}")
        counts = [int(count) for count in objects.split(",")]
        known = catalog.find(model, image_size)
        if not dry:
            check_columns(RESULTS, SpeedRow)
    except (VkrtError, ValueError) as error:
        print(f"benchmarks.video: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    used = threads or torch.get_num_threads()
    torch.set_num_threads(used)
    try:
        with TemporaryDirectory() as folder:
            entrants = enter(known, names, Path(folder), used)
            products = {product_of(peer.backend, peer.precision) for peer in entrants.values()}
            found_peaks = peaks(sorted(products), used)
            for count in counts:
                rows = run(known, entrants, count, rounds, found_peaks)
                if not dry:
                    append_rows(RESULTS, rows)
                show(rows)
    except (DisagreementError, VkrtError) as error:
        print(f"benchmarks.video: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
