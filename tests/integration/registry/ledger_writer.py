"""A writer process for the race and kill tests: `python ledger_writer.py REGISTRY KEYS NAME COUNT`.

Appends notes and blobs until COUNT are acknowledged (0: until killed). It prints a line for each
note after the ledger has acknowledged that it is durable. REGISTRY is a folder or a bucket's URL.
"""

import sys
from pathlib import Path

from registry.log.ledger import Ledger
from registry.publish.declarations import write_note
from registry.signing.keys import Signer, Trust
from registry.store.directory import open_store


def main(registry: str, keys: Path, name: str, count: int) -> None:
    ledger = Ledger(open_store(registry), Trust.load(keys / "trust.json"))
    operator = Signer.load(keys / "operator.pem")
    number = 0
    while count == 0 or number < count:
        digest = ledger.put_blob(f"{name} {number}".encode() * 100)
        record = write_note(
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
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
