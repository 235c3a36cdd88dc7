"""What each operator makes of arrays: their shapes, and the few numbers that shapes are made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from math import ceil, floor, prod
from typing import NamedTuple, TypeAlias

from vkrt.onnx_graph import Node, Tensor
from vkrt.operators import ELEMENTWISE, INTEGERS, NORMS, REDUCTIONS

__all__ = ["RULES", "Array", "UnknownSizeError", "constant"]

# Of arrays with more numbers only the shape is known.
MOST_NUMBERS = 64
LARGEST_NUMBER = 2**63

Shape: TypeAlias = "tuple[int, ...]"
Numbers: TypeAlias = "tuple[float, ...] | None"


class Array(NamedTuple):
    """Hold the shape of an array, and its numbers where they are few and known."""

    shape: Shape
    numbers: Numbers


Rule: TypeAlias = "Callable[[Node, Sequence[Array]], Sequence[Array]]"


class UnknownSizeError(Exception):
    """Raised when the size of what an operator makes depends on the values it is given."""


def constant(tensor: Tensor) -> Array:
    """Return a constant."""
    return Array(tensor.shape, tensor.values)


def of_shape(shape: Iterable[int], numbers: Numbers = None) -> list[Array]:
    """Return one array; sizes are whole numbers and not below zero."""
    sizes = tuple(max(0, int(size)) for size in shape)
    kept = numbers is not None and len(numbers) == prod(sizes) and len(numbers) <= MOST_NUMBERS
    if kept and any(abs(number) > LARGEST_NUMBER for number in numbers or ()):
        kept = False
    return [Array(sizes, numbers if kept else None)]


def known(inputs: Sequence[Array], index: int) -> list[int]:
    """Return the numbers of an input that says how large the output is."""
    if inputs[index].numbers is None:
        raise UnknownSizeError
    return [int(number) for number in inputs[index].numbers or ()]


def number(node: Node, name: str, default: int) -> int:
    """Return an attribute that is a number."""
    return node.numbers.get(name, [default])[0]


def given(inputs: Sequence[Array], index: int) -> bool:
    """Tell whether an optional input is there."""
    return len(inputs) > index and inputs[index] is not None


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape of arrays that are stretched to one another."""
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    backwards = zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)
    return tuple(max(sizes) for sizes in backwards)[::-1]


# Arithmetic on shapes.

COMPUTES: dict[str, Callable[..., float]] = {
    **{"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Max": max, "Min": min},
    **{"Equal": operator.eq, "Greater": operator.gt, "GreaterOrEqual": operator.ge},
    **{"Less": operator.lt, "LessOrEqual": operator.le, "Not": operator.not_, "Neg": operator.neg},
    **{"Abs": abs, "Ceil": ceil, "Floor": floor, "Mod": operator.mod, "Cast": lambda a: a},
    **{"Identity": lambda a: a, "Where": lambda c, a, b: a if c else b},
    **{"And": lambda a, b: bool(a and b), "Or": lambda a, b: bool(a or b)},
    "Div": lambda a, b: a / b if isinstance(a, float) or isinstance(b, float) else int(a / b),
}


