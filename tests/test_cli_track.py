"""`vkrt track`: what it writes and prints, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Answer, call
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reels import write_clip

import vkrt
from vkrt.cli import track_prompts
from vkrt.cli.mask_folder import MaskFolder
from vkrt.cli.track_route import Route, plan_route
from vkrt.cli.track_spool import Spool
from vkrt.engines.tracked import TrackedFrame
from vkrt.errors import OutputError, PromptError
from vkrt.media import video
from vkrt.media.labels import read_labels
from vkrt.media.rle import Rle, decode

__all__ = ["call"]

COUNT = 6
HEIGHT, WIDTH = 48, 64
PROMPTS = ("--point", "20,24", "--box", "5,5,40,40@2:7")


@pytest.fixture(scope="session")
def weights(pico_checkpoint: Path) -> Path:
    """Return random weights of the smallest model to which objects are there."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(pico_checkpoint)
    tensors["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 3
    path = pico_checkpoint.with_name("seeing.safetensors")
    save_file(tensors, path)
    return path


@pytest.fixture
def track(call: Callable[..., Answer], pico: str, weights: Path) -> Callable[..., Answer]:
    """Return a function that runs `vkrt track` with the smallest model."""
    return lambda *arguments: call("track", "--model", pico, "--checkpoint", weights, *arguments)


@pytest.fixture
def sam(pico: str, weights: Path) -> vkrt.Segmenter:
    """Return the model that `track` runs."""
    return vkrt.load(pico, weights)


@pytest.fixture
def clip() -> np.ndarray:
    """Return frames (6, 48, 64, 3) of a disc that moves over noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    made = np.random.default_rng(0).integers(0, 60, (COUNT, HEIGHT, WIDTH, 3)).astype(np.uint8)
    for index, frame in enumerate(made):
        frame[(x - 20 - 3 * index) ** 2 + (y - 24) ** 2 < 120] = 230, 120, 40
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: np.ndarray) -> Path:
    """Return the current folder, which holds the clip as pictures and nothing else."""
    folder = tmp_path / "here"
    (folder / "clip").mkdir(parents=True)
    for index, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / "clip" / f"{index}.png")
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_tracks(path: str) -> dict[int, dict[int, np.ndarray]]:
    """Return the masks of tracks.json by frame and object, in the order of the file."""
    frames = json.loads(Path(path).read_text())["frames"]
    return {
        each["frame"]: {o["id"]: decode([Rle.from_coco(o["mask"])])[0] for o in each["objects"]}
        for each in frames
    }


def by_frame(found: Iterator[TrackedFrame]) -> dict[int, dict[int, np.ndarray]]:
    return {each.frame: dict(zip(each.obj_ids, each.masks, strict=True)) for each in found}


def same(one: dict[int, dict[int, np.ndarray]], other: dict[int, dict[int, np.ndarray]]) -> None:
    """Hold masks against each other, of which some must show something."""
    assert {frame: set(masks) for frame, masks in one.items()} == {
        frame: set(masks) for frame, masks in other.items()
    }
    for frame, masks in one.items():
        for obj, mask in masks.items():
            np.testing.assert_array_equal(mask, other[frame][obj])
    areas = [mask.mean() for masks in one.values() for mask in masks.values()]
    assert 0 < np.mean(areas) < 1


# What tracking gives.


def test_masks_are_those_of_the_engine(
    track: Callable[..., Answer], sam: vkrt.Segmenter, here: Path, clip: np.ndarray
) -> None:
    answer = track("clip", *PROMPTS, "--out", "masks/", "--out", "t.json", "--json")
    assert answer.code == 0 and answer.err == ""
    with sam.track("clip") as wanted:
        wanted.prompt(0, 1, [[20, 24]], [1])
        wanted.prompt(2, 7, box=[5, 5, 40, 40])
        tracked = by_frame(wanted.propagate())
    assert list(read_tracks("t.json")) == list(range(COUNT))
    same(read_tracks("t.json"), tracked)
    assert files(here / "masks") == {f"{frame:05d}.png" for frame in range(COUNT)}
    for frame, masks in tracked.items():
        labels = np.where(masks[1], 1, np.where(masks[7], 7, 0))
        np.testing.assert_array_equal(read_labels(f"masks/{frame:05d}.png"), labels)
    report = answer.json
    assert report["clip"] == {
        **{"file": "clip", "width": WIDTH, "height": HEIGHT, "frames": COUNT, "fps": None}
    }
    assert (report["frames"], report["first"], report["last"]) == (COUNT, 0, COUNT - 1)
    assert report["objects"] == [1, 7] and report["frames_per_second"] > 0
    assert report["files"] == [
        {"file": "masks", "kind": "masks"},
        {"file": "t.json", "kind": "tracks"},
    ]
    assert files(here) == {"clip", "masks", "t.json"}


def test_a_video_gets_every_output(
    track: Callable[..., Answer], here: Path, clip: np.ndarray
) -> None:
    write_clip(here / "clip.mp4", clip)
    outs = [word for name in ("m", "o.mp4", "o.gif", "t.json") for word in ("--out", name)]
    answer = track("clip.mp4", *PROMPTS, *outs)
    assert answer.code == 0 and answer.err == ""
    assert all(word in answer.out for word in ("64x48", "6 (0 to 5)", "1, 7", "frames/s", "o.gif"))
    assert json.loads(Path("t.json").read_text())["fps"] == 25
    for name in ("o.mp4", "o.gif"):
        with video.open_video(name) as overlay, video.open_video("clip.mp4") as plain:
            assert overlay.length() == COUNT and overlay.size == (HEIGHT, WIDTH)
            for drawn, frame in zip(overlay, plain, strict=True):
                assert np.abs(drawn.astype(int) - frame).mean() > 3
    assert files(here) == {"clip", "clip.mp4", "m", "o.mp4", "o.gif", "t.json"}


def test_without_any_output_the_tracks_go_here(track: Callable[..., Answer], here: Path) -> None:
    answer = track("clip", *PROMPTS)
    assert answer.code == 0 and "clip.tracks.json" in answer.out
    assert files(here) == {"clip", "clip.tracks.json"}
    assert track("clip", *PROMPTS, "--json").json["files"] == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--reverse"], [0, 1, 2, 3]),
        (["--reverse", "--frames", "2"], [2, 3]),
        (["--start", "4"], [4, 5]),
        (["--frames", "2"], [3, 4]),
        (["--both"], [0, 1, 2, 3, 4, 5]),
        (["--both", "--frames", "1"], [2, 3]),
    ],
)
def test_frames_come_in_order_whatever_the_way(
    track: Callable[..., Answer],
    sam: vkrt.Segmenter,
    here: Path,
    clip: np.ndarray,
    arguments: list[str],
    wanted: list[int],
) -> None:
    answer = track("clip", "--point", "28,24@3", *arguments, "--out", "t.json", "--out", "o.gif")
    assert answer.code == 0 and answer.err == ""
    found = read_tracks("t.json")
    assert list(found) == wanted
    with video.open_video("o.gif") as overlay:
        assert overlay.length() == len(wanted)
    with sam.track("clip") as plain:
        plain.prompt(3, 1, [[28, 24]], [1])
        start = 4 if "--start" in arguments else 3
        tracked = {} if "--reverse" in arguments else by_frame(plain.propagate(start))
        if wanted[0] < 3:
            tracked |= by_frame(plain.propagate(2 if "--both" in arguments else 3, reverse=True))
    same(found, {frame: tracked[frame] for frame in wanted})


def test_points_on_a_later_frame_correct(
    track: Callable[..., Answer], sam: vkrt.Segmenter, here: Path, clip: np.ndarray
) -> None:
    given = ("--point", "20,24", "--negative", "40,40@3", "--point", "29,24@3")
    assert track("clip", *given, "--out", "t.json").code == 0
    with sam.track("clip") as plain:
        plain.prompt(0, 1, [[20, 24]], [1])
        tracked = by_frame(plain.propagate(frames=4))
        plain.prompt(3, 1, [[29, 24], [40, 40]], [1, 0])
        tracked |= by_frame(plain.propagate(3))
    same(read_tracks("t.json"), tracked)


def test_a_mask_is_a_prompt(track: Callable[..., Answer], here: Path, clip: np.ndarray) -> None:
    disc = clip[1, :, :, 0] > 128
    Image.fromarray(disc).save("disc@2x.png")
    assert track("clip", "--mask", "disc@2x.png@1:3", "--out", "t.json").code == 0
    found = read_tracks("t.json")
    assert list(found) == [1, 2, 3, 4, 5]
    shown = found[1][3]
    assert (shown & disc).sum() > 0.8 * (shown | disc).sum()


def test_options_reach_the_model(
    track: Callable[..., Answer],
    sam: vkrt.Segmenter,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: dict[str, Any] = {}

    def load(name: str, **settings: Any) -> vkrt.Segmenter:
        received.update(settings, name=name)
        return sam

    real = sam.track
    monkeypatch.setattr(vkrt, "load", load)
    monkeypatch.setattr(sam, "track", lambda clip, **how: received.update(how) or real(clip, **how))
    answer = track(
        *("clip", *PROMPTS, "--non-overlapping", "--fill-holes", "9", "--image-size", "64"),
        *("--threads", "1", "--backend", "eager", "--device", "cpu", "--precision", "fp32"),
        *("--out", "t.json"),
    )
    assert answer.code == 0
    wanted = {"non_overlapping": True, "fill_holes": 9, "image_size": 64, "threads": 1}
    wanted |= {"backend": "eager", "device": "cpu", "precision": "fp32"}
    assert wanted.items() <= received.items()
    assert not any((masks[1] & masks[7]).any() for masks in read_tracks("t.json").values())


def test_the_packaged_model_tracks(call: Callable[..., Answer], here: Path) -> None:
    given = ("--image-size", "128", "--backend", "eager", "--frames", "3", "--out", "m/")
    answer = call("track", "clip", "--point", "20,24", *given, "--json")
    assert answer.code == 0 and answer.json["model"] == "sam2.1-nano"
    assert files(here / "m") == {"00000.png", "00001.png", "00002.png"}


def test_a_terminal_sees_a_bar(
    track: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    assert track("clip", *PROMPTS, "--both", "--out", "t.json").code == 0
    shown = terminal.getvalue()
    assert "tracking" in shown and "writing" in shown and "6/6" in shown and "frames/s" in shown


# A camera.


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch, clip: np.ndarray) -> Callable[..., None]:
    """Return a function that plugs a camera in; it may press Ctrl-C before one of its frames."""

    def plug(ctrl_c: int | None = None) -> None:
        def see() -> Iterator[np.ndarray]:
            for index, frame in enumerate(clip):
                if index == ctrl_c:
                    signal.raise_signal(signal.SIGINT)
                yield frame

        def open_camera(device: str) -> video.Frames:
            assert device == "0"
            return video.open_video(see())

        monkeypatch.setattr(video, "open_camera", open_camera)

    return plug


def test_a_camera_is_tracked_from_the_first_prompt(
    track: Callable[..., Answer],
    sam: vkrt.Segmenter,
    here: Path,
    clip: np.ndarray,
    camera: Callable[..., None],
) -> None:
    camera()
    prompts = ("--point", "23,24@1", "--negative", "1,1@3", "--box", "5,5,40,40@2:7")
    outs = ("--out", "t.json", "--out", "o.gif", "--out", "m/")
    answer = track("--camera", "0", *prompts, *outs, "--json")
    assert answer.code == 0 and answer.err == "" and answer.json["frames"] == 5
    stream = sam.stream()
    said = {
        1: [vkrt.Prompt(1, [[23, 24]])],
        2: [vkrt.Prompt(7, box=[5, 5, 40, 40])],
        3: [vkrt.Prompt(1, [[1, 1]], [0])],
    }
    wanted = {}
    for index in range(1, COUNT):
        found = stream.step(clip[index], said.get(index, []))
        wanted[index] = dict(zip(found.obj_ids, found.masks, strict=True))
    same(read_tracks("t.json"), wanted)
    assert files(here / "m") == {f"{frame:05d}.png" for frame in range(1, COUNT)}


def test_a_camera_ends_after_so_many_frames(
    track: Callable[..., Answer], here: Path, camera: Callable[..., None]
) -> None:
    camera(ctrl_c=4)  # never comes to it
    answer = track("--camera", "0", "--point", "23,24@1", "--frames", "2", "--out", "t.json")
    assert answer.code == 0 and list(read_tracks("t.json")) == [1, 2]


def test_ctrl_c_keeps_what_a_camera_gave(
    track: Callable[..., Answer], here: Path, camera: Callable[..., None]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    camera(ctrl_c=3)
    answer = track("--camera", "0", "--point", "23,24", "--point", "9,9@5:2", "--out", "t.json")
    assert answer.code == 0 and list(read_tracks("t.json")) == [0, 1, 2]
    assert answer.err.count("\n") == 1 and "before the prompt on frame 5" in answer.err
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_camera_that_ends_too_early(
    track: Callable[..., Answer], here: Path, camera: Callable[..., None]
) -> None:
    camera()
    answer = track("--camera", "0", "--point", "23,24@9", "--out", "t.json", "--out", "m/")
    assert answer.code == 2 and answer.err.count("\n") == 1 and "frame 9" in answer.err
    assert files(here) == {"clip"}


# What goes wrong: one line, exit code 2, nothing left behind.


def prepare_bad_files(here: Path) -> None:
    """Write the damaged inputs of BAD."""
    (here / "nothing").mkdir()
    (here / "full").mkdir()
    (here / "full" / "notes").touch()
    (here / "empty.mp4").touch()
    (here / "text.mp4").write_text("no clip")
    Image.new("L", (60, 45)).save(here / "small.png")


POINT = ["--point", "20,24"]
BAD = {
    "no frames": ([*POINT], "--camera N"),
    "both": (["clip", "--camera", "0", *POINT], "--camera N"),
    "a camera back in time": (["--camera", "0", "--reverse", *POINT], "goes on in time"),
    "no prompt": (["clip"], "name an object"),
    "a frame beyond": (
        ["clip", "--point", "1,1@6"],
        "beyond clip; give one from 0 to 5",
    ),
    "a start beyond": (["clip", *POINT, "--start", "6"], "frame 6 is beyond"),
    "a negative start": (["clip", *POINT, "--start", "-1"], "--start"),
    "a point outside": (["clip", "--point", "65,1@2:3"], "object 3 on frame 2: point (65, 1)"),
    "words": (["clip", "--point", "here@2"], "--point wants finite numbers X,Y@FRAME:OBJ"),
    "a frame in words": (["clip", "--point", "1,1@two"], "not '1,1@two'"),
    "infinity": (["clip", "--negative", "inf,1"], "--negative wants finite"),
    "two boxes": (["clip", "--box", "1,1,9,9", "--box", "2,2,9,9@0:1"], "2 boxes"),
    "a mask and a point": (["clip", "--mask", "small.png", *POINT], "stands alone"),
    "a mask of another size": (["clip", "--mask", "small.png@1"], "object 1 on frame 1"),
    "no mask": (["clip", "--mask", "no.png"], "no.png"),
    "both ways twice": (["clip", *POINT, "--both", "--reverse"], "exclude each other"),
    "no frames wanted": (["clip", *POINT, "--frames", "0"], "--frames"),
    "no policy": (["clip", *POINT, "--on-error", "panic"], "'panic'"),
    "no clip": (["nowhere.mp4", *POINT], "nowhere.mp4 does not exist"),
    "an empty folder": (["nothing", *POINT], "no pictures"),
    "an empty file": (["empty.mp4", *POINT], "empty.mp4"),
    "a text": (["text.mp4", *POINT], "text.mp4"),
    "another kind": (["clip", *POINT, "--out", "o.avi"], "o.avi must end in"),
    "a full folder": (["clip", *POINT, "--out", "full"], "not empty"),
    "a file as folder": (["clip", *POINT, "--out", "small.png/"], "is a file"),
    "no folder": (["clip", *POINT, "--out", "far/m/"], "does not exist"),
    "no folder for a file": (["clip", *POINT, "--out", "far/t.json"], "does not exist"),
    "the input": (["clip", *POINT, "--out", "clip/"], "input"),
    "one file twice": (["clip", *POINT, "--out", "t.json", "--out", "./t.json"], "another output"),
    "an id beyond": (["clip", "--point", "1,1:256", "--out", "m/"], "object 256"),
    "object 0": (["clip", "--point", "1,1:0", "--out", "m/"], "object 0"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_told_before_the_model_loads(
    call: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(vkrt, "load", load)
    prepare_bad_files(here)
    before = files(here)
    answer = call("track", "--out", "good.json", "--out", "good", *BAD[case][0])
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("vkrt: ") and answer.err.count("\n") == 1
    assert BAD[case][1] in answer.err
    assert files(here) == before


OUTS = ("--out", "m/", "--out", "o.mp4", "--out", "t.json")


def test_a_damaged_frame_leaves_nothing(track: Callable[..., Answer], here: Path) -> None:
    damaged = here / "clip" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    answer = track("clip", *POINT, *OUTS)
    assert answer.code == 2 and answer.out == "" and answer.err.count("\n") == 1
    assert "frame 3 of clip" in answer.err and files(here) == {"clip"}
    answer = track("clip", *POINT, *OUTS, "--on-error", "skip")
    assert answer.code == 0 and "6 (0 to 5)" in answer.out
    assert answer.err.startswith("vkrt: frame 3 of clip") and answer.err.count("\n") == 1
    assert files(here) == {"clip", "m", "o.mp4", "t.json"}


def test_frames_of_another_size_leave_nothing(track: Callable[..., Answer], here: Path) -> None:
    Image.new("RGB", (20, 20)).save(here / "clip" / "4.png")
    Path("t.json").write_text("older")
    answer = track("clip", *POINT, *OUTS, "--both")
    assert answer.code == 2 and answer.err.count("\n") == 1 and "20x20" in answer.err
    assert files(here) == {"clip", "t.json"} and Path("t.json").read_text() == "older"


def test_an_interrupted_clip_leaves_nothing(
    track: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vkrt.media.tracks.TracksWriter.write", interrupt)
    answer = track("clip", *POINT, *OUTS)
    assert answer.code == 130 and answer.err == "vkrt: interrupted\n"
    assert files(here) == {"clip"}


def test_a_missing_pyav_is_named(
    track: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    answer = track("clip", *POINT, "--out", "o.mp4")
    assert answer.code == 2 and "'vkrt[video]'" in answer.err and files(here) == {"clip"}


# The parts.


def test_prompts_of_one_object_on_one_frame_are_joined() -> None:
    found = track_prompts.parse_prompts(
        ["1,2", "3,4@0:1", "5,6@8:2", "7,8:2"], ["9,9@8:2"], ["1,1,5,5@8:2"], []
    )
    said = [(f.frame, f.prompt.obj, f.prompt.points, f.prompt.labels, f.prompt.box) for f in found]
    assert said == [
        (0, 1, [[1, 2], [3, 4]], [1, 1], None),
        (0, 2, [[7, 8]], [1], None),
        (8, 2, [[5, 6], [9, 9]], [1, 0], [1, 1, 5, 5]),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("m.png", ("m.png", (0, 1))),
        ("m.png@7", ("m.png", (7, 1))),
        ("m.png@7:0", ("m.png", (7, 0))),
        ("a@2x:b.png:3", ("a@2x:b.png", (0, 3))),
        ("C:\\m.png", ("C:\\m.png", (0, 1))),
        ("1,2@-3", ("1,2@-3", (0, 1))),
    ],
)
def test_frame_and_object_come_last(text: str, wanted: tuple[str, tuple[int, int]]) -> None:
    assert track_prompts.split(text) == wanted


@given(st.text(max_size=20), st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_any_text_has_a_place(what: str, frame: int, obj: int) -> None:
    assert track_prompts.split(f"{what}@{frame}:{obj}") == (what, (frame, obj))
    try:
        track_prompts.parse_prompts([what], [], [], [])
    except PromptError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("start", "reverse", "wanted"),
    [(None, False, [(4, 1), (6, 2)]), (None, True, [(4, 1), (0, 1)]), (5, False, [(6, 2)])],
)
def test_what_corrects(start: int | None, reverse: bool, wanted: list[tuple[int, int]]) -> None:
    points = ["1,1@0", "1,1@4", "1,1@2:2", "1,1@6:2", "1,1@6:1"]
    prompts = track_prompts.parse_prompts(points, [], ["1,1,5,5@6:1"], [])
    found = plan_route(prompts, start, reverse, False, None).corrections(prompts)
    # Going back, the one of object 2 on frame 2 comes after that on frame 6.
    wanted = [*wanted[:1], (2, 2), *wanted[1:]] if reverse else wanted
    assert [(said.frame, said.prompt.obj) for said in found] == wanted


@pytest.mark.parametrize(
    ("route", "count", "wanted"),
    [
        (Route(2), 10, 8),
        (Route(2), None, None),
        (Route(2, frames=3), None, 3),
        (Route(2, frames=30), 10, 8),
        (Route(2, reverse=True), None, 3),
        (Route(2, both=True), 10, 10),
        (Route(2, both=True, frames=3), 10, 5),
        (Route(2, both=True), None, None),
    ],
)
def test_how_many_frames_to_expect(route: Route, count: int | None, wanted: int | None) -> None:
    assert route.expected(count) == wanted


def test_a_spool_gives_back_in_order() -> None:
    rng = np.random.default_rng(0)
    found = {}
    with Spool() as spool:
        for frame in (5, 9, 3, 5):
            count = frame % 3 + 1
            masks = rng.random((count, 7, 11)) > 0.5
            scores = rng.random((2, count)).astype(np.float32)
            ids = tuple(range(10, 10 + count))
            logits = np.zeros((count, 4, 4), np.float32)
            found[frame] = TrackedFrame(frame, ids, masks, *scores, logits)
            spool.put(found[frame])
        assert len(spool) == 3
        for frame, kept in zip((3, 5, 9), spool, strict=True):
            wanted = found[frame]
            assert (kept.frame, kept.obj_ids) == (frame, wanted.obj_ids)
            for name in ("masks", "scores", "object_scores"):
                np.testing.assert_array_equal(getattr(kept, name), getattr(wanted, name))
                assert getattr(kept, name).dtype == getattr(wanted, name).dtype


LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("there", [False, True])
def test_a_mask_folder_is_whole_or_not_there(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "m"
    if there:
        folder.mkdir()
        (folder / ".keep").touch()
    with pytest.raises(KeyError), MaskFolder(folder) as masks:
        masks.write(0, LABELS)
        raise KeyError
    assert files(tmp_path) == ({"m"} if there else set())
    assert not there or files(folder) == {".keep"}
    with MaskFolder(folder) as masks:
        masks.write(123456, LABELS)
        masks.write(3, LABELS)
        assert not there or not any(not name.startswith(".") for name in files(folder))
        assert there or not folder.exists()
    assert files(folder) - {".keep"} == {"00003.png", "123456.png"}
    np.testing.assert_array_equal(read_labels(folder / "00003.png"), LABELS)


def test_a_mask_folder_taken_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with (
        pytest.raises(OutputError, match=r"is not empty.* is in .*m-2$"),
        MaskFolder(folder) as masks,
    ):
        masks.write(0, LABELS)
        folder.mkdir()
        (folder / "notes").touch()
    # What was tracked may have taken hours.
    assert files(tmp_path) == {"m", "m-2"} and files(folder) == {"notes"}
    assert files(tmp_path / "m-2") == {"00000.png"}


def test_an_empty_mask_folder_filled_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(OutputError, match="is not empty"), MaskFolder(folder) as masks:
        masks.write(0, LABELS)
        (folder / "00000.png").write_bytes(b"somebody's")
    assert files(folder) == {"00000.png", "masks-2"}
    assert (folder / "00000.png").read_bytes() == b"somebody's"
    assert files(folder / "masks-2") == {"00000.png"}


@pytest.mark.parametrize("there", [False, True])
def test_two_do_not_fill_one_mask_folder(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "m"
    if there:
        folder.mkdir()
    with MaskFolder(folder) as masks:
        masks.write(0, LABELS)
        with ThreadPoolExecutor(1) as other:
            refused = other.submit(MaskFolder, folder).exception()
        assert isinstance(refused, OutputError) and "another vkrt is writing" in str(refused)
    assert files(folder) == {"00000.png"} and files(tmp_path) == {"m"}


def test_help_has_an_example_and_json(call: Callable[..., Answer]) -> None:
    answer = call("track", "--help")
    assert answer.code == 0 and "Example: vkrt track" in answer.out and "--json" in answer.out
    assert "track" in call().out
