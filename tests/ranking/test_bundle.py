from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_workspace import publish, publish_served

from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.bundle import HEADER, Places, open_bundle, open_places, read_header
from m3rec_spark.ranking.pack import lay_out, pack
from m3rec_spark.ranking.recommender import Request
from m3rec_spark.tables import Workspace


@pytest.fixture(params=["ease", "own"])
def packed(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Workspace, Path]:
    """With a share of EASE, and with linear models of the markets' own."""
    workspace, folder = publish_served(tmp_path / "w", own=request.param == "own"), tmp_path / "bundle"
    folder.mkdir()
    pack(workspace, folder, {"key": "abc"})
    return workspace, folder


def test_a_bundle_answers_as_its_workspace_does(packed: tuple[Workspace, Path], tmp_path: Path) -> None:
    workspace, folder = packed
    (tmp_path / "places").mkdir()
    tables = open_places(lay_out(workspace, tmp_path / "places"))
    requests = [Request(m, f"u{k}", explain=True) for m in ("a", "b", "ü") for k in range(3)]
    requests += [Request("zz", history=["i 3"], only=["i 4", "i 5"]), Request("a", history=["i 20"])]
    answers = open_bundle(folder).recommend(requests)
    assert answers == tables.recommend(requests)
    shared = [reason for answer in answers for reason in answer.reasons or []]
    assert shared  # the reasons are worked out of the linear part too
    assert read_header(folder)["facts"] == {"key": "abc"}


def test_b_goes_along_only_where_it_has_a_share(packed: tuple[Workspace, Path]) -> None:
    assert sorted(place.stem for place in (packed[1] / "ease").iterdir()) == ["market-00000", "market-00001"]


@pytest.mark.parametrize("damage", ["absent", "short", "format", "header", "json"])
def test_damage_is_told(packed: tuple[Workspace, Path], damage: str) -> None:
    folder = packed[1]
    header = json.loads((folder / HEADER).read_text())
    victim = folder / "model" / "item_vectors.npy"
    if damage == "absent":
        victim.unlink()
    elif damage == "short":
        victim.write_bytes(victim.read_bytes()[:-4])
    elif damage == "format":
        (folder / HEADER).write_text(json.dumps(header | {"format": 99}))
    elif damage == "json":
        (folder / HEADER).write_text("{")
    else:
        (folder / HEADER).unlink()
    with pytest.raises(CorruptTableError, match=r"cannot be read .*register it again"):
        open_bundle(folder)


def test_ids_that_do_not_fit_are_refused(packed: tuple[Workspace, Path], tmp_path: Path) -> None:
    workspace, _ = packed
    publish(workspace, "users", [(0, 0, "u0")])
    (tmp_path / "again").mkdir()
    with pytest.raises(CorruptTableError, match="do not number the rows"):
        lay_out(workspace, tmp_path / "again")


def test_serving_imports_neither_spark_nor_torch(packed: tuple[Workspace, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from m3rec_spark.ranking.bundle import open_bundle\n"
        "from m3rec_spark.ranking.recommender import Request\n"
        f"answer = open_bundle(Path({str(packed[1])!r})).recommend([Request('b', 'u0', explain=True)])[0]\n"
        "assert answer.items and answer.reasons\n"
        "print([m for m in ('pyspark', 'torch', 'petastorm', 'mlflow', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_places_are_the_folders_of_a_bundle(tmp_path: Path) -> None:
    assert Places.under(tmp_path).world == str(tmp_path / "world")
    assert sorted(vars(Places.under(tmp_path))) == ["arrays", "ease", "ids", "model", "shoppers", "world"]
