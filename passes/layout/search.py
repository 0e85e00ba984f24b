"""Axis orders for all tensors of a graph at once, such that Transposes move the fewest bytes.

An *expansion* takes a proposal (an order for some nodes, grown from a seed by asking what each neighbour must
do to get along without a Transpose) and lets every node of it keep its order or take the proposed one. That
choice is a minimum cut, so it is exact: where nodes have two orders to choose from (the source's and the
channels-last, in every graph whose own Transposes do not ask for more) one expansion gives the global
optimum. Where there are more, further expansions start at each Transpose that is left, until none helps
(Boykov, Veksler, Zabih, PAMI 2001).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tapeout.passes.layout import functions
from tapeout.passes.layout.freedom import Operator, Order, identity
from tapeout.passes.layout.minimum_cut import SINK, SOURCE, Network
from tapeout.passes.layout.problem import Member, Mode, Problem, Tensor, Use
from tapeout.passes.layout.views import Form, Group, Root, flat

_CANDIDATES: dict[int, tuple[Order, ...]] = {
    r: (functions.LAST[r], identity(r), functions.FIRST[r]) for r in functions.LAST
}
_CANDIDATES[3] = ((0, 2, 1), (0, 1, 2))


def solve(problem: Problem) -> None:
    """Find the assignment; it is left in `problem.modes`."""
    Search(problem).run()


# After so many tensors looked at (about a second), no further expansions start at single Transposes.
VISITS = 50_000


class Search:
    """Improves `problem.modes` in place."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._visits = 0

    def run(self) -> None:
        members = list(self.problem.members.values())
        anchors = {m: m.start for m in members if m.anchor and m.start is not None}
        fixed: dict[Member, Mode | None] = {m: m.start for m in members if m.operator is None or not m.free}
        for m in anchors:
            fixed.pop(m, None)
        last = self.grow(anchors)
        first: dict[Member, Mode | None] = {
            m: m.start for m in members if m.free and m.operator is not None and m.start is not None
        }
        # Where it costs the same, tensors are channels-last: an activation then stays beside its convolution.
        self.problem.modes.update({m: p for m, p in last.items() if m.free})
        self.expand(first)
        left = self.problem.total(self.problem.modes)
        if not left or not any(True for _ in self.problem.copies(self.problem.modes)):
            return
        kept = [t for t in self.problem.tensors.values() if t.maker is not None and t.maker.member is None]
        self.expand(self.grow(fixed, [(t, t.maker) for t in kept if t.maker is not None]))
        helped = True
        while helped:
            helped = False
            for tensor, _ in list(self.problem.copies(self.problem.modes)):
                for use in (tensor.maker, *tensor.readers):
                    if use is not None and self._visits < VISITS:
                        helped |= self.expand(self.grow({}, [(tensor, use)]))

    def grow(
        self, seeds: Mapping[Member, Mode | None], tensors: Iterable[tuple[Tensor, Use]] = ()
    ) -> dict[Member, Mode | None]:
        """The proposal that all neighbours of `seeds`, and of `tensors` stored as at the given use, get
        along."""
        proposal = dict(seeds)
        stored: set[Root] = set()
        queue = deque(proposal)
        for tensor, use in tensors:
            mode = self.problem.modes[use.member] if use.member is not None else None
            self._spread(tensor, use, mode, proposal, stored, queue)
        while queue:
            member = queue.popleft()
            for use in member.uses:
                tensor = self.problem.tensors[use.view.root]
                if tensor.maker is not None:
                    self._spread(tensor, use, proposal[member], proposal, stored, queue)
        return proposal

    def _spread(
        self,
        tensor: Tensor,
        use: Use,
        mode: Mode | None,
        proposal: dict[Member, Mode | None],
        stored: set[Root],
        queue: deque[Member],
    ) -> None:
        if tensor.root in stored or (mode is None and use.member is not None and use.member.free):
            return
        stored.add(tensor.root)
        self._visits += 1
        sequence = flat(use.form(mode))
        order = use.port.pick(mode.order) if mode is not None and use.port is not None else None
        for other in (tensor.maker, *tensor.readers):
            member = None if other is None else other.member
            if other is None or member is None or member in proposal or not member.free:
                continue
            known = order if other.value is use.value else None
            found = _mode(member, other, sequence, known)
            if found is not None:
                proposal[member] = found
                queue.append(member)

    def expand(self, proposal: Mapping[Member, Mode | None]) -> bool:
        """Let every node keep its mode or take the proposed one, at the least total cost. True if that
        helped."""
        variables = {
            m: i
            for i, m in enumerate(m for m, p in proposal.items() if p != self.problem.modes[m] and m.free)
        }
        if not variables:
            return False
        network = Network()
        ids = {m: network.node() for m in variables}
        touched = {use.view.root: None for m in variables for use in m.uses}
        tensors = [self.problem.tensors[r] for r in touched if self.problem.tensors[r].maker is not None]
        for tensor in tensors:
            self._terms(network, tensor, ids, proposal)
        side = network.source_side()
        trial = dict(self.problem.modes)
        trial.update({m: proposal[m] for m, i in ids.items() if side[i]})
        if sum(self.problem.cost(t, trial) for t in tensors) < sum(
            self.problem.cost(t, self.problem.modes) for t in tensors
        ):
            self.problem.modes = trial
            return True
        return False

    def _terms(
        self,
        network: Network,
        tensor: Tensor,
        ids: Mapping[Member, int],
        proposal: Mapping[Member, Mode | None],
    ) -> None:
        """The cost of one tensor as arcs. A node on the source's side takes its proposed mode."""
        maker = tensor.maker
        assert maker is not None
        made = self._choice(maker, ids, proposal)
        reads = [self._choice(u, ids, proposal) for u in tensor.readers]
        weight = self.problem.weight(tensor)
        for cost, key in ((weight, flat), (1, _same)):
            own = (key(made.kept), key(made.taken))
            wanted: dict[object, list[tuple[int | None, bool]]] = {}  # form -> (variable, when it is taken)
            for read in reads:
                kept, taken = key(read.kept), key(read.taken)
                if kept == taken:
                    wanted.setdefault(kept, []).append((None, True))
                else:
                    wanted.setdefault(kept, []).append((read.variable, False))
                    wanted.setdefault(taken, []).append((read.variable, True))
            for form, readers in wanted.items():
                _copy_cost(network, cost, form != own[0], form != own[1], made.variable, set(readers))

    def _choice(self, use: Use, ids: Mapping[Member, int], proposal: Mapping[Member, Mode | None]) -> _Choice:
        member = use.member
        if member is None:
            return _Choice(use.view.form, use.view.form, None)
        kept = use.form(self.problem.modes[member])
        if member not in ids:
            return _Choice(kept, kept, None)
        taken = use.form(proposal[member])
        return _Choice(kept, taken, ids[member])


