"""The image engine: on a fake backend what it moves, on the eager one what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vkrt
from vkrt import catalog
from vkrt.backends.eager import EagerBackend
from vkrt.backends.fake import FakeBackend
from vkrt.engines.sam2_image import Segmenter
from vkrt.media.masks import upsample
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.options import Options
from vkrt.stage import Program, Stage

CONFIG = catalog.find("sam2.1-nano", 64).config


def fake(
    cache: int = 1 << 30, batch_size: int = 4, weights: str = "weights"
) -> tuple[Segmenter, FakeBackend]:
    """Return a segmenter whose backend computes nothing."""
    with torch.device("meta"):
        stages = image_stages(Sam2(CONFIG))
    backend = FakeBackend()
    segmenter = Segmenter(
        "sam2.1-nano", CONFIG, stages, backend, weights, cache, batch_size=batch_size
    )
    return segmenter, backend


def same_weights(cache: int = 0, precision: str = "fp32") -> Segmenter:
    """Return a segmenter on eager PyTorch, always with the same random weights."""
    torch.manual_seed(0)
    stages = image_stages(Sam2(CONFIG))
    backend = EagerBackend(Options(precision=precision))
    return Segmenter("sam2.1-nano", CONFIG, stages, backend, "weights", cache)


@pytest.fixture(scope="module")
def eager() -> Segmenter:
    """Return one that keeps what it encoded."""
    return same_weights(cache=1 << 30)


def other_photo(index: int, height: int = 50, width: int = 70) -> np.ndarray:
    """Return a photo of noise, another for each index."""
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_shapes_of_one_prompt(photo: np.ndarray) -> None:
    segmenter, _ = fake()
    out = segmenter.encode(photo).predict(points=[[10, 10]], labels=[1])
    assert out.masks.shape == (3, 90, 120)
    assert out.masks.dtype == bool
    assert out.logits.shape == (3, 16, 16)
    for scores in (out.scores, out.stability, out.magnitude, out.areas):
        assert scores.shape == (3,)
    assert out.object_scores.shape == (1,)
    assert out.best == out.scores.argmax()


@pytest.mark.parametrize(("multimask", "kept"), [(True, 3), (False, 1)])
def test_shapes_of_a_batch(photo: np.ndarray, multimask: bool, kept: int) -> None:
    segmenter, backend = fake()
    embedding = segmenter.encode(photo)
    out = embedding.predict(box=[[1, 1, 9, 9], [5, 5, 20, 30]], multimask=multimask)
    assert out.masks.shape == (2, kept, 90, 120)
    assert out.scores.shape == out.areas.shape == (2, kept)
    assert out.best.shape == (2,)
    assert out.object_scores.shape == (2, 1)
    assert backend.calls["mask_decoder"] == 1


@pytest.mark.parametrize(
    "prompts",
    [{"box": np.zeros((0, 4))}, {"box": []}, {"points": np.zeros((0, 1, 2)), "labels": []}],
)
def test_nothing_found_is_an_answer(photo: np.ndarray, prompts: dict[str, object]) -> None:
    segmenter, backend = fake()
    embedding = segmenter.encode(photo)
    for multimask, kept in ((True, 3), (False, 1)):
        out = embedding.predict(**prompts, multimask=multimask)  # type: ignore[arg-type]
        assert (out.masks.shape, out.masks.dtype) == ((0, kept, 90, 120), bool)
        for scores in (out.scores, out.stability, out.magnitude, out.areas):
            assert scores.shape == (0, kept)
        assert out.logits.shape == (0, kept, 16, 16)
        assert out.object_scores.shape == (0, 1) and out.best.shape == (0,)
    assert "mask_decoder" not in backend.calls


def test_forms_of_a_prompt_give_the_same_masks(eager: Segmenter, photo: np.ndarray) -> None:
    embedding = eager.encode(photo)
    inside = np.zeros((90, 120), bool)
    inside[20:60, 45:95] = True
    box, corners = [45, 20, 95, 60], [[45, 20], [95, 60]]
    wanted = embedding.predict(box=box)
    assert np.ptp(wanted.logits) > 0.1
    same = [
        embedding.predict(points=corners, labels=[2, 3]),
        embedding.predict(box=torch.tensor(box).bfloat16()),
        embedding.predict(box=box, points=[], labels=[]),
    ]
    for found in same:
        np.testing.assert_array_equal(found.logits, wanted.logits)
    refined = embedding.predict(mask=inside)
    for form in (inside.astype(np.uint8) * 255, torch.tensor(inside), inside.astype(float)):
        np.testing.assert_array_equal(embedding.predict(mask=form).logits, refined.logits)
    assert np.abs(refined.logits - wanted.logits).max() > 0.01


def test_prompts_never_encode_again(photo: np.ndarray) -> None:
    segmenter, backend = fake()
    for click in range(5):
        segmenter.encode(photo).predict(points=[[click, click]])
    assert backend.calls == {"image_encoder": 1, "mask_decoder": 5}


def test_the_cache_is_keyed_by_content(photo: np.ndarray) -> None:
    segmenter, backend = fake()
    first = segmenter.encode(photo)
    assert segmenter.encode(photo.copy()) is first
    changed = photo.copy()
    changed[0, 0, 0] ^= 1
    assert segmenter.encode(changed) is not first
    assert segmenter.encode(photo.reshape(120, 90, 3)) is not first
    assert backend.calls["image_encoder"] == 3


def test_the_cache_is_bounded_in_bytes() -> None:
    one = sum(f.nbytes for f in fake()[0].encode(other_photo(0)).features)
    segmenter, backend = fake(cache=2 * one)
    for index in (0, 1, 0, 2, 0, 1):  # 1 is the one that 2 pushes out
        segmenter.encode(other_photo(index))
    assert backend.calls["image_encoder"] == 4
    segmenter, backend = fake(cache=0)
    for _ in range(2):
        segmenter.encode(other_photo(0))
    assert backend.calls["image_encoder"] == 2


def test_a_list_goes_through_in_batches() -> None:
    segmenter, backend = fake(batch_size=3)
    photos = [other_photo(i, 20 + i, 40) for i in range(7)]
    embeddings = segmenter.encode([*photos, photos[0]])
    assert [e.size for e in embeddings] == [(20 + i, 40) for i in range(7)] + [(20, 40)]
    assert embeddings[0] is embeddings[7]
    assert backend.calls["image_encoder"] == 3
    assert segmenter.encode([]) == []


def test_a_batch_equals_single_photos(eager: Segmenter) -> None:
    photos = [other_photo(i, 40 + 10 * i, 90) for i in range(3)]
    together = eager.encode(photos)
    with same_weights() as alone:
        for photo, embedding in zip(photos, together, strict=True):
            wanted = alone.encode(photo)
            for got, single in zip(embedding.features, wanted.features, strict=True):
                torch.testing.assert_close(got, single, rtol=1e-4, atol=1e-5)
                assert got.untyped_storage().nbytes() == got.nbytes


def test_batched_prompts_equal_single_ones(eager: Segmenter, photo: np.ndarray) -> None:
    embedding = eager.encode(photo)
    points = np.array([[[10, 10]], [[70, 40]], [[100, 80]]])
    together = embedding.predict(points=points)
    for index, point in enumerate(points):
        alone = embedding.predict(points=point)
        np.testing.assert_allclose(together.logits[index], alone.logits, atol=1e-4)
        np.testing.assert_allclose(together.scores[index], alone.scores, atol=1e-5)


def test_masks_are_the_thresholded_logits(eager: Segmenter, photo: np.ndarray) -> None:
    out = eager.encode(photo).predict(points=[[70, 40]])
    full = upsample(out.logits, 90, 120)
    assert (out.masks != (full > 0)).mean() < 1e-4
    np.testing.assert_array_equal(out.areas, out.masks.sum((1, 2)))


def test_refinement_takes_earlier_logits(eager: Segmenter, photo: np.ndarray) -> None:
    embedding = eager.encode(photo)
    first = embedding.predict(points=[[70, 40]])
    plain = embedding.predict(points=[[70, 40], [5, 5]], labels=[1, 0], multimask=False)
    refined = embedding.predict(
        points=[[70, 40], [5, 5]], labels=[1, 0], mask=first.logits[first.best], multimask=False
    )
    assert np.abs(refined.logits - plain.logits).max() > 1e-3


def test_results_outlive_the_next_call(eager: Segmenter, photo: np.ndarray) -> None:
    embedding = eager.encode(photo)
    first = embedding.predict(points=[[70, 40]])
    logits, features = first.logits.copy(), [f.clone() for f in embedding.features]
    eager.encode(other_photo(5)).predict(points=[[1, 1]])
    np.testing.assert_array_equal(first.logits, logits)
    for now, before in zip(embedding.features, features, strict=True):
        assert torch.equal(now, before)


def test_embeddings_are_saved_and_loaded(
    eager: Segmenter, photo: np.ndarray, tmp_path: Path
) -> None:
    embedding = eager.encode(photo)
    embedding.save(tmp_path / "e.safetensors")
    loaded = eager.load_embedding(tmp_path / "e.safetensors")
    assert (loaded.size, loaded.key) == (embedding.size, embedding.key)
    np.testing.assert_array_equal(
        loaded.predict(points=[[70, 40]]).logits, embedding.predict(points=[[70, 40]]).logits
    )


def test_embeddings_of_other_weights_are_refused(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    segmenter, _ = fake()
    segmenter.encode(photo).save(path)
    other, _ = fake(weights="others")
    with pytest.raises(vkrt.CheckpointError, match="other weights"):
        other.load_embedding(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(vkrt.CheckpointError, match="not a readable embedding"):
        segmenter.load_embedding(path)
    with pytest.raises(vkrt.CheckpointError, match="no embedding"):
        segmenter.load_embedding(tmp_path / "none.safetensors")


def test_reduced_precision_is_close(eager: Segmenter, photo: np.ndarray) -> None:
    """bf16 errs by what plain bf16 PyTorch does: a few of its 2^-8 steps, not more."""
    half = same_weights(precision="bf16")
    wanted = eager.encode(photo).predict(points=[[70, 40]]).logits
    got = half.encode(photo).predict(points=[[70, 40]]).logits
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 16 * 2**-8 * np.abs(wanted).max()


# Programs.


def test_the_refiner_waits_for_the_first_mask_prompt(photo: np.ndarray) -> None:
    prepared: list[str] = []

    class Noting(FakeBackend):
        def prepare(self, stage: Stage) -> Program:
            prepared.append(stage.name)
            return super().prepare(stage)

    with torch.device("meta"):
        stages = image_stages(Sam2(CONFIG))
    segmenter = Segmenter("sam2.1-nano", CONFIG, stages, Noting())
    embedding = segmenter.encode(photo)
    first = embedding.predict(points=[[10, 10]])
    assert prepared == ["image_encoder", "mask_decoder"]
    for _ in range(2):
        embedding.predict(points=[[10, 10]], mask=first.logits[0])
    assert prepared == ["image_encoder", "mask_decoder", "mask_refiner"]


def test_a_closed_model_says_so(photo: np.ndarray) -> None:
    segmenter, backend = fake()
    with segmenter:
        embedding = segmenter.encode(photo)
    for prompt in ({}, {"mask": np.zeros((16, 16), np.float32)}):
        with pytest.raises(vkrt.BackendError, match="was closed"):
            embedding.predict(points=[[10, 10]], **prompt)
    assert backend.calls == {"image_encoder": 1}
