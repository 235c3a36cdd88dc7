"""The plan of a generation's memory: what is loaded when, what stays, and the peak to expect."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from vkrt.memory.activations import Shape, activation_numbers, held_numbers

__all__ = ["TILE", "Phase", "Plan", "Planned", "make_plan"]

# The phases in the order in which they run, and the stages of each.
PHASES = {
    "text": ("clip_l", "clip_g"),
    "t5": ("t5",),
    "picture": ("vae_encoder",),
    "conditioning": ("conditioning",),
    "controlnet_conditioning": ("controlnet_conditioning",),
    "positions": ("positions",),
    "sampling": ("controlnet", "mmdit", "mmdit_controlled"),
    "decode": ("vae_decoder",),
}
# What may stay in memory between the phases and between calls, the roomiest choice first. The
# transformer gives way last: every step runs it.
SAMPLING = frozenset(PHASES["sampling"])
SPARING = SAMPLING | {"clip_l", "clip_g", "vae_encoder", "vae_decoder"}
EVERYTHING = SPARING | {"t5", "conditioning", "controlnet_conditioning", "positions"}
KEPT = (EVERYTHING, SPARING, SPARING - {"clip_l", "clip_g"}, SAMPLING, frozenset[str]())
# Without a stated limit; what runs once a generation goes.
DEFAULT = KEPT[1]

NUMBER_BYTES = 4
# Rows that run at once where no limit says how many.
ROWS = 8
# Pictures of more pixels are decoded in tiles, of so many latent pixels a side.
WHOLE_PIXELS = 2 * 1024**2
TILE = 64


@dataclass(frozen=True)
class Planned:
    """State a row of the table of a plan: one stage in its phase; sizes in bytes.

    Attributes:
        phase, stage: names.
        weights: of the stage, in memory at once.
        activations: that it holds besides at its largest.
        fate: "stays", "evicted" behind its phase, or "streamed" from the host block by block.
    """

    phase: str
    stage: str
    weights: int
    activations: int
    fate: str


@dataclass(frozen=True)
class Phase:
    """Say what is in memory during a phase; sizes in bytes.

    Attributes:
        name: as in PHASES.
        stages: that run, with what each holds besides its weights.
        resident: stages that may be loaded.
        weights: of those that are loaded.
        held: arrays that outlive a stage's run.
    """

    name: str
    stages: Mapping[str, int]
    resident: frozenset[str]
    weights: int
    held: int = 0

    @property
    def activations(self) -> int:
        """Return what its stages hold at the largest, one after the other."""
        return self.held + max(self.stages.values(), default=0)

    @property
    def peak(self) -> int:
        """Return the bytes in use at once."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Plan:
    """Say how a generation goes within its memory.

    Attributes:
        phases: by name, in order.
        weights: bytes of the weights by stage, of those that are used.
        kept: stages that stay loaded from phase to phase and from call to call.
        rows: that run through the transformer at once.
        tile: latent pixels along a side of what is decoded at once; None is the whole picture.
        streamed: stages whose blocks come from the host, and the bytes left for their weights.
        limit: that was asked for, in bytes; None where none was.
    """

    phases: Mapping[str, Phase]
    weights: Mapping[str, int]
    kept: frozenset[str]
    rows: int
    tile: int | None
    streamed: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None

    @property
    def peak(self) -> int:
        """Return the bytes in use at once in the fullest phase."""
        return max((phase.peak for phase in self.phases.values()), default=0)

    @property
    def floor(self) -> int:
        """Return the bytes that are needed besides every weight that could be streamed."""
        return max((phase.activations for phase in self.phases.values()), default=0)

    def fits(self, limit: int | None) -> bool:
        """Tell whether no phase needs more than so many bytes; None is no limit."""
        return limit is None or self.peak <= limit

    def resident(self, phase: str) -> frozenset[str]:
        """Return the stages that may be in memory during a phase; those kept if it is not one."""
        known = self.phases.get(phase)
        return self.kept if known is None else known.resident

    def table(self) -> list[Planned]:
        """Return a row for each stage, in the order in which they run."""
        return [
            Planned(phase.name, stage, self._loaded(stage), activations, self._fate(stage))
            for phase in self.phases.values()
            for stage, activations in phase.stages.items()
        ]

    def _loaded(self, stage: str) -> int:
        return min(self.weights[stage], self.streamed.get(stage, self.weights[stage]))

    def _fate(self, stage: str) -> str:
        if stage in self.streamed:
            return "streamed"
        return "stays" if stage in self.kept else "evicted"


