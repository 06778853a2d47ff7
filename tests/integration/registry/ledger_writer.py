"""A writer process for the race and kill tests: `python ledger_writer.py ROOT NAME COUNT`.

Appends notes and blobs until COUNT are acknowledged (0: until killed), and prints a line for each
one only after the ledger has said that it is durable.
"""

import sys
from pathlib import Path

from registry import publish
from registry.keys import Signer, Trust
from registry.ledger import Ledger
from registry.store import DirectoryStore


def main(root: Path, name: str, count: int) -> None:
    ledger = Ledger(DirectoryStore(root / "registry"), Trust.load(root / "keys" / "trust.json"))
    operator = Signer.load(root / "keys" / "operator.pem")
    number = 0
    while count == 0 or number < count:
        digest = ledger.put_blob(f"{name} {number}".encode() * 100)
        record = publish.note(
            ledger,
            operator,
            text=digest,
            actor=name,
            reason="",
            request_id=f"{name}-{number}",
        )
        print(record.seq, record.request_id, flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
