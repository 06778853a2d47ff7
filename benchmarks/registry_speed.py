"""Measures the registry's speed as a ratio to the file operations that it needs.

    python benchmarks/registry_speed.py [--records 10000] [--directory DIR] [--json]

The log is like that of a deployment: 20 classes are erased one after another, each with a guard
and an adapter release; rollbacks back and forth follow. All times are of one process; where nothing
waits for a disk, they are CPU times. Ratios are easier to compare between machines than times.
Reading is also measured at a quarter of the records: what is linear then takes a quarter of the
time.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from registry.log import checkpoint
from registry.log.ledger import Ledger, utc_now
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, confirm_release, publish_release, roll_back
from registry.signing.keys import Signer, Trust, init_keys
from registry.store.directory import DirectoryStore
from registry.upkeep.collection import collect
from registry.upkeep.verification import verify

BACKBONE = f"sha256:{'b' * 64}"
ERASURES = 20
MEGABYTE = 1_000_000


class Deployment:
    """Writes a registry, and notes how many milliseconds each append took."""

    def __init__(self, top: Path) -> None:
        init_keys(top / "keys")
        self.store = DirectoryStore(top / "registry")
        self.trust = Trust.load(top / "keys" / "trust.json")
        self.ledger = Ledger(self.store, self.trust)
        self.operator = Signer.load(top / "keys" / "operator.pem")
        self.publisher = Signer.load(top / "keys" / "publisher.pem")
        self.append_ms: list[float] = []

    def origin(self) -> dict[str, str]:
        number = len(self.append_ms)
        return {"actor": "ops@example.org", "reason": "Art. 17", "request_id": f"r-{number:08d}"}

    def timed(self, act: Callable[[], object]) -> None:
        start = time.perf_counter()
        act()
        self.append_ms.append((time.perf_counter() - start) * 1e3)

    def serve(self) -> None:
        release = self.ledger.state.last_release
        ledger, operator = self.ledger, self.operator
        self.timed(lambda: activate_release(ledger, operator, release=release, **self.origin()))
        self.timed(
            lambda: confirm_release(
                ledger,
                operator,
                release=release,
                members={"replica-1": "confirmed", "replica-2": "confirmed"},
                ms=12.5,
                **self.origin(),
            )
        )

    def erase(self, number: int, *, adapter: bytes) -> None:
        subject = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        ledger, publisher = self.ledger, self.publisher
        self.timed(
            lambda: request_forget(
                ledger, self.operator, subjects=[subject], backbone=BACKBONE, **self.origin()
            )
        )
        job = list(ledger.state.jobs)[-1]
        self.timed(
            lambda: publish_release(ledger, publisher, kind="guard", job=job, **self.origin())
        )
        self.serve()
        record_trained(
            ledger,
            publisher,
            job=job,
            files={"adapter_model.safetensors": adapter, "forget.json": job.encode()},
            stack=ledger.state.active_release.adapters,
            report=b"{}",
            **self.origin(),
        )
        self.timed(
            lambda: publish_release(ledger, publisher, kind="adapter", job=job, **self.origin())
        )
        self.serve()

    def fill(self, records: int) -> None:
        """Append records until there are `records`."""
        for number in range(len(self.ledger.state.jobs), ERASURES):
            self.erase(number, adapter=f"adapter {number}".encode() * 100)
        while self.ledger.state.seq < records:
            to = self.ledger.state.active - 1
            self.timed(partial(roll_back, self.ledger, self.operator, to=to, **self.origin()))
            self.serve()


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def cpu_seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


@contextmanager
def counting_fsyncs() -> Iterator[list[int]]:
    """Yields a list that gets an entry for each fsync of this process."""
    calls: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    try:
        yield calls
    finally:
        os.fsync = real


def write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_all(directory: Path, turn: int, contents: list[bytes]) -> None:
    for number, data in enumerate(contents):
        write_synced(directory / f"all-{turn}-{number}", data)


def bare_write_ms(directory: Path, *, size: int, times: int) -> float:
    """Median time to write and fsync a new file of `size` bytes."""
    data = os.urandom(size)
    taken = [
        seconds(partial(write_synced, directory / f"bare-{size}-{name}", data))
        for name in range(times)
    ]
    return statistics.median(taken) * 1e3


def publish_1mb(deployment: Deployment, top: Path, *, times: int) -> dict[str, float]:
    """Median times in ms to publish a 1 MB adapter, and to write and fsync the same files.

    Both take turns, so that other work on the machine slows both down.
    """
    ledger = deployment.ledger
    subject = hashlib.sha256(b"the one to publish for").hexdigest()[:32]
    job = request_forget(
        ledger,
        deployment.operator,
        subjects=[subject],
        backbone=BACKBONE,
        **deployment.origin() | {"request_id": "publish"},
    ).id
    bare_one, bare_all, published, cpu, fsyncs = [], [], [], [], []
    for turn in range(times):
        files = {
            "adapter_config.json": os.urandom(800),
            "adapter_model.safetensors": os.urandom(MEGABYTE),
            "forget.json": os.urandom(2000),
        }
        report = os.urandom(4000)

        one = files["adapter_model.safetensors"]
        record = partial(
            record_trained,
            ledger,
            deployment.publisher,
            job=job,
            files=files,
            stack=ledger.state.active_release.adapters,
            report=report,
            **deployment.origin(),
        )
        bare_one.append(seconds(partial(write_synced, top / f"one-{turn}", one)))
        bare_all.append(seconds(partial(write_all, top, turn, [*files.values(), report])))
        with counting_fsyncs() as calls:
            start = time.process_time()
            published.append(seconds(record))
            cpu.append(time.process_time() - start)
        fsyncs.append(len(calls))
    medians = [statistics.median(taken) * 1e3 for taken in (bare_one, bare_all, published, cpu)]
    return {
        "bare_write_1mb_ms_p50": medians[0],
        "bare_write_its_4_files_ms_p50": medians[1],
        "publish_1mb_ms_p50": medians[2],
        "publish_1mb_cpu_ms_p50": medians[3],
        "publish_fsyncs": statistics.median(fsyncs),
        "publish_to_bare_1mb": medians[2] / medians[0],
        "publish_to_bare_4_files": medians[2] / medians[1],
    }


def verify_only_s(deployment: Deployment, *, records: int) -> float:
    """CPU seconds of the signature checks alone for `records` records of the usual length."""
    payload = b"x" * 1500
    signature = deployment.operator.sign(payload)
    check = deployment.trust.signer_of
    return (
        cpu_seconds(lambda: [check(payload, signature, where="") for _ in range(records // 10)])
        * 10
    )


def reading(deployment: Deployment, top: Path) -> dict[str, float]:
    """CPU seconds of what reads every record: a new reader, `verify` and `collect`."""
    ledger, store = deployment.ledger, deployment.store
    figures = min((cold_read(top) for _ in range(3)), key=lambda read: read["cold_read_cpu_s"])
    figures["verify_cpu_s"] = min(
        cpu_seconds(lambda: verify(store, deployment.trust)) for _ in range(2)
    )
    figures["collect_cpu_s"] = cpu_seconds(
        lambda: collect(store, ledger, now=utc_now(), grace=timedelta(days=1))
    )
    return figures


def cold_read(top: Path) -> dict[str, float]:
    """Read the whole log in a new process: CPU seconds and peak memory in MiB."""
    cpu_s, _, peak_mib = _read_apart(top, "Ledger(store, trust).refresh()")
    return {"cold_read_cpu_s": cpu_s, "cold_read_peak_mib": peak_mib}


def checkpointed_read(top: Path) -> dict[str, float]:
    """Read the log from a checkpoint in a new process: CPU and wall time, peak memory."""
    cpu_s, wall_s, peak_mib = _read_apart(top, "open_ledger(store, trust, directory=checkpoints)")
    return {
        "checkpointed_read_cpu_ms": cpu_s * 1e3,
        "checkpointed_read_ms": wall_s * 1e3,
        "checkpointed_read_peak_mib": peak_mib,
    }


def _read_apart(top: Path, statement: str) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, peak MiB of the process) for `statement` in a new process."""
    program = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from registry.log.checkpoint import open_ledger\n"
        "from registry.signing.keys import Trust\n"
        "from registry.log.ledger import Ledger\n"
        "from registry.store.directory import DirectoryStore\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "top = Path(sys.argv[1])\n"
        "trust = Trust.load(top / 'keys' / 'trust.json')\n"
        "store, checkpoints = DirectoryStore(top / 'registry'), top / 'checkpoints'\n"
        "cpu, wall = time.process_time(), time.perf_counter()\n"
        f"{statement}\n"
        "print(time.process_time() - cpu, time.perf_counter() - wall, peak())\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(top)], check=True, capture_output=True, text=True
    ).stdout
    cpu_s, wall_s, peak_mib = map(float, output.split())
    return cpu_s, wall_s, peak_mib


