"""The text encoder of CLIP: a prompt as one embedding for each token, and as one of it all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sd35.config import ClipConfig

__all__ = ["ClipText"]


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), what the first CLIP took for a GELU."""
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Embeddings(nn.Module):
    """Embed tokens by what they are and where they stand."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.position_embedding = nn.Embedding(config.length, config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        # tokens: (B, N) -> (B, N, C)
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class SelfAttention(nn.Module):
    """Let tokens attend to those before them."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # x: (B, N, C), mask: (N, N) -> (B, N, C)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(read.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Run the two linear layers that follow an attention."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Run one layer of the transformer, normalized before each part."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """Run all layers."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the last layer but one and the last one give, each (B, N, C)."""
        length = x.shape[1]
        # Made anew each time: a stored one would be one more tensor that no checkpoint has.
        mask = x.new_full((length, length), float("-inf")).triu(1)
        before = x
        for layer in self.layers:
            before, x = x, layer(x, mask)
        return before, x


class TextModel(nn.Module):
    """Hold what every CLIP text encoder has; only the checkpoints' names ask for this level."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.dim)


class ClipText(nn.Module):
    """Encode prompts as CLIP does (https://arxiv.org/abs/2103.00020).

    Parameters are named as in transformers' CLIPTextModelWithProjection.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.dim, config.projection_dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the tokens and of the prompts.

        Args:
            tokens: (B, N) int64. The end of the text has the largest id of all, so that the first
                largest one is where a prompt ends, whatever follows as padding.

        Returns:
            hidden: (B, N, dim) of the last layer but one, not normalized.
            pooled: (B, projection_dim) of the last layer at the end of the text, normalized and
                projected.
        """
        hidden, last = self.text_model.encoder(self.text_model.embeddings(tokens))
        # (B,) -> (B, 1, C), in 32 bits: not every runtime looks for the largest in 64.
        end = tokens.to(torch.int32).argmax(dim=1)
        at = end[:, None, None].expand(-1, 1, last.shape[2])
        pooled = self.text_model.final_layer_norm(last.gather(1, at).squeeze(1))
        return hidden, self.text_projection(pooled)
