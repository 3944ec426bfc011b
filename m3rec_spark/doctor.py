"""What `m3rec doctor` looks at: versions, Java, memory, disk, tracking, and the traps that lose data silently.

Starts no JVM for Spark and changes nothing. Every check says what it saw; one that is not ok also says what to do.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
from packaging.specifiers import SpecifierSet

from m3rec_spark.errors import M3RecError
from m3rec_spark.paths import local_path
from m3rec_spark.similarity.capacity import free_bytes
from m3rec_spark.stages.context import java_version
from m3rec_spark.tracking.runs import tracking_uri

_PACKAGES = ("pyspark", "pyarrow", "pandas", "numpy", "scipy", "torch", "mlflow", "petastorm")
_JAVA_FIX = "apt-get install openjdk-17-jre-headless, or point JAVA_HOME at a Java 17 or 21"
_GIB = 1 << 30
_LOW_MEMORY = 3 * _GIB  # the demo's peak, Spark and torch together
_LOW_DISK = 2 * _GIB


@dataclass(frozen=True)
class Check:
    """One finding; `fix` is empty where nothing has to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class _Trap:
    package: str
    bad: str  # versions
    detail: str
    fix: str
    with_petastorm: bool = False  # harmless where petastorm is not installed


_ARROW_FEED = "or uninstall petastorm and set train.feed=arrow"
_TRAPS = (
    _Trap("pyspark", "<4.0.1", "has a known hole (CVE-2025-54920)", "install 'pyspark>=4.0.1,<5'"),
    _Trap("pyspark", ">=5.dev0", "not tried", "install 'pyspark>=4.0.1,<5'"),
    _Trap("pandas", ">=3.dev0", "Spark 4.0 loses rows and text of its string columns, silently", "install 'pandas<3'"),
    _Trap("pyarrow", "<14.0.1", "reading a file can run code (CVE-2023-47248)", "install 'pyarrow>=14.0.1'"),
    _Trap("pyarrow", ">=15.dev0", "petastorm needs what 15 removed", f"install 'pyarrow<15', {_ARROW_FEED}", True),
    _Trap("numpy", ">=2.dev0", "petastorm needs what numpy 2 removed", f"install 'numpy<2', {_ARROW_FEED}", True),
    _Trap("petastorm", ">=0.13.dev0", "reads short, silently", f"install 'petastorm==0.12.1', {_ARROW_FEED}", True),
)


def run_checks(workspace: str | None, tracking: str | None) -> list[Check]:
    """All checks of this machine.

    Args:
        workspace: the folder that a run would write to; None for the present folder.
        tracking: tracking URI of the config; None for the one that a run would use then.
    """
    return [
        check_python(sys.version_info[:2]),
        _check_machine(),
        *check_versions(installed_versions()),
        check_java(os.environ),
        *_check_worker_python(os.environ),
        *_check_old_mlruns(Path.cwd()),
        check_workspace(workspace or "."),
        check_tracking(tracking, workspace or "."),
    ]


def report(checks: list[Check]) -> str:
    """The checks as text, one a line, the fix below it, and a last line that counts."""
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<12} {check.detail}")
        lines += [f"{'':<19}-> {check.fix}"] if check.fix else []
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    lines.append(f"{len(checks)} checks: {failed} failed, {warned} warned")
    return "\n".join(lines)


def installed_versions() -> dict[str, str]:
    """Package -> version, of those that matter and are installed."""
    installed = {item.name.lower(): item.version for item in metadata.distributions()}
    return {package: installed[package] for package in _PACKAGES if package in installed}


def check_python(version: tuple[int, ...]) -> Check:
    """3.10 and 3.11 are tested; petastorm runs on no later one."""
    text = ".".join(map(str, version))
    if version < (3, 10):
        return Check("python", "fail", text, "use Python 3.10 or 3.11")
    if version > (3, 11):
        return Check("python", "warn", f"{text}, not tested", "petastorm needs 3.10 or 3.11; else set train.feed=arrow")
    return Check("python", "ok", text)


def check_versions(versions: Mapping[str, str]) -> list[Check]:
    """The installed packages, and the combinations known to lose rows or to break."""
    checks = [Check(name, "ok", versions[name]) if name in versions else _absent(name) for name in _PACKAGES]
    for trap in _TRAPS:
        concerned = trap.package in versions and ("petastorm" in versions or not trap.with_petastorm)
        if concerned and SpecifierSet(trap.bad).contains(versions[trap.package], prereleases=True):
            checks.append(Check(trap.package, "fail", f"{versions[trap.package]}: {trap.detail}", trap.fix))
    return checks + _check_pandas_strings(versions)


def check_java(environment: Mapping[str, str]) -> Check:
    """Spark takes the Java of JAVA_HOME, else of PATH; it has to be 17 or 21."""
    if "SPARK_REMOTE" in environment:
        return Check("java", "ok", "not needed: SPARK_REMOTE is set")
    home = environment.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=environment.get("PATH", ""))
    if java is None:
        return Check("java", "fail", "none: JAVA_HOME is not set, and PATH has no java", _JAVA_FIX)
    version = java_version(java)
    if version not in (17, 21):
        return Check("java", "fail", f"{java} is Java {version}" if version else f"{java} does not run", _JAVA_FIX)
    return Check("java", "ok", f"{version} at {java}")


