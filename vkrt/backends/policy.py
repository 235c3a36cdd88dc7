"""Which precision each stage runs in, and the backend of that precision. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from threading import Lock

from vkrt import backends
from vkrt.backends.base import Backend
from vkrt.backends.guard import GuardedBackend
from vkrt.errors import BackendError
from vkrt.options import PRECISIONS, Options
from vkrt.stage import Stage

__all__ = ["Policy", "StageBackends", "parse_policy"]

# Activations of these go beyond 65504, the largest number of fp16.
OVERFLOWS_IN_FP16 = frozenset({"t5", "vae_decoder"})


@dataclass(frozen=True)
class Policy:
    """Say which precision each stage runs in.

    Attributes:
        base: of the stages that are not named.
        named: (name, precision) pairs; a name stands for the stage of that name and for those
            that go on with "_": "vae" for vae_encoder and vae_decoder.
    """

    base: str = "auto"
    named: tuple[tuple[str, str], ...] = ()

    def of(self, stage: str, automatic: str) -> str:
        """Return the precision of a stage.

        Args:
            stage: its name.
            automatic: what "auto" is on the device: "fp32" or "bf16". A stage that is known to
                overflow in fp16 has it too, unless its own name asks for fp16.
        """
        fitting = [pair for pair in self.named if covers(pair[0], stage)]
        if fitting:
            _, precision = max(fitting, key=lambda pair: len(pair[0]))
        else:
            overflows = self.base == "fp16" and stage in OVERFLOWS_IN_FP16
            precision = "auto" if overflows else self.base
        return automatic if precision == "auto" else precision


def covers(name: str, stage: str) -> bool:
    """Tell whether a name stands for a stage."""
    return stage == name or stage.startswith(f"{name}_")


def parse_policy(wanted: str | Mapping[str, str], stages: Collection[str]) -> Policy:
    """Return the policy of "bf16", "mmdit=bf16,t5=bf16", "bf16,vae_decoder=fp32" or a mapping.

    Args:
        wanted: what the caller asks for.
        stages: the names that the model's stages have.

    Raises:
        BackendError: a precision or a stage is unknown, or named twice.
    """
    if isinstance(wanted, str):
        pairs = [split(part) for part in wanted.split(",")]
    else:
        pairs = [*wanted.items()]
    for name, precision in pairs:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise BackendError(f"precision must be one of {known}, not {precision!r:.40}")
        if name and not any(covers(name, stage) for stage in stages):
            raise BackendError(
                f"precision names {name!r:.40}, which is no stage; take {', '.join(stages)}"
            )
    chosen = dict(pairs)
    if len(chosen) < len(pairs):
        raise BackendError(f"precision {wanted!r:.80} says two things of one stage; leave one out")
    base = chosen.pop("", "auto")
    return Policy(base, tuple(chosen.items()))


def split(part: str) -> tuple[str, str]:
    """Return name and precision of a part such as "t5=bf16"; the name is "" where it has none."""
    name, equals, precision = part.partition("=")
    if not equals:
        return "", part.strip()
    # An empty name would stand for every stage.
    return name.strip() or "=", precision.strip()


class StageBackends:
    """Give the backend of each stage: one per precision, made once, with a guard against NaN.

    A backend whose precision is that of its files (ONNX Runtime, OpenVINO) serves every stage.

    Args:
        options: of every backend; their precision gives way to the policy.
        policy: which precision each stage runs in.
        reload: gives a stage of a name with its weights in full precision, for one that failed
            in a lower; None takes the weights at hand.
        create: makes a backend.

    Attributes:
        device: such as "cpu" or "cuda:0".

    Raises:
        BackendError: no backend can run here.
    """

    def __init__(
        self,
        options: Options,
        policy: Policy,
        reload: Callable[[str], Stage] | None = None,
        create: Callable[[Options], Backend] = backends.create,
    ) -> None:
        self._options = options
        self._policy = policy
        self._reload = reload
        self._create = create
        self._lock = Lock()
        first = create(replace(options, precision="auto"))
        self.name, self.device = first.name, first.device
        # "" where the files that it runs decide.
        self._automatic: str = getattr(first, "precision", "")
        self._made = {self._automatic: self._guard(first, self._automatic)}

    def __call__(self, stage: str) -> GuardedBackend:
        """Return the backend of a stage.

        Raises:
            BackendError: there is none of its precision.
        """
        return self._at(self.precision(stage))

    def precision(self, stage: str) -> str:
        """Return the precision of a stage; "" where the files that it comes from decide."""
        return self._policy.of(stage, self._automatic) if self._automatic else ""

    def precisions(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Return the precision in which to load each part.

        Args:
            parts: the part whose weights each stage has; the first stage of a part decides.
        """
        found: dict[str, str] = {}
        for stage, part in parts.items():
            found.setdefault(part, self.precision(stage))
        return found

    def _at(self, precision: str) -> GuardedBackend:
        with self._lock:
            if precision not in self._made:
                backend = self._create(replace(self._options, precision=precision))
                self._made[precision] = self._guard(backend, precision)
            return self._made[precision]

    def _guard(self, backend: Backend, precision: str) -> GuardedBackend:
        if precision in ("", "fp32"):
            return GuardedBackend(backend)
        return GuardedBackend(backend, lambda: self._at("fp32").inside, self._reload)

    def close(self) -> None:
        """Release what every backend holds."""
        for backend in self._made.values():
            backend.close()
