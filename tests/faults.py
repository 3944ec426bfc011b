"""Spark with executors of its own, in a process of its own, that a test kills while a job runs.

`run(__file__, "job", folder, kill="executor", when=".part-*")` starts a child process with a `local-cluster` session,
calls `job(spark, folder)` of the test file there, waits until a file that matches `when` appears in the folder, and
kills. What the job left in the folder is the result; what it returns (JSON) comes back with the number of tasks that
failed, so that a test can show that the kill hit one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

Victim = Literal["executor", "worker", "driver"]
_LIMIT_SECONDS = 300
_QUICK_JVM = "-XX:TieredStopAtLevel=1"
_EXECUTOR, _WORKER = "CoarseGrainedExecutorBackend", "pyspark.daemon"


@dataclass(frozen=True)
class Outcome:
    """killed: pid, None where nothing was. failed_tasks and result: None where the driver was killed."""

    killed: int | None
    failed_tasks: int | None
    result: Any


def run(file: str, function: str, folder: Path, kill: Victim | None = None, when: str = "") -> Outcome:
    """Runs `function(spark, folder)` of a Python file with a cluster of two executors, one core each.

    Args:
        file: `__file__` of the test; its folder and tests/ are on the path of driver and workers.
        function: its name.
        folder: existing; given to the function, and watched.
        kill: executor: its JVM and its Python processes, of the one that holds the file open, if one does.
            worker: a Python process, likewise. driver: the child with all its processes, as a lost machine.
        when: a glob under the folder; the first file that matches gives the moment.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, __file__, file, function, str(folder), str(answer)]
        child = subprocess.Popen(command, env=_environment(file, Path(scratch)))
        deadline = time.monotonic() + _LIMIT_SECONDS
        try:
            killed = _kill(child, kill, folder, when, deadline) if kill else None
            while child.poll() is None and not answer.is_file():
                assert time.monotonic() < deadline, f"the job {function} did not end in {_LIMIT_SECONDS} s"
                time.sleep(0.05)
        finally:
            _end(child.pid)
            child.wait()
        if kill == "driver":
            return Outcome(killed, None, None)
        assert answer.is_file(), f"the job {function} ended with {child.returncode}; its own message is above"
        return Outcome(killed, **json.loads(answer.read_text()))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every published file (hidden ones are not) under a folder: its content by its relative name."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith((".", "_"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _environment(file: str, scratch: Path) -> dict[str, str]:
    import pyspark

    home = scratch / "spark"  # executors write their logs under SPARK_HOME: not into the installed package
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    here = Path(__file__).parent
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (Path(file).parent, here, here.parent))),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_DIRS": str(scratch),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def _kill(child: subprocess.Popen[bytes], victim: Victim, folder: Path, when: str, deadline: float) -> int:
    while not (found := next(folder.glob(when), None)):
        assert child.poll() is None, f"the job ended before {when} appeared: nothing was killed"
        assert time.monotonic() < deadline, f"{when} did not appear in {_LIMIT_SECONDS} s"
        time.sleep(0.002)
    pid = child.pid if victim == "driver" else _candidates(child.pid, victim, found)[0]
    _end(pid)
    return pid


def _candidates(root: int, victim: Victim, file: Path) -> list[int]:
    """Executors or Python workers under a process; those that hold the file open come first."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            command, parent = " ".join(process.cmdline()), process.parent()
            is_worker = _WORKER in command and parent is not None and _WORKER in " ".join(parent.cmdline())
            if is_worker if victim == "worker" else _EXECUTOR in command:
                tree = [process, *process.children(recursive=True)]
                opened = {Path(handle.path).name for one in tree for handle in one.open_files()}
                found.append((file.name not in opened, process.pid))
        except psutil.Error:
            continue
    assert found, f"there is no {victim} to kill"
    return [pid for _, pid in sorted(found)]


def _end(root: int) -> None:
    """SIGKILL to a process and all below it, at once: nothing gets to clean up."""
    try:
        tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=20)


def _session() -> Any:
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.log.level": "OFF",  # a killed executor is news to the log, not to the test
        "spark.driver.extraJavaOptions": _QUICK_JVM,
        "spark.executor.extraJavaOptions": _QUICK_JVM,
    }
    return SparkSession.builder.master("local-cluster[2,1,1024]").config(map=settings).getOrCreate()


def _failed_tasks(spark: Any) -> int:
    tracker = spark.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(None)]
    stages = {stage for job in jobs if job for stage in job.stageIds}
    return sum(info.numFailedTasks for stage in stages if (info := tracker.getStageInfo(stage)))


def _child(file: str, function: str, folder: str, answer: str) -> None:
    module = importlib.import_module(Path(file).stem)  # from PYTHONPATH, so that the workers find it too
    spark = _session()
    result = getattr(module, function)(spark, Path(folder))
    time.sleep(0.5)  # the listener that counts is a little behind
    written = Path(answer).with_suffix(".tmp")
    written.write_text(json.dumps({"failed_tasks": _failed_tasks(spark), "result": result}))
    written.rename(answer)
    time.sleep(60)  # the parent ends all of this: quicker than to stop the cluster


if __name__ == "__main__":
    _child(*sys.argv[1:])
