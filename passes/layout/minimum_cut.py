"""Minimum cut of a graph with integer capacities, by Dinic's algorithm (Soviet Math. Doklady 11, 1970)."""

from __future__ import annotations

SOURCE, SINK = 0, 1


class Network:
    """Capacities between nodes 0 (source), 1 (sink) and those made by `node`."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]  # per node the indices of its outgoing arcs
        self._head: list[int] = []
        self._capacity: list[int] = []
        self.infinite = 0  # more than any finite cut: grows with every finite capacity

    def node(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, tail: int, head: int, capacity: int | None) -> None:
        """An arc that costs `capacity` to cut; None: it cannot be cut."""
        if capacity is not None:
            self.infinite += capacity
        self._edges[tail].append(len(self._head))
        self._head.append(head)
        self._capacity.append(-1 if capacity is None else capacity)
        self._edges[head].append(len(self._head))
        self._head.append(tail)
        self._capacity.append(0)

    def source_side(self) -> list[bool]:
        """For every node whether it lies on the source's side of the minimum cut that is nearest to the
        source."""
        capacity, head, edges = self._capacity, self._head, self._edges
        infinite = self.infinite + 1
        for arc in range(0, len(capacity), 2):
            if capacity[arc] < 0:
                capacity[arc] = infinite
        while True:
            level = [-1] * len(edges)
            level[SOURCE] = 0
            frontier = [SOURCE]
            while frontier:
                following = []
                for u in frontier:
                    for arc in edges[u]:
                        v = head[arc]
                        if capacity[arc] and level[v] < 0:
                            level[v] = level[u] + 1
                            following.append(v)
                frontier = following
            if level[SINK] < 0:
                return [d >= 0 for d in level]
            self._block(level)

    def _block(self, level: list[int]) -> None:
        """Push flow along shortest paths until none is left."""
        capacity, head, edges = self._capacity, self._head, self._edges
        following = [0] * len(edges)
        path: list[int] = []
        u = SOURCE
        while True:
            if u == SINK:
                pushed = min(capacity[arc] for arc in path)
                cut = 0
                for i in reversed(range(len(path))):
                    capacity[path[i]] -= pushed
                    capacity[path[i] ^ 1] += pushed
                    if not capacity[path[i]]:
                        cut = i
                u = head[path[cut] ^ 1]
                del path[cut:]
                continue
            arcs = edges[u]
            while following[u] < len(arcs):
                arc = arcs[following[u]]
                v = head[arc]
                if capacity[arc] and level[v] == level[u] + 1:
                    path.append(arc)
                    u = v
                    break
                following[u] += 1
            else:
                if u == SOURCE:
                    return
                level[u] = -1
                u = head[path.pop() ^ 1]
                following[u] += 1