def make_plan(
    shape: Shape,
    weights: Mapping[str, int],
    used: Collection[str],
    limit: int | None = None,
    number_bytes: Mapping[str, int] | None = None,
) -> Plan:
    """Plan a generation: the roomiest way that fits the limit, else one that streams weights.

    Without a limit, what runs once a generation (T5, the adaLN layers, the positions) is evicted
    after it, up to 8 rows run at once, and pictures above 2 megapixels are decoded in tiles. With
    one, as much as fits stays loaded, and all rows run at once if they can.

    Args:
        shape: of the generation; its `rows` are all of a step, its `tile` is not read.
        weights: bytes of the weights of each stage.
        used: stages that the generation runs.
        limit: bytes that it may use; None is no limit.
        number_bytes: bytes of a number that a stage computes with; 4 where not stated.
    """
    sizes = {stage: weights.get(stage, 0) for stage in used}
    numbers = number_bytes or {}
    large = shape.width * shape.height > WHOLE_PIXELS
    if limit is None:
        chosen = replace(shape, rows=min(shape.rows, ROWS), tile=TILE if large else None)
        return lay_out(chosen, sizes, DEFAULT, numbers)
    for way, kept in ways_of(shape, large):
        plan = lay_out(way, sizes, kept, numbers)
        if plan.fits(limit):
            return replace(plan, limit=limit)
    return stream(replace(plan, limit=limit), limit)


def ways_of(shape: Shape, large: bool) -> Iterator[tuple[Shape, frozenset[str]]]:
    """Give the ways to decode, what is kept and the ways to run the rows, the roomiest first.

    Tiles come last, as only they change the picture.
    """
    counts = [shape.rows]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // 2))
    for tile in (TILE,) if large else (None, TILE):
        for kept in KEPT:
            for rows in counts:
                yield replace(shape, rows=rows, tile=tile), kept


def lay_out(
    shape: Shape, weights: Mapping[str, int], kept: frozenset[str], numbers: Mapping[str, int]
) -> Plan:
    """Return the plan of one way to run."""
    stays = kept & weights.keys()
    phases = {}
    for name, stages in PHASES.items():
        running = {
            stage: numbers.get(stage, NUMBER_BYTES) * activation_numbers(stage, shape)
            for stage in stages
            if stage in weights
        }
        if running:
            resident = stays | running.keys()
            width = max(numbers.get(stage, NUMBER_BYTES) for stage in running)
            held = width * held_numbers(shape) if name == "sampling" else 0
            loaded = sum(weights[stage] for stage in resident)
            phases[name] = Phase(name, running, resident, loaded, held)
    return Plan(phases, weights, stays, shape.rows, shape.tile)


def stream(plan: Plan, limit: int) -> Plan:
    """Return the plan with the largest stage of each phase that does not fit streamed."""
    streamed, phases = {}, dict(plan.phases)
    for name, phase in plan.phases.items():
        if phase.peak > limit:
            largest = max(phase.stages, key=lambda stage: plan.weights[stage])
            rest = phase.weights - plan.weights[largest]
            room = limit - phase.activations - rest
            if room > 0:
                streamed[largest] = room
                phases[name] = replace(phase, weights=rest + room)
    return replace(plan, phases=phases, streamed=streamed)
