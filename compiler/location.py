"""Where a wrong number comes from: the pass that introduced it, and the first source node beyond tolerance.

The passes run again from the source with a snapshot after each. The first snapshot whose outputs leave the
source's names the pass. Within it, every part of the graph between values that both snapshots have is run
alone on the values of the snapshot before (`regions.py`), so that a part shows its own error only. Where all
snapshots agree, the fault lies in a lowering, the emitter or the runtime, and the runtime's own tensors take
the part of the snapshot before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir

from tapeout.compiler.artifact import digest
from tapeout.compiler.errors import InternalError, InvalidModelError
from tapeout.compiler.ir.cut import cut_outputs
from tapeout.compiler.ir.load import load
from tapeout.compiler.ir.origin import KEY, origin
from tapeout.compiler.ir.save import save
from tapeout.compiler.metrics import Array, is_inexact, relative
from tapeout.compiler.pipeline import run
from tapeout.compiler.reference import Reference, spread
from tapeout.compiler.regions import Regions
from tapeout.compiler.target import Request, Runner, Target, write
from tapeout.compiler.verification import tolerance

LAYOUT = "tapeout.layout"


@dataclass(frozen=True)
class Fault:
    """The pass that introduced an error, and the source nodes of the first part of the graph that shows it.

    `value` is the tensor that is off, `error` by how much of its largest value when computed alone,
    `allowed` what rounding may do to it.
    """

    step: str
    nodes: tuple[str, ...]
    value: str | None
    error: float
    allowed: float

    def describe(self) -> str:
        """In words, for the error message."""
        where = ", ".join(f"'{n}'" for n in self.nodes[:4]) + (
            f" and {len(self.nodes) - 4} more" if len(self.nodes) > 4 else ""
        )
        size = (
            "does not run or has another shape" if self.error == float("inf") else f"off by {self.error:.2e}"
        )
        where = where or "(none named)"
        return f"first beyond tolerance: node {where}, {size}, introduced by pass '{self.step}'"


def layouts(names: Iterable[ir.Value]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Values that hold a source tensor in another axis order: name -> (source name, perm)."""
    found = {}
    for value in names:
        text = value.metadata_props.get(LAYOUT)
        if text and value.name:
            name, _, perm = text.rpartition(":")
            found[value.name] = name, tuple(int(p) for p in perm.split(",") if p)
    return found


