"""Which ONNX operators, on which types, every TensorRT from 10.3 to 11.4 takes.

The table is that of onnx-tensorrt 10.1 (``docs/operators.md``), from which later releases took nothing away. What this
project's rules bar anyway is left out: control flow, random numbers, recurrent layers, quantised types, bfloat16.
"""

from onnx import TensorProto

MIN_OPSET = 17  # LayerNormalization
MAX_OPSET = 20
# Operators of opsets beyond that, for bundles that were asked for with them and that no TensorRT gets to see.
LATER_OPERATORS: dict[int, frozenset[str]] = {23: frozenset({"Attention"})}

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ANY = _NUMBERS | {TensorProto.BOOL}

OPERATOR_TYPES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("And", "Not", "Or"), frozenset({TensorProto.BOOL})),
    "Cast": _ANY | {TensorProto.UINT8},
    **dict.fromkeys(
        (
            "Concat",
            "Constant",
            "ConstantOfShape",
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
            "Reshape",
            "Shape",
            "Size",
            "Slice",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
            "Where",
        ),
        _ANY,
    ),
    **dict.fromkeys(
        (
            "Abs",
            "Add",
            "Div",
            "Equal",
            "Gelu",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Max",
            "Min",
            "Mod",
            "Mul",
            "Neg",
            "Pad",
            "Range",
            "ReduceL1",
            "ReduceL2",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "Relu",
            "Sub",
            "Sum",
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(
        (
            "AveragePool",
            "BatchNormalization",
            "Ceil",
            "Clip",
            "Conv",
            "ConvTranspose",
            "Cos",
            "Einsum",
            "Erf",
            "Exp",
            "Floor",
            "Gemm",
            "GlobalAveragePool",
            "GroupNormalization",
            "HardSigmoid",
            "HardSwish",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Log",
            "MatMul",
            "MaxPool",
            "Pow",
            "Reciprocal",
            "Resize",
            "Round",
            "Sigmoid",
            "Sin",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ),
        _FLOATS,
    ),
}

RESIZE_MODES = frozenset({"nearest", "linear"})
RESIZE_COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"})

# Inputs that the importer wants as constants, by position.
CONSTANT_INPUTS: dict[str, int] = {
    "Pad": 3,
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"), 1),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare"), 1),
}

# Inputs that say how large something is, or which part of it is taken, by position.
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
}
