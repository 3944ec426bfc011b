"""A peer's side of the benchmark: runs on demand, one line of JSON a run. Needs psutil besides the peer."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time

import psutil


def arguments():
    """What harness.peer_process was given."""
    return json.loads(sys.argv[1])


def serve(run) -> None:
    """Says ready, then runs `run` once a line of standard input and answers with seconds, peak memory and result."""
    answers = os.fdopen(os.dup(1), "w")  # libraries that print must not disturb the protocol
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        with _Watch() as watch:
            start = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - start
        line = {"seconds": seconds, "peak_mb": watch.peak_mb, "result": result}
        print(json.dumps(line), file=answers, flush=True)


class _Watch:
    """As harness.MemoryWatch."""

    def __enter__(self):
        _give_back()
        self.start = self.peak = _private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.03):
            self.peak = max(self.peak, _private_bytes())

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_mb = (self.peak - self.start) / 1e6


def _give_back() -> None:
    """As harness.give_back."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _private_bytes() -> int:
    me, total = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        try:
            memory = process.memory_info()
            total += memory.rss - memory.shared
        except psutil.Error:
            continue
    return total
