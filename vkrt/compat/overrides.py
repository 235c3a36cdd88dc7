"""Upstream's hydra overrides: those that change what a prediction is, and those that don't."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vkrt.arguments import shown
from vkrt.errors import UnknownModelError

__all__ = ["IMAGE", "VIDEO", "read_overrides"]

BOOLEANS = {"true": True, "false": False}
# Of the model, and of no effect here: what is compiled, where memory goes, what only training has.
WITHOUT_EFFECT = {
    "clear_non_cond_mem_for_multi_obj",
    "compile_all_components",
    "compile_image_encoder",
    "compile_memory_attention",
    "compile_memory_encoder",
    "compile_prompt_encoder",
    "compile_mask_decoder",
    "forward_backbone_per_frame_for_eval",
    "freeze_image_encoder",
    "num_correction_pt_per_frame",
    "num_frames_to_correct_for_train",
    "num_init_cond_frames_for_train",
    "offload_output_to_cpu_for_eval",
    "prob_to_sample_from_gt_for_train",
    "prob_to_use_box_input_for_train",
    "prob_to_use_pt_input_for_train",
    "rand_frames_to_correct_for_train",
    "rand_init_cond_frames_for_train",
    "teacher_force_obj_scores_for_mem",
    "trim_past_non_cond_mem_for_eval",
    "use_act_ckpt_iterative_pt_sampling",
}
# Fine where they say what is so in any case.
FIXED: Mapping[str, object] = {
    "_target_": None,
    "backbone_stride": 16,
    "directly_add_no_mem_embed": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
    "fixed_no_obj_ptr": True,
    "iou_prediction_use_sigmoid": True,
    "max_obj_ptrs_in_encoder": 16,
    "memory_temporal_stride_for_eval": 1,
    "multimask_max_pt_num": 1,
    "multimask_min_pt_num": 0,
    "multimask_output_for_tracking": True,
    "multimask_output_in_sam": True,
    "non_overlap_masks_for_mem_enc": False,
    "num_maskmem": 7,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "sigmoid_bias_for_mem_enc": -10.0,
    "sigmoid_scale_for_mem_enc": 20.0,
    "use_high_res_features_in_sam": True,
    "use_mask_input_as_output_without_sam": True,
    "use_multimask_token_for_obj_ptr": True,
    "use_obj_ptrs_in_encoder": True,
}
# What a training config has beside its model.
OUTSIDE = ("dataset", "hydra", "launcher", "loss", "optim", "scratch", "submitit", "trainer")


def truth(value: str) -> bool:
    """Return what true or false says.

    Raises:
        ValueError: it is neither.
    """
    if value.lower() not in BOOLEANS:
        raise ValueError(value)
    return BOOLEANS[value.lower()]


# What each override that is known takes.
IMAGE: Mapping[str, Callable[[str], Any]] = {
    "image_size": int,
    "dynamic_multimask_via_stability": truth,
}
TRACKING: Mapping[str, Callable[[str], Any]] = {
    "fill_hole_area": int,
    "binarize_mask_from_pts_for_mem_enc": truth,
    "non_overlap_masks": truth,
    "clear_non_cond_mem_around_input": truth,
    "add_all_frames_to_correct_as_cond": truth,
    "max_cond_frames_in_attn": int,
}
VIDEO: Mapping[str, Callable[[str], Any]] = {**IMAGE, **TRACKING}


def read_overrides(
    overrides: Iterable[str], known: Mapping[str, Callable[[str], Any]] = IMAGE
) -> dict[str, Any]:
    """Return the values that overrides set, by name; those that change nothing are left out.

    Args:
        overrides: such as "++model.image_size=512".
        known: IMAGE or VIDEO: what each override that there may be takes.

    Raises:
        UnknownModelError: one that vkrt does not know, or a value that can't be.
    """
    found: dict[str, Any] = {}
    for override in listed(overrides):
        key, _, value = str(override).strip().lstrip("+~").partition("=")
        name = key.removeprefix("model.").removeprefix("sam_mask_decoder_extra_args.")
        value = value.strip().strip("'\"")
        try:
            if changes_nothing(key, name, value, known):
                continue
            found[name] = known[name](value)
        except (KeyError, ValueError):
            raise UnknownModelError(
                f"override {override!r} is not known; vkrt takes model.NAME=VALUE with true or "
                f"false or a whole number for {', '.join(known)}, and those that change nothing"
            ) from None
    return found


def listed(overrides: Any) -> list[str]:
    """Return overrides as a list.

    Raises:
        UnknownModelError: they are no texts.
    """
    given = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    if isinstance(overrides, str) or not all(isinstance(each, str) for each in given):
        raise UnknownModelError(f"overrides must be a list of texts, not {shown(overrides)}")
    return given


def changes_nothing(
    key: str, name: str, value: str, known: Mapping[str, Callable[[str], Any]]
) -> bool:
    """Tell whether an override changes nothing that vkrt does.

    Args:
        key: all before its "=".
        name: the key without "model.".
        value: all behind the "=".
        known: what is taken.

    Raises:
        ValueError: the value can't be.
    """
    if key.split(".", 1)[0] in OUTSIDE or name in WITHOUT_EFFECT:
        return True
    if name in TRACKING and name not in known:
        # Pictures are not tracked.
        TRACKING[name](value)
        return True
    if name not in FIXED:
        return False
    wanted = FIXED[name]
    said = BOOLEANS.get(value.lower(), value)
    return wanted is None or (said is wanted if isinstance(wanted, bool) else float(said) == wanted)
