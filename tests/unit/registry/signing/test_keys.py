"""Keys, roles and the trust file."""

import base64
import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.errors import FormatError, TrustError
from registry.signing.keys import ROLES, Role, Signer, Trust, init_keys, key_id

PAYLOAD = b"what is signed"
FILES = sorted([*(f"{role}.pem" for role in ROLES), "trust.json"])


def write_key(path: Path, private_key: Any, *, password: bytes | None = None) -> Path:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    path.write_bytes(pem)
    path.chmod(0o600)
    return path


def trust_file(path: Path, *signers: Signer, **changes: Any) -> Path:
    entries = {
        signer.key_id: {
            "public_key": base64.b64encode(signer.public_key).decode(),
            "roles": ["operator"],
            "not_after": None,
        }
        | changes
        for signer in signers
    }
    path.write_text(json.dumps(entries))
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def signer() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def test_init_makes_one_private_key_per_role_and_a_trust_file(tmp_path: Path) -> None:
    init_keys(tmp_path / "keys")
    assert sorted(contents(tmp_path / "keys")) == FILES
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    trust = Trust.load(tmp_path / "keys" / "trust.json")
    for role in ROLES:
        path = tmp_path / "keys" / f"{role}.pem"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        signer = Signer.load(path)
        assert trust.keys[signer.key_id].roles == {role}


def test_init_leaves_existing_keys_alone(tmp_path: Path) -> None:
    init_keys(tmp_path)
    before = contents(tmp_path)
    init_keys(tmp_path)
    assert contents(tmp_path) == before


def test_init_makes_no_keys_beside_a_trust_file_that_would_not_trust_them(
    tmp_path: Path, signer: Signer
) -> None:
    trust_file(tmp_path / "trust.json", signer)
    init_keys(tmp_path)
    assert os.listdir(tmp_path) == ["trust.json"]


@pytest.mark.parametrize("made", range(len(ROLES) + 1))
def test_init_completes_what_a_crash_left(tmp_path: Path, made: int) -> None:
    init_keys(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    for role in ROLES[:made]:
        (tmp_path / "whole" / f"{role}.pem").rename(tmp_path / "cut" / f"{role}.pem")
    (tmp_path / "cut" / ".tmp-1-half").write_bytes(b"-----BEGIN")
    before = contents(tmp_path / "cut")

    init_keys(tmp_path / "cut")

    after = contents(tmp_path / "cut")
    assert sorted(after) == [".tmp-1-half", *FILES]
    assert before.items() <= after.items()
    trust = Trust.load(tmp_path / "cut" / "trust.json")
    assert {Signer.load(tmp_path / "cut" / f"{role}.pem").key_id for role in ROLES} == set(
        trust.keys
    )


def test_processes_that_init_at_once_end_with_one_set_of_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=init_keys, args=(tmp_path / "keys",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(contents(tmp_path / "keys")) == FILES
    trust = Trust.load(tmp_path / "keys" / "trust.json")
    made = {Signer.load(tmp_path / "keys" / f"{role}.pem").key_id for role in ROLES}
    assert made == set(trust.keys)


def test_init_in_an_impossible_place_is_a_trust_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrustError, match="keys can't be made"):
        init_keys(tmp_path / "file")


def test_a_key_id_is_the_start_of_the_hash_of_the_raw_public_key() -> None:
    # SHA-256 of 32 zero bytes is 66687aadf862bd776c8fc18b8e9f8e20...
    assert key_id(bytes(32)) == "66687aadf862bd77"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "operator.pem", Ed25519PrivateKey.generate())
    path.chmod(mode)
    with pytest.raises(TrustError, match=rf"mode 0600\), found {mode:04o}; run: chmod 600"):
        Signer.load(path)


def test_a_key_file_that_is_no_plain_ed25519_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"none\.pem: can't be read: No such file"):
        Signer.load(tmp_path / "none.pem")
    with pytest.raises(TrustError, match="expected an Ed25519 key, found EC"):
        Signer.load(write_key(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1())))
    locked = write_key(tmp_path / "locked.pem", Ed25519PrivateKey.generate(), password=b"secret")
    with pytest.raises(TrustError, match="not an unencrypted PEM private key"):
        Signer.load(locked)
    locked.write_bytes(b"nonsense")
    with pytest.raises(TrustError, match="not an unencrypted PEM private key"):
        Signer.load(locked)