def measure(top: Path, *, records: int) -> dict[str, float]:
    deployment = Deployment(top)
    deployment.fill(records // 4)
    quarter = reading(deployment, top)
    deployment.fill(records)
    ledger, store = deployment.ledger, deployment.store
    appends = sorted(deployment.append_ms)
    log = [path.stat().st_size for path in (top / "registry" / "log").iterdir()]
    figures: dict[str, float] = {
        "records": ledger.state.seq,
        "record_bytes_mean": statistics.mean(log),
        "append_ms_p50": statistics.median(appends),
        "append_ms_p99": appends[int(len(appends) * 0.99)],
        "append_ms_p50_last_500": statistics.median(deployment.append_ms[-500:]),
        "bare_write_2kb_ms_p50": bare_write_ms(top, size=2000, times=200),
    }
    figures |= reading(deployment, top)
    for name in ("cold_read_cpu_s", "verify_cpu_s", "collect_cpu_s"):
        figures[f"{name.removesuffix('_cpu_s')}_to_a_quarter"] = figures[name] / quarter[name]
    checkpoint.save(top / "checkpoints", store, ledger.state, deployment.trust)
    figures |= min(
        (checkpointed_read(top) for _ in range(5)), key=lambda read: read["checkpointed_read_ms"]
    )
    figures["checkpoint_bytes"] = sum(
        path.stat().st_size for path in (top / "checkpoints").iterdir()
    )
    figures["signatures_only_cpu_s"] = min(
        verify_only_s(deployment, records=records) for _ in range(3)
    )
    figures["idle_refresh_us_p50"] = (
        statistics.median(seconds(ledger.refresh) for _ in range(300)) * 1e6
    )
    figures |= publish_1mb(deployment, top, times=40)
    figures["writer_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, help="folder on the disk to measure [/tmp]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as top:
        figures = measure(Path(top), records=arguments.records)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:28}{figure:12.2f}")


if __name__ == "__main__":
    main()
