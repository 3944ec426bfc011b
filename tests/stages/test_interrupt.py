"""Ctrl-C while Spark works: the same clean end as anywhere else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# the real command, and in the place of its stages a Spark job that says when it runs and would take a minute
PROGRAM = """
import sys, time
from pathlib import Path
from m3rec_spark import cli
from m3rec_spark.stages import pipeline
from m3rec_spark.stages.context import spark_session

folder = sys.argv[1]

def long_job(stages, config, workspace, **_):
    def work(batches):
        Path(folder, "running").touch()
        time.sleep(60)
        yield from batches
    spark_session(config.spark).range(1).mapInArrow(work, "id long").write.parquet(folder + "/out")

pipeline.run_stages = long_job
sys.exit(cli.main(["prepare", "--workspace", folder + "/workspace", "spark.master=local[1]"]))
"""


@pytest.mark.spark
def test_an_interrupt_within_a_spark_job_ends_cleanly(tmp_path: Path) -> None:
    running = tmp_path / "running"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not running.exists():
        with pytest.raises(subprocess.TimeoutExpired):  # else it has ended: its code would be the answer
            child.wait(0.05)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert "interrupted: what is finished stays" in told
    assert "error: unexpected" not in told  # Spark and its bridge have their say before it
