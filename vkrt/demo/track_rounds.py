"""Simulated tracking: a prompt on the first frame of a clip, then the model's own memories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vkrt.demo.losses import overlap_of, round_loss
from vkrt.demo.prompts import noisy_boxes, sample_clicks
from vkrt.demo.rounds import BOX_LABELS, correction, reduced_precision
from vkrt.demo.track_memory import Modules, Past, Picture, encode, recall
from vkrt.models.sam2.choice import choose_mask, take
from vkrt.models.sam2.prompt_encoder import PAD
from vkrt.models.sam2.video_stages import NO_OBJECT, PADS

__all__ = ["FIGURES", "Lesson", "clip_loss"]

# An object of fewer pixels cannot be learnt, but is not gone either.
LEAST_VISIBLE = 0.0005  # of the picture
# Earlier logits come as upstream feeds them back.
MOST_LOGIT = 32.0
FIGURES = ("first", "tracked", "last", "before", "corrected", "presence")


@dataclass(frozen=True)
class Lesson:
    """Say how a clip is gone through.

    Attributes:
        prompt: what names the objects on the first frame: "click", "box" or "mask".
        correct_at: the frame that is corrected by a click on each object, None for none.
        refine: give the answer along with the click that corrects it.
        since: how many frames earlier than it was the first frame passes for, as the prompt of a
            longer clip may be long ago, which its object pointer tells.
        trust: remember whether an object was truly there, not what its score says.
    """

    prompt: Literal["click", "box", "mask"] = "click"
    correct_at: int | None = None
    refine: bool = False
    since: int = 0
    trust: bool = False


@dataclass(frozen=True)
class Truth:
    """Hold what is true of K objects in T frames.

    masks (T, K, H, W) bool; target (T, K, h, w) in [0, 1]; visible and gone, (T, K) bool: of an
    object of very few pixels neither is true.
    """

    masks: Tensor
    target: Tensor
    visible: Tensor
    gone: Tensor


def make_truth(masks: Tensor, size: int) -> Truth:
    """Return the truth of masks (T, K, H, W), with targets of a side of `size`."""
    target = F.adaptive_avg_pool2d(masks.float(), size)
    pixels = masks.flatten(2).sum(2)
    least = LEAST_VISIBLE * masks.shape[-1] ** 2
    visible = (pixels >= least) & (target > 0.5).flatten(2).any(2)
    return Truth(masks, target, visible, pixels == 0)


@dataclass(frozen=True)
class Said:
    """Hold what is said of N objects: points (N, P, 2) in pixels of the input, labels (N, P).

    earlier is (N, 1, h, w), the logits that the points refine, or None.
    """

    points: Tensor
    labels: Tensor
    earlier: Tensor | None = None

    @property
    def ambiguous(self) -> bool:
        """Tell whether the best of three masks is taken, as an engine does for one point."""
        return self.labels.shape[1] <= PADS

    @property
    def prompted(self) -> Tensor:
        """Return whether anything is said of each object, (N,) bool."""
        return (self.labels != PAD).any(1)


def nothing_said(count: int) -> Said:
    """Return what is said of N objects on a frame without prompts."""
    return Said(torch.zeros(count, PADS, 2), torch.full((count, PADS), PAD))


def padded(points: Tensor, labels: Tensor, earlier: Tensor | None = None) -> Said:
    """Return points and labels with a pad behind them, as an engine gives them."""
    return Said(F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PAD), earlier)


@dataclass(frozen=True)
class Answer:
    """Hold what was decoded for N objects, float32.

    logits (N, 4, h, w), iou (N, 4), score (N, 1); `shown` (N, 1, h, w) are the logits of the
    chosen mask, NO_OBJECT where the object is not there, and pointer is (N, C).
    """

    logits: Tensor
    iou: Tensor
    score: Tensor
    shown: Tensor
    there: Tensor
    pointer: Tensor


@dataclass
class Session:
    """Tracks the objects of one clip, and adds up what there is to learn from it."""

    modules: Modules
    truth: Truth
    lesson: Lesson
    rng: torch.Generator
    past: list[Past] = field(default_factory=list)
    mask_losses: list[Tensor] = field(default_factory=list)
    score_losses: list[Tensor] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """Return the pixels of the model's input for a pixel of the clip."""
        return self.modules.model.config.image_size / self.truth.masks.shape[-1]

    def begin(self, picture: Picture) -> None:
        """Prompt all objects on the first frame."""
        masks = self.truth.masks[0]
        if self.lesson.prompt == "mask":
            self.take_masks(picture)
            return
        if self.lesson.prompt == "click":
            points = sample_clicks(masks, self.rng).unsqueeze(1)
            labels = torch.ones(len(masks), 1, dtype=torch.long)
        else:
            points = noisy_boxes(masks, self.rng).view(-1, 2, 2)
            labels = torch.tensor([BOX_LABELS]).expand(len(masks), -1)
        said = padded(points * self.scale, labels)
        answer = self.decode(picture, picture.image.expand(len(masks), -1, -1), said, 0)
        self.learn(0, answer, said)
        self.note("first", 0, answer)
        self.keep(0, picture, answer, said, conditioning=True)

    def take_masks(self, picture: Picture) -> None:
        """Begin with the true masks of the first frame; nothing is to be learnt there."""
        size = self.modules.model.config.image_size
        masks = F.interpolate(self.truth.masks[0].unsqueeze(1).float(), size, mode="bilinear")
        with reduced_precision():
            given = (masks > 0.5).float()
            logits, pointer, there = self.modules.take_masks(
                picture.image, *picture.high_res, given
            )
            binary = torch.ones(len(given), dtype=torch.int32)
            (memory,) = self.modules.remember(picture.image, logits, there, binary)
        first = -self.lesson.since
        self.past.append(Past(first, memory.float(), pointer.float(), conditioning=True))

    def track(self, frame: int, picture: Picture) -> None:
        """Answer for a frame from what is remembered, and correct it where the lesson says so."""
        memories = recall(self.past, frame, self.modules.model.config.memory)
        with reduced_precision():
            (conditioned,) = self.modules.condition(picture.image, *memories)
        said = nothing_said(self.truth.masks.shape[1])
        answer = self.decode(picture, conditioned, said, frame)
        self.learn(frame, answer, said)
        self.note("tracked", frame, answer)
        if frame == len(self.truth.masks) - 1:
            self.note("last", frame, answer)
        corrected = frame == self.lesson.correct_at
        if corrected:
            self.note("before", frame, answer)
            said = self.correct(frame, answer)
            answer = self.decode(picture, conditioned, said, frame)
            self.learn(frame, answer, said)
            self.note("corrected", frame, answer)
        self.keep(frame, picture, answer, said, conditioning=corrected)

    def correct(self, frame: int, answer: Answer) -> Said:
        """Click where an answer is wrong."""
        masks = self.truth.masks[frame]
        shown = F.interpolate(answer.shown.detach(), masks.shape[-1], mode="bilinear")[:, 0] > 0
        points, labels = correction(shown, masks, self.rng)
        wrong = (shown != masks).flatten(1).any(1, keepdim=True)
        labels = torch.where(wrong, labels, PAD)
        earlier = answer.shown.detach().clamp(-MOST_LOGIT, MOST_LOGIT)
        return padded(points * self.scale, labels, earlier if self.lesson.refine else None)

    def decode(self, picture: Picture, conditioned: Tensor, said: Said, frame: int) -> Answer:
        """Return what the mask decoder says of all objects on a frame."""
        model = self.modules.model
        with reduced_precision():
            logits, iou, tokens, score = model.decode(
                conditioned,
                picture.high_res,
                said.points,
                said.labels,
                said.earlier,
                position=self.modules.position,
            )
            logits, iou, score = logits.float(), iou.float(), score.float()
            there = ~self.truth.gone[frame].unsqueeze(1) if self.lesson.trust else score > 0
            several = torch.full((len(logits),), int(said.ambiguous))
            chosen, speaking = choose_mask(logits, iou, several)
            pointer = model.pointer(take(tokens, speaking), there).float()
        shown = torch.where(there[..., None, None], take(logits, chosen).unsqueeze(1), NO_OBJECT)
        return Answer(logits, iou, score, shown, there, pointer)

    def learn(self, frame: int, answer: Answer, said: Said) -> None:
        """Add the losses of an answer: masks where objects are visible, their scores everywhere."""
        visible, known = (
            self.truth.visible[frame],
            self.truth.visible[frame] | self.truth.gone[frame],
        )
        if visible.any():
            ambiguous = torch.full((int(visible.sum()),), said.ambiguous)
            target = self.truth.target[frame][visible]
            loss = round_loss(answer.logits[visible], answer.iou[visible], target, ambiguous)
            self.mask_losses.append(loss.expand(len(target)))
        if known.any():
            wanted = visible[known].float()
            score = answer.score[known, 0]
            self.score_losses.append(
                F.binary_cross_entropy_with_logits(score, wanted, reduction="none")
            )
            right = (score > 0) == (wanted > 0)
            self.figures.setdefault("presence", []).append(right.float().mean().item())

    def note(self, name: str, frame: int, answer: Answer) -> None:
        """Note the mean IoU of what an answer shows of the visible objects."""
        visible = self.truth.visible[frame]
        if visible.any():
            overlap = overlap_of(answer.shown[visible].detach(), self.truth.target[frame][visible])
            self.figures.setdefault(name, []).append(overlap.mean().item())

    def keep(
        self, frame: int, picture: Picture, answer: Answer, said: Said, conditioning: bool
    ) -> None:
        """Remember an answer."""
        presence = answer.there.float() * 2 - 1
        with reduced_precision():
            (memory,) = self.modules.remember(
                picture.image, answer.shown, presence, said.prompted.int()
            )
        number = frame or -self.lesson.since
        self.past.append(Past(number, memory.float(), answer.pointer, conditioning))

    def loss(self) -> Tensor:
        """Return the mean over all masks, and that over all scores."""
        means = [
            torch.cat(losses).mean() for losses in (self.mask_losses, self.score_losses) if losses
        ]
        return sum(means, torch.zeros(()))


def clip_loss(
    modules: Modules, pixels: Tensor, masks: Tensor, lesson: Lesson, rng: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Track the objects of a clip with the model's own memories.

    Args:
        modules: of the model that learns.
        pixels: (T, 3, H, W) uint8 of any size; the model sees them at its own.
        masks: (T, K, H, W) bool of K objects, all visible on the first frame.
        lesson: how.
        rng: the source of randomness.

    Returns:
        the loss, and what FIGURES names, NaN where there was none: mean IoU on the first frame, on
        those tracked, on the last, on a frame before and after its correction, and how often the
        object score was right.
    """
    session = Session(modules, make_truth(masks, modules.model.config.mask_size), lesson, rng)
    first, *others = encode(modules.model, pixels)
    session.begin(first)
    for frame, picture in enumerate(others, start=1):
        session.track(frame, picture)
    noted = {name: session.figures.get(name, [math.nan]) for name in FIGURES}
    return session.loss(), {name: sum(values) / len(values) for name, values in noted.items()}
