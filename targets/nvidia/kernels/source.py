"""What a kernel's source is made of: its text, its arguments, its grid; and programs of elements as Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tapeout.sdk import InternalError
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import ArgumentKind, Launch
from tapeout.targets.nvidia.programs import OPERATORS, Program, is_operand, literal

# Types of elements as Triton calls them behind a pointer; booleans are bytes.
TYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8", "uint8": "u8", "int16": "i16",
    "uint16": "u16", "int32": "i32", "uint32": "u32", "int64": "i64", "uint64": "u64", "bool": "i8",
}  # fmt: skip
HALF = ("float16", "bfloat16")
HEADER = '''"""{name}"""
import triton
import triton.language as tl


@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def tanh(x):
    a = tl.abs(x)
    t = tl.exp(-2.0 * a)
    s = x * x
    near = a * (1.0 - s * (0.33333333333 - s * (0.13333333333 - s * 0.053968253968)))
    r = tl.where(a < 0.25, near, (1.0 - t) / (1.0 + t))
    return tl.where(x < 0.0, -r, r)


@triton.jit
def times(x, y):
    return x * y


@triton.jit
def rint(x):
    r = tl.floor(x + 0.5)
    odd = r - 2.0 * tl.floor(r * 0.5) == 1.0
    return tl.where((r - x == 0.5) & odd, r - 1.0, r)


@triton.jit
def power(x, y):
    whole = tl.floor(y) == y
    odd = y - 2.0 * tl.floor(y * 0.5) == 1.0
    r = tl.exp(y * tl.log(tl.abs(x)))
    r = tl.where(x < 0.0, tl.where(whole, tl.where(odd, -r, r), float("nan")), r)
    return tl.where(y == 0.0, 1.0, r)


'''


@dataclass(frozen=True)
class Source:
    """A kernel's text with the name of its function, the types of its arguments in order ("*fp16", "i64"), its
    constants, warps and stages, and the grid for one launch. Sources with the same `key` are the same kernel."""

    name: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    constants: Mapping[str, int]
    warps: int
    stages: int
    grid: tuple[Code, Code, Code]

    @property
    def key(self) -> tuple[object, ...]:
        """What makes the machine code."""
        return (
            self.name,
            self.text,
            self.arguments,
            tuple(sorted(self.constants.items())),
            self.warps,
            self.stages,
        )


def made(
    launch: Launch,
    types: Sequence[str],
    names: Sequence[str],
    body: Sequence[str],
    grid: tuple[Code, Code, Code],
    constants: dict[str, int],
    warps: int = 4,
    stages: int = 2,
) -> Source:
    """A source from the lines of its body; `names` are the numbers', the tensors are t0, t1, ... Addresses are of
    the type of the launch's numbers."""
    pointers = [(f"t{i}", f"*{TYPES[dtype]}") for i, dtype in enumerate(types)]
    integer = "i32" if any(a.kind == ArgumentKind.INT32 for a in launch.arguments) else "i64"
    arguments = (*pointers, *((name, integer) for name in names))
    known = ", ".join([*(name for name, _ in arguments), *(f"{c}: tl.constexpr" for c in constants)])
    lines = "\n".join(f"    {line}" for line in body)
    text = HEADER.format(name=launch.operation) + f"@triton.jit\ndef {launch.operation}_({known}):\n{lines}\n"
    text = text.replace("tl.int64", "tl.int32") if integer == "i32" else text
    return Source(f"{launch.operation}_", text, tuple(arguments), constants, warps, stages, grid)


def load(name: str, dtype: str, address: str, mask: str) -> str:
    """The text that loads elements as they are computed with."""
    text = f"tl.load({name} + {address}, mask={mask}, other=0)"
    if dtype in HALF:
        return f"{text}.to(tl.float32)"
    return f"({text} != 0)" if dtype == "bool" else text


def store(name: str, address: str, value: str, mask: str) -> str:
    """The text that rounds and stores elements."""
    return f"tl.store({name} + {address}, ({value}).to({name}.dtype.element_ty), mask={mask})"


def expression(program: Program, names: Sequence[str], dtypes: Sequence[str]) -> str:
    """A program as one Triton expression over variables of these types."""
    stack: list[tuple[str, str]] = []  # text, kind: "f", "i" or "b"
    for word in program:
        number = None if is_operand(word) else literal(word)
        if is_operand(word):
            index = int(word[1:])
            stack.append((names[index], _kind(dtypes[index])))
        elif number is not None:
            shown = f'float("{word}")' if word.strip("-") in ("inf", "nan") else word
            stack.append((shown, "f" if isinstance(number, float) else "i"))
        elif word.startswith("cast."):
            stack.append(_cast(*stack.pop(), word.removeprefix("cast.")))
        else:
            operator = OPERATORS[word]
            taken = [stack.pop() for _ in range(operator.arity)][::-1]
            kinds = {kind for _, kind in taken[-2:]}
            form = "{0} // {1}" if word == "div" and "f" not in kinds else operator.triton
            made = (
                "b"
                if word in ("eq", "lt", "le", "and", "or", "xor", "not")
                else min(kinds - {"b"}, default="b")
            )
            stack.append((f"({form.format(*(text for text, _ in taken))})", made))
    if len(stack) != 1:
        raise InternalError(f"program '{' '.join(program)}' leaves {len(stack)} values, expected 1")
    return stack[0][0]


def _kind(dtype: str) -> str:
    return "b" if dtype == "bool" else "f" if "float" in dtype else "i"


def _cast(text: str, kind: str, dtype: str) -> tuple[str, str]:
    if dtype in HALF:
        return f"({text}).to(tl.{dtype}).to(tl.float32)", "f"
    return f"({text}).to(tl.{dtype})", _kind(dtype)
