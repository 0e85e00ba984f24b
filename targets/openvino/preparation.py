"""Preparation of inputs inside the file: `--option input.NAME="u8 NHWC BGR resize mean=.. scale=.."`.

    y = (Resize(Color(Transpose(Cast(x)))) - mean) / scale        x: what the caller gives, y: what the model takes

OpenVINO's PrePostProcessor embeds it; `reference` says the same in ONNX, and `hold` compares the two. The words, in
any order: the element type and the axis order of x; its colours (`BGR`: turned to RGB; `BGR>GRAY`: to what follows);
`resize` (to the model's height and width; `resize=linear`, `cubic` or `nearest`) and `size=480x640` where the height
and width of x are fixed; `mean` and `scale`, a number or one for each channel of the model; `model=NHWC`, the axis
order that the model itself has, where that is neither ONNX's nor told by its channels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Changes, UsageError
from tapeout.sdk import graph as g

OPTION = "input."
EXAMPLE = 'input.NAME="u8 NHWC BGR resize mean=123.7,116.3,103.5 scale=58.4,57.1,57.4"'
# The tensor between preparation and model is called after the input, with this behind it.
PREPARED = "~prepared"
TYPES: Mapping[str, ir.DataType] = {
    "u8": ir.DataType.UINT8,
    "i8": ir.DataType.INT8,
    "u16": ir.DataType.UINT16,
    "i16": ir.DataType.INT16,
    "i32": ir.DataType.INT32,
    "f16": ir.DataType.FLOAT16,
    "f32": ir.DataType.FLOAT,
}
# What ONNX's operators take their axes to be, by rank.
ORDERS = {2: "NC", 3: "NCW", 4: "NCHW", 5: "NCDHW"}
# How many channels pictures have.
PICTURE = (1, 3, 4)
# Colours, and what PrePostProcessor makes of them: the channels of each, in order.
COLOURS = {"RGB": "RGB", "BGR": "BGR", "RGBX": "RGBX", "BGRX": "BGRX", "GRAY": "Y"}
CONVERSIONS = {
    "RGB": ("RGB", "BGR", "GRAY"),
    "BGR": ("RGB", "BGR", "GRAY"),
    "RGBX": ("RGB", "BGR"),
    "BGRX": ("RGB", "BGR"),
    "GRAY": ("GRAY",),
}
LUMA = {"R": 0.299, "G": 0.587, "B": 0.114}
RESIZES = {"linear": "RESIZE_LINEAR", "cubic": "RESIZE_CUBIC", "nearest": "RESIZE_NEAREST"}
KEYS = ("resize", "size", "mean", "scale", "model")


@dataclass(frozen=True)
class Preparation:
    """What stands before input `name`. `shape` and `order` are the model's own, `layout` the caller's; `channels` are
    those of the model behind it. Sizes of the caller that are not fixed are None."""

    name: str
    shape: tuple[int | str, ...]
    order: str
    type: str = "f32"
    layout: str = ""
    colours: tuple[str, str] | None = None
    resize: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def given(self) -> tuple[int | str, ...]:
        """The shape of what the caller gives."""
        sizes = dict(zip(self.order, self.shape, strict=True))
        if self.resize is not None:
            for letter, index in (("H", 0), ("W", 1)):
                sizes[letter] = self.size[index] if self.size else f"{self.name}_{letter}"
        if self.colours is not None:
            sizes["C"] = len(COLOURS[self.colours[0]])
        return tuple(sizes[c] for c in self.layout)


def preparations(model: ir.Model, options: Mapping[str, str]) -> list[Preparation]:
    """What the options ask for, in the order of the model's inputs. Raises UsageError."""
    known = {v.name or "": v for v in model.graph.inputs}
    asked = {key.removeprefix(OPTION): text for key, text in options.items() if key.startswith(OPTION)}
    for name in asked:
        if name not in known:
            raise UsageError(f"option {OPTION}{name}: no input '{name}'; {_nearest(name, list(known))}")
    return [parse(known[name], asked[name]) for name in known if name in asked]


def parse(value: ir.Value, text: str) -> Preparation:
    """The preparation that `text` asks for before the input `value`. Raises UsageError."""
    name, shape = value.name or "", g.dims(value)
    where = f"option {OPTION}{name}"
    if shape is None:
        raise UsageError(f"{where}: the input has no known rank", hint=f"--shape {name}=1,3,224,224")
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise UsageError(f"{where}: the input is {value.dtype}, only inputs in floats are prepared")
    found: dict[str, Any] = {}

    def put(key: str, word: Any, said: str) -> None:
        if key in found:
            raise UsageError(f"{where}: '{said}' says the {key} again")
        found[key] = word

    for word in text.split():
        key, equals, content = word.partition("=")
        if equals and key in KEYS:
            put(key, _value(key, content, where), word)
        elif word == "resize":
            put("resize", "linear", word)
        elif word in TYPES:
            put("type", word, word)
        elif word.split(">")[0] in COLOURS:
            put("colours", _colours(word, where), word)
        elif word.isalpha() and word.isupper() and sorted(word) == sorted(ORDERS.get(len(word), "")):
            put("layout", word, word)
        elif word.isalpha() and word.isupper() and set(word) <= set("NCDHW"):
            raise UsageError(
                f"{where}: '{word}' is no axis order; expected such as {', '.join(ORDERS.values())}"
            )
        else:
            words = [*TYPES, *COLOURS, *(f"{k}=" for k in KEYS), "NHWC", "NCHW"]
            raise UsageError(f"{where}: '{word}' is not understood; {_nearest(word, words)}", hint=EXAMPLE)
    if not found:
        raise UsageError(f"{where} says nothing", hint=EXAMPLE)
    order = found.pop("model", _order(shape))
    made = Preparation(name=name, shape=tuple(shape), order=order, **{"layout": order, **found})
    _fits(made, where)
    return made


