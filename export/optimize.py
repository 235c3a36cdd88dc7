"""What torch translates made smaller, and the same: shapes stated, constants folded, no idle nodes.

onnxscript's own optimizer looks for pairs of slices among all pairs of nodes, which takes most of
its time in a graph of thousands; none of these graphs has such a pair. And it reads every shape
off the graph that torch knows already.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

__all__ = ["optimize"]

RULES = (
    rules.mul_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
)
# What a rewrite leaves may be rewritten once more.
ROUNDS = 2


def optimize(model: ir.Model) -> None:
    """Optimize a graph as torch translates one, in place."""
    passes.InlinePass()(model)
    for node in model.graph:
        state_shape(model.graph, node)
    passes.RemoveUnusedNodesPass()(model)
    rewrite = RewritePass(RULES)
    for _ in range(ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        if not rewrite(model).modified:
            break
        passes.RemoveUnusedNodesPass()(model)
    for last in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        last(model)


def state_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Let a Reshape take a constant where torch knows what it makes, whatever computes it now."""
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return
    sizes = stated(node.inputs[0].shape, node.outputs[0].shape)
    if sizes is None:
        return
    name = f"{node.outputs[0].name}_shape"
    tensor = ir.tensor(np.array(sizes, np.int64), name=name)
    made = ir.node("Constant", [], {"value": tensor})
    made.outputs[0].name = name
    graph.insert_before(node, made)
    node.replace_input_with(1, made.outputs[0])
    # With it, 0 would be a size.
    node.attributes.pop("allowzero", None)


def stated(given: ir.Shape | None, wanted: ir.Shape | None) -> list[int] | None:
    """Return a shape as Reshape takes it, 0 for a size that stays; None where more has to be known.

    One size may be left to Reshape, -1, if all others are numbers: of an array without values it
    could not tell it otherwise.
    """
    if given is None or wanted is None:
        return None
    sizes = [
        size if isinstance(size, int) else 0 if stays(given, size, axis) else -1
        for axis, size in enumerate(wanted)
    ]
    if any(size == 0 for size in wanted) or sizes.count(-1) > 1:
        return None
    return None if -1 in sizes and 0 in sizes else sizes


def stays(given: ir.Shape, size: ir.SymbolicDim, axis: int) -> bool:
    """Tell whether a shape has a size, by its symbol, on the same axis."""
    return size.value is not None and axis < len(given) and given[axis] == size
