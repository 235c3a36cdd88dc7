"""`vkrt track`: objects named by clicks, boxes or masks, followed through a clip or live frames."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vkrt.cli.failures import one_line
from vkrt.cli.frame_bar import counted
from vkrt.cli.output import AsJson, print_json
from vkrt.cli.segment import Backend, Checkpoint, Device, ImageSize, ModelName, Precision, Threads
from vkrt.cli.segmenter import ExportFirst, open_segmenter
from vkrt.cli.track_live import stoppable, track_live
from vkrt.cli.track_outputs import Write, open_outputs, plan_targets
from vkrt.cli.track_prompts import FramePrompt, check_frame, check_prompts, parse_prompts
from vkrt.cli.track_report import Tally, describe, show
from vkrt.cli.track_route import Route, follow, plan_route
from vkrt.errors import PromptError, VideoError

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter
    from vkrt.engines.tracked import TrackedFrame
    from vkrt.media.frames import Frames, OnError

__all__ = ["track"]

ClipPath = Annotated[
    Path | None,
    typer.Argument(metavar="CLIP", help="A video file, or a folder of pictures."),
]
Camera = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Track live frames of this camera instead of a clip; prompts name frames to come. "
        "Ctrl-C ends it and keeps what was written.",
    ),
]
Point = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y@FRAME:OBJ",
        help="A pixel on object OBJ (1 if left out) of frame FRAME (0 if left out); repeatable. "
        "On a later frame of an object, points correct what was tracked.",
    ),
]
Negative = Annotated[
    list[str] | None,
    typer.Option(metavar="X,Y@FRAME:OBJ", help="A pixel not on it; repeatable."),
]
Box = Annotated[
    list[str] | None,
    typer.Option(metavar="X0,Y0,X1,Y1@FRAME:OBJ", help="A box around it; repeatable."),
]
Mask = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE@FRAME:OBJ", help="Its mask, white on black, of the frame's size; repeatable."
    ),
]
Out = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="masks/, a new folder: a PNG a frame, its colours the objects. NAME.mp4 or NAME.gif: "
        "the frames with masks and prompts drawn in. NAME.json: masks as COCO run lengths, boxes, "
        "scores. Repeatable. Without --out and --json: CLIP.tracks.json in the current folder.",
    ),
]
Start = Annotated[
    int | None, typer.Option(min=0, help="First frame; the first with a prompt if not given.")
]
Reverse = Annotated[
    bool, typer.Option("--reverse", help="Go back in time, from the last frame with a prompt.")
]
Both = Annotated[bool, typer.Option("--both", help="Go to the end, then back to frame 0.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many frames; with --both, each way.")
]
NonOverlapping = Annotated[
    bool, typer.Option("--non-overlapping", help="Give each pixel to one object at most.")
]
FillHoles = Annotated[
    int, typer.Option(min=0, help="Fill holes of a mask up to so many low-resolution pixels.")
]
OnDamage = Annotated[
    str,
    typer.Option(
        "--on-error",
        metavar="raise|skip",
        help="A damaged frame ends the run, or is replaced by the frame before it.",
    ),
]


def track(
    clip: ClipPath = None,
    camera: Camera = None,
    point: Point = None,
    negative: Negative = None,
    box: Box = None,
    mask: Mask = None,
    out: Out = None,
    start: Start = None,
    reverse: Reverse = False,
    both: Both = False,
    frames: Limit = None,
    non_overlapping: NonOverlapping = False,
    fill_holes: FillHoles = 0,
    on_error: OnDamage = "raise",
    model: ModelName = "sam2.1-nano",
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    as_json: AsJson = False,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    export: ExportFirst = False,
) -> None:
    """Track objects through a clip or live frames, named by prompts on any frame."""
    check_source(clip, camera, going=reverse or both or start is not None)
    prompts = parse_prompts(point or [], negative or [], box or [], mask or [])
    route = plan_route(prompts, start, reverse, both, frames)
    # The clip may be the current folder, whose path has no name.
    name = "camera" if clip is None else Path(os.path.abspath(clip)).stem
    default = None if as_json else f"{name}.tracks.json"
    inputs = [path for path in (clip, checkpoint) if path is not None]
    targets = plan_targets(out or [], default, inputs, prompts)
    settings: dict[str, Any] = {
        "checkpoint": checkpoint,
        "image_size": image_size,
        "backend": backend,
        "device": device,
        "precision": precision,
        "threads": threads,
        "export": export,
    }
    finish = {"fill_holes": fill_holes, "non_overlapping": non_overlapping}
    with plain_warnings(), open_source(clip, camera, on_error) as source:
        check_prompts(prompts, source, live=camera is not None)
        if camera is None:
            check_frame(route.start, source)
        with open_outputs(targets, source, prompts) as write:
            began = time.perf_counter()
            sam = open_segmenter(model, **settings)
            loading = time.perf_counter() - began
            tally = run(sam, source, prompts, route, camera is not None, finish, write)
        report = describe(sam, source, tally, targets, loading)
    if as_json:
        print_json(report)
    else:
        show(report)


def check_source(clip: Path | None, camera: str | None, going: bool) -> None:
    """Refuse what names no frames, or frames that can't be had in that order.

    Args:
        going: the options ask for another way than from the first prompt on.

    Raises:
        VideoError: saying what to give.
    """
    if (clip is None) == (camera is None):
        raise VideoError("name the frames: give CLIP, a video file or a folder, or --camera N")
    if camera is not None and going:
        raise VideoError("a camera goes on in time: leave --start, --reverse and --both out")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as one line each on stderr, and those of damaged frames whatever is set."""

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"vkrt: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=RuntimeWarning, module=r"vkrt\.media\.")
        warnings.showwarning = tell
        yield


