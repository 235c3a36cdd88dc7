"""The mask decoder of SAM 2: a two-way transformer between prompt tokens and the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.layers import MLP, LayerNorm2d

__all__ = ["NUM_MASKS", "MaskDecoder"]

# One mask for an unambiguous prompt, then three for whole, part and subpart.
NUM_MASKS = 4
DECODER_LAYERS = 2


class Attention(nn.Module):
    """Multi-head attention whose inner width may be below that of its inputs."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # q: (N, Q, C), k and v: (N, K, C) -> (N, Q, C)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))


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
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        # tokens, token_pe: (N, T, C); image, image_pe: (N, H*W, C)
        if self.first:
            # The tokens are their own position encoding here: no residual, no addition.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, keys, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(keys, tokens + token_pe, tokens)
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

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (N, T, C) and picture (N, H*W, C) after they have seen each other."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class MaskDecoder(nn.Module):
    """Predict four masks, their quality and whether the object is there at all."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASKS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
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
        dense: Tensor,
        high_res: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode N prompts on one picture, or on N.

        Args:
            image: (1 or N, C, H, W) image embedding.
            image_pe: (1, C, H, W) its position encoding.
            sparse: (N, P, C) point embeddings.
            dense: (N, C, H, W) mask embeddings.
            high_res: conv_s0 and conv_s1 of the finer maps, (1 or N, C/8, 4H, 4W) and
                (1 or N, C/4, 2H, 2W).

        Returns:
            logits (N, 4, 4H, 4W), predicted IoU (N, 4) in [0, 1], mask tokens (N, 4, C) and
            object score logits (N, 1).
        """
        count, (height, width) = sparse.shape[0], image.shape[2:]
        output_tokens = torch.cat(
            (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        )
        tokens = torch.cat((output_tokens.expand(count, -1, -1), sparse), dim=1)
        source = (image + dense).flatten(2).transpose(1, 2)
        tokens, source = self.transformer(tokens, source, image_pe.flatten(2).transpose(1, 2))

        mask_tokens = tokens[:, 2 : 2 + NUM_MASKS]
        source = source.transpose(1, 2).reshape(count, -1, height, width)
        logits = self.upscale(source, high_res, mask_tokens)
        iou = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        return logits, iou, mask_tokens, self.pred_obj_score_head(tokens[:, 0])

    def upscale(
        self, source: Tensor, high_res: tuple[Tensor, Tensor], mask_tokens: Tensor
    ) -> Tensor:
        """Return logits (N, 4, 4H, 4W) of a decoded picture (N, C, H, W)."""
        expand1, norm, gelu, expand2, gelu_last = self.output_upscaling
        feature_s0, feature_s1 = high_res
        x = gelu(norm(expand1(source) + feature_s1))
        x = gelu_last(expand2(x) + feature_s0)
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)],
            dim=1,
        )
        return (weights @ x.flatten(2)).unflatten(2, x.shape[2:])
