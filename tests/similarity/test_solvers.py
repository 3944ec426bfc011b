from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from small_workspace import publish_shop

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CapacityError, UsageError
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.solvers import Catalogue, Machine, catalogue, choose, estimate_all, table

PAPER = Catalogue(12_015, 3_269, (528, 205, 134, 794, 7_085), (1_670, 1_152, 1_111, 2_123, 2_677), (7_109,) * 5)
BALANCED = Catalogue(18_000, 2_000, (2_000,) * 8, (2_000,) * 8, (10_000,) * 8)
LAPTOP = Machine(cores=2, driver_cores=2, driver_bytes=16 * 10**9, task_bytes=8 * 10**9)
CLUSTER = Machine(cores=200, driver_cores=8, driver_bytes=16 * 10**9, task_bytes=8 * 10**9)


def estimates(goods: Catalogue, machine: Machine, itemsize: int = 8) -> dict:
    return {e.solver: e for e in estimate_all(goods, machine, 1024, 200, 10**6, itemsize)}


def chosen(goods: Catalogue, machine: Machine, wish: str = "auto") -> str:
    return choose(estimates(goods, machine).values(), wish).solver


def test_catalogue_by_hand(tmp_path: Path) -> None:
    """a and b are sold in both markets, c in M1 alone, d and e in M2 alone."""
    pairs = [("M1", "x", i) for i in "abc"] + [("M2", "y", i) for i in "abde"] + [("M2", "z", "a")]
    found = catalogue(open_arrays(publish_shop(tmp_path, pairs).folder("arrays")))
    assert found == Catalogue(n_items=5, shared=2, own=(1, 2), shared_sold=(2, 2), users=(1, 2))


def test_flops_by_hand() -> None:
    goods = Catalogue(10, 2, (3, 5), (2, 1), (9, 9))
    found = estimates(goods, LAPTOP)
    assert found["driver"].flops == 1000
    by_market = [27 + 3 * 9 * 2 + 3 * 4 + 2 * 3 * 2 * 2, 125 + 3 * 25 * 1 + 5 * 1 + 2 * 5 * 1 * 2]
    assert found["markets"].flops == sum(by_market) + 8 + 2 * 2 * (64 - 9 - 25)


def test_the_fastest_exact_one_is_chosen() -> None:
    assert chosen(PAPER, LAPTOP) == "driver"  # one market holds most of the own items
    assert chosen(BALANCED, LAPTOP) == "markets"
    assert chosen(Catalogue(60_000, 0, (60_000,), (0,), (10**6,)), CLUSTER) == "sweep"


def test_a_gpu_is_taken_where_there_is_one() -> None:
    with_gpu = dataclasses.replace(LAPTOP, cuda_bytes=80 * 10**9)
    assert chosen(PAPER, with_gpu) == "cuda"
    needed = ease.bytes_needed(PAPER.n_items)  # one array in place, as on the driver
    assert chosen(PAPER, dataclasses.replace(LAPTOP, cuda_bytes=needed)) == "cuda"
    assert chosen(PAPER, dataclasses.replace(LAPTOP, cuda_bytes=needed - 1)) == "driver"


def test_a_task_of_the_sweep_holds_eleven_tiles() -> None:
    """40,000 items in 10 tiles of 4,000: 8 are loaded at once, and three more are worked on."""
    found = {e.solver: e for e in estimate_all(Catalogue(40_000, 0, (40_000,), (0,), (0,)), LAPTOP, 4096, 200, 10**6)}
    assert found["sweep"].task_bytes == 11 * 4000**2 * 8


def test_what_does_not_fit_is_not_chosen() -> None:
    small = dataclasses.replace(LAPTOP, driver_bytes=10**9)
    assert "driver, which may take 1,000,000,000" in estimates(PAPER, small)["driver"].obstacle
    assert chosen(PAPER, small) in ("markets", "sweep")


def test_single_precision_halves_the_memory() -> None:
    assert estimates(PAPER, LAPTOP, 4)["driver"].driver_bytes * 2 == estimates(PAPER, LAPTOP)["driver"].driver_bytes


def test_nothing_fits() -> None:
    tiny = Machine(1, 1, 10**6, 10**6)
    with pytest.raises(CapacityError, match=r"no exact solver.*driver: needs 1,\d{3},\d{3},\d{3} bytes.*neighbourhood"):
        chosen(PAPER, tiny)


def test_a_wish_is_held_or_refused() -> None:
    assert chosen(PAPER, LAPTOP, "sweep") == "sweep"
    assert chosen(PAPER, LAPTOP, "neighbourhood") == "neighbourhood"
    with pytest.raises(UsageError, match=r"ease\.solver=cuda, but torch sees no GPU"):
        chosen(PAPER, LAPTOP, "cuda")
    with pytest.raises(
        CapacityError, match=r"EASE by ease\.solver=driver needs .*: set ease\.solver=auto, or (.|\n)*flops"
    ):
        chosen(PAPER, dataclasses.replace(LAPTOP, driver_bytes=1), "driver")


def test_the_way_out_is_that_of_the_solver() -> None:
    tiny = Machine(1, 1, 10**6, 10**6)
    for wish, way in {
        "sweep": "give tasks more memory",
        "neighbourhood": "lower ease.neighbours",
        "markets": "auto",
    }.items():
        with pytest.raises(CapacityError, match=way):
            chosen(PAPER, tiny, wish)


def test_disk_counts() -> None:
    """sweep: 8 n^2 for the tiles of two generations, and 4 bytes an entry of the markets' blocks of B."""
    published = 4 * 8 * 4_000**2
    found = estimates(BALANCED, dataclasses.replace(LAPTOP, disk_bytes=8 * 18_000**2 + published - 1))
    assert "bytes on the workspace's disk, where" in found["sweep"].obstacle
    assert found["driver"].disk_bytes == published
    assert not found["driver"].obstacle
    enough = estimates(BALANCED, dataclasses.replace(LAPTOP, disk_bytes=8 * 18_000**2 + published))
    assert not enough["sweep"].obstacle


def test_a_market_is_not_solved_from_capped_users(tmp_path: Path) -> None:
    arrays = open_arrays(publish_shop(tmp_path, [("M1", "x", "a"), ("M1", "x", "b")]).folder("arrays"))
    assert catalogue(arrays, whole_histories=False).users == (0,)


def test_tiles_of_the_sweep_are_equal() -> None:
    """1,030 items in tiles of 1,024 at most: two of 515."""
    one = Catalogue(1030, 0, (1030,), (0,), (10,))
    assert estimates(one, LAPTOP)["sweep"].flops == 1030**3 * (1 + 515 / 1030)


def test_approximate_is_never_chosen_by_itself() -> None:
    fast = estimates(Catalogue(200_000, 200_000, (0,), (200_000,), (1,)), CLUSTER)
    assert fast["neighbourhood"].seconds < min(e.seconds for e in fast.values() if e.solver != "neighbourhood")
    assert choose(fast.values(), "auto").solver != "neighbourhood"


def test_table_marks_the_choice_and_the_obstacles() -> None:
    found = estimates(PAPER, LAPTOP)
    lines = table(found.values(), found["driver"]).splitlines()
    assert [line.split()[0] for line in lines] == ["solver", *found]
    assert [line.endswith("<- chosen") for line in lines] == [False, True, False, False, False, False]
    assert lines[2].endswith("no GPU")
    assert lines[1].split()[1] == "1.7e+12"
