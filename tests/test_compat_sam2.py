"""vkrt.compat.sam2 behaves as upstream's package does: names, shapes, dtypes, semantics."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vkrt
from vkrt import catalog
from vkrt.compat.sam2 import Sam2Handle, SAM2ImagePredictor, build_sam2
from vkrt.media.image import to_input
from vkrt.media.masks import clean_logits, upsample
from vkrt.media.prompts import PromptBatch


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
    with pytest.raises(RuntimeError, match="use predict"):
        predictor.predict_batch([np.array([[1, 1]])], [np.array([1])])
    predictor.set_image_batch([photo])
    with pytest.raises(vkrt.PromptError, match="1 pictures"):
        predictor.predict_batch([np.array([[1, 1]])] * 2, [np.array([1])] * 2)


def test_unreachable_hub_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path))
    with pytest.raises(vkrt.DownloadError, match=r"sam2\.1_hiera_tiny\.pt"):
        SAM2ImagePredictor.from_pretrained("facebook/sam2.1-hiera-tiny")


POINT, ON = np.array([[70, 40]]), np.array([1])
BOX = np.array([40, 10, 100, 70])


def low_res(predictor: SAM2ImagePredictor, **prompts: Any) -> np.ndarray:
    """Return the logits (1, h, w) of one mask, which are not all the same."""
    logits = predictor.predict(**prompts, multimask_output=False)[2]
    assert logits.std() > 1e-3
    return logits


def test_a_pil_picture_is_taken_as_it_is_stored(model: Sam2Handle, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG", exif=exif)
    picture = Image.open(file)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(photo)
    expected = low_res(predictor, point_coords=POINT, point_labels=ON)
    for given in (picture, np.asarray(picture)):
        predictor.set_image(given)
        assert predictor._orig_hw == [(90, 120)]
        found = low_res(predictor, point_coords=POINT, point_labels=ON)
        np.testing.assert_array_equal(found, expected)
    assert model.segmenter.encode(picture).size == (120, 90)


def test_floats_are_in_0_to_1(model: Sam2Handle, photo: np.ndarray) -> None:
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(photo)
    expected = low_res(predictor, box=BOX)
    predictor.set_image((photo / 255).astype(np.float32))
    np.testing.assert_array_equal(low_res(predictor, box=BOX), expected)
    with pytest.raises(NotImplementedError, match="a photo can't be a dict") as caught:
        predictor.set_image({})
    assert isinstance(caught.value, vkrt.ImageError)
    with pytest.raises(RuntimeError, match="no picture is set") as unset:
        predictor.predict(POINT, ON)
    assert isinstance(unset.value, vkrt.VkrtError)


def test_forms_of_one_box(predictor: SAM2ImagePredictor) -> None:
    expected = low_res(predictor, box=BOX)
    tensor = torch.tensor(BOX)
    for same in (
        {"box": tensor.bfloat16()},
        {"box": tensor.float().requires_grad_()},
        {"box": list(tensor)},
        {"box": BOX[None]},
        {"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0), "box": BOX},
        {"point_coords": BOX.reshape(2, 2), "point_labels": np.array([2, 3])},
    ):
        np.testing.assert_allclose(low_res(predictor, **same), expected, atol=1e-5)


def test_what_upstream_computes_is_computed(predictor: SAM2ImagePredictor) -> None:
    expected = low_res(predictor, box=BOX)
    for odd in (BOX[[2, 3, 0, 1]], BOX[[0, 1, 0, 3]], BOX + 200, BOX - 90):
        assert np.abs(low_res(predictor, box=odd) - expected).max() > 1e-3
    inside = low_res(predictor, point_coords=POINT, point_labels=ON)
    outside = low_res(predictor, point_coords=POINT - 80, point_labels=ON)
    assert np.abs(outside - inside).max() > 1e-3


def test_without_prompts_there_are_masks_too(
    predictor: SAM2ImagePredictor, model: Sam2Handle
) -> None:
    masks, scores, logits = predictor.predict()
    assert (masks.shape, scores.shape, logits.shape) == ((3, 90, 120), (3,), (3, 16, 16))
    # Upstream has no token of a prompt then, not even a pad.
    none = PromptBatch(np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int32), None, False)
    expected = model.segmenter.decode_low_res(predictor._embeddings[0], none)[0]
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)
    pad = PromptBatch(np.zeros((1, 1, 2), np.float32), -np.ones((1, 1), np.int32), None, False)
    padded = model.segmenter.decode_low_res(predictor._embeddings[0], pad)[0]
    assert np.abs(padded - expected).max() > 1e-3


def test_nothing_found_on_one_picture_of_two(model: Sam2Handle, photo: np.ndarray) -> None:
    predictor = SAM2ImagePredictor(model)
    predictor.set_image_batch([photo, photo[:, ::-1]])
    boxes = np.array([[40, 10, 100, 70], [0, 0, 50, 50]])
    masks, scores, _ = predictor.predict_batch(
        box_batch=[boxes, np.zeros((0, 4))], multimask_output=False
    )
    assert [m.shape for m in masks] == [(2, 1, 90, 120), (0, 1, 90, 120)]
    assert [s.shape for s in scores] == [(2, 1), (0, 1)]
    unprompted = predictor.predict_batch(box_batch=[boxes, None], multimask_output=False)
    assert [m.shape for m in unprompted[0]] == [(2, 1, 90, 120), (1, 90, 120)]
    np.testing.assert_array_equal(unprompted[0][0], masks[0])
    # As upstream, predict is of the last picture.
    np.testing.assert_allclose(predictor.predict(multimask_output=False)[2], unprompted[2][1])


def test_the_calls_beneath_predict(predictor: SAM2ImagePredictor) -> None:
    expected = predictor.predict(POINT, ON, BOX, multimask_output=False)
    mask, points, labels, boxes = predictor._prep_prompts(POINT, ON, BOX, expected[2], True)
    assert mask.shape == (1, 1, 16, 16)
    torch.testing.assert_close(points, torch.tensor([[[70 / 120 * 64, 40 / 90 * 64]]]))
    assert (labels.tolist(), boxes.shape) == ([[1]], (1, 2, 2))
    masks, scores, logits = predictor._predict(points, labels, boxes, multimask_output=False)
    assert (masks.dtype, masks.shape) == (torch.bool, (1, 1, 90, 120))
    np.testing.assert_array_equal(masks[0].numpy(), expected[0] > 0)
    np.testing.assert_allclose(scores[0].numpy(), expected[1], atol=1e-6)
    np.testing.assert_allclose(logits[0].numpy(), expected[2], atol=1e-4)
    full = predictor._predict(points, labels, boxes, None, False, return_logits=True)[0]
    shown = predictor._transforms.postprocess_masks(logits, predictor._orig_hw[-1])
    torch.testing.assert_close(full, shown, atol=1e-3, rtol=1e-3)
    assert predictor._prep_prompts(None, None, None, None, True) == (None, None, None, None)


def test_transforms_are_those_of_set_image(model: Sam2Handle, photo: np.ndarray) -> None:
    transforms = SAM2ImagePredictor(model, max_hole_area=9)._transforms
    batch = transforms.forward_batch([photo, photo[:40]])
    assert (batch.shape, batch.dtype) == ((2, 3, 64, 64), torch.float32)
    np.testing.assert_array_equal(batch[0].numpy(), to_input(photo, 64))
    halves = transforms.transform_coords(torch.tensor([[60.0, 45.0]]), True, (90, 120))
    assert halves.tolist() == [[32.0, 32.0]]
    logits = torch.full((1, 1, 16, 16), 5.0)
    logits[0, 0, 4, 4] = -5.0
    logits.requires_grad_()
    filled = transforms.postprocess_masks(logits, (16, 16))
    assert filled[0, 0, 4, 4] == 10.0 and filled.sum() == 255 * 5 + 10
    filled.sum().backward()
    assert logits.grad is not None and logits.grad.sum() == 255


def test_features_may_be_kept_and_set_again(model: Sam2Handle, photo: np.ndarray) -> None:
    """Servers keep _features of pictures and set them with their sizes, in any order."""
    predictor = SAM2ImagePredictor(model)
    kept = []
    for picture in (photo, photo[::-1].copy()):
        predictor.set_image(picture)
        kept.append((predictor._features, low_res(predictor, point_coords=POINT, point_labels=ON)))
    assert np.abs(kept[0][1] - kept[1][1]).max() > 1e-3
    for features, expected in kept:
        other = SAM2ImagePredictor(model)
        other._is_image_set = True
        other._features = features
        other._orig_hw = [(90, 120)]
        other._is_batch = False
        found = low_res(other, point_coords=POINT, point_labels=ON)
        np.testing.assert_array_equal(found, expected)
    # Picture by picture out of a batch, through the host.
    predictor.set_image_batch([photo, photo[::-1].copy()])
    whole = predictor._features
    single = {
        "image_embed": whole["image_embed"][1].unsqueeze(0).cpu(),
        "high_res_feats": [level[1].unsqueeze(0) for level in whole["high_res_feats"]],
    }
    predictor.reset_predictor()
    predictor._features = single
    found = low_res(predictor, point_coords=POINT, point_labels=ON)
    np.testing.assert_allclose(found, kept[1][1], atol=1e-5)
    with pytest.raises(RuntimeError, match="keep the dict that _features gave"):
        predictor._features = {"image_embed": single["image_embed"] + 1}


def test_config_paths_and_overrides_of_ported_code(nano_checkpoint: Path) -> None:
    with pytest.raises(vkrt.VkrtError, match=r"none\.pt"):
        build_sam2(Path("sam2/configs/sam2.1/sam2.1_hiera_t.yaml"), "none.pt")
    built = build_sam2(
        "sam2.1-nano",
        nano_checkpoint,
        hydra_overrides_extra=["++model.image_size=64", "++model.compile_image_encoder=true"],
    )
    assert built.image_size == 64
    assert built.eval().half().float().cpu().requires_grad_(False).train(False) is built
    with pytest.raises(AttributeError, match="its parts are compiled"):
        _ = built.sam_mask_decoder


def test_what_the_handle_has_of_a_module(model: Sam2Handle) -> None:
    assert next(model.parameters()).device == torch.device("cpu")
    import vkrt.compat.sam2 as public

    with pytest.raises(AttributeError, match="a later version brings"):
        _ = public.SAM2AutomaticMaskGenerator


def test_a_script_like_the_image_notebook(model: Sam2Handle, photo: np.ndarray) -> None:
    """A click, the best mask refined by two, a box with a click taken out, boxes at once."""
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(np.array(Image.fromarray(photo).convert("RGB")))
    assert predictor._features["image_embed"].shape[-1] == predictor._bb_feat_sizes[-1][0] == 4
    masks, scores, logits = predictor.predict(
        point_coords=POINT, point_labels=ON, multimask_output=True
    )
    order = np.argsort(scores)[::-1]
    masks, scores, logits = masks[order], scores[order], logits[order]
    assert (scores[:-1] >= scores[1:]).all()
    refined, score, _ = predictor.predict(
        point_coords=np.array([[70, 40], [80, 50]]),
        point_labels=np.array([1, 0]),
        mask_input=logits[np.argmax(scores), :, :][None, :, :],
        multimask_output=False,
    )
    assert (refined.shape, score.shape) == ((1, 90, 120), (1,))
    taken, _, _ = predictor.predict(
        point_coords=np.array([[60, 30]]),
        point_labels=np.array([0]),
        box=BOX,
        multimask_output=False,
    )
    assert taken.shape == (1, 90, 120)
    boxes = np.array([BOX, BOX + 10, [0, 0, 30, 30]])
    several, scores, _ = predictor.predict(
        point_coords=None, point_labels=None, box=boxes, multimask_output=False
    )
    assert (several.shape, scores.shape) == ((3, 1, 90, 120), (3, 1))
    assert [mask.squeeze(0).astype(bool).shape for mask in several] == [(90, 120)] * 3
