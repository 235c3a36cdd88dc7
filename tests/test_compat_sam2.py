"""vkrt.compat.sam2 behaves as upstream's package does: names, shapes, dtypes, semantics."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vkrt
from vkrt import catalog
from vkrt.compat.sam2 import Sam2Handle, SAM2ImagePredictor, build_sam2
from vkrt.media.masks import clean_logits, upsample


@pytest.fixture(scope="module")
def model(nano_checkpoint: Path) -> Sam2Handle:
    return build_sam2(
        "sam2.1-nano", nano_checkpoint, hydra_overrides_extra=["++model.image_size=64"]
    )


@pytest.fixture
def predictor(model: Sam2Handle, photo: np.ndarray) -> SAM2ImagePredictor:
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(photo)
    return predictor


def test_upstream_arguments_are_there() -> None:
    wanted = {
        build_sam2: "config_file ckpt_path device mode hydra_overrides_extra apply_postprocessing",
        SAM2ImagePredictor: "sam_model mask_threshold max_hole_area max_sprinkle_area",
        SAM2ImagePredictor.predict: "self point_coords point_labels box mask_input "
        "multimask_output return_logits normalize_coords",
        SAM2ImagePredictor.predict_batch: "self point_coords_batch point_labels_batch box_batch "
        "mask_input_batch multimask_output return_logits normalize_coords",
    }
    for function, names in wanted.items():
        given = [p for p in inspect.signature(function).parameters if p != "kwargs"]
        assert given == names.split()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/sam2.1/sam2.1_hiera_b+.yaml", "sam2.1-base-plus"),
        ("configs/sam2/sam2_hiera_l.yaml", "sam2-large"),
        ("sam2_hiera_s.yaml", "sam2-small"),
        ("facebook/sam2.1-hiera-tiny", "sam2.1-tiny"),
    ],
)
def test_config_names(path: str, name: str) -> None:
    assert catalog.find(path).name == name


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1)])
def test_predict(predictor: SAM2ImagePredictor, multimask: bool, count: int) -> None:
    masks, scores, logits = predictor.predict(
        point_coords=np.array([[70, 40]]),
        point_labels=np.array([1]),
        multimask_output=multimask,
    )
    assert masks.shape == (count, 90, 120)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert scores.shape == (count,)
    assert logits.shape == (count, 16, 16)
    assert np.abs(logits).max() <= 32


def test_predict_equals_the_native_interface(predictor: SAM2ImagePredictor) -> None:
    masks, scores, _ = predictor.predict(np.array([[70, 40]]), np.array([1]))
    out = predictor._embeddings[0].predict(points=[[70, 40]])
    np.testing.assert_allclose(scores, out.scores)
    np.testing.assert_array_equal(masks.astype(bool), out.masks)


def test_boxes_come_with_a_batch_axis(predictor: SAM2ImagePredictor) -> None:
    boxes = np.array([[10, 10, 60, 60], [50, 20, 100, 80]])
    masks, scores, logits = predictor.predict(box=boxes, multimask_output=False)
    assert (masks.shape, scores.shape) == ((2, 1, 90, 120), (2, 1))
    assert logits.shape == (2, 1, 16, 16)
    assert predictor.predict(box=boxes[:1], multimask_output=False)[0].shape == (1, 90, 120)


def test_logits_mask_input_and_normalized_coordinates(predictor: SAM2ImagePredictor) -> None:
    point, label = np.array([[60, 45]]), np.array([1])
    logits, _, low_res = predictor.predict(point, label, return_logits=True)
    masks, _, _ = predictor.predict(point, label)
    np.testing.assert_array_equal(masks, (logits > 0).astype(np.float32))
    halves, _, _ = predictor.predict(np.array([[0.5, 0.5]]), label, normalize_coords=False)
    np.testing.assert_array_equal(halves, masks)
    refined, _, _ = predictor.predict(point, label, mask_input=low_res[:1], return_logits=True)
    assert np.abs(refined - logits).max() > 1e-3


def test_batch_equals_single_pictures(model: Sam2Handle, photo: np.ndarray) -> None:
    pictures = [photo, np.ascontiguousarray(photo[:50, ::-1])]
    points = [np.array([[70, 40]]), np.array([[20, 20]])]
    labels = [np.array([1]), np.array([1])]
    predictor = SAM2ImagePredictor(model)
    predictor.set_image_batch(pictures)
    masks, scores, logits = predictor.predict_batch(points, labels)
    assert [m.shape for m in masks] == [(3, 90, 120), (3, 50, 120)]
    for index, picture in enumerate(pictures):
        predictor.set_image(Image.fromarray(picture))
        single = predictor.predict(points[index], labels[index])
        np.testing.assert_allclose(scores[index], single[1], atol=1e-5)
        np.testing.assert_allclose(logits[index], single[2], atol=1e-4)


def test_holes_and_sprinkles(model: Sam2Handle, photo: np.ndarray) -> None:
    point, label = np.array([[70, 40]]), np.array([1])
    cleaning = SAM2ImagePredictor(model, max_hole_area=20, max_sprinkle_area=20)
    cleaning.set_image(photo)
    plain = SAM2ImagePredictor(model)
    plain.set_image(photo)
    cleaned, _, _ = cleaning.predict(point, label, return_logits=True)
    out = plain._embeddings[0].predict(points=point)
    np.testing.assert_allclose(
        cleaned, upsample(clean_logits(out.logits, 0.0, 20, 20), 90, 120), atol=1e-4
    )
    assert np.abs(cleaned - plain.predict(point, label, return_logits=True)[0]).max() > 5


def test_attributes_that_user_code_touches(predictor: SAM2ImagePredictor) -> None:
    assert predictor.device == torch.device("cpu")
    assert predictor.model.image_size == 64
    assert predictor.model.eval().to("cpu") is predictor.model
    assert predictor._orig_hw == [(90, 120)]
    assert predictor.get_image_embedding().shape == (1, 128, 4, 4)
    features = predictor._features
    assert features is not None
    assert [tuple(f.shape) for f in features["high_res_feats"]] == [(1, 16, 16, 16), (1, 32, 8, 8)]
    predictor.reset_predictor()
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.get_image_embedding()
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict(np.array([[1, 1]]), np.array([1]))


def test_postprocessing_is_the_dynamic_choice(nano_checkpoint: Path) -> None:
    overrides = ["++model.image_size=64"]
    on = build_sam2("sam2.1-nano", nano_checkpoint, hydra_overrides_extra=overrides)
    off = build_sam2(
        "sam2.1-nano",
        nano_checkpoint,
        hydra_overrides_extra=overrides,
        apply_postprocessing=False,
    )
    assert on.dynamic_multimask_via_stability
    assert not off.dynamic_multimask_via_stability


def test_bad_calls(model: Sam2Handle, predictor: SAM2ImagePredictor, photo: np.ndarray) -> None:
    with pytest.raises(vkrt.PromptError, match="point_labels"):
        predictor.predict(np.array([[1, 1]]))
    with pytest.raises(vkrt.UnknownModelError, match="override"):
        build_sam2("sam2.1-nano", hydra_overrides_extra=["++model.memory_attention=x"])
    with pytest.raises(ValueError, match="only infers"):
        build_sam2("sam2.1-nano", mode="train")
    with pytest.raises(RuntimeError, match="predict"):
        predictor.predict_batch([np.array([[1, 1]])], [np.array([1])])
    predictor.set_image_batch([photo])
    with pytest.raises(vkrt.PromptError, match="1 pictures"):
        predictor.predict_batch([np.array([[1, 1]])] * 2, [np.array([1])] * 2)


def test_unreachable_hub_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path))
    with pytest.raises(vkrt.DownloadError, match=r"sam2\.1_hiera_tiny\.pt"):
        SAM2ImagePredictor.from_pretrained("facebook/sam2.1-hiera-tiny")
