"""What a stage gets: config, workspace, tracker, its key, and Spark on demand."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from m3rec_spark.config import Config, Spark
from m3rec_spark.errors import UsageError
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker

log = logging.getLogger(__name__)


@dataclass
class Context:
    """The surroundings of one run of one stage."""

    config: Config
    workspace: Workspace
    tracker: Tracker
    key: str
    """Provenance key of what the stage writes."""
    resume: bool = False
    """Continue from the last checkpoint (train)."""
    force: bool = False
    """Make anew even the tables of the stage that are fresh (pretrain)."""

    def is_fresh(self, *tables: str) -> bool:
        """Whether an interrupted run of this very stage has published the tables already."""
        return not self.force and all(self.workspace.state(table, self.key) == "fresh" for table in tables)

    def spark(self) -> SparkSession:
        """The active session, else a new one; never stopped here."""
        return spark_session(self.config.spark)


def spark_session(settings: Spark) -> SparkSession:
    """The caller's session if one is active; what spark-submit configured; else a local one by the settings.

    Raises:
        UsageError: no Java 17 or 21 for a local session.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    # thousands of lines of Spark's own would bury what the stages say
    builder = SparkSession.builder.appName("m3rec_spark").config("spark.log.level", "ERROR")
    if "PYSPARK_GATEWAY_PORT" in os.environ or "SPARK_REMOTE" in os.environ:
        with _plain_interrupts():
            return builder.getOrCreate()
    require_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # a laptop's changing host name is a common first failure
    log.info("starting Spark (%s, %s)", settings.master, settings.driver_memory)
    options: dict[str, bool | float | int | str | None] = {
        "spark.driver.memory": settings.driver_memory,
        "spark.sql.shuffle.partitions": str(settings.shuffle_partitions),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        **settings.options,
    }
    with _plain_interrupts():
        return builder.master(settings.master).config(map=options).getOrCreate()


@contextlib.contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Keeps what Ctrl-C did before: Spark's handler calls the JVM from within a call to it, which ends in its error.

    The jobs end with the process, and with it the JVM.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def java_version(java: str) -> int | None:
    """The major version that `java -version` reports; None if it does not run."""
    try:
        run = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', run.stderr + run.stdout)
    return int(match.group(1)) if run.returncode == 0 and match else None


def require_java() -> None:
    """Raises UsageError, with what to install, unless JAVA_HOME or PATH lead to Java 17 or 21."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    version = java_version(java) if java else None
    if version in (17, 21):
        return
    origin = f"JAVA_HOME={home}" if home else "PATH"
    found = f"version {version} at {java}" if version else "none that runs"
    raise UsageError(
        f"Spark 4 needs Java 17 or 21; {origin} gives {found}. On Debian or Ubuntu: "
        "apt-get install openjdk-17-jre-headless, or point JAVA_HOME at one"
    )