def _order(shape: Sequence[int | str]) -> str:
    """The axis order of a model's input: ONNX's, unless only the last size is one of a picture's channels."""
    if len(shape) == 4 and shape[3] in PICTURE and shape[1] not in PICTURE:
        return "NHWC"
    return ORDERS.get(len(shape), "")


def _value(key: str, content: str, where: str) -> Any:
    if key == "model":
        if content not in {"".join(p) for p in map(str, ORDERS.values())} and sorted(content) not in [
            sorted(o) for o in ORDERS.values()
        ]:
            raise UsageError(f"{where}: model='{content}' is no axis order, expected such as NCHW or NHWC")
        return content
    if key == "resize":
        if content not in RESIZES:
            raise UsageError(f"{where}: resize='{content}'; {_nearest(content, list(RESIZES))}")
        return content
    if key == "size":
        parts = content.split("x")
        if len(parts) != 2 or not all(p.isdigit() and int(p) for p in parts):
            raise UsageError(f"{where}: size='{content}', expected HEIGHTxWIDTH, such as size=480x640")
        return int(parts[0]), int(parts[1])
    try:
        numbers = tuple(float(p) for p in content.split(","))
    except ValueError:
        raise UsageError(
            f"{where}: {key}='{content}', expected numbers, such as {key}=0.5 or {key}=1,2,3"
        ) from None
    if not all(np.isfinite(numbers)) or (key == "scale" and 0.0 in numbers):
        raise UsageError(f"{where}: {key}='{content}', expected finite numbers other than 0")
    return numbers


def _colours(word: str, where: str) -> tuple[str, str]:
    first, _, last = word.partition(">")
    last = last or ("GRAY" if first == "GRAY" else "RGB")
    if last not in CONVERSIONS[first]:
        raise UsageError(f"{where}: '{word}': {first} can become {', '.join(CONVERSIONS[first])}")
    return first, last


def _fits(made: Preparation, where: str) -> None:
    """Raises UsageError where the parts contradict each other or the model."""
    rank = len(made.shape)
    for text, whose in ((made.order, "the model"), (made.layout, "the caller")):
        if sorted(text) != sorted(ORDERS.get(rank, text + "?")) and sorted(text) != sorted(made.order):
            raise UsageError(f"{where}: axis order '{text}' for {whose}, but the input has {rank} axes")
    if len(made.order) != rank or sorted(made.order) != sorted(made.layout):
        raise UsageError(
            f"{where}: axis order '{made.layout}', but the input has {rank} axes: {list(made.shape)}"
        )
    sizes = dict(zip(made.order, made.shape, strict=True))
    if made.size is not None and made.resize is None:
        raise UsageError(f"{where}: size without resize says nothing", hint="add resize")
    if made.resize is not None:
        fixed = [sizes.get(letter) for letter in "HW"]
        if not all(isinstance(d, int) for d in fixed):
            raise UsageError(
                f"{where}: resize needs an input of fixed height and width, found {list(made.shape)} as {made.order}",
                hint=f"--shape {made.name}=... fixes them",
            )
    channels = sizes.get("C")
    if made.colours is not None and channels != len(COLOURS[made.colours[1]]):
        raise UsageError(
            f"{where}: {'>'.join(made.colours)} gives {len(COLOURS[made.colours[1]])} channels, the model takes "
            f"{channels} along '{made.order}'"
        )
    for key, numbers in (("mean", made.mean), ("scale", made.scale)):
        if len(numbers) > 1 and len(numbers) != channels:
            raise UsageError(f"{where}: {key} has {len(numbers)} numbers, expected 1 or {channels}")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class CheckPreparation:
    """Holds the options against the model before anything is rewritten."""

    options: Mapping[str, str]
    device: str = "cpu"
    name: str = "preparation"

    def __call__(self, model: ir.Model) -> Changes:
        for made in preparations(model, self.options):
            if self.device == "npu" and made.resize is not None and made.size is None:
                raise UsageError(
                    f"option {OPTION}{made.name}: an NPU takes fixed sizes only", hint="add size=HEIGHTxWIDTH"
                )
        return Changes(0)


# --- embedding ---------------------------------------------------------------------------------------------


