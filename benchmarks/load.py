"""The load of the HTTP benchmarks: runs wrk with a script that says what to send and count."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ANSWER_S = 30
"""Seconds that a client waits for an answer."""

# wrk runs `setup` and `done` in one Lua state, `init` and `response` in that of its only thread.
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
    """One server of a comparison, and the request that it takes."""

    url: str
    body: bytes
    kind: str
    process: int | None = None
    """Id of its root process; None for the servers on this benchmark's own Ray."""


@dataclass(frozen=True)
class Load:
    """The result of one run of wrk."""

    a_second: float
    """Answers a second."""
    failed: int
    client_cpu: float
    """wrk's own CPU seconds a second."""


def press(wrk: str, arm: Arm, *, connections: int, seconds: float, run_up: float = 0.0) -> Load:
    """Load `arm` for `seconds`: each of `connections` sends its next request after an answer.

    With `run_up`, the load starts that many seconds earlier and only later answers are counted. So
    as many requests are in flight at the start of the count as at its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "post.lua"
        body.write_bytes(arm.body)
        script.write_text(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{arm.kind}"\n'
            f'local file = io.open("{body}", "rb")\nwrk.body = file:read("*a")\n'
            + (COUNT_AFTER.replace("RUN_UP", str(run_up)) if run_up else "")
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # With a short timeout wrk would count slow answers as failures on a slow machine.
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
