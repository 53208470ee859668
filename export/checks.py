"""What every exported graph must pass before it may enter a bundle."""

from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.shape_inference import InferenceError

from rsrefseg.engines.bundle.contracts import Dim, StageContract, TensorSpec
from rsrefseg.engines.errors import CheckFailedError

from .graph import OPSET
from .lint import lint_graph

_DTYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}


def check_graph(path: Path, contract: StageContract, opset: int = OPSET) -> None:
    """Full checker, strict shape inference, contract, standard operators only, and the lint.

    Args:
        path: the graph.
        contract: what it must take and give.
        opset: what it was asked for with.

    Raises:
        CheckFailedError: names the stage and what does not hold.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        inferred = path.with_name(f"{path.stem}.inferred.onnx")
        try:
            onnx.shape_inference.infer_shapes_path(str(path), str(inferred), check_type=True, strict_mode=True)
            model = onnx.load(inferred, load_external_data=False)
        finally:
            inferred.unlink(missing_ok=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        raise CheckFailedError(f"graph '{contract.stage}' is not valid ONNX: {_first_line(error)}") from error
    _check_values(contract, "input", contract.inputs, list(model.graph.input))
    _check_values(contract, "output", contract.outputs, list(model.graph.output))
    _check_operators(contract, model)
    if findings := lint_graph(model, contract.stage, path.parent, opset):
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise CheckFailedError(f"{findings[0]}{more}")


def _check_operators(contract: StageContract, model: onnx.ModelProto) -> None:
    """Nothing but operators of ONNX itself: no runtime's own, no function, and no branch or loop."""
    if model.functions:
        raise CheckFailedError(f"graph '{contract.stage}' calls the function '{model.functions[0].name}'")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise CheckFailedError(f"graph '{contract.stage}' needs '{node.op_type}' of the domain '{node.domain}'")
        # What counts operations and what builds engines reads the one graph there is.
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise CheckFailedError(f"graph '{contract.stage}' has a graph inside its node '{node.name}'")


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
                f"graph '{contract.stage}': {kind} '{spec.name}' is {TensorProto.DataType.Name(tensor.elem_type)} "
                f"{list(shape)}, its contract says {spec.dtype} {spec.shape_text}"
            )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