def open_source(clip: Path | None, camera: str | None, on_error: str) -> Frames:
    """Return the frames of a clip, or those of a camera.

    Raises:
        VideoError: they can't be had.
    """
    from vkrt.media import video

    if clip is None:
        return video.open_camera(camera or "0")
    return video.open_video(clip, on_error=cast("OnError", on_error))


def run(
    sam: Segmenter,
    source: Frames,
    prompts: Sequence[FramePrompt],
    route: Route,
    live: bool,
    finish: dict[str, Any],
    write: Write,
) -> Tally:
    """Track, and write frame after frame, in order.

    Raises:
        PromptError: a live source ended before the first frame with a prompt.
    """
    from vkrt.cli.track_spool import Spool

    tally = Tally()
    began = time.perf_counter()
    with ExitStack() as stack:
        if live:
            stopped = stack.enter_context(stoppable())
            stream = sam.stream(**finish)
            found = track_live(stream, source, prompts, route.frames, stopped)
        else:
            found = follow(stack.enter_context(sam.track(source, **finish)), prompts, route)
        stack.enter_context(closing(found))
        total = route.expected(source.expected)
        if route.is_forward:
            drain(found, "tracking", total, write, tally)
        else:
            spool = stack.enter_context(Spool())
            drain(found, "tracking", total, spool.put)
            drain(spool, "writing", len(spool), write, tally)
    tally.seconds = time.perf_counter() - began
    if live:
        check_reached(source, prompts, tally)
    return tally


def drain(
    frames: Iterable[TrackedFrame],
    what: str,
    total: int | None,
    take: Write,
    tally: Tally | None = None,
) -> None:
    """Hand frame after frame on, under a progress bar, and count them."""
    with counted(what, frames, total) as shown:
        for found in shown:
            take(found)
            if tally is not None:
                tally.add(found)


def check_reached(source: Frames, prompts: Sequence[FramePrompt], tally: Tally) -> None:
    """Say which prompts a live source did not come to.

    Raises:
        PromptError: it came to none.
    """
    late = [said.frame for said in prompts if tally.last is None or said.frame > tally.last]
    if tally.last is None:
        raise PromptError(
            f"{source.name} ended before frame {late[0]}, the first with a prompt; prompt an "
            "earlier frame"
        )
    if late:
        told = f"{source.name} ended on frame {tally.last}, before the prompt on frame {late[0]}"
        print(f"vkrt: {told}", file=sys.stderr)