def elementwise(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the broadcast shape, and the numbers where an operator on few of them is known."""
    shape = broadcast(*(each.shape for each in inputs))
    compute = COMPUTES.get(node.operator)
    if compute is None or inputs[0].numbers is None:
        return [Array(shape, None)]
    count = prod(shape)
    if count > MOST_NUMBERS:
        return [Array(shape, None)]
    columns = [each.numbers for each in inputs]
    if any(column is None or len(column) not in (1, count) for column in columns):
        return [Array(shape, None)]
    rows = zip(*(c * count if len(c) == 1 else c for c in columns if c is not None), strict=True)
    return of_shape(shape, tuple(compute(*row) for row in rows))


def like_first(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return an array of the shape of the first input."""
    return [Array(inputs[0].shape, None)]


def reduction(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the shape without the axes that are reduced, or with 1 in their place."""
    shape, keeps = inputs[0].shape, number(node, "keepdims", 1)
    if node.operator.startswith("Arg"):
        axes = [number(node, "axis", 0)]
    elif given(inputs, 1):
        axes = known(inputs, 1)
    else:
        axes = node.numbers.get("axes", [])
    gone = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
    if not axes and number(node, "noop_with_empty_axes", 0):
        gone = set()
    sizes = ((axis, 1 if axis in gone else size) for axis, size in enumerate(shape))
    return of_shape(size for axis, size in sizes if keeps or axis not in gone)


def global_pool(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return batch and channels, with 1 for every axis that is pooled."""
    shape = inputs[0].shape
    return of_shape((*shape[:2], *[1] * (len(shape) - 2)))


# Shapes.


def shape_of(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the sizes of the input as numbers (Shape)."""
    end = node.numbers.get("end", [len(inputs[0].shape)])[0]
    sizes = inputs[0].shape[number(node, "start", 0) : end]
    return of_shape([len(sizes)], sizes)


def size_of(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the number of elements of the input (Size)."""
    return of_shape([], (prod(inputs[0].shape),))


def stated(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the array that a Constant states."""
    if "value" in node.tensors:
        return [constant(node.tensors["value"])]
    if "value_ints" in node.numbers:
        numbers = tuple(node.numbers["value_ints"])
        return of_shape([len(numbers)], numbers)
    return of_shape([], tuple(node.numbers.get("value_int", ())) or None)


def concat(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the inputs one after the other along an axis."""
    axis, shape = node.numbers["axis"][0], list(inputs[0].shape)
    shape[axis] = sum(each.shape[axis] for each in inputs)
    numbers = None
    if len(shape) == 1 and all(each.numbers is not None for each in inputs):
        numbers = tuple(value for each in inputs for value in each.numbers or ())
    return of_shape(shape, numbers)


def reshape(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input in the shape that the second one names."""
    first, target = inputs[0], inputs[1]
    count = prod(first.shape)
    if target.numbers is None:  # no larger, whatever its shape is
        return of_shape([*[1] * (target.shape[0] - 1), count])
    sizes = [int(size) for size in target.numbers]
    sizes = [first.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    rest = prod(size for size in sizes if size != -1)
    return of_shape((count // max(1, rest) if s == -1 else s for s in sizes), first.numbers)


def flatten(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input as a matrix."""
    axis, shape = number(node, "axis", 1), inputs[0].shape
    return of_shape([prod(shape[:axis]), prod(shape[axis:])])


def axes_of(node: Node, inputs: Sequence[Array], rank: int) -> list[int]:
    """Return the axes that an attribute or the second input names."""
    axes = known(inputs, 1) if given(inputs, 1) else node.numbers.get("axes", [])
    return [axis % rank for axis in axes]


def squeeze(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input without axes of size 1."""
    shape = inputs[0].shape
    gone = axes_of(node, inputs, len(shape)) or [i for i, size in enumerate(shape) if size == 1]
    return of_shape((s for i, s in enumerate(shape) if i not in gone), inputs[0].numbers)


def unsqueeze(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input with new axes of size 1."""
    axes = known(inputs, 1) if given(inputs, 1) else node.numbers["axes"]
    rank = len(inputs[0].shape) + len(axes)
    new, old = {axis % rank for axis in axes}, iter(inputs[0].shape)
    return of_shape([1 if axis in new else next(old) for axis in range(rank)], inputs[0].numbers)


def transpose(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input with its axes in another order."""
    shape = inputs[0].shape
    order = node.numbers.get("perm", list(range(len(shape)))[::-1])
    return of_shape(shape[axis] for axis in order)


def part(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Follow Slice; where the ends depend on values the whole is an upper bound."""
    first, rest = inputs[0], [each for each in inputs[1:] if each is not None]
    if any(each.numbers is None for each in rest):
        return [Array(first.shape, None)]
    starts, ends = known(inputs, 1), known(inputs, 2)
    axes = known(inputs, 3) if given(inputs, 3) else list(range(len(starts)))
    steps = known(inputs, 4) if given(inputs, 4) else [1] * len(starts)
    shape, numbers = list(first.shape), first.numbers
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and end < -shape[axis]:
            chosen = range(shape[axis])[start::step]
        else:
            chosen = range(shape[axis])[start:end:step]
        if numbers is not None and len(shape) == 1:
            numbers = tuple(numbers[index] for index in chosen)
        shape[axis] = len(chosen)
    return of_shape(shape, numbers)


def split(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the parts of the input along an axis."""
    axis, shape, count = number(node, "axis", 0), list(inputs[0].shape), len(node.outputs)
    if given(inputs, 1):
        sizes = known(inputs, 1)
    else:
        sizes = node.numbers.get("split", [-(-shape[axis] // count)] * count)
    made = []
    for size in sizes:
        shape[axis] = size
        made += of_shape(shape)
    return made


def gather(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the entries of the first input along an axis that the second one picks."""
    first, places = inputs
    axis = number(node, "axis", 0) % len(first.shape)
    numbers = None
    if first.numbers is not None and places.numbers is not None and len(first.shape) == 1:
        numbers = tuple(first.numbers[int(place)] for place in places.numbers)
    return of_shape((*first.shape[:axis], *places.shape, *first.shape[axis + 1 :]), numbers)


def gather_elements(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return an array of the shape of the indices."""
    return of_shape(inputs[1].shape)


def gather_nd(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the slices that the rows of the indices pick."""
    first, places = inputs[0].shape, inputs[1].shape
    return of_shape((*places[:-1], *first[number(node, "batch_dims", 0) + places[-1] :]))


def blocks(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return pixels moved between channels and space (DepthToSpace, SpaceToDepth)."""
    count, channels, height, width = inputs[0].shape
    side = node.numbers["blocksize"][0]
    if node.operator == "DepthToSpace":
        return of_shape([count, channels // side**2, height * side, width * side])
    return of_shape([count, channels * side**2, height // side, width // side])


# What makes an array of a stated size.


def filled(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return an array of the shape that the input names (ConstantOfShape)."""
    shape = known(inputs, 0)
    value = node.tensors.get("value")
    fill = (0,) if value is None else value.values
    small = fill is not None and prod(shape) <= MOST_NUMBERS
    return of_shape(shape, fill * prod(shape) if small and fill is not None else None)


def expand(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input broadcast to the shape that the second one names."""
    shape = broadcast(inputs[0].shape, tuple(known(inputs, 1)))
    numbers = inputs[0].numbers
    one = numbers is not None and len(numbers) == 1 and prod(shape) <= MOST_NUMBERS
    return of_shape(shape, numbers * prod(shape) if one and numbers is not None else None)


def tile(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input repeated as often as the second one says."""
    return of_shape(map(operator.mul, inputs[0].shape, known(inputs, 1)))


def pad(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input with what is added on both sides of its axes."""
    shape = list(inputs[0].shape)
    pads = known(inputs, 1) if given(inputs, 1) else node.numbers["pads"]
    axes = known(inputs, 3) if given(inputs, 3) else list(range(len(shape)))
    for index, axis in enumerate(axes):
        shape[axis] += pads[index] + pads[index + len(axes)]
    return of_shape(shape)


def resize(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the input at the sizes or scales that are given."""
    shape = list(inputs[0].shape)
    axes = node.numbers.get("axes", list(range(len(shape))))
    if given(inputs, 3):
        sizes: list[float] = list(known(inputs, 3))
    elif inputs[2].numbers is not None:
        factors = inputs[2].numbers
        sizes = [shape[axis] * factor for axis, factor in zip(axes, factors, strict=True)]
    else:
        raise UnknownSizeError
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = int(size)
    return of_shape(shape)


def counted(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the numbers of a Range."""
    start, end, step = (each.numbers[0] if each.numbers else None for each in inputs)
    if start is None or end is None or step is None:
        raise UnknownSizeError
    count = max(0, ceil((end - start) / step))
    few = count <= MOST_NUMBERS
    return of_shape([count], tuple(start + step * i for i in range(count)) if few else None)


# Products.


def product(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the shape of a matrix product."""
    a, b = inputs[0].shape, inputs[3 if node.operator == "QLinearMatMul" else 1].shape
    if number(node, "transA", 0):
        a = (*a[:-2], a[-1], a[-2])
    if number(node, "transB", 0):
        b = (*b[:-2], b[-1], b[-2])
    if len(a) == 1 or len(b) == 1:
        return of_shape((*a[:-1], *b[:-2], *b[-1:]) if len(b) > 1 else a[:-1])
    return of_shape((*broadcast(a[:-2], b[:-2]), a[-2], b[-1]))


def blocked_product(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Return the shape of a product with weights in blocks of few bits."""
    return of_shape((*inputs[0].shape[:-1], node.numbers["N"][0]))


def window(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """Follow convolutions and pools; an upper bound where the padding is a word."""
    count, channels, *sides = inputs[0].shape
    kernel = node.numbers.get("kernel_shape") or list(inputs[1].shape[2:])
    if "Conv" in node.operator:
        weight = inputs[1].shape
        is_up = node.operator == "ConvTranspose"
        channels = weight[1] * number(node, "group", 1) if is_up else weight[0]
    rank = len(sides)
    steps = node.numbers.get("strides", [1] * rank)
    spread = node.numbers.get("dilations", [1] * rank)
    pads = node.numbers.get("pads", [0] * 2 * rank)
    added = node.numbers.get("output_padding", [0] * rank)
    more = 1 + number(node, "ceil_mode", 0)
    made = []
    for i, side in enumerate(sides):
        reach, margin = spread[i] * (kernel[i] - 1) + 1, pads[i] + pads[i + rank]
        if node.operator == "ConvTranspose":
            made.append((side - 1) * steps[i] + reach + added[i] - min(0, margin))
        else:
            made.append(max((side + margin - reach) // steps[i] + more, -(-side // steps[i])))
    return of_shape([count, channels, *node.numbers.get("output_shape", made)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(NORMS.split(), like_first),
    **dict.fromkeys(REDUCTIONS.split(), reduction),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
    **dict.fromkeys(("Clip", "CumSum", "Trilu", "ScatterElements", "ScatterND"), like_first),
    **dict.fromkeys(INTEGERS.split(), product),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), like_first),
    **dict.fromkeys(("Gemm", "MatMul"), product),
    **dict.fromkeys(("AveragePool", "Conv", "ConvTranspose", "MaxPool"), window),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
    **{"Concat": concat, "Constant": stated, "ConstantOfShape": filled, "Expand": expand},
    **{"Flatten": flatten, "Gather": gather, "GatherElements": gather_elements},
    **{"GatherND": gather_nd, "Pad": pad, "Range": counted, "Reshape": reshape},
    **{"Resize": resize, "Shape": shape_of, "Size": size_of, "Slice": part, "Split": split},
    **{"Squeeze": squeeze, "Tile": tile, "Transpose": transpose, "Unsqueeze": unsqueeze},
    "com.microsoft.MatMulNBits": blocked_product,
}
