"""The cost model: what it must order rightly, whatever its numbers are."""

from __future__ import annotations

import pytest

from tapeout.targets.nvidia.kernels.cost import LAUNCH, MACHINES, microseconds
from tapeout.targets.nvidia.kernels.templates import sources
from tests.targets.nvidia.cases import CASES
from tests.targets.nvidia.road import planned


def costs(m: int, n: int, k: int, arch: int = 90, dtype: str = "float16") -> dict[tuple[int, int], float]:
    """The cost of each tile for one product."""
    plan = planned(
        f"agraph ({dtype}[{m}, {k}] a, {dtype}[{k}, {n}] b) => ({dtype}[{m}, {n}] y) {{ y = MatMul(a, b) }}"
    )
    (launch,) = plan.launches
    return {
        (s.constants["BM"], s.constants["BN"]): microseconds(launch, s, plan.tensors, [], arch)
        for s in sources(launch, plan.tensors)
    }


def best(m: int, n: int, k: int, arch: int = 90) -> tuple[int, int]:
    found = costs(m, n, k, arch)
    return min(found, key=lambda tile: found[tile])


@pytest.mark.parametrize("arch", MACHINES)
def test_large_products_take_large_tiles_and_small_ones_small(arch: int) -> None:
    high, wide = best(8192, 8192, 4096, arch)
    assert high * wide >= 64 * 128
    high, wide = best(16, 512, 512, arch)
    assert high == 16, "rows beyond the product are computed for nothing"


def test_more_work_costs_more_and_a_launch_costs_something() -> None:
    sizes = (256, 1024, 4096)
    found = [min(costs(n, n, n).values()) for n in sizes]
    assert LAUNCH < found[0] < found[1] < found[2]
    assert min(costs(2048, 2048, 2048, dtype="float").values()) > min(costs(2048, 2048, 2048).values())


def test_a_copy_costs_its_bytes() -> None:
    plan = planned("agraph (float[4096, 4096] x) => (float[4096, 4096] y) { y = Transpose(x) }")
    (launch,) = plan.launches
    (made,) = sources(launch, plan.tensors)
    times = {arch: microseconds(launch, made, plan.tensors, [], arch) - LAUNCH for arch in MACHINES}
    assert times[90] == pytest.approx(2 * 4096 * 4096 * 4 / (3350e3 * 0.7))
    assert times[87] > times[89] > times[80] > times[90]


def test_every_operation_has_a_cost() -> None:
    for case in CASES.values():
        plan = planned(case()[0])
        for launch in plan.launches:
            for made in sources(launch, plan.tensors):
                assert microseconds(launch, made, plan.tensors, [], 90) >= LAUNCH
