"""Hydra overrides of ported code: what changes predictions counts, what changes nothing passes."""

from __future__ import annotations

import pytest

from vkrt.compat.overrides import IMAGE, VIDEO, read_overrides
from vkrt.errors import UnknownModelError


def test_what_changes_predictions_is_read() -> None:
    said = [
        "++model.image_size=512",
        "model.fill_hole_area=8",
        "+model.non_overlap_masks='true'",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=False",
        "++model.max_cond_frames_in_attn=-1",
    ]
    assert read_overrides(said, VIDEO) == {
        "image_size": 512,
        "fill_hole_area": 8,
        "non_overlap_masks": True,
        "dynamic_multimask_via_stability": False,
        "max_cond_frames_in_attn": -1,
    }


@pytest.mark.parametrize("known", [IMAGE, VIDEO])
def test_what_changes_nothing_passes(known: dict) -> None:
    said = (
        "++model.compile_image_encoder=true",
        "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictorVOS",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
        "++model.use_mask_input_as_output_without_sam=true",
        "++model.num_maskmem=7",
        "++model.sigmoid_scale_for_mem_enc=20.0",
        "++scratch.train_batch_size=1",
        "++trainer.gpus_per_node=1",
        "hydra.run.dir=.",
        "++model.clear_non_cond_mem_for_multi_obj=true",
    )
    assert read_overrides(said, known) == {}


def test_tracking_means_nothing_to_pictures() -> None:
    assert read_overrides(["++model.fill_hole_area=8", "++model.image_size=64"]) == {
        "image_size": 64
    }
    with pytest.raises(UnknownModelError, match="fill_hole_area=many"):
        read_overrides(["++model.fill_hole_area=many"])


@pytest.mark.parametrize(
    "wrong",
    [
        "++model.num_maskmem=4",
        "++model.num_maskmem=few",
        "++model.pred_obj_scores=false",
        "++model.memory_attention.num_layers=2",
        "++model.image_size=large",
        "++model.non_overlap_masks=maybe",
        "++model.invented=1",
        "image_encoder.trunk=x",
        "",
    ],
)
def test_the_rest_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        read_overrides([wrong], VIDEO)
    assert repr(wrong) in str(caught.value) and "\n" not in str(caught.value)
