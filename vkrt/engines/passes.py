"""The rows of a step through the transformer: what each is conditioned on, some at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.engines.controlled import Control
from vkrt.engines.guidance import SKIP
from vkrt.engines.patches import from_patches, to_patches
from vkrt.engines.tables import Tables
from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.layout import gate_columns

__all__ = ["Passes"]


class Passes:
    """Run the transformer on the pictures of a step, once for each kind of row.

    Args:
        calls: run the stage mmdit, or mmdit_controlled.
        config: of the transformer.
        tables: of the generation.
        texts: the text of each picture, as an index into the tables, by kind of row.
        skip_layers: blocks that rows of skip-layer guidance leave out.
        control: leads the transformer; None where nothing does.
    """

    def __init__(
        self,
        calls: Calls,
        config: MmditConfig,
        tables: Tables,
        texts: Mapping[str, Sequence[int]],
        skip_layers: Sequence[int] = (),
        control: Control | None = None,
    ) -> None:
        self._calls = calls
        self._tables = tables
        self._texts = texts
        self._gates = [gate for block in skip_layers for gate in gate_columns(config, block)]
        self._control = control

    def velocity(self, step: int, kinds: Sequence[str], latents: np.ndarray) -> np.ndarray:
        """Return (len(kinds) * N, C, h, w) float32: what each row tells of N latents.

        Args:
            step: which of the tables.
            kinds: of the rows; the rows of one kind come together, in the order of the pictures.
            latents: (N, C, h, w) float32.
        """
        count, (height, width) = len(latents), latents.shape[2:]
        rows = [(kind, index) for kind in kinds for index in range(count)]
        patches, at_once = to_patches(latents), self._calls.plan.rows
        parts = [
            self._run(step, rows[start : start + at_once], patches)
            for start in range(0, len(rows), at_once)
        ]
        return from_patches(np.concatenate(parts), height, width)

    def _run(self, step: int, rows: Sequence[tuple[str, int]], patches: np.ndarray) -> np.ndarray:
        """Return the velocities (B, P, patch_dim) of some rows, on the host."""
        texts = [self._texts[kind][index] for kind, index in rows]
        some = self._calls.to_device("mmdit", patches[[index for _, index in rows]])
        skipped = [row for row, (kind, _) in enumerate(rows) if kind == SKIP]
        positions, context = self._tables.positions, self._tables.context[texts]
        given = (some, positions, context, self._modulation(step, texts, skipped))
        if self._control is None:
            (velocity,) = self._calls("mmdit", *given)
            return self._calls.to_host("mmdit", velocity)
        lead = self._control(step, some, positions, texts)
        (velocity,) = self._calls("mmdit_controlled", *given, *lead)
        return self._calls.to_host("mmdit_controlled", velocity)

    def _modulation(self, step: int, texts: list[int], skipped: Sequence[int]) -> Any:
        """Return (B, M) of the rows; the gates of skipped blocks are 0, so that they do nothing."""
        # Chosen by a list, not a slice: a copy, which can be written to.
        modulation = self._tables.modulation[step][texts]
        for row in skipped:
            for gate in self._gates:
                modulation[row, gate] = 0
        return modulation
