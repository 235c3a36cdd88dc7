"""Training to track: as an engine sees it, gradients through time, and runs that go on."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import NAME, PICO

from vkrt import Prompt, catalog
from vkrt.backends.eager import EagerBackend
from vkrt.backends.fake import FakeBackend
from vkrt.demo import track_memory, track_rounds
from vkrt.demo.clips import make_clip
from vkrt.demo.initialize import initialize
from vkrt.demo.prompts import boxes_of, sample_clicks
from vkrt.demo.rounds import normalized
from vkrt.demo.track_memory import Modules, Past, encode, recall
from vkrt.demo.track_recipe import PARTS, TrackRecipe
from vkrt.demo.track_rounds import Answer, Lesson, Session, clip_loss, make_truth
from vkrt.demo.track_start import prepare_memory
from vkrt.demo.track_train import (
    Clips,
    advance,
    build,
    is_of_tracking,
    lesson_of,
    mean_row,
    train_tracking,
)
from vkrt.demo.train import FIRST_TRAINING_SEED, MIN_AREA
from vkrt.engines.sam2_image import Segmenter
from vkrt.memory.bank import BankShape, MemoryBank
from vkrt.models.sam2.config import MemoryConfig
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.models.sam2.video_stages import video_stages
from vkrt.options import Options
from vkrt.weights.sam2 import load_sam2

SIZE = 64
SMALL = TrackRecipe(
    model=NAME,
    image_size=SIZE,
    clip_size=SIZE,
    steps=4,
    clips=1,
    objects=2,
    frames=(3, 4),
    scenes=1,
    scene_objects=2,
    encoder_from=0.5,
)


def make_model(seed: int = 0) -> Sam2:
    """Return a small model with random weights, in which objects are there."""
    torch.manual_seed(seed)
    model = Sam2(PICO.config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(2)
    return model


@pytest.fixture(autouse=True)
def _pico(pico: str) -> None:
    """Put the smallest model into the catalog."""


def test_what_takes_part_is_what_the_bank_recalls() -> None:
    """Frames 0 and 4 are prompted; a memory says which frame it is of."""
    config = MemoryConfig(mem_dim=2, max_obj_ptrs=16)
    bank = MemoryBank(FakeBackend(), BankShape(3, 2, 4, conditioning=2))
    bank.add()
    past = []
    for frame in range(21):
        if frame:
            ours = recall(past, frame, config)
            theirs = bank.recall([0], frame, reverse=False, span=16)
            found = []
            for memories, ages, pointers, offsets, present in (ours, vars(theirs).values()):
                found.append(
                    (
                        {
                            (float(m[0, 0]), int(a))
                            for m, a in zip(memories[0], ages[0], strict=True)
                            if a >= 0
                        },
                        {
                            (float(p[0]), round(float(o), 5))
                            for p, o, there in zip(pointers[0], offsets[0], present[0], strict=True)
                            if there
                        },
                    )
                )
            assert found[0] == found[1] and len(found[0][0]) >= min(frame, 7)
        memory, pointer = torch.full((1, 3, 2), float(frame)), torch.full((1, 4), float(frame))
        past.append(Past(frame, memory, pointer, frame in (0, 4)))
        bank.write(0, frame, memory[0].numpy(), pointer[0].numpy(), frame in (0, 4))


def engine_answers(
    model: Sam2, frames: np.ndarray, prompts: dict[int, list[Prompt]]
) -> list[np.ndarray]:
    """Return the logits (N, h, w) that the streaming engine gives for each frame."""
    stages = {**image_stages(model), **video_stages(model)}
    stream = Segmenter(NAME, PICO.config, stages, EagerBackend(Options())).stream()
    return [stream.step(frame, prompts.get(index, [])).logits for index, frame in enumerate(frames)]


def prompts_of(kind: str, masks: torch.Tensor, clicks: torch.Tensor) -> list[Prompt]:
    """Return what a user says of objects whose masks are (K, H, W)."""
    boxes = boxes_of(masks)
    return [
        Prompt(obj, points=clicks[obj][None].numpy())
        if kind == "click"
        else Prompt(obj, box=boxes[obj].numpy())
        if kind == "box"
        else Prompt(obj, mask=masks[obj].numpy())
        for obj in range(len(masks))
    ]


@pytest.mark.parametrize("kind", ["click", "box", "mask"])
def test_a_session_is_what_the_engine_does(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """In full precision, with a correction on frame 2, every mask that is remembered agrees."""
    for module in (track_memory, track_rounds):
        monkeypatch.setattr(module, "reduced_precision", nullcontext)
    monkeypatch.setattr(track_rounds, "noisy_boxes", lambda masks, _: boxes_of(masks))
    shown: dict[int, Answer] = {}
    keep = Session.keep

    def note(
        self: Session, frame: int, picture: object, answer: Answer, *rest: object, **k: object
    ) -> None:
        shown[frame] = answer
        keep(self, frame, picture, answer, *rest, **k)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "keep", note)
    model = make_model()
    clip = make_clip(3, SIZE, 5)
    masks = torch.from_numpy(clip.labels[:, None] == np.array([1, 2])[None, :, None, None])
    assert masks[0].flatten(1).any(1).all()
    clicks = sample_clicks(masks[0], torch.Generator().manual_seed(5))
    second = torch.tensor([[[40.0, 20.0]], [[11.0, 50.0]]]), torch.tensor([[1], [0]])
    monkeypatch.setattr(track_rounds, "sample_clicks", lambda *_: clicks)
    monkeypatch.setattr(track_rounds, "correction", lambda *_: second)
    pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    with torch.no_grad():
        lesson = Lesson(prompt=kind, correct_at=2)  # type: ignore[arg-type]
        clip_loss(Modules(model), pixels, masks, lesson, torch.Generator())
    fix = [
        Prompt(obj, points=points.numpy(), labels=labels.numpy())
        for obj, (points, labels) in enumerate(zip(*second, strict=True))
    ]
    wanted = engine_answers(model, clip.frames, {0: prompts_of(kind, masks[0], clicks), 2: fix})
    assert sorted(shown) == list(range(kind == "mask", 5))
    for frame, answer in shown.items():
        np.testing.assert_allclose(answer.shown[:, 0].numpy(), wanted[frame], atol=2e-3)
    assert shown[4].there.all() and np.std(wanted[4]) > 1e-3


def test_gradients_reach_every_module_through_time() -> None:
    """The loss of the last frame alone moves what encoded the first one's memory."""
    model = make_model()
    pixels, masks = Clips(replace(SMALL, frames=(4, 4)), 0)[1]
    modules = Modules(model)
    for prompt in ("click", "box", "mask"):
        lesson = Lesson(prompt=prompt, correct_at=2, refine=True)  # type: ignore[arg-type]
        loss, figures = clip_loss(modules, pixels, masks, lesson, torch.Generator().manual_seed(0))
        loss.backward()
        assert loss.isfinite() and 0 <= figures["presence"] <= 1
        assert math.isnan(figures["first"]) == (prompt == "mask")
        assert not math.isnan(figures["corrected"])
    unmoved = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # Biases of keys move all logits of a softmax alike, a mask that is never the best learns
    # nothing, and the others serve where objects are gone.
    spare = (
        "k_proj.bias",
        "qkv.bias",
        "no_obj_",
        "no_mem_pos_enc",
        "mask_downsample",
        "output_hypernetworks_mlps",
        "maskmem_tpos_enc",
    )
    assert not {name for name in unmoved if not any(part in name for part in spare)}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_memories_of_the_first_frame_teach_the_last() -> None:
    model = make_model()
    pixels, masks = Clips(replace(SMALL, frames=(3, 3)), 0)[1]
    rng = torch.Generator().manual_seed(0)
    session = Session(Modules(model), make_truth(masks, PICO.config.mask_size), Lesson(), rng)
    pictures = encode(model, pixels)
    session.begin(pictures[0])
    session.past[0].memory.retain_grad()
    session.mask_losses.clear()
    session.score_losses.clear()
    for frame in (1, 2):
        session.track(frame, pictures[frame])
    session.mask_losses[:-1] = []
    session.loss().backward()
    assert session.past[0].memory.grad is not None and session.past[0].memory.grad.any()


