"""Spark with executors of its own, in a process of its own, that a test kills while a job runs.

`cluster.run(__file__, "job", folder, kill="executor", when=".part-*")` has a child process with a `local-cluster`
session call `job(spark, folder)` of the test file, waits until a file that matches `when` appears in the folder, and
kills. What the job left in the folder is the result; what it returns (JSON) comes back with the number of tasks that
failed, so that a test can show that the kill hit one. The child serves all tests of a run: a start takes longer than
a job. Lost executors are replaced before the next one; after a lost driver it is a new child.
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
import traceback
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


class Cluster:
    """Two executors of one core each; started by the first job."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._home = _spark_home(Path(self._scratch.name))
        self._child: subprocess.Popen[bytes] | None = None
        self._jobs = 0

    def run(self, test: str, function: str, folder: Path, kill: Victim | None = None, when: str = "") -> Outcome:
        """Runs `function(spark, folder)` of a Python file.

        Args:
            test: its `__file__`.
            function: its name.
            folder: existing; given to the function, and watched.
            kill: executor: its JVM and its Python processes, of the one that holds the file open, if one does.
                worker: a Python process, likewise. driver: the child with all its processes, as a lost machine.
            when: a glob under the folder; the first file that matches gives the moment.
        """
        self._jobs += 1
        answer = Path(self._scratch.name) / f"answer-{self._jobs}.json"
        deadline = time.monotonic() + _LIMIT_SECONDS
        try:
            child = self._ask([test, function, str(folder), str(answer)])
            killed = None
            if kill and (file := _awaited(child, folder, when, answer, deadline)):
                killed = _kill(child, kill, file)
                if kill == "driver":
                    self.close()
                    return Outcome(killed, None, None)
            while not answer.is_file():
                _still_running(child, deadline)
            found = json.loads(answer.read_text())
            assert "error" not in found, found["error"]
            assert killed or not kill, f"the job ended before {when} appeared: nothing was killed"
        except BaseException:
            self.close()
            raise
        return Outcome(killed, **found)

    def close(self) -> None:
        """Ends the child with all its processes; another job would start another."""
        if self._child is not None:
            _end(self._child.pid)
            self._child.wait()
            self._child = None

    def _ask(self, job: list[str]) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, __file__]
            self._child = subprocess.Popen(command, env=_environment(self._home), stdin=subprocess.PIPE)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(job).encode() + b"\n")
        self._child.stdin.flush()
        return self._child


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every published file (hidden ones are not) under a folder: its content by its relative name."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith((".", "_"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _spark_home(scratch: Path) -> Path:
    """Executors write their logs under SPARK_HOME: not into the installed package."""
    import pyspark

    home = scratch / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    return home


def _environment(home: Path) -> dict[str, str]:
    tests = Path(__file__).parent
    places = {file.parent for file in tests.rglob("*.py")} | {tests.parent}
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(sorted(map(str, places))),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_DIRS": str(home.parent),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def _still_running(child: subprocess.Popen[bytes], deadline: float) -> None:
    assert child.poll() is None, f"the child ended with {child.returncode}; its own message is above"
    assert time.monotonic() < deadline, f"the job did not end in {_LIMIT_SECONDS} s"
    time.sleep(0.002)


def _awaited(child: subprocess.Popen[bytes], folder: Path, when: str, answer: Path, deadline: float) -> Path | None:
    """The first file; None where the job has ended without one."""
    while not (found := next(folder.glob(when), None)) and not answer.is_file():
        _still_running(child, deadline)
    return found


def _kill(child: subprocess.Popen[bytes], victim: Victim, file: Path) -> int:
    pid = child.pid if victim == "driver" else _candidates(child.pid, victim, file)[0]
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
        "spark.deploy.maxExecutorRetries": "-1",  # no limit: tests kill more than the default allows
    }
    return SparkSession.builder.master("local-cluster[2,1,1024]").config(map=settings).getOrCreate()


def _await_executors(spark: Any) -> None:
    """Two, and the driver is in the list too; Spark replaces a killed one."""
    tracker, deadline = spark.sparkContext._jsc.sc().statusTracker(), time.monotonic() + _LIMIT_SECONDS
    while len(tracker.getExecutorInfos()) < 3:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no two executors in {_LIMIT_SECONDS} s")
        time.sleep(0.02)


def _jobs_of(spark: Any) -> set[int]:
    return set(spark.sparkContext.statusTracker().getJobIdsForGroup(None))


def _failed_tasks(spark: Any, jobs: set[int]) -> int:
    tracker = spark.sparkContext.statusTracker()
    stages = {stage for job in map(tracker.getJobInfo, jobs) if job for stage in job.stageIds}
    return sum(info.numFailedTasks for stage in stages if (info := tracker.getStageInfo(stage)))


def _answer(spark: Any, file: str, function: str, folder: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(Path(file).stem)  # from PYTHONPATH, so that the workers find it too
        _await_executors(spark)
        before = _jobs_of(spark)
        result = getattr(module, function)(spark, Path(folder))
    except Exception:  # told by the test that asked
        return {"error": traceback.format_exc()}
    time.sleep(0.5)  # the listener that counts is a little behind
    return {"failed_tasks": _failed_tasks(spark, _jobs_of(spark) - before), "result": result}


def _serve() -> None:
    """One job a line of the input: file, function, folder, and where the answer goes."""
    spark = _session()
    for line in sys.stdin:
        *job, answer = json.loads(line)
        written = Path(answer).with_suffix(".tmp")
        written.write_text(json.dumps(_answer(spark, *job)))
        written.rename(answer)


if __name__ == "__main__":
    _serve()
