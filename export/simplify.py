"""Rewrites of an exported graph that leave what it computes alone, but not how."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["drop_unused", "simplify"]


def simplify(model: ir.Model) -> None:
    """Rewrite a model in place: no product that is split at once, no addition of nothing."""
    for node in list(model.graph):
        split_product(model.graph, node)
    for node in list(model.graph):
        drop_zeros(model.graph, node)
    drop_unused(model.graph)


def split_product(graph: ir.Graph, split: ir.Node) -> None:
    """Turn Split(x W + b) into one product for each part: a split copies all of them.

    Only equal parts of the last axis, and where nothing else reads the product.
    """
    if split.op_type != "Split" or not splits_last(split):
        return
    addition = only_source(split.inputs[0], "Add")
    product = only_source(addition.inputs[0], "MatMul") if addition is not None else None
    if addition is None or product is None:
        return
    weight, bias = constant(product.inputs[1]), constant(addition.inputs[1])
    if weight is None or weight.ndim != 2 or bias is None or bias.ndim != 1:
        return
    assert addition.inputs[1] is not None, "it has a content"
    count = len(split.outputs)
    parts = zip(np.split(weight, count, axis=1), np.split(bias, count), strict=True)
    nodes: list[ir.Node] = []
    for index, (columns, offset) in enumerate(parts):
        # The bias has the name that it has in the model; the weight was transposed.
        layer = str(addition.inputs[1].name).removesuffix(".bias")
        right = new_constant(graph, f"{layer}.weight_{index}", columns)
        narrow = ir.node("MatMul", [product.inputs[0], right])
        added = new_constant(graph, f"{layer}.bias_{index}", offset)
        nodes += [narrow, ir.node("Add", [narrow.outputs[0], added])]
    made = [node.outputs[0] for node in nodes[1::2]]
    replaced = [split, addition, product]
    ir.convenience.replace_nodes_and_values(graph, split, replaced, nodes, split.outputs, made)


def drop_zeros(graph: ir.Graph, addition: ir.Node) -> None:
    """Remove the addition of a vector of zeros."""
    if addition.op_type != "Add":
        return
    value = constant(addition.inputs[1])
    if value is None or value.ndim != 1 or value.any() or addition.outputs[0].is_graph_output():
        return
    source = addition.inputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(addition.outputs[0], source)
    graph.remove(addition, safe=True)


def drop_unused(graph: ir.Graph) -> None:
    """Remove the constants that no node reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def splits_last(split: ir.Node) -> bool:
    """Tell whether a Split cuts the last axis into equal parts."""
    axis, source = split.attributes.get("axis"), split.inputs[0]
    if axis is None or source is None or source.shape is None or len(split.inputs) > 1:
        return False
    return axis.as_int() in (-1, len(source.shape) - 1)


def only_source(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node of this kind that makes a value read once; None if there is none."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a constant."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to a graph."""
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor)
    graph.register_initializer(value)
    return value
