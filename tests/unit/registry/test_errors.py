"""Errors name the failed check and the object, also after they were sent to another process."""

import pickle

import pytest

from registry.errors import CheckError, FormatError, IntegrityError, RegistryError, TrustError


@pytest.mark.parametrize("kind", [IntegrityError, TrustError, FormatError])
def test_a_failed_check_survives_the_way_to_another_process(kind: type[CheckError]) -> None:
    error = kind("expected 7 bytes, found 6", check="size", where="blobs/a")
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is kind
    assert isinstance(sent, RegistryError)
    assert (sent.check, sent.where) == ("size", "blobs/a")
    assert str(sent) == str(error) == "blobs/a: expected 7 bytes, found 6 (check: size)"
