"""Marks in an exported graph: attentions so large that kernels of our own may take them over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from vkrt.export.simplify import new_constant

__all__ = ["MARK", "PAIRS_AT_ONCE", "expand_marks", "is_mark", "parts_of"]

# Logits of one head and of this many query-key pairs at most are held at once: 16 MB, so that
# those of a few heads stay in the last cache between the three steps.
PAIRS_AT_ONCE = 2**22
# Queries at once where the number of keys is not known.
ROWS_AT_ONCE = 512
DOMAIN = "vkrt"


def mark() -> Op:
    """Return the operator: query, key, value and maybe a bias to what was read of the values."""
    inputs = [OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value")]
    optional = OpSchema.FormalParameterOption.Optional
    inputs.append(OpSchema.FormalParameter("bias", "T", param_option=optional))
    schema = OpSchema(
        "Attention",
        DOMAIN,
        1,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("read", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
    )
    return Op(Opset(DOMAIN, 1), schema.name, schema)


MARK = mark()


def is_mark(node: ir.Node) -> bool:
    """Tell whether a node is a mark."""
    return node.domain == DOMAIN


def parts_of(queries: Any, keys: Any) -> int:
    """Return in how many equal parts the queries attend; 1 where a number is not known."""
    if not isinstance(queries, int) or not isinstance(keys, int):
        return 1
    parts = 1
    while queries * keys > parts * PAIRS_AT_ONCE and queries % (2 * parts) == 0:
        parts *= 2
    return parts


def expand_marks(model: ir.Model) -> None:
    """Write every mark out in operators that any runtime has, in place."""
    for node in list(model.graph):
        if is_mark(node):
            expand(model.graph, node)
    model.opset_imports.pop(DOMAIN, None)


class Writer:
    """Gather nodes that replace a mark."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def constant(self, kind: str, content: Any) -> ir.Value:
        """Add a constant of the graph."""
        return new_constant(self.graph, f"{self.name}_{kind}", content)

    def add(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        self.nodes.append(ir.node(op_type, inputs, attributes))
        return self.nodes[-1].outputs[0]

    def split(self, value: ir.Value, axis: int, parts: int) -> Sequence[ir.Value]:
        """Add a node that cuts a value into equal parts; none for a single one."""
        if parts == 1:
            return [value]
        settings = {"axis": axis, "num_outputs": parts}
        self.nodes.append(ir.node("Split", [value], settings, num_outputs=parts))
        return self.nodes[-1].outputs


def expand(graph: ir.Graph, mark: ir.Node) -> None:
    """Write out softmax(query key' / sqrt(D) + bias) value, some queries at a time."""
    query, key, value, *others = mark.inputs
    assert query is not None and key is not None and value is not None
    assert query.shape is not None and key.shape is not None
    axis = len(query.shape) - 2
    parts = parts_at_once(query.shape, key.shape)
    writer = Writer(graph, str(mark.outputs[0].name))
    factor = np.array(width_of(query) ** -0.5, np.float32)
    query = writer.add("Mul", query, writer.constant("factor", factor))
    if others and others[0] is not None:
        query, key = with_bias(writer, query, key, others[0])
    turned = writer.add("Transpose", key, perm=[*range(axis), axis + 1, axis])
    read = []
    for some in writer.split(query, axis, parts):
        weights = writer.add("Softmax", writer.add("MatMul", some, turned), axis=-1)
        read.append(writer.add("MatMul", weights, value))
    made = read[0] if parts == 1 else writer.add("Concat", *read, axis=axis)
    ir.convenience.replace_nodes_and_values(graph, mark, [mark], writer.nodes, mark.outputs, [made])


def width_of(value: ir.Value) -> int:
    """Return the size of the last axis, a number."""
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width


def with_bias(
    writer: Writer, query: ir.Value, key: ir.Value, bias: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return queries and keys with the bias as one more channel.

    To add it to the logits would be a pass over all of them.
    """
    assert key.shape is not None
    axes = len(key.shape)
    one_more = writer.constant("pads", np.array([0] * (2 * axes - 1) + [1]))
    query = writer.add("Pad", query, one_more, writer.constant("one", np.array(1, np.float32)))
    column = writer.add("Unsqueeze", bias, writer.constant("last", np.array([-1])))
    return query, writer.add("Concat", key, column, axis=-1)


def parts_at_once(query: ir.Shape, key: ir.Shape) -> int:
    """Return in how many parts queries of a shape attend to keys of another."""
    rows, keys = query[-2], key[-2]
    if isinstance(rows, int) and not isinstance(keys, int):
        return next((n for n in range(-(-rows // ROWS_AT_ONCE), rows) if rows % n == 0), 1)
    return parts_of(rows, keys)
