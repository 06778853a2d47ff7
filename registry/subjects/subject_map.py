"""The subject map: which class an opaque subject id stands for, kept outside the log.

id = first 32 hex digits of HMAC-SHA256(key, class name), with a random key for each id. Deleting
the entry deletes the key, and then nothing leads from the id in the log back to the class. Fewer
people should be able to read the map than the log.

    subjects/<id>.json                    {"class": ..., "key": ...}
    subjects/by-class/<sha256>.json       {"subject": <id>}   one per class name: the claim

The claim is written second and decides, so two processes that assign an id to the same class
agree. An entry without a claim is left from the slower process or from a crash, and means nothing.
"""

import hashlib
import hmac
import re
import secrets
from contextlib import suppress

from registry.errors import AlreadyExistsError, CheckError, IntegrityError, NotFoundError
from registry.schema import SUBJECT, Fields, decode_written, encode_json
from registry.store.contract import Store

PREFIX = "subjects/"
CLAIM_PREFIX = "subjects/by-class/"
_KEY_BYTES = 32
_ENTRY_KEY = re.compile(r"subjects/([0-9a-f]{32})\.json")
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_CLASS_NAME = re.compile(r"(?s:.{1,1000})")


class SubjectMap:
    """Subject ids and classes, in any `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def assign(self, class_name: str) -> str:
        """The class's subject id, made if it has none. It is durable when this returns.

        Raises: ValueError (empty or over-long name).
        """
        if not _CLASS_NAME.fullmatch(class_name):
            raise ValueError("a class name has 1 to 1000 characters")
        found = self.find(class_name)
        if found is not None:
            return found
        key = secrets.token_bytes(_KEY_BYTES)
        subject = subject_id(key, class_name)
        self._store.create(
            _entry_key(subject), encode_json({"class": class_name, "key": key.hex()})
        )
        try:
            self._store.create(_claim_key(class_name), encode_json({"subject": subject}))
        except AlreadyExistsError:
            with suppress(NotFoundError):
                self._store.delete(_entry_key(subject))
            return self.assign(class_name)
        return subject

    def find(self, class_name: str) -> str | None:
        """The class's subject id, or None if it has none.

        Raises: IntegrityError, FormatError (a damaged map).
        """
        return self._verify_claim(_claim_key(class_name))

    def class_of(self, subject: str) -> str:
        """The class that a subject id stands for.

        Raises: NotFoundError (never assigned, or deleted), IntegrityError, FormatError.
        """
        key = _entry_key(subject)
        try:
            data = self._store.read(key)
        except NotFoundError:
            raise NotFoundError(f"the subject {subject} is not in the map (any more)") from None
        fields = Fields(decode_written(data, where=key), where=key)
        class_name = fields.text("class", _CLASS_NAME)
        secret = bytes.fromhex(fields.text("key", _HEX_KEY))
        fields.finish()
        if subject_id(secret, class_name) != subject:
            raise IntegrityError(
                "its key and class belong to another subject id", check="subject", where=key
            )
        return class_name

    def all(self) -> dict[str, str]:
        """Every assigned subject id and its class. Raises: IntegrityError, FormatError."""
        return {
            subject: self.class_of(subject)
            for key in self._store.list(CLAIM_PREFIX)
            if (subject := self._claimed(key)) is not None
        }

    def verify(self) -> list[CheckError]:
        """What is wrong with the map. Changes nothing."""
        problems: list[CheckError] = []
        for key in self._store.list(PREFIX):
            try:
                if key.startswith(CLAIM_PREFIX):
                    self._verify_claim(key)
                elif match := _ENTRY_KEY.fullmatch(key):
                    self.class_of(match[1])
            except CheckError as error:
                problems.append(error)
        return problems

    def delete(self, subject: str) -> None:
        """Delete what the id stands for. The id stays in the log, but leads to no class any more.

        After a crash half-way, call this again.

        Raises: NotFoundError (nothing is left of it).
        """
        claim = _claim_key(self.class_of(subject))
        if self._claimed(claim) == subject:
            self._store.delete(claim)
        self._store.delete(_entry_key(subject))

    def _verify_claim(self, key: str) -> str | None:
        """The subject of a claim that fits its entry, or None if there is no such claim."""
        subject = self._claimed(key)
        if subject is None:
            return None
        try:
            class_name = self.class_of(subject)
        except NotFoundError:
            # Deleted since the line above (the claim goes first), or damaged?
            if self._claimed(key) is None:
                return None
            raise IntegrityError(
                f"claims {subject}, whose entry is missing", check="presence", where=key
            ) from None
        if _claim_key(class_name) != key:
            raise IntegrityError(
                f"claims {subject}, which stands for another class", check="subject", where=key
            )
        return subject

    def _claimed(self, key: str) -> str | None:
        try:
            data = self._store.read(key)
        except NotFoundError:
            return None
        fields = Fields(decode_written(data, where=key), where=key)
        subject = fields.text("subject", SUBJECT)
        fields.finish()
        return subject


def subject_id(key: bytes, class_name: str) -> str:
    """32 hex digits of HMAC-SHA256 (RFC 2104)."""
    return hmac.new(key, class_name.encode(), hashlib.sha256).hexdigest()[:32]


def _entry_key(subject: str) -> str:
    return f"{PREFIX}{subject}.json"


def _claim_key(class_name: str) -> str:
    return f"{CLAIM_PREFIX}{hashlib.sha256(class_name.encode()).hexdigest()}.json"
