"""The load of the HTTP benchmarks: wrk, told what to send and what to count."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ANSWER_S = 30
"""How long an answer is waited for."""

# wrk runs `setup` and `done` in one Lua state, `init` and `response` in that of its one thread.
COUNT_AFTER = """
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long us; } clock_tv; int gettimeofday(clock_tv *, void *);")
local function now()
  local tv = ffi.new("clock_tv")
  ffi.C.gettimeofday(tv, nil)
  return tonumber(tv.s) + tonumber(tv.us) / 1e6
end
local thread
function setup(its) thread = its end
function init() counted, from = 0, now() + RUN_UP end
function response() if now() >= from then counted = counted + 1 end end
function done(summary)
  local seconds = summary.duration / 1e6 - RUN_UP
  io.write(string.format("After the run-up: %.3f\\n", thread:get("counted") / seconds))
end
"""


@dataclass(frozen=True)
class Arm:
    """One server, and how it wants to be asked."""

    url: str
    body: bytes
    kind: str
    process: int | None = None
    """What it runs under; None for our Ray."""


@dataclass(frozen=True)
class Load:
    """What one turn of wrk found."""

    a_second: float
    failed: int
    client_cpu: float
    """wrk's own CPU seconds a second."""


def press(wrk: str, arm: Arm, *, connections: int, seconds: float, run_up: float = 0.0) -> Load:
    """Closed loop of `connections` that are kept alive. With `run_up`, only what is answered after
    so many seconds is counted: then as much is under way at the beginning as at the end."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "post.lua"
        body.write_bytes(arm.body)
        script.write_text(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{arm.kind}"\n'
            f'local file = io.open("{body}", "rb")\nwrk.body = file:read("*a")\n'
            + (COUNT_AFTER.replace("RUN_UP", str(run_up)) if run_up else "")
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Patience, or on a slow machine wrk counts answers that only waited as failures.
        command = [wrk, "-t1", f"-c{connections}", f"-d{run_up + seconds:g}s"]
        command += [f"--timeout={ANSWER_S}s", "-s", str(script), arm.url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    cut = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    failed = (int(bad[1]) if bad else 0) + (sum(map(int, cut.groups())) if cut else 0)
    rate = re.search(r"After the run-up: ([\d.]+)" if run_up else r"Requests/sec:\s+([\d.]+)", said)
    if rate is None:
        raise RuntimeError(f"wrk said nothing of requests a second:\n{said}")
    return Load(float(rate[1]), failed, cpu / (run_up + seconds))
