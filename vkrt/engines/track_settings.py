"""How a clip is tracked."""

from __future__ import annotations

from dataclasses import dataclass

from vkrt.arguments import flag, whole
from vkrt.errors import PromptError

__all__ = ["TrackSettings"]

# A day at 12 frames a second; and what a GPU can hold of encoded frames.
MAX_HISTORY = 1_000_000
MAX_FEATURES = 256


@dataclass(frozen=True)
class TrackSettings:
    """Say how a clip is tracked.

    Attributes:
        history: frames of each object, besides the prompted ones, whose memories are kept on the
            host for corrections and for the way back; from 1 to 1,000,000.
        corrections_condition: later frames are conditioned on a corrected frame too, so that the
            correction survives when the clip is tracked again (upstream's
            add_all_frames_to_correct_as_cond).
        clear_around_prompts: a prompt drops what was tracked around it (upstream's
            clear_non_cond_mem_around_input).
        refine: points refine the answer that was there before them; else they stand alone.
        features: encoded frames that are kept, for prompts one after the other on one frame; from
            1 to 256.
        strict: refuse points outside the frame and boxes with swapped corners; else take them as
            they are.

    Raises:
        PromptError: a value is not one of these.
    """

    history: int = 64
    corrections_condition: bool = True
    clear_around_prompts: bool = False
    refine: bool = True
    features: int = 2
    strict: bool = True

    def __post_init__(self) -> None:
        for name, most in (("history", MAX_HISTORY), ("features", MAX_FEATURES)):
            whole(name, getattr(self, name), 1, most, kind=PromptError)
        for name in ("corrections_condition", "clear_around_prompts", "refine", "strict"):
            flag(name, getattr(self, name), kind=PromptError)
