from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3rec_spark import tables
from m3rec_spark.errors import CorruptTableError, MissingTableError, UsageError
from m3rec_spark.paths import write_atomically
from m3rec_spark.schema import ITEMS, STAGES, TABLES, WALKS
from m3rec_spark.tables import Workspace, arrow_schema

ITEMS_TABLE = pa.table({"item": [0, 1], "item_id": ["007", "crème brûlée"], "markets": [2, 1]})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work space")


def versions(workspace: Workspace, name: str = "items") -> list[str]:
    return sorted(path.name for path in (workspace.root / name).iterdir() if path.is_dir())


def ids(workspace: Workspace) -> list[str]:
    return workspace.read_arrow("items")["item_id"].to_pylist()


def publish(workspace: Workspace, key: str = "k", item_ids: tuple[str, ...] = ("a", "b")) -> None:
    rows = {"item": range(len(item_ids)), "item_id": item_ids, "markets": [1] * len(item_ids)}
    workspace.write_arrow(pa.table({name: list(values) for name, values in rows.items()}), "items", key)


def data_file(workspace: Workspace) -> Path:
    (file,) = workspace.folder("items").glob("*.parquet")
    return file


# --- publish and read


def test_what_is_published_is_read_back(workspace: Workspace) -> None:
    manifest = workspace.write_arrow(ITEMS_TABLE, "items", "k", extra={"seed": 7})
    table = workspace.read_arrow("items")
    assert table.schema == arrow_schema("items")
    assert table.to_pydict() == ITEMS_TABLE.to_pydict()
    assert (manifest.rows, manifest.key, manifest.extra) == (2, "k", {"seed": 7})
    assert workspace.manifest("items") == manifest
    assert workspace.read_arrow("items", columns=["markets"]).to_pydict() == {"markets": [2, 1]}


def test_batches_are_published_as_they_come(workspace: Workspace) -> None:
    batches = ITEMS_TABLE.cast(arrow_schema("items")).to_batches(max_chunksize=1)
    assert workspace.write_arrow(iter(batches), "items", "k").rows == 2


def test_an_empty_table_keeps_its_columns(workspace: Workspace) -> None:
    with workspace.publishing("items", "k"):
        pass  # a writer with no partitions leaves no file at all
    assert workspace.read_arrow("items").schema == arrow_schema("items")
    assert workspace.manifest("items").rows == 0  # type: ignore[union-attr]


def test_a_null_where_the_schema_has_none_is_refused(workspace: Workspace) -> None:
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        workspace.write_arrow(pa.table({"item": [0, None], "item_id": ["a", "b"], "markets": [1, 1]}), "items", "k")
    assert workspace.manifest("items") is None


@pytest.mark.spark
def test_spark_and_arrow_see_the_same_table(workspace: Workspace, spark) -> None:
    frame = spark.createDataFrame(
        [(1, "b", 3), (0, "ä\"'", 2)], "markets long, item_id string, item int"
    )  # other order
    manifest = workspace.write(frame.repartition(3), "items", "k")
    assert manifest.rows == 2
    read = workspace.read(spark, "items")
    assert read.columns == ITEMS.fieldNames()
    assert {tuple(row) for row in read.collect()} == {(3, "b", 1), (2, "ä\"'", 0)}
    assert sorted(ids(workspace)) == ["b", "ä\"'"]
    assert workspace.read_arrow("items").schema == arrow_schema("items")


@pytest.mark.spark
def test_lists_and_empty_frames_survive_spark(workspace: Workspace, spark) -> None:
    workspace.write(spark.createDataFrame([(1, [4, 5]), (2, [6, 7])], WALKS), "walks", "k")
    assert sorted(workspace.read_arrow("walks")["items"].to_pylist()) == [[4, 5], [6, 7]]
    workspace.write(spark.createDataFrame([], WALKS), "walks", "k2")
    assert workspace.read(spark, "walks").count() == 0
    assert workspace.read_arrow("walks").num_rows == 0


@pytest.mark.spark
def test_a_table_can_be_made_from_its_own_old_version(workspace: Workspace, spark) -> None:
    publish(workspace, item_ids=("a", "b", "c"))
    old = workspace.read(spark, "items")
    assert workspace.write(old.filter("item > 0"), "items", "k2").rows == 2
    assert sorted(ids(workspace)) == ["b", "c"]


