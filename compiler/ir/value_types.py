"""What a model file states of types and shapes, and what is known of a value while nodes are made."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, UnsupportedError
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.scopes import Names, properties, text


class Types:
    """`stated` holds what the source states for values inside, read only where asked for: inference knows
    better."""

    def __init__(self, budget: Budget, names: Names) -> None:
        self.budget = budget
        self.names = names
        self.stated: dict[ir.Value, onnx.ValueInfoProto] = {}

    def state(self, value: ir.Value, info: onnx.ValueInfoProto, what: str, ours: bool) -> None:
        """Give `value` the type and shape that the source states for it."""
        type_, shape = self.read(info.type, what)
        if type_ is not None:
            value.type = type_
        if shape is not None:
            value.shape = shape
        if ours:
            value.metadata_props.update(properties(info.metadata_props))

    def read(self, proto: onnx.TypeProto, what: str) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        if _has_map(proto):
            raise UnsupportedError(
                f"{what} is a map, which no target takes",
                hint="export the model so that it returns tensors (scikit-learn: zipmap=False)",
            )
        try:
            type_ = ir.serde.deserialize_type_proto_for_type(proto)
            shape = ir.serde.deserialize_type_proto_for_shape(proto)
        except (ValueError, ir.serde.SerdeError) as error:
            raise InvalidModelError(f"{what} has no valid type: {last_line(error)}") from error
        if shape is None:
            return type_, None
        dims: list[int | ir.SymbolicDim | None] = []
        for dim in shape:
            if isinstance(dim, int):
                if dim < -1:
                    raise InvalidModelError(
                        f"{what} has the shape {[str(d) for d in shape]}: a dimension is negative"
                    )
                dims.append(None if dim == -1 else dim)  # Exporters write -1 where they mean "any".
            else:
                if dim.value is not None:
                    text(dim.value)
                    self.names.check(str(dim.value), "a dimension of " + what)
                dims.append(dim)
        self.budget.count([d for d in dims if isinstance(d, int)], what)
        return type_, ir.Shape(dims)

    def declared(self, value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        """What the source states for `value`."""
        info = self.stated.get(value)
        return (None, None) if info is None else self.read(info.type, f"the value '{value.name}'")

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor, None where it is not known."""
        if value is None:
            return None
        type_ = value.type or self.declared(value)[0]
        return None if type_ is None or not isinstance(type_, ir.TensorType) else type_.dtype

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dimensions of a tensor, None where it is not known."""
        if value is None:
            return None
        shape = value.shape if value.shape is not None else self.declared(value)[1]
        return None if shape is None else shape.rank()

    def serialized(self, value: ir.Value | None) -> bytes | None:
        """The serialized TypeProto of a value, b"" for an absent one, None where it is not known."""
        proto = onnx.TypeProto()
        if value is None:
            return bytes(proto.SerializeToString())
        declared = self.declared(value)
        type_, shape = value.type or declared[0], value.shape if value.shape is not None else declared[1]
        if type_ is None:
            return None
        ir.serde.serialize_type_into(proto, type_)
        if shape is not None:
            ir.serde.serialize_shape_into(proto, shape)
        return bytes(proto.SerializeToString())


def _has_map(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _has_map(getattr(proto, kind).elem_type)
    return kind in ("map_type", "opaque_type")


def last_line(error: BaseException) -> str:
    """What an error from the serializer comes down to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