def check_workspace(workspace: str) -> Check:
    """Whether the folder, or the nearest one above it that exists, can be written, and the disk under it."""
    try:
        folder = local_path(workspace)
    except M3RecError as error:
        return Check("workspace", "fail", str(error), "choose another --workspace")
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"m3rec")
    except OSError as error:
        return Check("workspace", "fail", f"cannot write to {nearest}: {error}", "choose another --workspace")
    free = shutil.disk_usage(nearest).free
    low, fix = free < _LOW_DISK, f"a run on real markets wants {_LOW_DISK // _GIB} GiB"
    return Check("workspace", "warn" if low else "ok", f"{folder}, {free / _GIB:.1f} GiB free", fix if low else "")


def check_tracking(configured: str | None, workspace: str, timeout: float = 3.0) -> Check:
    """Whether the tracking store answers (server) or can be written (SQLite). Passwords in the URI are not shown."""
    try:
        uri = tracking_uri(configured, local_path(workspace))
    except (ImportError, M3RecError) as error:
        return Check("tracking", "fail", str(error), "see the checks above")
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_server(uri, timeout)
    if scheme == "sqlite":
        return _check_sqlite(uri)
    if scheme in ("", "file"):
        fix = "use sqlite:////path/mlflow.db or a server's http:// address"
        return Check("tracking", "fail", f"{uri}: MLflow 3.13 and later refuse a folder as the store", fix)
    return Check("tracking", "ok", f"{scheme}: not tried")


def _absent(name: str) -> Check:
    if name == "petastorm":
        return Check(name, "warn", "not installed", "set train.feed=arrow, or install 'm3rec_spark[petastorm]'")
    return Check(name, "fail", "not installed", "install the package again; `make setup` does")


def _check_pandas_strings(versions: Mapping[str, str]) -> list[Check]:
    """The option that makes pandas 2 read text as string[pyarrow], which Spark corrupts as it does pandas 3's."""
    if not versions.get("pandas", "").startswith("2."):
        return []
    import pandas as pd

    detail = "option future.infer_string is on: Spark 4.0 corrupts such text columns"
    fix = "switch it off (environment variable PANDAS_FUTURE_INFER_STRING)"
    return [Check("pandas", "fail", detail, fix)] if pd.get_option("future.infer_string") else []


def _check_machine() -> Check:
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    free = free_bytes()
    detail = f"{platform.system()} {platform.machine()}, {cores} cores, {free / _GIB:.1f} GiB of memory free"
    low, fix = free < _LOW_MEMORY, f"the demo wants {_LOW_MEMORY // _GIB} GiB; lower spark.driver_memory"
    return Check("machine", "warn" if low else "ok", detail, fix if low else "")


def _check_worker_python(environment: Mapping[str, str]) -> list[Check]:
    """Spark refuses workers of another Python; without PYSPARK_PYTHON the library sets this one."""
    worker = environment.get("PYSPARK_PYTHON")
    if not worker:
        return []
    command = [worker, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    own, fix = "{}.{}".format(*sys.version_info[:2]), f"unset PYSPARK_PYTHON, or set it to {sys.executable}"
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return [Check("workers", "fail", f"PYSPARK_PYTHON={worker} does not run: {error}", fix)]
    if found != own:
        return [Check("workers", "fail", f"PYSPARK_PYTHON={worker} is Python {found}, not {own}", fix)]
    return [Check("workers", "ok", f"PYSPARK_PYTHON={worker}")]


def _check_old_mlruns(folder: Path) -> list[Check]:
    old = folder / "mlruns"
    detail = f"{old}: MLflow's own default is to use such a folder, and then to refuse it"
    return [Check("mlruns", "warn", detail, "move it away, or set MLFLOW_TRACKING_URI")] if old.is_dir() else []


def _check_server(uri: str, timeout: float) -> Check:
    shown = urlsplit(uri)._replace(netloc=urlsplit(uri).netloc.rpartition("@")[2]).geturl()
    try:
        with urlopen(f"{shown.rstrip('/')}/health", timeout=timeout):
            return Check("tracking", "ok", f"{shown} answers")
    except HTTPError as error:  # it answers; whether it lets us in is for MLflow's own log-in
        return Check("tracking", "warn", f"{shown} answers {error.code} {error.reason}", "check address and log-in")
    except (OSError, ValueError) as error:
        fix = "start it, or set tracking.uri; training goes on without it, untracked"
        return Check("tracking", "fail", f"{shown} cannot be reached: {getattr(error, 'reason', error)}", fix)


def _check_sqlite(uri: str) -> Check:
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        folder = check_workspace(str(path.parent))
        if folder.status == "fail":
            return Check("tracking", "fail", folder.detail, "set tracking.uri to a place that can be written")
        return Check("tracking", "ok", f"{path}, made by the first run")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1)) as store:
            store.execute("BEGIN IMMEDIATE")  # the lock that a write takes; given back at once
            store.rollback()
    except sqlite3.Error as error:
        return Check("tracking", "fail", f"{path}: {error}", "end what holds it, or set tracking.uri to another")
    return Check("tracking", "ok", str(path))
