"""Memory asked for before it is taken: a step that does not fit is refused, with the bytes and the ways out."""

from __future__ import annotations

from pathlib import Path

import psutil

from m3rec_spark.errors import CapacityError

CGROUP = Path("/sys/fs/cgroup")
SAFE_SHARE = 0.8  # of what is free; the rest is for Spark, the page cache and what starts meanwhile


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that this process may still take: the machine's, or its container's (cgroup v2 and v1) where less."""
    machine = int(psutil.virtual_memory().available)
    return min([machine, *_container_free(cgroup)])


def _container_free(cgroup: Path) -> list[int]:
    layouts = (
        (cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat", "inactive_file"),
        (
            cgroup / "memory" / "memory.limit_in_bytes",
            cgroup / "memory" / "memory.usage_in_bytes",
            cgroup / "memory" / "memory.stat",
            "total_inactive_file",
        ),
    )
    found = []
    for limit_file, usage_file, stat_file, reclaimable in layouts:
        try:
            limit, usage = limit_file.read_text().strip(), int(usage_file.read_text())
            stat = dict(line.split() for line in stat_file.read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such controller here
        if limit != "max":
            found.append(max(0, int(limit) - usage + int(stat.get(reclaimable, 0))))
    return found


def require(needed: int, purpose: str, ways_out: str, limit_gb: float | None = None) -> None:
    """Refuses a step that needs more bytes than it may take.

    Args:
        needed: bytes at the peak.
        purpose: what they are for, as the subject of the message.
        ways_out: what the user can do, as the end of the message.
        limit_gb: what the step may take (10^9 bytes); None: SAFE_SHARE of what is free.

    Raises:
        CapacityError: naming needed and available bytes and the ways out.
    """
    available = int(SAFE_SHARE * free_bytes()) if limit_gb is None else int(limit_gb * 1e9)
    if needed > available:
        raise CapacityError(
            f"{purpose} needs {needed:,} bytes ({needed / 1e9:.3g} GB), may take {available:,} "
            f"({available / 1e9:.3g} GB): {ways_out}"
        )
