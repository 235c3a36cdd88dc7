"""The mask decoder of SAM 2: a two-way transformer between prompt tokens and the picture."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.blocks import from_blocks
from vkrt.models.sam2.layers import MLP

__all__ = ["NUM_MASKS", "MaskDecoder"]

# One mask for an unambiguous prompt, then three for whole, part and subpart.
NUM_MASKS = 4
DECODER_LAYERS = 2


class Attention(nn.Module):
    """Multi-head attention whose inner width may be below that of its inputs.

    Here one side is always a handful of tokens, T, and the other may be the thousands of pixels
    of a picture, L. The two methods for that never project the pixels: what the projections of
    pixels would meet is brought to the pixels' own width instead, H * T columns in all.
    """

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def split(self, x: Tensor) -> Tensor:
        """Split heads: (N, T, H * d) to (N, H, T, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # q: (N, Q, C), k and v: (N, K, C) -> (N, Q, C)
        q, k, v = self.split(self.q_proj(q)), self.split(self.k_proj(k)), self.split(self.v_proj(v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def project_pixels(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project pixels (B, L, C) for read_projected: keys (B, H, d, L), values (B, H, L, d)."""
        return self.split(self.k_proj(keys)).transpose(2, 3), self.split(self.v_proj(values))

    def read_projected(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let tokens (N, T, C) attend to one picture's projected pixels: (N, T, C)."""
        count = q.shape[0]
        # All prompts in one product: (H, N * T, d).
        q = self.split(self.q_proj(q) * self.scale).transpose(0, 1).flatten(1, 2)
        # Not keys[0], which runtimes take for a choice at run time and copy.
        share = (q @ keys.flatten(0, 1)).softmax(dim=-1)
        x = (share @ values.flatten(0, 1)).unflatten(1, (count, -1))
        return self.out_proj(x.permute(1, 2, 0, 3).flatten(2))

    def read_pixels(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let tokens (N, T, C) attend to pixels, keys and values (N, L, C): (N, T, C).

        q Wq (k Wk + b)' = (q Wq Wk') k' + a term that is the same for every pixel, which the
        softmax drops; and as its rows sum to 1, values may be projected after the sum.
        """
        q = self.split(self.q_proj(q) * self.scale)
        q = (q @ self.k_proj.weight.unflatten(0, (self.num_heads, -1))).flatten(1, 2)
        share = (q @ keys.transpose(1, 2)).softmax(dim=-1)
        x = (share @ values).unflatten(1, (self.num_heads, -1))
        x = x @ self.v_proj.weight.unflatten(0, (self.num_heads, -1)).transpose(1, 2)
        return self.out_proj(x.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def write_pixels(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let pixels (N, L, C) attend to tokens, keys and values (N, T, C): (N, L, C).

        The projections of q and of the output move to the tokens' side, as in read_pixels.
        """
        k = self.split(self.k_proj(k) * self.scale)
        query_weight = self.q_proj.weight.unflatten(0, (self.num_heads, -1))
        query_bias = self.q_proj.bias.unflatten(0, (self.num_heads, 1, -1))
        columns = (k @ query_weight).flatten(1, 2)
        offset = (k * query_bias).sum(-1).flatten(1).unsqueeze(1)
        share = q @ columns.transpose(1, 2) + offset
        share = share.unflatten(-1, (self.num_heads, -1)).softmax(dim=-1).flatten(2)
        out_weight = self.out_proj.weight.transpose(0, 1).unflatten(0, (self.num_heads, -1))
        # The shares of each head sum to 1: so much in its values adds the bias, with no pass over
        # the pixels.
        v = self.split(self.v_proj(v)) @ out_weight + self.out_proj.bias / self.num_heads
        return share @ v.flatten(1, 2)


class TwoWayBlock(nn.Module):
    """Let tokens attend to themselves and the picture, then the picture to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, num_layers=2)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        token_pe: Tensor,
        image_pe: Tensor,
        projected: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        # tokens, token_pe: (N, T, C); image: (1 or N, L, C); image_pe: (1, L, C)
        if self.first:
            # The tokens are their own position encoding here: no residual, no addition.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        read = self.cross_attn_token_to_image
        if projected is not None:
            tokens = tokens + read.read_projected(tokens + token_pe, *projected)
        else:
            tokens = tokens + read.read_pixels(tokens + token_pe, keys, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        write = self.cross_attn_image_to_token
        image = image + write.write_pixels(keys, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Run the two-way blocks and a last attention of the tokens to the picture."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, first=index == 0)
            for index in range(DECODER_LAYERS)
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def project_pixels(self, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Project pixels (B, L, C) for the first attention to them; no prompt changes this."""
        first = cast(TwoWayBlock, self.layers[0])
        return first.cross_attn_token_to_image.project_pixels(image + image_pe, image)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        image_pe: Tensor,
        projected: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens (N, T, C) and pixels (N, L, C) after they have seen each other.

        projected is what project_pixels gives for the same picture, where it is at hand.
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, projected)
            projected = None
        last = self.final_attn_token_to_image
        attended = last.read_pixels(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class Expand(nn.Module):
    """Apply a 2x2 transposed convolution of stride 2 to pixels (..., C): (..., 4, C_out).

    Its windows do not overlap, so that it is one product; the four come row by row.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        # Under the names, in the shapes and with the first values of nn.ConvTranspose2d.
        convolution = nn.ConvTranspose2d(dim_in, dim_out, kernel_size=2, stride=2)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        return F.linear(x, weight).unflatten(-1, (4, -1)) + self.bias


class MaskDecoder(nn.Module):
    """Predict four masks, their quality and whether the object is there at all."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASKS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            Expand(dim, dim // 4),
            nn.LayerNorm(dim // 4, eps=1e-6),
            nn.GELU(),
            Expand(dim // 4, dim // 8),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, num_layers=3) for _ in range(NUM_MASKS)
        )
        self.iou_prediction_head = MLP(dim, dim, NUM_MASKS, num_layers=3)
        self.pred_obj_score_head = MLP(dim, dim, 1, num_layers=3)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        high_res: tuple[Tensor, Tensor],
        projected: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode N prompts on one picture, or on N; L = G * G pixels of stride 16.

        Args:
            image: (1 or N, L, C) image and mask embedding.
            image_pe: (1, L, C) position encoding of the pixels.
            sparse: (N, P, C) point embeddings.
            high_res: features of stride 4, (1 or N, L, 16, C/8), and 8, (1 or N, L, 4, C/4), in
                block order (vkrt.models.sam2.blocks).
            projected: what transformer.project_pixels gives for one picture; None computes it.

        Returns:
            logits (N, 4, 4G, 4G), predicted IoU (N, 4) in [0, 1], mask tokens (N, 4, C) and
            object score logits (N, 1).
        """
        output_tokens = torch.cat(
            (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        )
        tokens = torch.cat((output_tokens.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        tokens, pixels = self.transformer(tokens, image, image_pe, projected)

        mask_tokens = tokens[:, 2 : 2 + NUM_MASKS]
        logits = self.upscale(pixels, high_res, mask_tokens)
        iou = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        return logits, iou, mask_tokens, self.pred_obj_score_head(tokens[:, 0])

    def upscale(
        self, pixels: Tensor, high_res: tuple[Tensor, Tensor], mask_tokens: Tensor
    ) -> Tensor:
        """Return logits (N, 4, 4G, 4G) of decoded pixels (N, L, C)."""
        expand1, norm, gelu, expand2, gelu_last = self.output_upscaling
        feature_s0, feature_s1 = high_res
        x = gelu(norm(expand1(pixels) + feature_s1))
        x = gelu_last(expand2(x).flatten(2, 3) + feature_s0)
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)],
            dim=1,
        )
        logits = weights @ x.flatten(1, 2).transpose(1, 2)
        return from_blocks(logits, math.isqrt(pixels.shape[1]))