@pytest.mark.parametrize("prompt", ["click", "mask"])
def test_a_prompt_may_pass_for_one_long_ago(prompt: str) -> None:
    """Its memory is as young as ever, but its pointer is told to be old."""
    pixels, masks = Clips(replace(SMALL, frames=(3, 3)), 0)[1]
    lesson = Lesson(prompt=prompt, since=29)  # type: ignore[arg-type]
    modules = Modules(make_model())
    session = Session(modules, make_truth(masks, 16), lesson, torch.Generator().manual_seed(0))
    pictures = encode(modules.model, pixels)
    session.begin(pictures[0])
    session.track(1, pictures[1])
    _, ages, _, offsets, _ = recall(session.past, 2, PICO.config.memory)
    assert ages[0].tolist() == [0, 1]
    assert offsets[0].tolist() == pytest.approx([31 / 15, 1 / 15])


def test_masks_count_where_objects_are_visible_and_scores_where_that_is_known() -> None:
    """Two objects: one is gone on frame 1, the other has two pixels there."""
    masks = torch.zeros(2, 2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 0, 10:30, 10:30] = masks[0, 1, 40:60, 10:30] = True
    masks[1, 1, 40, 10] = True
    truth = make_truth(masks, 16)
    assert truth.visible.tolist() == [[True, True], [False, False]]
    assert truth.gone.tolist() == [[False, False], [True, False]]
    session = Session(Modules(make_model()), truth, Lesson(trust=True), torch.Generator())
    pictures = encode(session.modules.model, torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    session.begin(pictures[0])
    session.track(1, pictures[1])
    assert [len(loss) for loss in session.mask_losses] == [2]
    assert [len(loss) for loss in session.score_losses] == [2, 1]
    # Trusted: the one that is gone is remembered as such, whatever its score says.
    assert torch.equal(session.past[1].pointer[0], session.modules.model.no_obj_ptr[0])
    assert not torch.equal(session.past[1].pointer[1], session.modules.model.no_obj_ptr[0])


def test_a_right_answer_is_not_corrected() -> None:
    masks = torch.zeros(1, 2, SIZE, SIZE, dtype=torch.bool)
    masks[0, :, 16:32, 16:32] = True
    session = Session(
        Modules(make_model()),
        make_truth(masks, 16),
        Lesson(refine=True),
        torch.Generator().manual_seed(0),
    )
    shown = torch.full((2, 1, SIZE, SIZE), -1024.0)
    shown[0, 0, 16:32, 16:32] = 50.0
    empty = torch.zeros(2, 1)
    said = session.correct(0, Answer(shown, empty, empty, shown, empty > 0, empty))
    assert said.labels.tolist() == [[-1, -1], [1, -1]] and said.prompted.tolist() == [False, True]
    x, y = said.points[1, 0].long().tolist()
    assert masks[0, 1, y, x] and said.ambiguous
    assert said.earlier is not None and said.earlier.aminmax() == (-32, 32)


def test_clips_are_drawn_by_index() -> None:
    recipe = replace(SMALL, objects=3, frames=(3, 5), stride=2)
    clips = Clips(recipe, first=5)
    seen = set()
    for index in range(3):
        pixels, masks = clips[index]
        again, same = Clips(recipe, first=3)[index + 2]
        assert torch.equal(pixels, again) and torch.equal(masks, same)
        count = len(pixels)
        assert 3 <= count <= 5 and pixels.shape == (count, 3, SIZE, SIZE)
        assert masks.shape[0] == count and 1 <= masks.shape[1] <= 3
        assert (masks[0].flatten(1).float().mean(1) >= MIN_AREA).all()
        assert not (masks.sum(1) > 1).any()
        whole = make_clip(FIRST_TRAINING_SEED + 5 + index, SIZE, 60)
        images = [frame.transpose(2, 0, 1).tobytes() for frame in whole.frames]
        times = [images.index(frame.numpy().tobytes()) for frame in pixels]
        steps = set(np.diff(times).tolist())
        assert len(steps) == 1 and steps <= {1, 2}
        seen.add((count, *steps))
    assert len(seen) > 1


def test_lessons_vary_and_follow_the_recipe() -> None:
    rng = torch.Generator().manual_seed(0)
    lessons = [lesson_of(SMALL, 0.5, 4, rng) for _ in range(400)]
    kinds = [lesson.prompt for lesson in lessons]
    assert 0.5 < kinds.count("click") / 400 < 0.7 and min(map(kinds.count, ("box", "mask"))) > 50
    frames = [lesson.correct_at for lesson in lessons if lesson.correct_at is not None]
    assert set(frames) == {1, 2, 3} and 60 < len(frames) < 140
    since = [lesson.since for lesson in lessons]
    assert since.count(0) > 150 and max(since) > 32
    assert {lesson.refine for lesson in lessons} == {False, True}
    assert not any(lesson.trust for lesson in lessons) and lesson_of(SMALL, 0.1, 4, rng).trust


def test_what_pictures_do_not_teach_learns_faster_and_the_encoder_later() -> None:
    state = build(SMALL, None)
    shares = {
        id(parameter): group["share"]
        for optimizer in state.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = dict(state.model.named_parameters())
    assert len(shares) == len(named)
    for name in ("memory_attention.norm.weight", "obj_ptr_proj.layers.0.weight", "no_obj_ptr"):
        assert is_of_tracking(name) and shares[id(named[name])] == 1
    for name in ("no_mem_embed", "sam_mask_decoder.obj_score_token.weight"):
        assert not is_of_tracking(name) and shares[id(named[name])] == SMALL.decoder_share
    assert shares[id(named["image_encoder.trunk.pos_embed"])] == SMALL.encoder_share
    modules = Modules(state.model)
    before = {name: value.clone() for name, value in named.items()}
    for step, moves in ((1, False), (2, True)):
        state.step = step
        advance(state, modules, SMALL, [Clips(SMALL, 0)[1]], None)
        moved = {name for name, value in named.items() if not torch.equal(value, before[name])}
        assert any(name.startswith("memory_encoder") for name in moved)
        assert any(name.startswith("image_encoder") for name in moved) == moves
    rates = {group["share"]: group["lr"] for o in state.optimizers for group in o.param_groups}
    assert rates[SMALL.encoder_share] == pytest.approx(SMALL.encoder_share * rates[1.0])


def test_an_interrupted_run_goes_on(tmp_path: Path, pico_checkpoint: Path) -> None:
    recipe = replace(SMALL, fresh=True)
    whole = train_tracking(recipe, tmp_path / "whole", workers=0, start_from=pico_checkpoint)
    train_tracking(recipe, tmp_path / "parts", workers=0, until=2, start_from=pico_checkpoint)
    parts = train_tracking(recipe, tmp_path / "parts", workers=0, start_from=pico_checkpoint)
    start = build(recipe, pico_checkpoint).model.state_dict()
    moved = set()
    for name, value in whole.state_dict().items():
        # Threads may sum in another order; two steps apart from each other would be far more.
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-3, atol=2e-4)
        moved |= set() if torch.equal(value, start[name]) else {name.partition(".")[0]}
    assert {"memory_attention", "memory_encoder", "image_encoder", "sam_mask_decoder"} <= moved


def test_each_part_draws_its_own_clips_and_the_first_begins_anew() -> None:
    assert len({part.seed for part in PARTS}) == len(PARTS)
    assert [part.fresh for part in PARTS] == [True, *[False] * (len(PARTS) - 1)]
    assert PARTS[-1].image_size == catalog.find(PARTS[-1].model).config.image_size


def test_a_mean_leaves_out_what_was_not_measured() -> None:
    rows = [{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 4.0, "c": math.nan}]
    row = mean_row(rows)
    assert (row["a"], row["b"]) == (2, 4) and math.isnan(row["c"])


def test_fresh_memory_modules_begin_where_pictures_end() -> None:
    """A conditioned frame is nearly the picture's own embedding; a pixel looks about its place."""
    torch.manual_seed(0)
    nano = catalog.find("sam2.1-nano", SIZE)
    assert nano.packaged is not None
    model = Sam2(nano.config)
    initialize(model)
    trained = load_sam2(nano.packaged, nano.name)[1].state_dict()
    images = {name: value for name, value in trained.items() if not is_of_tracking(name)}
    model.load_state_dict(images, strict=False)
    frames = torch.from_numpy(make_clip(3, SIZE, 4).frames).permute(0, 3, 1, 2)
    past = [Past(0, torch.randn(1, 16, 32), torch.randn(1, 128), conditioning=True)]
    errors = []
    for prepare in (lambda: None, lambda: prepare_memory(model, normalized(frames, SIZE))):
        prepare()
        with torch.no_grad():
            image = encode(model, frames[:1])[0].image
            memories = recall(past, 1, model.config.memory)
            (conditioned,) = Modules(model).condition(image, *memories)
        errors.append(float((conditioned - image).square().mean() / image.var(1).mean()))
    assert errors[1] < 0.2 and errors[0] > 0.5


@pytest.mark.slow
def test_it_learns_to_follow_one_clip() -> None:
    """The masks of later frames, of which nothing is said, come to fit."""
    recipe = replace(
        SMALL,
        model="sam2.1-nano",
        steps=60,
        frames=(4, 4),
        corrections=0.0,
        encoder_share=0.5,
        encoder_from=0.0,
        fresh=True,
    )
    state = build(recipe, catalog.find("sam2.1-nano").packaged)
    modules = Modules(state.model)
    clips = [Clips(recipe, 0)[1]]
    rows = [advance(state, modules, recipe, clips, None) for _ in range(60)]
    first, last = mean_row(rows[:5]), mean_row(rows[-5:])
    assert first["tracked"] < 0.3 and last["tracked"] > 0.6
    assert last["loss"] < 0.6 * first["loss"]