def embed(model: Any, asked: Sequence[Preparation]) -> Any:
    """The openvino.Model with the preparation before its inputs; the tensors behind it are named."""
    if not asked:
        return model
    import openvino as ov
    from openvino.preprocess import ColorFormat, PrePostProcessor, ResizeAlgorithm

    readers = {p.name: list(_input(model, p.name).get_target_inputs()) for p in asked}
    processor = PrePostProcessor(model)
    for made in asked:
        port = processor.input(made.name)
        tensor = (
            port.tensor().set_element_type(getattr(ov.Type, made.type)).set_layout(ov.Layout(made.layout))
        )
        port.model().set_layout(ov.Layout(made.order))
        steps = port.preprocess().convert_element_type(ov.Type.f32)
        if made.colours is not None:
            tensor.set_color_format(getattr(ColorFormat, made.colours[0]))
            steps.convert_color(getattr(ColorFormat, made.colours[1]))
        if made.resize is not None:
            if made.size is None:
                tensor.set_spatial_dynamic_shape()
            else:
                tensor.set_spatial_static_shape(*made.size)
            steps.resize(getattr(ResizeAlgorithm, RESIZES[made.resize]))
        if made.mean:
            steps.mean(list(made.mean) if len(made.mean) > 1 else made.mean[0])
        if made.scale:
            steps.scale(list(made.scale) if len(made.scale) > 1 else made.scale[0])
        if _input(model, made.name).get_element_type() != ov.Type.f32:
            steps.convert_element_type(_input(model, made.name).get_element_type())
    result = processor.build()
    for made in asked:
        source = readers[made.name][0].get_source_output()
        source.get_tensor().add_names({made.name + PREPARED})
    return result


def _input(model: Any, name: str) -> Any:
    return next(p for p in model.inputs if name in p.get_names())


def without(model: Any) -> Any:
    """`model` cut behind its preparation: a parameter called after the input stands for what is prepared, so that the
    rest can be fed with what the source takes. A model without preparation as it is."""
    from openvino import opset13 as op

    ports = [
        (port, name)
        for node in model.get_ordered_ops()
        for port in node.outputs()
        for name in sorted(port.get_names())
        if name.endswith(PREPARED) and node.get_type_name() != "Parameter"
    ]
    for port, full in ports:
        name = full.removesuffix(PREPARED)
        old = next(p for p in model.get_parameters() if name in p.output(0).get_names())
        index = model.get_parameter_index(old)
        old.output(0).get_tensor().set_names(set())
        new = op.parameter(port.get_partial_shape(), port.get_element_type(), name=name)
        for reader in list(port.get_target_inputs()):
            reader.replace_source_output(new.output(0))
        new.output(0).get_tensor().set_names({name})
        model.replace_parameter(index, new)
    if ports:
        model.validate_nodes_and_infer_types()
    return model


# --- what it should compute -------------------------------------------------------------------------------


def reference(made: Preparation) -> ir.Model:
    """The preparation in ONNX's operators: x, as the caller gives it, to y, as the model takes it."""
    x = ir.Value(name="x", type=ir.TensorType(TYPES[made.type]), shape=ir.Shape(list(made.given)))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 25}, name="preparation")

    def node(
        op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        new = ir.node(op, inputs, attributes or {}, name=f"{op}_{len(graph)}")
        new.outputs[0].name = f"{op}_{len(graph)}_y"
        new.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(new)
        return new.outputs[0]

    def constant(array: Any) -> ir.Value:
        return g.add_constant(graph, array, "c")

    axis, rank = made.order.index("C"), len(made.order)
    y = node("Cast", [x], {"to": ir.DataType.FLOAT})
    y = node("Transpose", [y], {"perm": [made.layout.index(c) for c in made.order]})
    if made.colours is not None:
        have, want = COLOURS[made.colours[0]], COLOURS[made.colours[1]]
        if want == "Y" and have != "Y":
            weights = np.array([LUMA[c] for c in have], np.float32)
            y = node("Mul", [y, constant(_along(weights, axis, rank))])
            y = node("ReduceSum", [y, constant(np.array([axis], np.int64))])
        else:
            picked = np.array([have.index(c) for c in want], np.int64)
            y = node("Gather", [y, constant(picked)], {"axis": axis})
    if made.resize is not None:
        places = [made.order.index(c) for c in "HW"]
        sizes = constant(np.array([made.shape[i] for i in places], np.int64))
        attributes: dict[str, Any] = {
            "mode": made.resize,
            "coordinate_transformation_mode": "half_pixel",
            "axes": places,
        }
        y = node("Resize", [y, None, None, sizes], attributes)
    for op, numbers in (("Sub", made.mean), ("Div", made.scale)):
        if numbers:
            array = np.array(numbers, np.float32)
            y = node(op, [y, constant(_along(array, axis, rank) if len(array) > 1 else array.reshape(()))])
    y.name = "y"
    y.shape = ir.Shape(list(made.shape))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=11)


def _along(array: np.ndarray[Any, Any], axis: int, rank: int) -> np.ndarray[Any, Any]:
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def spread(made: Preparation) -> float:
    """How much of what is subtracted a prepared value can be: its error grows so much against its size."""
    return 256.0 if made.type == "f16" else 1.0
