"""Compiles the kernels of a plan by Triton, ahead of time: for architectures that this machine need not have.

The same sources give the same bytes, for the same version of Triton.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tapeout.sdk import UnsupportedError, VendorToolError
from tapeout.targets.nvidia.kernels.cost import ORIGIN, microseconds
from tapeout.targets.nvidia.kernels.cubin import facts
from tapeout.targets.nvidia.kernels.source import Source
from tapeout.targets.nvidia.kernels.templates import sources
from tapeout.targets.nvidia.plan.check import ranges
from tapeout.targets.nvidia.plan.expressions import bounds
from tapeout.targets.nvidia.plan.parts import Kernel, Launch, Plan, Tactic

VERSION = "3.9"
Compiled = Callable[[Source, int], Kernel]
LIMITS = ((1 << 31) - 1, 65535, 65535)  # programs of a grid along its axes


def with_kernels(plan: Plan, architectures: Sequence[int], cache: Path | None = None) -> Plan:
    """`plan` with a kernel for each launch and architecture (90 is sm_90). `cache` is a folder that keeps what was
    compiled. Raises UnsupportedError where a launch has no kernel, VendorToolError where Triton is missing or fails.
    """
    groups: dict[tuple[object, ...], int] = {}
    chosen: list[Source] = []
    launches, tactics = [], list[Tactic]()
    with compiler(cache) as compiled:
        for launch in plan.launches:
            made, tactic = _choose(plan, launch, max(architectures), compiled)
            _hold_grid(plan, launch, made)
            if made.key not in groups:
                groups[made.key] = len(chosen)
                chosen.append(made)
            group, number = groups[made.key], len(tactics)
            tactics.append(tactic)
            launches.append(dataclasses.replace(launch, kernel=group, grid=made.grid, tactic=number))
        kernels = tuple(
            dataclasses.replace(compiled(made, arch), group=group)
            for group, made in enumerate(chosen)
            for arch in architectures
        )
    return dataclasses.replace(plan, launches=tuple(launches), kernels=kernels, tactics=tuple(tactics))


def _choose(plan: Plan, launch: Launch, arch: int, compiled: Compiled) -> tuple[Source, Tactic]:
    """Of the kernels for a launch the one that is to cost least and does not spill: at the best sizes of the first
    profile, on the newest architecture that is asked for, since a launch has one grid."""
    sizes = [best for _, best, _ in plan.profiles[0].sizes]
    costs = [
        (microseconds(launch, made, plan.tensors, sizes, arch), made)
        for made in sources(launch, plan.tensors)
    ]
    order = sorted(costs, key=lambda found: found[0])
    cost, made = next(((c, m) for c, m in order if not compiled(m, arch).spills), order[0])
    shape = "x".join(str(made.constants[c]) for c in ("BM", "BN", "BK") if c in made.constants)
    name = " ".join(filter(None, (launch.operation, shape, "on", f"sm_{arch}")))
    return made, Tactic(name, round(cost, 3), ORIGIN)


def _hold_grid(plan: Plan, launch: Launch, made: Source) -> None:
    """Raise UnsupportedError where a grid may leave what CUDA launches."""
    for profile in plan.profiles:
        for code, axis, most in zip(made.grid, "xyz", LIMITS, strict=True):
            count = bounds(code, ranges(profile))[1]
            if count > most:
                raise UnsupportedError(
                    f"{launch.operation} of {', '.join(launch.sources)}: {count} programs along {axis}, "
                    f"at most {most} can be launched",
                    hint="state smaller sizes with --shape or --option size.NAME=LEAST:BEST:MOST",
                    nodes=launch.sources,
                )


@contextlib.contextmanager
def compiler(cache: Path | None = None) -> Iterator[Compiled]:
    """What compiles a source for an architecture, once, while the block lasts."""
    if importlib.util.find_spec("triton") is None:
        raise VendorToolError(
            "kernels are compiled by Triton, which is not installed",
            hint=f"pip install 'tapeout[nvidia]' (triton {VERSION}), or --device cpu for a plan without kernels",
        )
    with (
        tempfile.TemporaryDirectory(prefix="tapeout-") as folder,
        _environment(cache or Path(folder) / "cache"),
    ):
        known: dict[tuple[object, ...], Kernel] = {}

        def compiled(made: Source, arch: int) -> Kernel:
            key = (made.key, arch)
            if key not in known:
                known[key] = _kernel(made, arch, Path(folder))
            return known[key]

        yield compiled


@contextlib.contextmanager
def _environment(cache: Path) -> Iterator[None]:
    """Triton's settings: its cache where it may write, no line tables, no interpreter."""
    wanted = {"TRITON_CACHE_DIR": str(cache), "TRITON_DISABLE_LINE_INFO": "1", "TRITON_INTERPRET": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kernel(made: Source, arch: int, folder: Path) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [i for i, (_, kind) in enumerate(made.arguments) if kind.startswith("*")]
    compiled_from = ASTSource(
        fn=function(made, folder),
        signature=dict(made.arguments) | dict.fromkeys(made.constants, "constexpr"),
        constexprs=dict(made.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    options = {"num_warps": made.warps, "num_stages": made.stages, "enable_fp_fusion": True}
    try:
        found = triton.compile(compiled_from, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        raise VendorToolError(
            f"Triton {triton.__version__} does not compile '{made.name}' for sm_{arch}: {type(error).__name__}: {text}",
            hint="a fault of tapeout: please report it; --device cpu writes a plan without kernels",
        ) from error
    image, metadata = found.asm["cubin"], found.metadata
    known = facts(image, metadata.name)
    return Kernel(
        0, arch, metadata.name, image, metadata.shared, metadata.num_warps, known.registers, known.stack,
        known.parameters,
    )  # fmt: skip


def function(made: Source, folder: Path) -> Any:
    """The source's Triton function: it is read from a file, as Triton wants it."""
    import hashlib

    name = "tapeout_kernel_" + hashlib.sha256(repr(made.key).encode()).hexdigest()[:16]
    place = folder / f"{name}.py"
    place.write_text(made.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return getattr(module, made.name)