class _Choice(NamedTuple):
    kept: Form
    taken: Form
    variable: int | None


def _same(form: Form) -> Form:
    return form


def _copy_cost(
    network: Network,
    cost: int,
    missing_kept: bool,
    missing_taken: bool,
    maker: int | None,
    readers: set[tuple[int | None, bool]],
) -> None:
    """`cost` if the maker does not give a form (when it keeps, when it takes) and some reader wants it."""
    if not (missing_kept or missing_taken):
        return
    takers = [v for v, taken in readers if v is not None and taken]
    keepers = [v for v, taken in readers if v is not None and not taken]
    always = (None, True) in readers or not set(takers).isdisjoint(keepers)
    # A maker and readers that want the form in the same case have no exact arcs, nor have readers that want
    # it in opposite cases: the bound from above stands in, and the true cost decides afterwards.
    if maker is None or missing_kept == missing_taken:
        if not always:
            _any_taken(network, cost, takers, SINK)
            _any_kept(network, cost, keepers, SOURCE)
    elif always:
        network.edge(*((SOURCE, maker) if missing_kept else (maker, SINK)), cost)
    else:
        _any_taken(network, cost, takers, maker if missing_kept else SINK)
        _any_kept(network, cost, keepers, SOURCE if missing_kept else maker)


def _any_taken(network: Network, cost: int, readers: list[int], maker: int) -> None:
    """`cost` if a reader takes and `maker` keeps (the sink always keeps)."""
    if len(readers) == 1:
        network.edge(readers[0], maker, cost)
    elif readers:
        some = network.node()
        network.edge(some, maker, cost)
        for reader in readers:
            network.edge(reader, some, None)


def _any_kept(network: Network, cost: int, readers: list[int], maker: int) -> None:
    """`cost` if a reader keeps and `maker` takes (the source always takes)."""
    if len(readers) == 1:
        network.edge(maker, readers[0], cost)
    elif readers:
        some = network.node()
        network.edge(maker, some, cost)
        for reader in readers:
            network.edge(some, reader, None)


def _mode(member: Member, use: Use, sequence: Group, known: tuple[int | None, ...] | None) -> Mode | None:
    """The mode in which `member` has `use` stored in `sequence`; `known`, its own axes where a neighbour
    knows."""
    operator, port = member.operator, use.port
    assert operator is not None
    if port is None:
        return None
    if port.rows:
        return _row_mode(operator, use, sequence)
    rank = operator.rank
    tries: list[Order] = []
    if known is not None and None not in known and port.axes == identity(rank):
        tries.append(known)  # type: ignore[arg-type]
    tries += _CANDIDATES.get(rank, (identity(rank),))
    if port.axes == identity(rank):
        place = {atom: i for i, atom in enumerate(sequence)}
        rows = [tuple(place[a] for a in group if a in place) for group in use.view.form]
        after = -1
        keys = []
        for row in rows:  # an axis of size 1 stays behind its neighbour
            after = row[0] if row else after
            keys.append(after)
        tries.append(tuple(sorted(range(rank), key=keys.__getitem__)))
    for order in tries:
        if operator.allows(order):
            mode = Mode(order)
            if flat(use.form(mode)) == sequence:
                return mode
    return None


def _row_mode(operator: Operator, use: Use, sequence: Group) -> Mode | None:
    """A matrix takes any order of the leading axes, and the contracted factors in any sequence."""
    *lead, rows = use.view.form
    count = len(rows)
    if count and set(sequence[-count:]) != set(rows):
        return None
    ends = sequence[len(sequence) - count :]
    if ends != rows and not all(isinstance(a.size, int) for a in rows):
        return None
    place = {atom: i for i, atom in enumerate(sequence)}
    keys, after = [], -1
    for group in lead:
        after = place[group[0]] if group else after
        keys.append(after)
    order = (*sorted(range(len(lead)), key=keys.__getitem__), len(lead))
    mode = Mode(order, None if ends == rows else ends)
    return mode if operator.allows(order) and flat(use.form(mode)) == sequence else None
