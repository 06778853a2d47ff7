"""Several requests trained as one task, served for real: each keeps its own record."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import Traffic, audit, held_out, stale
from tests.e2e.conftest import Server

# How well the short recipe does is not what is tested here.
LENIENT = "[forget.gates]\nacc_f = 0.5\nworst_class = 0.5\nacc_r_drop = 0.2\nnear_drop = 0.3\n"
LENIENT += (
    "acc_r_total_drop = 0.3\ndump_share = 1.0\nprobe = 2.0\nprototypes = 2.0\nece_rise = 0.5\n"
)


@pytest.mark.slow
def test_requests_that_wait_are_trained_as_one_task_and_each_keeps_its_own_record(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(LENIENT).start()
    with (
        server.client() as client,
        Traffic(server.url, server.auditor_token, images="digits", rate=20) as traffic,
    ):
        one = client.forget(["7"], reason="request a", key="key-a", batch=True)
        two = client.forget(["3"], reason="request b", key="key-b", batch=True)
        assert one["job"] != two["job"]
        assert one["guard"]["release"] < two["guard"]["release"]
        assert client.forget(["3"], key="key-b", batch=True)["job"] == two["job"]
        ends = [client.wait(job["job"]) for job in (one, two)]
        assert [end["state"] for end in ends] == ["done", "done"], ends
        assert ends[0]["release"] == ends[1]["release"]
        assert [end["batch"]["with"] for end in ends] == [[two["job"]], [one["job"]]]
        traffic.wait_for(20)
        rows = {row["release"]: row for row in client.releases()}
        assert len(rows[ends[0]["release"]]["adapters"]) == 1
        assert rows[ends[0]["release"]]["forgotten"] == ["3", "7"]
        assert len(client.report(one["job"])["by_subject"]) == 2
    assert [a for a in traffic.answers if not a.ok] == []
    assert stale(traffic.answers, []) == []
    for name, reason in (("7", "request a"), ("3", "request b")):
        gone = held_out(open_image_set("digits"), [name])
        assert not [a for a in audit(server.url, server.auditor_token, gone) if a.named == name]
        found = json.loads(server.lethe("audit", name, "--json").stdout)
        assert found["standing"] == "forgotten"
        asked = [row for row in found["records"] if row["type"] == "requested"]
        assert [row["reason"] for row in asked] == [reason]
        assert sum(row["type"] == "trained" for row in found["records"]) == 1
    assert server.stop() == 0
