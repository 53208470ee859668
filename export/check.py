"""What every exported graph must pass before it may enter a bundle."""

from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.shape_inference import InferenceError

from engines.contracts import Dim, StageContract, TensorSpec
from engines.errors import CheckFailedError

_DTYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}


def check_graph(path: Path, contract: StageContract) -> None:
    """Full checker, strict shape inference, contract, and no float64 anywhere.

    Raises:
        CheckFailedError: names the stage and what does not hold.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        inferred = path.with_name(f"{path.stem}.inferred.onnx")
        try:
            onnx.shape_inference.infer_shapes_path(str(path), str(inferred), check_type=True, strict_mode=True)
            graph = onnx.load(inferred, load_external_data=False).graph
        finally:
            inferred.unlink(missing_ok=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        raise CheckFailedError(f"graph '{contract.stage}' is not valid ONNX: {str(error).splitlines()[0]}") from error
    _check_values(contract, "input", contract.inputs, list(graph.input))
    _check_values(contract, "output", contract.outputs, list(graph.output))
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            raise CheckFailedError(f"graph '{contract.stage}' computes '{value.name}' in float64, which engines refuse")
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            raise CheckFailedError(f"graph '{contract.stage}' holds '{tensor.name}' in float64, which engines refuse")


def _check_values(
    contract: StageContract, kind: str, specs: tuple[TensorSpec, ...], values: list[onnx.ValueInfoProto]
) -> None:
    if [value.name for value in values] != [spec.name for spec in specs]:
        found = ", ".join(value.name for value in values)
        raise CheckFailedError(f"graph '{contract.stage}' has the {kind}s {found}, not those of its contract")
    for spec, value in zip(specs, values, strict=True):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        wanted = tuple(size.name if isinstance(size, Dim) else size for size in spec.shape)
        if tensor.elem_type != _DTYPES[spec.dtype] or shape != wanted:
            raise CheckFailedError(
                f"graph '{contract.stage}': {kind} '{spec.name}' is {TensorProto.DataType.Name(tensor.elem_type)} {shape}, "
                f"its contract says {spec.dtype} {spec.shape_text}"
            )