def test_a_signer_never_shows_its_private_key(signer: Signer) -> None:
    assert repr(signer) == f"Signer({signer.key_id})"


def test_a_good_signature_by_a_key_with_the_role_is_accepted(
    tmp_path: Path, signer: Signer
) -> None:
    trust = Trust.load(trust_file(tmp_path / "trust.json", signer))
    trust.verify(PAYLOAD, [signer.sign(PAYLOAD)], role="operator")


def test_a_signature_does_not_fit_other_bytes(tmp_path: Path, signer: Signer) -> None:
    trust = Trust.load(trust_file(tmp_path / "trust.json", signer))
    with pytest.raises(TrustError, match="doesn't fit the bytes") as caught:
        trust.verify(PAYLOAD + b"!", [signer.sign(PAYLOAD)], role="operator", where="log/3")
    assert (caught.value.check, caught.value.where) == ("signature", "log/3")


def test_an_unknown_key_is_refused(tmp_path: Path, signer: Signer) -> None:
    other = Signer(Ed25519PrivateKey.generate())
    trust = Trust.load(trust_file(tmp_path / "trust.json", signer))
    with pytest.raises(TrustError, match=f"{other.key_id}.*doesn't list") as caught:
        trust.verify(PAYLOAD, [other.sign(PAYLOAD)], role="operator")
    assert caught.value.check == "key"


@pytest.mark.parametrize("role", ["publisher", "eraser"])
def test_a_key_without_the_role_is_refused(tmp_path: Path, signer: Signer, role: Role) -> None:
    trust = Trust.load(trust_file(tmp_path / "trust.json", signer))
    with pytest.raises(TrustError, match=f"role {role} must sign") as caught:
        trust.verify(PAYLOAD, [signer.sign(PAYLOAD)], role=role)
    assert caught.value.check == "role"


def test_no_signature_at_all_is_refused(tmp_path: Path, signer: Signer) -> None:
    trust = Trust.load(trust_file(tmp_path / "trust.json", signer))
    with pytest.raises(TrustError, match="none did"):
        trust.verify(PAYLOAD, [], role="operator")


def test_a_key_signs_until_it_is_retired_and_not_after(tmp_path: Path, signer: Signer) -> None:
    end = datetime(2026, 11, 20, 12, tzinfo=UTC)
    path = trust_file(tmp_path / "trust.json", signer, not_after="2026-11-20T12:00:00.000Z")
    trust = Trust.load(path)
    signatures = [signer.sign(PAYLOAD)]
    trust.verify(PAYLOAD, signatures, role="operator", at=end)
    late = end + timedelta(milliseconds=1)
    with pytest.raises(TrustError, match="retired before 2026-11-20T12:00:00.001Z") as caught:
        trust.verify(PAYLOAD, signatures, role="operator", at=late)
    assert caught.value.check == "retired"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"roles": []}, "roles"),
        ({"roles": ["root"]}, "roles"),
        ({"roles": "operator"}, "roles"),
        ({"public_key": "AAAA"}, "public_key"),
        ({"public_key": "?"}, "public_key"),
        ({"public_key": base64.b64encode(bytes(32)).decode()}, "public_key"),
        ({"not_after": "tomorrow"}, "not_after"),
        ({"comment": "mine"}, "comment"),
    ],
)
def test_a_bad_trust_file_is_refused_by_field(
    tmp_path: Path, signer: Signer, changes: dict[str, Any], field: str
) -> None:
    path = trust_file(tmp_path / "trust.json", signer, **changes)
    with pytest.raises(FormatError, match=rf"trust\.json: field {signer.key_id}\.{field}: "):
        Trust.load(path)


def test_a_missing_trust_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"trust\.json: the trust file can't be read"):
        Trust.load(tmp_path / "trust.json")
