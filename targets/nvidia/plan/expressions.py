"""Sizes and grids as postfix code over symbols: what a plan holds where a number depends on the shapes.

A code is a tuple of 64-bit words; the low byte of a word is its operation, the upper 56 bits its signed operand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tapeout.compiler.ir.dimensions import Dim, Expr, Floor
from tapeout.sdk import InvalidModelError

Code = tuple[int, ...]

NUMBER, SYMBOL, ADD, SUB, MUL, FLOOR, CEIL, MIN, MAX = range(9)
SIGNS = {ADD: "+", SUB: "-", MUL: "*", FLOOR: "//", CEIL: "/^", MIN: "min", MAX: "max"}
# Sizes stay below this: a code whose value leaves it is refused, in C as well.
LARGEST = 1 << 55
DEEPEST = 64


def number(value: int) -> Code:
    """The code of a plain number."""
    if not -LARGEST < value < LARGEST:
        raise InvalidModelError(f"the number {value} in a plan, expected one of less than 56 bits")
    return (value << 8 | NUMBER,)


def of(dim: Dim, symbols: Mapping[str, int]) -> Code:
    """The code of a dimension. `symbols` numbers the symbols."""
    if not isinstance(dim, Expr):
        return number(int(dim))
    code: Code = ()
    for monomial, factor in dim.terms:
        term = number(factor)
        for atom in monomial:
            part = (
                join(FLOOR, of(atom.of, symbols), number(atom.by))
                if isinstance(atom, Floor)
                else (symbols[atom] << 8 | SYMBOL,)
            )
            term = part if term == number(1) else join(MUL, term, part)
        code = term if not code else join(ADD, code, term)
    return code


def join(operation: int, left: Code, right: Code) -> Code:
    """The code of two codes and an operation; numbers are computed at once."""
    code = (*left, *right, operation)
    return number(value(code, ())) if len(left) == len(right) == 1 and not _symbolic(code) else code


def product(codes: Sequence[Code]) -> Code:
    """The code of a product; of nothing it is 1."""
    made = number(1)
    for code in codes:
        made = code if made == number(1) else made if code == number(1) else join(MUL, made, code)
    return made


def _symbolic(code: Code) -> bool:
    return any(word & 0xFF == SYMBOL for word in code)


Range = tuple[int, int]


def value(code: Code, sizes: Sequence[int]) -> int:
    """The number that `code` is for these sizes of the symbols. Raises as `bounds` does."""
    return bounds(code, [(size, size) for size in sizes])[0]


def bounds(code: Code, sizes: Sequence[Range]) -> Range:
    """Two numbers between which `code` stays while each symbol stays between its two.

    Raises InvalidModelError where the code is malformed, may divide by a number below 1, or leaves 56 bits.
    """
    stack: list[Range] = []
    for word in code:
        operation, operand = word & 0xFF, word >> 8
        if operation == NUMBER:
            stack.append((operand, operand))
        elif operation == SYMBOL and 0 <= operand < len(sizes):
            stack.append(sizes[operand])
        elif operation in SIGNS and operand == 0 and len(stack) >= 2:
            right, left = stack.pop(), stack.pop()
            stack.append(_apply(operation, left, right, code))
        else:
            raise InvalidModelError(f"expression {_words(code)}: word {word:#x} is out of place")
        if len(stack) > DEEPEST or max(map(abs, stack[-1])) >= LARGEST:
            raise InvalidModelError(f"expression {_words(code)}: more than {DEEPEST} operands or 56 bits")
    if len(stack) != 1:
        raise InvalidModelError(f"expression {_words(code)}: it leaves {len(stack)} numbers, expected 1")
    return stack[0]


def _apply(operation: int, left: Range, right: Range, code: Code) -> Range:
    (a, b), (c, d) = left, right
    if operation in (FLOOR, CEIL) and c < 1:
        raise InvalidModelError(f"expression {_words(code)}: division by {c}, expected at least 1")
    if operation == ADD:
        return a + c, b + d
    if operation == SUB:
        return a - d, b - c
    if operation == MIN:
        return min(a, c), min(b, d)
    if operation == MAX:
        return max(a, c), max(b, d)
    pairs = ((a, c), (a, d), (b, c), (b, d))
    if operation == MUL:
        found = [x * y for x, y in pairs]
    else:
        found = [x // y if operation == FLOOR else -(-x // y) for x, y in pairs]
    return min(found), max(found)


def text(code: Code, symbols: Sequence[str]) -> str:
    """The code as people read it: "N*3//2"."""
    stack: list[str] = []
    for word in code:
        operation, operand = word & 0xFF, word >> 8
        if operation == NUMBER:
            stack.append(str(operand))
        elif operation == SYMBOL:
            stack.append(symbols[operand])
        else:
            right, left = stack.pop(), stack.pop()
            sign = SIGNS[operation]
            call = operation in (MIN, MAX)
            stack.append(f"{sign}({left}, {right})" if call else f"({left}{sign}{right})")
    return stack[0].removeprefix("(").removesuffix(")") if _plain(stack[0]) else stack[0]


def _plain(shown: str) -> bool:
    return shown.startswith("(") and shown.count("(") == 1


def _words(code: Code) -> str:
    return "[" + " ".join(f"{w:#x}" for w in code[:12]) + (" ..." if len(code) > 12 else "") + "]"
