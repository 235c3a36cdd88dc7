"""The image engine of SAM 2: encode a photo once, then answer prompts on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any, TypeAlias, overload

import numpy as np

from vkrt.arguments import flag, instance, refuse_unknown, whole
from vkrt.arguments import path as file_path
from vkrt.backends.base import Backend
from vkrt.engines.embedding import (
    EmbeddingHeader,
    feature_maps,
    read_embedding,
    write_embedding,
)
from vkrt.engines.image_embedding import ImageEmbedding
from vkrt.engines.mask_result import Masks, no_answer
from vkrt.engines.origin import Origin, forget, unload
from vkrt.engines.runtime import DeviceArrays, Runtime, Runtimes
from vkrt.engines.sam2_track import Track, TrackSettings
from vkrt.engines.sam2_video import Encode, Stream
from vkrt.engines.tracked import finish_of
from vkrt.engines.tracker import MAX_CONDITIONING, Tracker, TrackerOptions, bank_shape
from vkrt.errors import CheckpointError, OutputError, PromptError
from vkrt.forks import Home
from vkrt.media.image import Photo, to_input
from vkrt.media.masks import binarize, choose, magnitude
from vkrt.media.photo_lists import read_photos, split_batch
from vkrt.media.prompts import PromptBatch
from vkrt.memory.cache import ByteCache
from vkrt.models.sam2.config import Sam2Config
from vkrt.stage import Stage

__all__ = ["ImageEmbedding", "Masks", "Segmenter"]

# What the first click on a photo takes; other stages wait until something needs them, so that a
# new process has its first mask sooner.
AT_ONCE = ("image_encoder", "mask_decoder")
PhotoList: TypeAlias = list[Photo] | tuple[Photo, ...]


class Segmenter:
    """Segment photos with one SAM 2 model; any number of threads may call it.

    Args:
        stages: what it runs, by name.
        backend: runs them, until switch_to gives it another.
        fingerprint: digest of the weights, or what computes it once an embedding is saved or read.

    Attributes:
        name: catalog name of the model.
        config: its shape.
        threads: CPU threads of pre- and post-processing; None is one per core.
        runtimes: what runs it now, and what ran it before.
        origin: how it was loaded, None where vkrt.load did not; pickling it is loading it again.
    """

    def __init__(
        self,
        name: str,
        config: Sam2Config,
        stages: Mapping[str, Stage],
        backend: Backend,
        fingerprint: str | Callable[[], str] = "",
        embedding_cache_bytes: int = 0,
        threads: int | None = None,
        batch_size: int = 4,
    ) -> None:
        self.name = name
        self.config = config
        self._find_fingerprint = fingerprint
        self.threads = threads
        self._batch_size = batch_size
        self._cache: ByteCache[ImageEmbedding] = ByteCache(embedding_cache_bytes)
        self._home = Home()
        self.origin: Origin | None = None
        self.runtimes = Runtimes(Runtime(stages, backend, AT_ONCE))

    @property
    def backend(self) -> str:
        """Return the name of the backend that runs it now."""
        return self.runtimes.now.backend.name

    @property
    def device(self) -> str:
        """Return where it runs now."""
        return self.runtimes.now.backend.device

    @property
    def can_track(self) -> bool:
        """Tell whether the weights or the bundle have the memory modules that tracking needs."""
        return "memory_attention" in self.runtimes.now.stages

    @cached_property
    def _fingerprint(self) -> str:
        found = self._find_fingerprint
        return found if isinstance(found, str) else found()

    def switch_to(
        self, stages: Mapping[str, Stage], backend: Backend, fingerprint: str = ""
    ) -> None:
        """Run on another backend from the next call on; masks agree as far as backends do.

        Calls that run now end where they began, and so do streams and tracks, frame by frame.
        Embeddings go over with the model when they are used next.

        Args:
            stages: the same ones, of the same weights, as that backend takes them.
            backend: runs them.
            fingerprint: of the weights, as the constructor takes it.

        Raises:
            BackendError: the backend can't run them; the model is as it was.
        """
        runtime = Runtime(stages, backend, AT_ONCE)
        # What computes the fingerprint would keep the weights of before.
        self._find_fingerprint = fingerprint
        self.runtimes.replace(runtime)

    @overload
    def encode(self, photo: Photo) -> ImageEmbedding: ...
    @overload
    def encode(self, photo: PhotoList) -> list[ImageEmbedding]: ...

    def encode(self, photo: Photo | PhotoList) -> ImageEmbedding | list[ImageEmbedding]:
        """Encode a photo, or a list of them in batches; one seen before comes from the cache.

        Args:
            photo: whatever vkrt.media.image.read_image takes; a list of such, of any sizes, or
                an array of four dimensions, gives a list. Files and PIL images are turned upright
                as their EXIF says, and prompts and masks are those of the upright photo.

        Raises:
            ImageError: a photo can't be read, and which one; none of a list was encoded then.
        """
        photos, several = split_batch(photo)
        found = self._encode_all(photos)
        return found if several else found[0]

    def _encode_all(self, photos: Sequence[Photo]) -> list[ImageEmbedding]:
        keys: list[str] = []
        known: dict[str, ImageEmbedding] = {}
        waiting: dict[str, np.ndarray] = {}
        for photo in read_photos(photos):
            key = content_key(photo)
            keys.append(key)
            cached = self._cache.get(key)
            if cached is not None:
                known[key] = cached
            elif key not in known:
                waiting[key] = photo
            if len(waiting) == self._batch_size:
                known.update(self._encode_batch(waiting))
                waiting.clear()
        if waiting:
            known.update(self._encode_batch(waiting))
        return [known[key] for key in keys]

    def _encode_batch(self, photos: Mapping[str, np.ndarray]) -> dict[str, ImageEmbedding]:
        side = self.config.image_size
        pixels = np.empty((len(photos), 3, side, side), np.float32)
        for row, photo in zip(pixels, photos.values(), strict=True):
            to_input(photo, side, out=row, threads=self.threads)
        runtime = self.runtimes.begin()
        features = runtime.encode(pixels)
        embeddings = {}
        for index, (key, photo) in enumerate(photos.items()):
            own = runtime.copy_row(features, index) if len(photos) > 1 else features
            arrays = DeviceArrays(own, runtime.backend)
            embedding = ImageEmbedding(self, arrays, photo.shape[:2], key)
            self._cache.put(key, embedding, arrays.nbytes)
            embeddings[key] = embedding
        return embeddings

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Any,
        multimask: bool = True,
        dynamic_multimask: bool = True,
    ) -> Masks:
        """Return the masks of prepared prompts (vkrt.media.prompts) on an embedding."""
        logits, scores, object_scores = self.decode_low_res(
            embedding, prompts, multimask, dynamic_multimask
        )
        count, kept, side = logits.shape[:3]
        flat = logits.reshape(count * kept, side, side)
        height, width = embedding.size
        binary = binarize(flat, height, width, threads=self.threads)
        lead = (count, kept) if prompts.is_batch else (kept,)
        return Masks(
            masks=binary.masks.reshape(*lead, height, width),
            scores=scores.reshape(lead),
            stability=binary.stability.reshape(lead),
            magnitude=magnitude(flat).reshape(lead),
            areas=binary.areas.reshape(lead),
            logits=logits.reshape(*lead, side, side),
            object_scores=object_scores.reshape(*lead[:-1], 1),
        )

    def decode_low_res(
        self,
        embedding: ImageEmbedding,
        prompts: Any,
        multimask: bool = True,
        dynamic_multimask: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits (B, N, h, w), predicted IoU (B, N) and object score logits (B, 1)."""
        instance("embedding", embedding, ImageEmbedding, kind=PromptError)
        multimask = flag("multimask", multimask, kind=PromptError)
        dynamic_multimask = flag("dynamic_multimask", dynamic_multimask, kind=PromptError)
        if not len(instance("prompts", prompts, PromptBatch, kind=PromptError).points):
            return no_answer(self.config.mask_size, multimask)
        runtime = self.runtimes.begin()
        backend = runtime.backend
        stage = runtime.stages["mask_decoder" if prompts.masks is None else "mask_refiner"]
        names = (port.name for port in runtime.feature_ports)
        arrays = dict(zip(names, embedding.arrays.on(backend), strict=True))
        for name in ("points", "labels", "masks"):
            given = getattr(prompts, name)
            if given is not None:
                arrays[name] = backend.from_host(given)
        decoded = runtime.programs[stage.name](*(arrays[port.name] for port in stage.inputs))
        logits, scores, object_scores = map(backend.to_host, decoded)
        logits, scores = choose(logits, scores, multimask, dynamic_multimask)
        return logits, scores, object_scores

    def stream(
        self,
        conditioning: int = 4,
        fill_holes: int = 0,
        non_overlapping: bool = False,
        dynamic_multimask: bool = True,
        binarize_prompts: bool = True,
    ) -> Stream:
        """Return an engine that tracks objects through live frames, in constant memory.

        Args:
            conditioning: prompted frames that an object remembers, from 1 to 1024; beyond them the
                one farthest in time gives way.
            fill_holes: largest hole of a mask that is filled, in low-resolution pixels, up to
                2**31 - 1.
            non_overlapping: give a pixel that several objects claim to the surest one alone.
            dynamic_multimask: where a single mask is unstable, take the best of three instead.
            binarize_prompts: remember prompted frames as the masks that are shown; else, as all
                other frames, as probabilities. (Off, with dynamic_multimask off, is what upstream
                calls apply_postprocessing=False.)

        Raises:
            CheckpointError: the weights or the bundle have no memory modules, or it is an older
                bundle that can't do without dynamic_multimask.
        """
        options = TrackerOptions(dynamic_multimask, binarize_prompts, fill_holes, self.threads)
        finish = finish_of(fill_holes, non_overlapping, self.threads)
        encode, tracker = self._begin_tracking(conditioning, options)
        return Stream(encode, tracker, self.config, finish)

    def track(
        self,
        clip: Any,
        conditioning: int = 4,
        fill_holes: int = 0,
        non_overlapping: bool = False,
        dynamic_multimask: bool = True,
        binarize_prompts: bool = True,
        **settings: Any,
    ) -> Track:
        """Return an engine that tracks objects through a whole clip.

        Args:
            clip: a folder of pictures, a video file, (T, H, W, 3) uint8, or any iterable of
                photos (vkrt.media.video.open_video).
            conditioning, fill_holes, non_overlapping, dynamic_multimask, binarize_prompts: as in
                stream.
            settings: those of TrackSettings.

        Raises:
            VideoError: the clip can't be read.
            CheckpointError: as in stream.
        """
        # Photos alone never need it.
        from vkrt.media.video import open_video

        finish = finish_of(fill_holes, non_overlapping, self.threads)
        refuse_unknown(
            "track", settings, (each.name for each in fields(TrackSettings)), PromptError
        )
        options = TrackerOptions(dynamic_multimask, binarize_prompts, fill_holes, self.threads)
        encode, tracker = self._begin_tracking(conditioning, options)
        chosen = TrackSettings(**settings)
        frames = open_video(clip)
        return Track(encode, tracker, frames, self.config, finish, chosen)

    def _encode_frame(self, runtime: Runtime, pixels: np.ndarray) -> dict[str, Any]:
        """Return the image encoder's device arrays of a model's input (3, S, S), by port name."""
        self.runtimes.begin()
        names = (port.name for port in runtime.feature_ports)
        return dict(zip(names, runtime.encode(pixels[None]), strict=True))

    def _begin_tracking(self, conditioning: int, options: TrackerOptions) -> tuple[Encode, Tracker]:
        """Return what encodes frames and what advances objects by one, both on one runtime."""
        if not self.can_track:
            raise CheckpointError(
                f"this {self.name} was loaded without memory modules, so that it can't track: give "
                "weights that have them, or export the bundle again"
            )
        runtime = self.runtimes.begin()
        wanted = whole("conditioning", conditioning, 1, MAX_CONDITIONING, kind=PromptError)
        shape = bank_shape(self.config, wanted)
        tracker = Tracker(runtime.stages, runtime.programs, runtime.backend, shape, options)
        return partial(self._encode_frame, runtime), tracker

    def host_features(self, embedding: ImageEmbedding) -> dict[str, np.ndarray]:
        """Return the arrays of an embedding by port name, on the host."""
        instance("embedding", embedding, ImageEmbedding, kind=PromptError)
        names = (port.name for port in self.runtimes.now.feature_ports)
        return dict(zip(names, embedding.arrays.on_host(), strict=True))

    def feature_maps(self, embedding: ImageEmbedding) -> dict[str, np.ndarray]:
        """Return the embedding as maps (1, channels, height, width) on the host.

        These are image (stride 16), high_res_s0 (stride 4) and high_res_s1 (stride 8).
        """
        return feature_maps(self.host_features(embedding))

    def save_embedding(self, embedding: ImageEmbedding, path: str | os.PathLike[str]) -> None:
        """Write an embedding; see ImageEmbedding.save."""
        instance("embedding", embedding, ImageEmbedding, kind=PromptError)
        header = EmbeddingHeader(self.name, self._fingerprint, embedding.size, embedding.key)
        target = file_path("path", path, kind=OutputError)
        write_embedding(target, header, self.host_features(embedding))

    def load_embedding(self, path: str | os.PathLike[str]) -> ImageEmbedding:
        """Read an embedding that `save` wrote with the same model and weights.

        Raises:
            CheckpointError: the file is damaged, or of another model or other weights.
        """
        shapes = {
            port.name: tuple(1 if isinstance(d, str) else d for d in port.shape)
            for port in self.runtimes.now.feature_ports
        }
        source = file_path("path", path, kind=CheckpointError)
        header, arrays = read_embedding(source, self.name, self._fingerprint, shapes)
        return self._hold(arrays, header.size, header.key)

    def _hold(
        self, arrays: Mapping[str, np.ndarray], size: tuple[int, int], key: str
    ) -> ImageEmbedding:
        """Return the embedding of what host_features gave, and cache it."""
        runtime = self.runtimes.now
        names = (port.name for port in runtime.feature_ports)
        features = tuple(runtime.backend.from_host(arrays[name]) for name in names)
        embedding = ImageEmbedding(self, DeviceArrays(features, runtime.backend), size, key)
        self._cache.put(key, embedding, embedding.arrays.nbytes)
        return embedding

    def close(self) -> None:
        """Release the cache and what the backend holds; in a forked child there is nothing to."""
        if not self._home.is_here:
            return
        forget(self)
        self._cache.clear()
        self.runtimes.close()

    def __reduce__(self) -> Any:
        return unload(self)

    def __copy__(self) -> Segmenter:
        """Return the model itself: calls do not change it."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Segmenter:
        """Return the model itself: calls do not change it."""
        return self

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def content_key(photo: np.ndarray) -> str:
    """Return a digest of a photo's size and pixels."""
    digest = hashlib.blake2b(np.ascontiguousarray(photo).data, digest_size=16)
    digest.update(repr(photo.shape).encode())
    return digest.hexdigest()
