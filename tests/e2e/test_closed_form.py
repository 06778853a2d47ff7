"""A closed form is served between the guard and the trained adapter, on a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import Traffic, audit, held_out, stale
from tests.e2e.conftest import Server


@pytest.mark.slow
def test_a_closed_form_erases_in_seconds_and_the_trained_adapter_takes_its_place(
    make_server: Callable[..., Server],
) -> None:
    server = make_server("[forget]\nclosed_form = true\n").start()
    sevens = held_out(open_image_set("digits"), ["7"])
    with server.client() as client:
        job = client.forget(["7"])
        quick = next(v for v in client.watch(job["job"]) if v["closed_form_release"])
        assert quick["state"] not in ("done", "refused")
        assert quick["closed_form_release"] == job["guard"]["release"] + 1
        assert client.status()["forgotten_by_weights"] == []
        assert client.status()["edited_only"] == ["7"]
        early = audit(server.url, server.auditor_token, sevens)
        assert sum(a.weights == "7" for a in early) <= 0.05 * len(early)
        assert {a.release for a in early} == {quick["closed_form_release"]}
        with Traffic(server.url, server.auditor_token, images="digits", rate=20) as traffic:
            done = client.wait(job["job"])
            traffic.wait_for(20)
        assert done["state"] == "done", done["refused"]
        assert done["closed_form_release"] is None
        rows = {row["release"]: row for row in client.releases()}
        before, after = (
            rows[n]["adapters"] for n in (quick["closed_form_release"], done["release"])
        )
        assert len(before) == len(after) == 1
        assert before != after
        assert client.report(job["job"])["method"] == "lethe"
        assert client.status()["forgotten_by_weights"] == ["7"]
    assert [a for a in traffic.answers if not a.ok or a.named == "7"] == []
    assert stale(traffic.answers, []) == []
    assert server.stop() == 0