@pytest.mark.spark
def test_a_failing_spark_write_leaves_the_old_table(workspace: Workspace, spark) -> None:
    publish(workspace)
    bad = spark.range(4).selectExpr("cast(id as int) item", "string(id) item_id", "int(assert_true(id < 3)) markets")
    with pytest.raises(Exception, match="is not true"):
        workspace.write(bad, "items", "k2")
    assert ids(workspace) == ["a", "b"]
    assert len(versions(workspace)) == 1


@pytest.mark.spark
def test_rows_per_file_bounds_the_files(workspace: Workspace, spark) -> None:
    frame = spark.range(10).selectExpr("int(id) item", "string(id) item_id", "1 markets").coalesce(1)
    manifest = workspace.write(frame, "items", "k", rows_per_file=4)
    rows = [pq.read_metadata(workspace.folder("items") / file).num_rows for file in manifest.files]
    assert sorted(rows) == [2, 4, 4]


# --- one version at a time


def test_a_new_version_replaces_the_old_one(workspace: Workspace) -> None:
    publish(workspace, "k1")
    (old,) = versions(workspace)
    publish(workspace, "k2", ("c",))
    assert ids(workspace) == ["c"]
    assert len(versions(workspace)) == 1
    assert versions(workspace) != [old]


def test_a_failing_writer_leaves_the_old_table(workspace: Workspace) -> None:
    publish(workspace)
    with pytest.raises(FileNotFoundError), workspace.publishing("items", "k2") as folder:
        (folder / "part-0.parquet").write_bytes((folder / "absent").read_bytes())
    assert ids(workspace) == ["a", "b"]
    assert len(versions(workspace)) == 1
    assert workspace.state("items", "k") == "fresh"


def test_readers_see_the_old_table_until_the_new_one_is_whole(workspace: Workspace) -> None:
    publish(workspace)
    with workspace.publishing("items", "k2") as folder:
        pq.write_table(ITEMS_TABLE.cast(arrow_schema("items")), folder / "part-0.parquet")
        assert ids(workspace) == ["a", "b"]
    assert ids(workspace) == ["007", "crème brûlée"]


def test_a_full_disk_at_the_manifest_leaves_the_old_table(workspace: Workspace, monkeypatch) -> None:
    publish(workspace)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        publish(workspace, "k2", ("c",))
    assert ids(workspace) == ["a", "b"]
    assert len(versions(workspace)) == 1


