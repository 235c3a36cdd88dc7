"""Which product is computed in which form: what is faster, less what costs too much quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vkrt.export.int8.products import Shape
from vkrt.export.int8.quantize import DYNAMIC, FP32, STATIC, Form
from vkrt.export.int8.speed import Seconds

__all__ = ["FASTER", "NOT_FASTER", "QUALITY", "Choice", "choose", "give_back"]

FASTER, NOT_FASTER, QUALITY = "faster", "not faster", "quality"
# What int8 must gain to be worth its rounding, and a timing to be more than noise.
LEAST_GAIN = 1.05
# The more exact form to try where one does too much damage. It is slower (a dynamic range costs a
# pass over the values), so it must take away half of the squared damage.
FINER: Mapping[Form, Form] = {STATIC: DYNAMIC}
FINER_SHARE = 0.5
# Damage of a product that gives no number at all.
UNBOUNDED = 1e9


@dataclass(frozen=True)
class Choice:
    """Say how a product is computed, and why.

    Attributes:
        shape: its sizes for one picture.
        form: what it was given.
        reason: "faster" or "not faster" than fp32, or "quality" where speed spoke for another.
        seconds: how long it takes in each form.
    """

    shape: Shape
    form: Form
    reason: str
    seconds: Seconds

    def is_faster(self, form: Form) -> bool:
        """Tell whether a form is clearly faster than fp32; one that was not timed is not."""
        return form in self.seconds and self.seconds[form] * LEAST_GAIN <= self.seconds[FP32]


def choose(
    shapes: Mapping[str, Shape],
    measure: Callable[[Shape], Seconds],
    forms: Sequence[Form] = (STATIC,),
) -> dict[str, Choice]:
    """Return the choice for each product by speed alone; equal shapes are measured once.

    Args:
        shapes: of the products by name.
        measure: gives the seconds of the forms that a product of a shape can have.
        forms: to choose from, besides fp32.
    """
    seconds = {shape: measure(shape) for shape in dict.fromkeys(shapes.values())}
    choices = {}
    for name, shape in shapes.items():
        choice = Choice(shape, FP32, NOT_FASTER, seconds[shape])
        faster = [form for form in forms if choice.is_faster(form)]
        if faster:
            form = min(faster, key=choice.seconds.__getitem__)
            choice = replace(choice, form=form, reason=FASTER)
        choices[name] = choice
    return choices


def give_back(
    choices: Mapping[str, Choice],
    damage: Callable[[str, Form], float],
    keep: float,
    finer: Mapping[Form, Form] = FINER,
) -> dict[str, Choice]:
    """Return choices in which the products that harm most for what they save are more exact.

    Squared damages add up, as errors do that know nothing of one another. Each product in turn
    gets its finer form where that is faster than fp32 and halves its squared damage, else fp32.

    Args:
        choices: what was tried.
        damage: of one product alone in a form, such as the relative error of the outputs.
        keep: the share of the squared damage that may stay, below 1; one product goes at least.
        finer: the form to try before fp32, by the form that a product has.
    """
    found = dict(choices)
    harm = {n: squared(damage(n, c.form)) for n, c in choices.items() if c.form != FP32}
    most = keep * sum(harm.values())

    def cost(name: str) -> float:
        seconds = choices[name].seconds
        return harm[name] / max(seconds[FP32] - seconds[choices[name].form], 1e-9)

    for name in sorted(harm, key=cost, reverse=True):
        form, rest = FP32, 0.0
        better = finer.get(choices[name].form)
        if better is not None and choices[name].is_faster(better):
            left = squared(damage(name, better))
            if left <= FINER_SHARE * harm[name]:
                form, rest = better, left
        found[name] = replace(choices[name], form=form, reason=QUALITY)
        harm[name] = rest
        if sum(harm.values()) <= most:
            break
    return found


def squared(damage: float) -> float:
    """Return the square of a damage; NaN counts as a very large one."""
    return float(np.nan_to_num(damage, nan=UNBOUNDED, posinf=UNBOUNDED)) ** 2
