"""The independent oracle of the parity tests, the same model that the benchmarks measure."""

from __future__ import annotations

from benchmarks.peers.transformers_sam2 import oracle_config, oracle_model, twin

__all__ = ["oracle_config", "oracle_model", "twin"]