def test_an_interrupt_after_the_rename_keeps_what_was_published(workspace: Workspace, monkeypatch) -> None:
    def interrupted(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(workspace, item_ids=("c",))
    assert ids(workspace) == ["c"]


def test_a_killed_writer_leaves_the_old_table_and_its_leftovers_go(workspace: Workspace) -> None:
    publish(workspace)
    program = (
        "import sys, time; from m3rec_spark.tables import Workspace\n"
        "with Workspace(sys.argv[1]).publishing('items', 'k2') as folder:\n"
        "    (folder / 'part-0.parquet').write_bytes(b'half'); print('half', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(workspace.root)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(timeout=20)
    writer.stdout.close()
    assert len(versions(workspace)) == 2
    assert ids(workspace) == ["a", "b"]
    publish(workspace, "k3", ("c",))
    assert ids(workspace) == ["c"]
    assert len(versions(workspace)) == 1


def test_what_killed_tasks_left_is_not_published(workspace: Workspace) -> None:
    program = (
        "import sys, time; from pathlib import Path; from m3rec_spark.paths import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'market-00000.npz') as temporary:\n"
        "    temporary.write_bytes(b'half'); print('half', flush=True); time.sleep(60)\n"
    )
    with workspace.publishing("linear", "k") as folder:
        deep = folder / "others-1"
        deep.mkdir()
        with subprocess.Popen([sys.executable, "-c", program, str(deep)], stdout=subprocess.PIPE, text=True) as task:
            assert task.stdout is not None
            assert task.stdout.readline() == "half\n"
            task.kill()
        assert len(list(deep.iterdir())) == 1
        (deep / "market-00000.npz").write_bytes(b"whole")
        (folder / ".part-0.parquet.crc").touch()  # Spark checks what it reads with such
    assert [path.name for path in deep.iterdir()] == ["market-00000.npz"]
    assert (workspace.folder("linear") / ".part-0.parquet.crc").is_file()
    manifest = workspace.manifest("linear")
    assert manifest is not None
    assert manifest.files == {"others-1/market-00000.npz": 5}


def test_scratch_is_removed_whatever_happens(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError), workspace.scratch("csr") as folder:
        (folder / "absent").read_bytes()
    assert not folder.exists()


# --- damage


def test_states(workspace: Workspace) -> None:
    assert workspace.state("items", "k") == "missing"
    publish(workspace, "k")
    assert workspace.state("items", "k") == "fresh"
    assert workspace.state("items", "other") == "stale"
    data_file(workspace).unlink()
    assert workspace.state("items", "k") == "corrupt"


def test_a_missing_table_names_its_stage(workspace: Workspace) -> None:
    with pytest.raises(MissingTableError, match=r"table 'items' is missing.*run `m3rec prepare`"):
        workspace.read_arrow("items")
    with pytest.raises(MissingTableError, match="m3rec train"):
        workspace.folder("model")


def test_a_truncated_file_is_found(workspace: Workspace) -> None:
    publish(workspace)
    file = data_file(workspace)
    size = file.stat().st_size
    os.truncate(file, size - 1)
    assert workspace.state("items", "k") == "corrupt"
    with pytest.raises(CorruptTableError, match=rf"{size - 1} bytes, not {size}.*m3rec prepare --force"):
        workspace.read_arrow("items")


def test_a_half_written_table_is_found(workspace: Workspace) -> None:
    publish(workspace)
    data_file(workspace).unlink()
    with pytest.raises(CorruptTableError, match=r"part-0.parquet is missing.*m3rec prepare --force"):
        workspace.folder("items")


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_truncated_manifest_is_found(workspace: Workspace, keep: int) -> None:
    publish(workspace)
    os.truncate(workspace.root / "items" / "manifest.json", keep)
    assert workspace.state("items", "k") == "corrupt"
    with pytest.raises(CorruptTableError, match=r"manifest\.json is damaged"):
        workspace.read_arrow("items")
    publish(workspace, "k")  # and a new run repairs it
    assert workspace.state("items", "k") == "fresh"
    assert len(versions(workspace)) == 1


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"table": "items"}'])
def test_a_manifest_of_other_json_is_found(workspace: Workspace, content: str) -> None:
    publish(workspace)
    (workspace.root / "items" / "manifest.json").write_text(content)
    assert workspace.state("items", "k") == "corrupt"


def test_a_table_of_another_schema_version_has_to_be_made_anew(workspace: Workspace) -> None:
    publish(workspace)
    path = workspace.root / "items" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99, "field_of_the_future": 1}))
    assert workspace.state("items", "k") == "missing"
    with pytest.raises(MissingTableError):
        workspace.folder("items")


def test_files_without_a_manifest_are_no_table(workspace: Workspace) -> None:
    folder = workspace.root / "items"
    folder.mkdir(parents=True)
    pq.write_table(ITEMS_TABLE, folder / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    assert workspace.state("items", "k") == "missing"


# --- names and paths


def test_unknown_tables_and_folders_of_files_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="'itmes' is not a table"), workspace.publishing("itmes", "k"):
        pass
    with pytest.raises(ValueError, match="'model' is a folder of files"):
        workspace.write_arrow(ITEMS_TABLE, "model", "k")
    assert not workspace.root.exists()


def test_folder_tables_list_their_files(workspace: Workspace) -> None:
    with workspace.publishing("model", "k", rows=3) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights.npy").write_bytes(b"12345")
        (folder / "_SUCCESS").touch()
    manifest = workspace.manifest("model")
    assert manifest is not None
    assert (manifest.rows, manifest.files) == (3, {"sub/weights.npy": 5})


def test_a_workspace_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--workspace"):
        publish(Workspace(tmp_path / "file" / "below"))


def test_every_table_belongs_to_a_stage() -> None:
    assert {table.stage for table in TABLES.values()} == {*STAGES, "recommend"}


def test_work_to_go_on_with_survives_a_failure(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError), workspace.resumable("sweep", "k" * 64) as folder:
        ((folder / "step-3").touch(), (folder / "step-4").read_bytes())
    with workspace.resumable("sweep", "k" * 64) as again:
        assert again == folder
        assert (again / "step-3").is_file()
    assert not folder.exists()


def test_work_under_another_key_is_removed(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), workspace.resumable("sweep", "old") as old:
        raise ZeroDivisionError
    with workspace.resumable("sweep", "new") as new:
        assert new.is_dir()
        assert not old.exists()


def test_scratch_of_a_killed_run_goes(workspace: Workspace) -> None:
    left = workspace.root / "_scratch" / "walks-1"
    left.mkdir(parents=True)
    workspace.clear_scratch()
    assert not left.exists()
    workspace.clear_scratch()  # nothing there: no error
