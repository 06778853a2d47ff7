"""Erases a class on a registry. As a program, it does so again and again, and is killed at a later
system call each time.

`python -m tests.integration.registry.erasure TOP KEYS` writes TOP/0, TOP/1, ... The folder TOP/n
has the registry as a SIGKILL before system call n left it, and the file `acknowledged` with a line
for each record. The last erasure was not killed.
"""

import itertools
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from registry.log.ledger import Ledger
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release
from registry.signing.keys import Signer, Trust
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from tests.integration.registry.disk import watched

BACKBONE = f"sha256:{'b' * 64}"


class Operator:
    """Does all steps of an erasure, with the keys of all roles."""

    def __init__(self, registry: Path, keys: Path) -> None:
        self.store = DirectoryStore(registry)
        self.trust = Trust.load(keys / "trust.json")
        self.ledger = Ledger(self.store, self.trust)
        self.signers = {
            role: Signer.load(keys / f"{role}.pem") for role in ("operator", "publisher")
        }

    def origin(self, role: str) -> dict[str, str]:
        return {"actor": role, "reason": "", "request_id": uuid.uuid4().hex}

    def forget(self, class_name: str) -> str:
        subject = SubjectMap(self.store).assign(class_name)
        return request_forget(
            self.ledger,
            self.signers["operator"],
            subjects=[subject],
            backbone=BACKBONE,
            **self.origin("operator"),
        ).id

    def train(self, job: str) -> None:
        record_trained(
            self.ledger,
            self.signers["publisher"],
            job=job,
            files={"adapter.bin": job.encode() * 5000, "forget.json": b"{}"},
            stack=self.ledger.state.active_release.adapters,
            report=f"report of {job}".encode(),
            **self.origin("publisher"),
        )

    def publish(self, job: str) -> None:
        publish_release(
            self.ledger,
            self.signers["publisher"],
            kind="adapter",
            job=job,
            **self.origin("publisher"),
        )

    def activate(self) -> None:
        activate_release(
            self.ledger,
            self.signers["operator"],
            release=self.ledger.state.last_release,
            **self.origin("operator"),
        )

    def erase(self, class_name: str, acknowledge: Callable[[], None]) -> None:
        """Add the four records of an erasure, with a call of `acknowledge` after each."""
        job = self.forget(class_name)
        acknowledge()
        self.train(job)
        acknowledge()
        self.publish(job)
        acknowledge()
        self.activate()
        acknowledge()


def erase_until_call(number: int, directory: Path, keys: Path) -> None:
    calls = 0

    def before(name: str) -> None:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    with (directory / "acknowledged").open("w", buffering=1) as output:
        operator = Operator(directory / "registry", keys)
        with watched(before, lambda *_: None):
            operator.erase("alice", lambda: print("done", file=output))


def main(top: Path, keys: Path) -> None:
    for number in itertools.count():
        directory = top / str(number)
        directory.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            erase_until_call(number, directory, keys)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
