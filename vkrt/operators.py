"""Which operators the graphs of a bundle may have. Torch-free.

All that an export of vkrt writes, and others that compute an array from arrays. None runs a graph
of its own (Loop, If, Scan), which may never end, none reads a file, and none has texts.
"""

from __future__ import annotations

from vkrt.onnx_graph import OnnxFile
from vkrt.weights.safety_limits import shown

__all__ = ["ALLOWED", "check_operators"]

ELEMENTWISE = """
    Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod
    Mul Neg Not Or PRelu Pow Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Sub Sum Tan Tanh
    Where Xor
"""
NORMS = """
    BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LogSoftmax
    LpNormalization RMSNormalization Softmax
"""
REDUCTIONS = """
    ArgMax ArgMin GlobalAveragePool GlobalMaxPool ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
SHAPES = """
    Concat Constant DepthToSpace Flatten Gather GatherElements GatherND Reshape ScatterElements
    ScatterND Shape Size Slice SpaceToDepth Split Squeeze Transpose Trilu Unsqueeze CumSum
"""
LARGER = "ConstantOfShape Expand Pad Range Resize Tile"
PRODUCTS = "AveragePool Conv ConvTranspose Gemm MatMul MaxPool"
INTEGERS = """
    DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearMatMul QuantizeLinear
    com.microsoft.DynamicQuantizeMatMul com.microsoft.FusedMatMul
    com.microsoft.MatMulIntegerToFloat com.microsoft.MatMulNBits
"""
ALLOWED = frozenset(
    " ".join((ELEMENTWISE, NORMS, REDUCTIONS, SHAPES, LARGER, PRODUCTS, INTEGERS)).split()
)


def check_operators(file: OnnxFile) -> None:
    """Refuse a file with an operator, or another part, that no export of vkrt writes.

    Raises:
        ValueError: names it.
    """
    if file.extras:
        raise ValueError(f"it has a {min(file.extras)} part, which no export of vkrt has")
    for node in file.graph.nodes:
        if node.operator not in ALLOWED or node.has_graphs:
            raise ValueError(
                f"its operator {shown(node.operator, 60)} is none that an export of vkrt has"
            )
