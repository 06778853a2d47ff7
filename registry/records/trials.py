"""The record type by which a share of the requests is answered by a release that is not active."""

from dataclasses import dataclass

from registry.schema import Fields, Json

MOST_PERCENT = 99


@dataclass(frozen=True, slots=True)
class Canary:
    """`percent` of the requests are answered by a release, on trial; 0 ends that, for `detail`."""

    release: int
    percent: int
    detail: str

    def to_json(self) -> dict[str, Json]:
        return {"release": self.release, "percent": self.percent, "detail": self.detail}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Canary":
        return cls(
            release=fields.integer("release", at_least=1),
            percent=percentage(fields, "percent", at_least=0),
            detail=fields.free_text("detail", at_most=2000),
        )


def percentage(fields: Fields, name: str, *, at_least: int = 1) -> int:
    """A share of the requests that leaves some for the active release. Raises: FormatError."""
    percent = fields.integer(name, at_least=at_least)
    if percent > MOST_PERCENT:
        fields.refuse(name, f"expected at most {MOST_PERCENT}, found {percent}")
    return percent