def values_of(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs and computed values of the main graph."""
    yield from model.graph.inputs
    for node in model.graph:
        yield from (v for v in node.outputs if v.name)


@dataclass
class Snapshot:
    """A stage of the model on disk, with what comparisons ask of it."""

    path: Path
    layouts: dict[str, tuple[str, tuple[int, ...]]]
    digest: str

    @classmethod
    def take(cls, model: ir.Model, path: Path) -> Snapshot:
        written = save(model, path)
        content = "".join(digest(p)[0] for p in sorted({path, *written}) if p.exists())
        return cls(path, layouts(values_of(model)), content)

    def remove(self) -> None:
        for file in self.path.parent.glob(self.path.name + "*"):
            file.unlink()


class _Stop(Exception):
    """The passes need not go on."""


def find(
    source: Callable[[], ir.Model],
    target: Target,
    request: Request,
    artifact: Path | None,
    feed: Mapping[str, Array],
    *,
    expected: Mapping[str, Array] | None = None,
    threads: int | None = None,
) -> Fault | None:
    """The first fault on the road from `source()`, a fresh copy of the model as it was read, to `artifact`.

    `feed` is an input on which the outputs differ, `expected` the outputs of the original file where it ran;
    None where nothing is found beyond tolerance.
    """
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        search = _Search(Path(folder), request.scheme, feed, threads)
        model = source()
        try:
            run(model, target.passes(request), search.observe(expected))
        except _Stop:
            return search.fault
        if artifact is None or search.last is None:
            return None
        return search.emission(model, target, request, artifact)


class _Search:
    def __init__(self, folder: Path, scheme: str, feed: Mapping[str, Array], threads: int | None) -> None:
        self.folder, self.scheme, self.feed, self.threads = folder, scheme, feed, threads
        self.last: Snapshot | None = None
        self.fault: Fault | None = None
        self._expected: Mapping[str, Array] = {}
        self._spread: dict[str, float] = {}

    def allowed(self, name: str, array: Array) -> float:
        return tolerance(self.scheme, self._spread.get(name, 0.0)) if is_inexact(array) else 0.0

    def observe(self, expected: Mapping[str, Array] | None) -> Callable[[int, str, ir.Model], None]:
        """An observer that stops the passes at the first snapshot whose outputs are off."""

        def observer(index: int, name: str, model: ir.Model) -> None:
            now = Snapshot.take(model, self.folder / f"{index + 1}.onnx")
            if self.last is not None and now.digest == self.last.digest:
                now.remove()
                return
            outputs = self._outputs(now)
            if index < 0:
                self._spread = _spread(now.path, self.feed)
                self._expected = outputs or {}
                if expected is not None and self._off(expected, outputs):
                    worst = next(n for n in expected if self._off({n: expected[n]}, outputs))
                    maker = next((n for n in model.graph for v in n.outputs if v.name == worst), None)
                    nodes = tuple(
                        (maker.metadata_props.get(KEY, "") if maker is not None else "").split("\n")
                    )
                    error = (
                        relative(expected[worst], outputs[worst])
                        if outputs and worst in outputs
                        else float("inf")
                    )
                    self.fault = Fault("import", nodes, worst, error, self.allowed(worst, expected[worst]))
                    raise _Stop
            elif self._off(self._expected, outputs):
                assert self.last is not None
                self.fault = self._within(name, self.last, now)
                raise _Stop
            if self.last is not None:
                self.last.remove()
            self.last = now

        return observer

    def _outputs(self, snapshot: Snapshot) -> dict[str, Array] | None:
        try:
            with Reference(snapshot.path, threads=self.threads) as reference:
                return reference.run(self.feed)
        except InvalidModelError:
            return None

    def _off(self, expected: Mapping[str, Array], found: Mapping[str, Array] | None) -> bool:
        if found is None:
            return True
        return any(
            n not in found or not relative(a, found[n]) <= self.allowed(n, a) for n, a in expected.items()
        )

    # --- between two snapshots ----------------------------------------------------------------------------

    def _within(self, step: str, before: Snapshot, after: Snapshot) -> Fault:
        with (
            Reference(before.path, threads=self.threads) as old,
            Reference(after.path, threads=self.threads) as new,
        ):
            fetch = _Translated(old, before, after, self.feed)
            known = [n for n in (*new.inputs(), *new.names()) if fetch.has(n)]
            regions = Regions(new.proto, known, new.base, self.threads or 2)
            unchanged = _unchanged(old.proto, new.proto)
            return self._first(step, regions, fetch, unchanged)

    def _first(
        self,
        step: str,
        regions: Regions,
        fetch: Callable[[Sequence[str]], Mapping[str, Array]],
        unchanged: set[int],
    ) -> Fault:
        """The first region whose own error is beyond what rounding does; if none, the one that is furthest
        off."""
        worst: Fault | None = None
        for target, found, value in regions.run(regions.targets(), fetch):
            error = float("inf") if found is None else relative(value, found)
            allowed = self.allowed(target, value)
            if found is not None and not error <= allowed:
                error = min(error, second_opinion(regions, target, value, fetch))
            nodes, _ = regions.region(target)
            if worst is None or error > worst.error:
                blamed = [i for i in nodes if i not in unchanged] or [nodes[-1]]
                worst = Fault(step, _origins(regions.nodes[i] for i in blamed), target, error, allowed)
            if not error <= allowed:
                break
        return worst or Fault(step, (), None, float("nan"), 0.0)

    # --- between the graph and the runtime ----------------------------------------------------------------

    def emission(self, model: ir.Model, target: Target, request: Request, artifact: Path) -> Fault | None:
        """The first region of the final graph that the runtime computes otherwise."""
        assert self.last is not None
        makers = {v.name: n for n in model.graph for v in n.outputs}
        fallback: Fault | None = None
        try:
            runners = sorted(target.runners(artifact, request), key=lambda r: "XNNPACK" in r.runtime)
        except (InternalError, InvalidModelError):
            return self._not_running(target, request)
        for runner in runners:
            try:
                found = runner.run(self.feed)
            except (InternalError, InvalidModelError):
                return self._not_running(target, request)
            if not self._off(self._expected, found):
                continue
            with Reference(self.last.path, threads=self.threads) as final:
                names = [*final.inputs(), *final.names()]
                fetch = Device(runner, self.feed)
                known = fetch.known(names)
                regions = Regions(final.proto, known, final.base, self.threads or 2)
                regions.known &= regions.live()
                fault = self._first("emission", regions, fetch, set())
            step = _emission(target, request, model, makers.get(fault.value))
            fault = Fault(step, fault.nodes, fault.value, fault.error, fault.allowed)
            if not fault.error <= fault.allowed:
                return fault
            fallback = fallback or fault
        return fallback

    def _not_running(self, target: Target, request: Request) -> Fault | None:
        """The first node of the final graph with which an artifact of the nodes up to it does not run."""
        assert self.last is not None
        low, high = 0, len(load(self.last.path).graph)
        while low < high:
            middle = (low + high) // 2
            if self._runs(target, request, middle):
                low = middle + 1
            else:
                high = middle
        model = load(self.last.path)
        if low >= len(model.graph):
            return None
        node = model.graph[low]
        step = _emission(target, request, model, node)
        return Fault(step, origin(node), node.outputs[0].name, float("inf"), 0.0)

    def _runs(self, target: Target, request: Request, last: int) -> bool:
        assert self.last is not None
        model = load(self.last.path)
        cut_outputs(model, [v.name for n in list(model.graph)[: last + 1] for v in n.outputs if v.name])
        path = self.last.path.with_name(f"part{target.suffix}")
        try:
            write(target, model, path, request)
            for runner in target.runners(path, request):
                runner.run({v.name or "": self.feed[v.name or ""] for v in model.graph.inputs})
        except (InternalError, InvalidModelError):
            return False
        return True


def _emission(target: Target, request: Request, model: ir.Model, node: ir.Node | None) -> str:
    """The name of the last step in messages: the lowering of `node`."""
    row = None if node is None else target.declaration(request.device).match(node, model.functions)
    return f"emission ({getattr(row, 'lower', None) or 'unknown'})"


class _Translated:
    """Values of the snapshot before, by the names of the snapshot after."""

    def __init__(
        self, reference: Reference, before: Snapshot, after: Snapshot, feed: Mapping[str, Array]
    ) -> None:
        self._reference, self._feed = reference, feed
        self._names = {*reference.inputs(), *reference.names()}
        self._after = after.layouts
        # The source tensor behind a permuted value, for passes that restore the order.
        self._permuted = {
            name: (holder, perm) for holder, (name, perm) in before.layouts.items() if holder in self._names
        }

    def has(self, name: str) -> bool:
        return self._origin(name) is not None

    def _origin(self, name: str) -> tuple[str, tuple[int, ...] | None, bool] | None:
        """(name before, perm, whether the perm is to be undone)."""
        if name in self._names:
            return name, None, False
        if name in self._after:
            held, perm = self._after[name]
            if held in self._names:
                return held, perm, False
            if held in self._permuted and self._permuted[held][1] == perm:
                return self._permuted[held][0], None, False
        if name in self._permuted:
            holder, perm = self._permuted[name]
            return holder, perm, True
        return None

    def __call__(self, names: Sequence[str]) -> dict[str, Array]:
        found = {n: o for n in names if (o := self._origin(n)) is not None}
        wanted = [o[0] for o in found.values() if o[0] not in self._feed]
        values = {**self._feed, **self._reference.run(self._feed, wanted)}
        return {n: permuted(values[old], perm, undo) for n, (old, perm, undo) in found.items()}


def permuted(array: Array, perm: tuple[int, ...] | None, undo: bool = False) -> Array:
    """`array` with its axes in the order `perm`, or back from it; unchanged where ranks do not fit."""
    if perm is None or len(perm) != array.ndim:
        return array
    return array.transpose(sorted(range(len(perm)), key=lambda i: perm[i]) if undo else perm)


def second_opinion(
    regions: Regions, target: str, value: Array, fetch: Callable[[Sequence[str]], Mapping[str, Array]]
) -> float:
    """The error of `value` against its region in float64; inf where that cannot be had."""
    found = regions.precisely(target, fetch)
    return float("inf") if found is None else relative(found.astype(value.dtype), value)


class Device:
    """Tensors that a runtime shows, by name; inputs are those it was fed."""

    def __init__(self, runner: Runner, feed: Mapping[str, Array]) -> None:
        self._runner, self._feed = runner, feed
        self._held: dict[str, Array] = {}

    def known(self, names: Sequence[str]) -> list[str]:
        """Those among `names` that the runtime shows."""
        found = self._runner.tensors(self._feed, [n for n in names if n not in self._feed])
        self._held = dict(found) if sum(a.nbytes for a in found.values()) < 1 << 30 else {}
        return [n for n in names if n in found or n in self._feed]

    def __call__(self, names: Sequence[str]) -> dict[str, Array]:
        missing = [n for n in names if n not in self._feed and n not in self._held]
        found = self._runner.tensors(self._feed, missing) if missing else {}
        return {n: a for n in names if (a := self._feed.get(n, self._held.get(n, found.get(n)))) is not None}


def _spread(path: Path, feed: Mapping[str, Array]) -> dict[str, float]:
    try:
        return spread(path, [feed])
    except InvalidModelError:
        return {}


def _origins(nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for node in nodes:
        text = next((p.value for p in node.metadata_props if p.key == KEY), "")
        names.update(dict.fromkeys(text.split("\n") if text else [node.name]))
    return tuple(names)


def _unchanged(before: onnx.ModelProto, after: onnx.ModelProto) -> set[int]:
    """Indices of nodes of `after` that stand in `before` just so, with the same small constants."""
    weights = [{t.name: t for t in p.graph.initializer} for p in (before, after)]

    def same(name: str) -> bool:
        a, b = weights[0].get(name), weights[1].get(name)
        return (a is None and b is None) or (a is not None and b is not None and _content(a) == _content(b))

    known = {_bare(n) for n in before.graph.node}
    return {
        i
        for i, n in enumerate(after.graph.node)
        if _bare(n) in known and all(same(name) for name in n.input if name)
    }


def _bare(node: onnx.NodeProto) -> bytes:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.metadata_props[:]
    copy.doc_string = ""
    return cast(bytes, copy.SerializeToString(deterministic=True))


def _content(tensor: onnx.TensorProto) -> bytes:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = copy.doc_string = ""
    del copy.metadata_props[:]
    return cast(bytes, copy.SerializeToString(deterministic=True))
