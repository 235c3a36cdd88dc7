"""The model as upstream's code holds it: what predictors take and user code asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vkrt.engines.sam2_image import Segmenter

__all__ = ["Sam2Handle"]


class Sam2Handle:
    """Stand where upstream has its model: what predictors take and user code asks.

    Attributes:
        segmenter: the vkrt model.
        image_size: side of the model's input, in pixels.
        mask_threshold: logit above which a pixel is in a mask.
        dynamic_multimask_via_stability: whether an unstable single mask is replaced by the best
            of three.
    """

    mask_threshold = 0.0
    training = False

    def __init__(self, segmenter: Segmenter, dynamic_multimask_via_stability: bool = True) -> None:
        self.segmenter = segmenter
        self.image_size = segmenter.config.image_size
        self.dynamic_multimask_via_stability = dynamic_multimask_via_stability

    @property
    def device(self) -> Any:
        """Return the torch device that the model runs on."""
        import torch

        return torch.device(self.segmenter.device)

    def eval(self) -> Sam2Handle:
        """Return the model itself: it only infers."""
        return self

    def train(self, mode: bool = True) -> Sam2Handle:
        """Return the model itself where it is to infer.

        Raises:
            ValueError: it is to train.
        """
        if mode:
            raise ValueError("vkrt only infers; train with SAM 2's own package")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Sam2Handle:
        """Return the model itself where no gradients are asked for; see train."""
        return self.train(requires_grad)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Give one empty tensor: of parameters code asks where the model is, and as what."""
        import torch

        yield torch.empty(0, device=self.device)

    def half(self) -> Sam2Handle:
        """Return the model itself: its precision is chosen when it is built (precision=...)."""
        return self

    float = bfloat16 = half

    def cpu(self) -> Sam2Handle:
        """Return the model itself where it is on a CPU; see to."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Sam2Handle:
        """Return the model itself where it is on a GPU; see to."""
        return self.to("cuda")

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for names of this kind before there is anything.
        if not name.startswith("__"):
            raise AttributeError(
                f"this model has no {name!r}: its parts are compiled and can't be called one by "
                "one; what it has are device, image_size, mask_threshold and segmenter"
            )
        raise AttributeError(name)

    def to(self, *args: Any, **kwargs: Any) -> Sam2Handle:
        """Return the model itself where it is already there.

        Raises:
            ValueError: another device is asked for; that is chosen when it is built.
        """
        import torch

        for wanted in (*args, *kwargs.values()):
            if not isinstance(wanted, (str, torch.device)):
                continue
            if torch.device(wanted).type != self.device.type:
                raise ValueError(f"built for {self.device}; pass device={wanted!r} to the builder")
        return self
