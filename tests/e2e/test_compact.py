"""A stack becomes one adapter while a real server answers, and a rollback brings the stack back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import Traffic, audit, held_out
from tests.e2e.conftest import Server

SETTINGS = """
[lease]
seconds = 5.0
margin = 0.5
heartbeat = 0.3
[forget.gates]  # what is forgotten how well is for other tests
probe = 1.0
prototypes = 1.0
"""


def _answers(server: Server) -> list[tuple[str | None, str | None]]:
    """For every held-out image, the answer, and the weights' own answer before the mask."""
    images = held_out(open_image_set("digits"), ["1", "3", "5", "8"])
    answers = audit(server.url, server.auditor_token, images)
    assert all(answer.ok for answer in answers)
    return [(answer.named, answer.weights) for answer in answers]


@pytest.mark.slow
def test_a_stack_is_compacted_under_traffic_without_a_changed_answer(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(SETTINGS).start()
    with server.client() as client:
        for name in ("3", "8"):
            done = client.wait(client.forget([name])["job"])
            assert done["state"] == "done", done["refused"]
        stacked = client.status()["release"]
        before = _answers(server)
        with Traffic(server.url, server.auditor_token, images="digits", rate=20) as traffic:
            traffic.wait_for(10)
            made = server.lethe("compact", "--reason", "two are one", "--json")
            traffic.wait_for(10)
        assert made.returncode == 0, made.stderr
        assert [answer for answer in traffic.answers if not answer.ok] == []
        view = json.loads(made.stdout)
        assert view["release"] == stacked + 1
        assert (len(view["folds"]), len(view["subjects"])) == (2, 2)
        assert view["difference"] <= 1e-5
        assert client.status()["release"] == view["release"]
        assert _answers(server) == before

        back = client.rollback(stacked, reason="to see that it can be")
        assert back["release"] == stacked + 2
        assert _answers(server) == before
    log = server.lethe("log", "--json")
    types = [record["type"] for record in json.loads(log.stdout)]
    assert types[-7:] == [
        *("compacted", "published", "activated", "confirmed"),
        *("rolled_back", "activated", "confirmed"),
    ]
    assert server.lethe("verify").returncode == 0
    assert server.stop() == 0
