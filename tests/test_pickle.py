"""Models, embeddings and tracks on their way to another process: loaded there anew, or refused."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import NAME, PICO

import vkrt
from vkrt import catalog
from vkrt.compat.sam2 import SAM2ImagePredictor, build_sam2
from vkrt.engines.sam2_image import ImageEmbedding, Segmenter

POINT = np.array([[70, 40]])


@pytest.fixture
def loaded(pico: str, pico_checkpoint: Path) -> Segmenter:
    model: Segmenter = vkrt.load(NAME, pico_checkpoint, backend="eager", threads=1)
    return model


def logits_of(embedding: ImageEmbedding) -> np.ndarray:
    logits: np.ndarray = embedding.predict(points=POINT).logits
    assert logits.std() > 1e-3
    return logits


def elsewhere(pickled: bytes, reply: Any) -> None:
    """Answer with an embedding in a process of its own, to which the smallest model is known."""
    catalog._MODELS[NAME] = PICO
    first, second = (pickle.loads(pickled) for _ in range(2))
    # One model serves all that come from it.
    same = first._segmenter is second._segmenter
    reply.put((logits_of(first), first.size, first._segmenter.threads, same))


def test_an_embedding_answers_in_a_spawned_process(loaded: Segmenter, photo: np.ndarray) -> None:
    embedding = loaded.encode(photo)
    context = multiprocessing.get_context("spawn")
    reply = context.SimpleQueue()
    process = context.Process(target=elsewhere, args=(pickle.dumps(embedding), reply))
    process.start()
    logits, size, threads, same = reply.get()
    process.join(60)
    np.testing.assert_allclose(logits, logits_of(embedding), atol=1e-4)
    assert (size, threads, same) == ((90, 120), 1, True)


def test_a_model_is_not_loaded_twice(loaded: Segmenter, photo: np.ndarray) -> None:
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 5000
    assert pickle.loads(pickled) is loaded
    embedding = pickle.loads(pickle.dumps(loaded.encode(photo)))
    expected = logits_of(loaded.encode(photo))
    np.testing.assert_array_equal(logits_of(embedding), expected)
    loaded.close()
    anew = pickle.loads(pickled)
    assert anew is not loaded and anew is pickle.loads(pickled)
    np.testing.assert_array_equal(logits_of(anew.encode(photo)), expected)
    anew.close()


def test_copies_are_the_thing_itself(loaded: Segmenter, photo: np.ndarray) -> None:
    embedding = loaded.encode(photo)
    assert copy.deepcopy(loaded) is copy.copy(loaded) is loaded
    assert copy.deepcopy([embedding])[0] is copy.copy(embedding) is embedding


def test_paths_do_not_depend_on_the_current_folder(
    pico: str, pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.safetensors").write_bytes(pico_checkpoint.read_bytes())
    monkeypatch.chdir(tmp_path)
    model = vkrt.load(NAME, "mine.safetensors", backend="eager")
    pickled = pickle.dumps(model)
    model.close()
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert again.name == NAME
    again.close()
    with (tmp_path / "mine.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(vkrt.CheckpointError, match=r"mine\.safetensors was changed or removed"):
        pickle.loads(pickled)


def test_a_compat_predictor_is_pickled_whole(
    pico: str, pico_checkpoint: Path, photo: np.ndarray
) -> None:
    predictor = SAM2ImagePredictor(build_sam2(NAME, pico_checkpoint, backend="eager"))
    predictor.set_image(photo)
    expected = predictor.predict(POINT, np.array([1]))
    for again in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        found = again.predict(POINT, np.array([1]))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_lives_in_one_process_is_refused_in_a_line(
    loaded: Segmenter, photo: np.ndarray
) -> None:
    unloaded = Segmenter(NAME, PICO.config, loaded.runtimes.now.stages, loaded.runtimes.now.backend)
    for alone, remedy in (
        (loaded.track([photo] * 2), r"embedding\.save"),
        (loaded.stream(), r"embedding\.save"),
        (unloaded, r"load it there.*load_embedding"),
        (unloaded.encode(photo), r"load it there.*load_embedding"),
    ):
        with pytest.raises(vkrt.VkrtError, match=remedy) as caught:
            pickle.dumps(alone)
        assert "\n" not in str(caught.value)


def test_a_track_may_be_copied(loaded: Segmenter, photo: np.ndarray) -> None:
    clip = [photo, np.roll(photo, 3, axis=1), np.roll(photo, 6, axis=1)]
    track = loaded.track(clip)
    track.prompt(0, 1, points=POINT)
    twin = copy.deepcopy(track)
    track.prompt(0, 2, points=POINT - 30)
    assert (track.objects, twin.objects) == ((1, 2), (1,))
    expected = [found.logits[0] for found in track.propagate()]
    track.close()
    for found, one in zip(twin.propagate(), expected, strict=True):
        assert found.obj_ids == (1,)
        np.testing.assert_allclose(found.logits[0], one, atol=1e-4)
    twin.close()
    with pytest.raises(vkrt.VideoError, match="was closed"):
        twin.prompt(0, 1, points=POINT)


def test_a_generator_is_loaded_again(sd35_folder: Path) -> None:
    model = vkrt.load(sd35_folder / "pipeline", backend="eager")
    pickled = pickle.dumps(model)
    assert pickle.loads(pickled) is model
    model.close()
    again = pickle.loads(pickled)
    assert again is not model and again.config == model.config
    again.close()
