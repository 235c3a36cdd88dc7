"""Attention of image and context tokens to one another, their queries and keys normalized."""

from __future__ import annotations

from torch import Tensor

from vkrt.kernels.qk_norm_attention.reference import attend

__all__ = ["EPS", "Norms", "qk_norm_attention"]

EPS = 1e-6

# The weights of the norms of queries and of keys, (head_dim,) each; None normalizes neither.
Norms = tuple[Tensor, Tensor] | None


def qk_norm_attention(
    image: Tensor,
    context: Tensor | None,
    image_norms: Norms,
    context_norms: Norms,
    context_out: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return softmax(q k' / sqrt(head_dim)) v over the tokens of context and image together.

    Where there are norms, q and k are x / sqrt(mean(x^2) + 1e-6) * weight of each head.

    Args:
        image: (B, P, 3, heads, head_dim), queries, keys and values of the image.
        context: (B, L, 3, heads, head_dim), those of the context; None where there is none.
        image_norms: of the image's queries and keys.
        context_norms: of the context's.
        context_out: whether what the context's own queries read is wanted.

    Returns:
        (B, P, heads * head_dim) what the image reads, and (B, L, heads * head_dim) what the
        context does, None where it is not wanted; of the dtype of the inputs.

    Raises:
        ValueError: the shapes do not fit one another.
    """
    check(image, context, image_norms, context_norms)
    return attend(image, context, image_norms, context_norms, EPS, context_out)


def check(image: Tensor, context: Tensor | None, image_norms: Norms, context_norms: Norms) -> None:
    """Raise ValueError unless the shapes fit one another."""
    for name, packed in (("image", image), ("context", context)):
        if packed is not None and (packed.ndim != 5 or packed.shape[2] != 3):
            shape = tuple(packed.shape)
            raise ValueError(f"{name} must have shape (B, T, 3, heads, head_dim), not {shape}")
    heads = image.shape[3:]
    if context is not None and (context.shape[0] != image.shape[0] or context.shape[3:] != heads):
        shapes = f"{tuple(image.shape)} and {tuple(context.shape)}"
        raise ValueError(f"image and context must agree in batch, heads and head_dim: {shapes}")
    for name, norms in (("image_norms", image_norms), ("context_norms", context_norms)):
        if norms is not None and any(weight.shape != heads[1:] for weight in norms):
            shapes = " and ".join(str(tuple(weight.shape)) for weight in norms)
            raise ValueError(f"{name} must have a weight for each of {heads[1]} channels: {shapes}")
