"""Which requests skip FastAPI: those with nothing to validate."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.routes.direct import is_plain


def scope(path: str = "/v1/predict", query: bytes = b"", **headers: str) -> dict[str, Any]:
    named = {"content_type": "image/jpeg", **headers}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query,
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items() if v],
    }


def test_an_image_alone_is_plain() -> None:
    assert is_plain(scope())
    assert is_plain(scope(user_agent="x", content_length="3", x_request_id="y"))


@pytest.mark.parametrize(
    "other",
    [
        scope(query=b"top_k=3"),
        scope(path="/v1/predict/batch"),
        scope(content_type="multipart/form-data; boundary=x"),
        scope(content_type="application/json"),
        scope(content_type=""),
        scope(authorization="Bearer x"),
        scope(x_lethe_min_release="3"),
        scope(x_lethe_deadline_ms="no number"),
        scope(x_lethe_release="0"),
        scope(x_lethe_probe="true"),
        {**scope(), "method": "GET"},
        {**scope(), "type": "websocket"},
        {**scope(), "headers": 2 * [(b"content-type", b"image/png")]},
    ],
)
def test_whoever_asks_for_more_is_answered_by_fastapi(other: dict[str, Any]) -> None:
    assert not is_plain(other)


def test_every_parameter_of_the_documented_route_makes_a_request_not_plain() -> None:
    """So a parameter that is added later can't be ignored silently."""
    from serving.api.inference_api import build_inference_api
    from serving.control.client import ControlClient
    from serving.monitoring.client import AsyncMonitorClient

    document = build_inference_api(
        max_body_bytes=1, control=ControlClient(None), monitor=AsyncMonitorClient(None)
    ).openapi()
    parameters = document["paths"]["/v1/predict"]["post"]["parameters"]
    assert {p["in"] for p in parameters} == {"query", "header"}
    for parameter in parameters:
        if parameter["in"] == "header":
            assert not is_plain(scope(**{parameter["name"].lower().replace("-", "_"): "1"}))
