"""Forget, forget again, roll back and restart, under live traffic: the product's promises."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forgetting.data.sources import open_image_set
from serving.client import Client, ClientError
from serving.loadgen.sender import Answer
from serving.loadgen.traffic import Traffic, audit, held_out, stale
from tests.e2e.conftest import Server

RATE = 25.0
# Every request is shadowed, so that a short test has samples.
SHADOWED = "[monitor]\nshare = 1.0\n[canary]\nsamples = 40\nseconds = 30\n"


@pytest.fixture(scope="module")
def running(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(SHADOWED, quick=False).start()
    yield server
    assert server.stop() == 0


def accuracy(answers: list[Answer], classes: set[str]) -> float:
    """Share of the images of `classes` that the weights, before the mask, classify correctly."""
    own = [a for a in answers if a.label in classes]
    assert all(a.ok for a in answers)
    return sum(a.weights == a.label for a in own) / len(own)


def metric(text: str, name: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


def test_the_whole_life_of_two_forgets_and_a_rollback(running: Server) -> None:
    images = open_image_set("digits")
    pictures = held_out(images)
    others = set(images.classes) - {"3", "8"}
    acks: list[tuple[float, int]] = []
    with (
        running.client() as client,
        Traffic(running.url, running.auditor_token, images="digits", rate=RATE) as traffic,
    ):
        traffic.wait_for(25)
        # ONNX Runtime is several times as fast for this model, so `auto` always takes it.
        assert client.status()["engine"] == "onnxruntime"
        told = " ".join(running.log.read_text().split())
        assert re.search(r"engine: onnxruntime, batches of at most (4|16) \(measured", told)
        before = audit(running.url, running.auditor_token, pictures)
        assert accuracy(before, set(images.classes)) >= 0.96
        assert {a.release for a in before} == {0}

        # Forget one class: masked when the command answers, forgotten when the job is done.
        job = client.forget(["3"], reason="asked by its subject")
        acks.append((time.monotonic(), job["guard"]["release"]))
        assert set(job["guard"]["replicas"].values()) == {"confirmed"}
        masked = audit(running.url, running.auditor_token, pictures)
        assert not [a for a in masked if a.named == "3"]
        done = client.wait(job["job"])
        acks.append((time.monotonic(), done["release"]))
        assert done["state"] == "done", done["refused"]
        first = audit(running.url, running.auditor_token, pictures)
        assert accuracy(first, {"3"}) <= 0.01
        retained = set(images.classes) - {"3"}
        assert accuracy(first, retained) >= accuracy(before, retained) - 0.01
        report = client.report(job["job"])
        assert report["groups_kept"] <= report["groups_total"] - 2
        # The report measured the same images and weights, so it agrees with the endpoint.
        assert report["acc_f_after"]["value"] == pytest.approx(accuracy(first, {"3"}))
        assert report["acc_r_after"]["value"] == pytest.approx(accuracy(first, retained))

        # Forget a second one: the first stays forgotten.
        job = client.forget(["8"])
        acks.append((time.monotonic(), job["guard"]["release"]))
        done = client.wait(job["job"])
        acks.append((time.monotonic(), done["release"]))
        assert done["state"] == "done", done["refused"]
        second = audit(running.url, running.auditor_token, pictures)
        assert accuracy(second, {"8"}) <= 0.01
        assert accuracy(second, {"3"}) <= 0.01
        assert accuracy(second, others) >= accuracy(before, others) - 0.02

        # Roll back the second adapter: its class is in the weights again and stays masked.
        ack = client.rollback(job["guard"]["release"], reason="too much was lost")
        acks.append((time.monotonic(), ack["release"]))
        rolled = audit(running.url, running.auditor_token, pictures)
        assert {a.release for a in rolled} == {ack["release"]}
        assert accuracy(rolled, {"8"}) >= 0.9
        assert not [a for a in rolled if a.named in ("3", "8")]
        assert sorted(ack["still_masked"]) == ["3", "8"]
        status = client.status()
        assert (status["forgotten_by_weights"], status["masked_only"]) == (["3"], ["8"])
        traffic.wait_for(25)
        text = client.metrics()
    answers = traffic.answers
    assert len(acks) == 5
    assert not [a for a in answers if not a.ok]
    assert not stale([*answers, *masked, *first, *second, *rolled], acks)
    assert len({a.replica for a in answers}) == 2
    # The shadow saw images of the forgotten class, and no leak of it.
    assert metric(text, "lethe_shadow_matches_total") >= 10
    assert metric(text, "lethe_shadow_leaks_total") <= 1
    assert metric(text, "lethe_leak_evidence_log10") < 0
    assert metric(text, "lethe_swaps_total") >= 10


def test_every_response_is_wholly_of_the_release_that_it_names(running: Server) -> None:
    """Releases with and without a class's adapter take turns under load. For that class's images,
    the weights' answer must always be that of the release that the response names."""
    knows_three: dict[int, bool] = {}
    with (
        running.client() as client,
        Traffic(running.url, running.auditor_token, images="digits", rate=60) as traffic,
    ):
        first = client.rollback(0)["release"]
        for to in (2, 0, 2, 0, 2, 0):
            client.rollback(to)
            traffic.wait_for(60)
        knows_three = {r["release"]: "3" not in r["forgotten"] for r in client.releases()}
    assert all(a.ok for a in traffic.answers)
    threes = [a for a in traffic.answers if a.label == "3" and a.release >= first]
    right = {
        known: [a for a in threes if knows_three[a.release] == known] for known in (True, False)
    }
    assert min(len(right[True]), len(right[False])) >= 10
    assert sum(a.weights == "3" for a in right[True]) >= 0.75 * len(right[True])
    assert [a for a in right[False] if a.weights == "3"] == []
    assert [a for a in traffic.answers if a.named == "3"] == []


def test_an_auditor_is_answered_by_any_release_under_the_guard_of_now(running: Server) -> None:
    threes = held_out(open_image_set("digits"), ["3"])[:12]
    with running.client() as client, httpx.Client(base_url=running.url, trust_env=False) as http:
        forgotten = {r["release"]: "3" in r["forgotten"] for r in client.releases()}
        active = client.status()["release"]
        png = {"Content-Type": "image/png"}
        auditor = {**png, "Authorization": f"Bearer {running.auditor_token}"}

        def ask(release: int, headers: dict[str, str], image: bytes) -> httpx.Response:
            chosen = {**headers, "X-Lethe-Release": str(release)}
            return http.post("/v1/predict", content=image, headers=chosen)

        other = next(n for n in sorted(forgotten) if forgotten[n] and n != active)
        for release in (0, other):
            answers = [ask(release, auditor, image) for _, image in threes]
            assert {answer.headers["X-Lethe-Release"] for answer in answers} == {str(release)}
            bodies = [answer.json() for answer in answers]
            known = [body["before_mask"][0]["label"] == "3" for body in bodies]
            assert (sum(known) >= 9) is not forgotten[release]
            assert not [body for body in bodies if body["predictions"][0]["label"] == "3"]
        assert "forward;dur=" in answers[0].headers["Server-Timing"]
        assert ask(0, png, threes[0][1]).status_code == 401
        missing = ask(9999, auditor, threes[0][1])
        assert missing.status_code == 404
        assert "no release 9999" in missing.json()["detail"]
        # A request that pins a release swaps nothing: the active one answers all others.
        assert set(client.rollback(0)["replicas"].values()) == {"confirmed"}


def test_swaps_under_load_lose_nothing_and_nothing_stale_is_sent(running: Server) -> None:
    acks: list[tuple[float, int]] = []
    with (
        running.client() as client,
        Traffic(running.url, running.auditor_token, images="digits", rate=60) as traffic,
    ):
        traffic.wait_for(60)
        for to in (0, 2, 0, 2, 0, 2, 0, 2):
            ack = client.rollback(to, reason="load test")
            acks.append((time.monotonic(), ack["release"]))
            assert set(ack["replicas"].values()) == {"confirmed"}
            traffic.wait_for(30)
    assert len(traffic.answers) >= 300
    assert [a for a in traffic.answers if not a.ok] == []
    assert stale(traffic.answers, acks) == []


def test_a_cancelled_job_stays_masked_and_its_stream_says_so(running: Server) -> None:
    with running.client() as client:
        job = client.forget(["9"])["job"]
        events = []
        for view in client.events(job):
            if view["state"] == "training" and not [e for e in events if e["state"] == "training"]:
                cancelled = client.cancel(job, reason="asked by mistake")
                assert cancelled["state"] == "cancelled"
                again = client.cancel(job, reason="asked by mistake")
                assert again == cancelled
            events.append(view)
        assert events[-1]["state"] == "cancelled"
        assert events[-1]["refused"] == "cancelled: asked by mistake"
        status = client.status()
        assert "9" in status["masked_only"]
        with pytest.raises(ClientError, match="Forgotten already"):
            client.forget(["9"])
        # The same retry command twice makes one retry; a new stream follows it.
        for _ in range(2):
            retried = client.retry(job, reason="it was right", key="retry-of-this-test")
            assert (retried["retries"], retried["refused"]) == (1, None)
        training = next(view for view in client.events(job) if view["state"] == "training")
        assert training["ahead"] == 0
        client.cancel(job, reason="by mistake after all")
        assert "9" not in client.restore("9", reason="it is wanted")["still_masked"]
        nines = held_out(open_image_set("digits"), ["9"])
        answers = audit(running.url, running.auditor_token, nines)
        assert sum(a.named == "9" for a in answers) >= 0.5 * len(answers)
        with pytest.raises(ClientError, match="at its end"):
            client.cancel(job, reason="too late")
        with pytest.raises(ClientError, match="Forget the class again"):
            client.retry(job, reason="too late")


@pytest.mark.slow
def test_a_canary_answers_its_share_is_masked_as_now_and_is_promoted(running: Server) -> None:
    with running.client() as client:
        job = client.forget(["1"], canary=30)["job"]
        with Traffic(running.url, running.auditor_token, images="digits", rate=60) as traffic:
            tried: list[int] = []
            masked = 0.0
            for view in client.watch(job):
                if view["state"] == "canary" and view["canary"]["release"] not in tried:
                    tried.append(view["canary"]["release"])
                    assert client.status()["canary"] == {"release": tried[-1], "percent": 30}
                    assert view["release"] is None
                    if len(tried) == 1:
                        traffic.wait_for(40)
                        # Another class's guard holds on both releases, and the trial goes on.
                        other = client.forget(["2"])
                        masked = time.monotonic()
            assert view["state"] == "done", view["refused"]
            traffic.wait_for(30)
        rows = {row["release"]: row for row in client.releases()}
        assert client.status()["canary"] is None
        client.cancel(other["job"], reason="not needed any more")
    assert len(tried) == 2
    assert view["release"] == tried[-1]
    assert rows[tried[0]]["activated_at"] is None
    answers = traffic.answers
    assert [a for a in answers if not a.ok] == []
    began = min(a.sent for a in answers if a.release == tried[0])
    while_tried = [a for a in answers if began <= a.sent and a.release <= tried[0]]
    assert 0.1 <= sum(a.release == tried[0] for a in while_tried) / len(while_tried) <= 0.6
    assert [a for a in answers if a.named == "1"] == []
    assert [a for a in answers if a.named == "2" and a.sent > masked] == []
    assert stale(answers, [(masked, other["guard"]["release"])]) == []
    on_trial = [a for a in answers if a.release in tried and a.label == "1"]
    assert [a for a in on_trial if a.weights == "1"] == []


@pytest.mark.slow
def test_a_canary_that_nobody_asks_is_taken_off(running: Server) -> None:
    with running.client() as client:
        before = client.status()["release"]
        job = client.forget(["4"], canary=10)
        ended = client.wait(job["job"])
        assert ended["state"] == "refused"
        assert ended["refused"].startswith("canary: only ")
        status = client.status()
        assert "4" in status["masked_only"]
        assert status["release"] == job["guard"]["release"] > before
        assert client.releases()[-1]["returned"] in ended["refused"]


def test_the_same_command_again_is_the_same_job(running: Server) -> None:
    with running.client() as client:
        one = client.forget(["5"], key="key-of-this-test")
        again = client.forget(["5"], key="key-of-this-test")
        assert one["job"] == again["job"]
        # Queued behind it, in order, and acknowledged as masked at once.
        other = client.forget(["6"])
        assert other["guard"]["release"] > one["guard"]["release"]
        assert other["ahead"] == 1
        assert client.wait(one["job"])["state"] == "done"
        ended = client.wait(other["job"])
        assert ended["state"] == "done", ended["refused"]
        assert client.job(one["job"])["release"] < ended["release"]
        with pytest.raises(ClientError, match="for other classes"):
            client.forget(["7"], key="key-of-this-test")


def test_a_class_that_is_gone_cannot_be_forgotten_twice(running: Server) -> None:
    headers = {"Authorization": f"Bearer {running.operator_token}"}
    response = httpx.post(
        f"{running.operator_url}/v1/forget",
        json={"classes": ["3"]},
        headers=headers,
        trust_env=False,
    )
    assert response.status_code == 409
    assert "Forgotten already" in response.json()["detail"]


@pytest.mark.slow
def test_a_restart_of_everything_comes_back_at_the_last_release(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.client() as client:
        job = client.forget(["1"])
        assert client.wait(job["job"])["state"] == "done"
        before = client.status()
        # The command is accepted; then a power cut ends its training.
        cut = client.forget(["2"])
    server.kill()
    server.start()
    with server.client() as client:
        after = client.status()
        assert after["release"] >= cut["guard"]["release"] > before["release"]
        assert after["under_erasure"] == ["1", "2"]
        pictures = held_out(open_image_set("digits"), ["1", "2"])
        answers = audit(server.url, server.auditor_token, pictures)
        assert not [a for a in answers if a.named in ("1", "2")]
        resumed = client.wait(cut["job"])
        assert resumed["state"] == "done", resumed["refused"]
        answers = audit(server.url, server.auditor_token, pictures)
        assert accuracy(answers, {"1", "2"}) <= 0.01
    assert server.stop() == 0


def test_a_client_without_a_server_gets_one_clear_line() -> None:
    with Client("http://127.0.0.1:9", "x") as client, pytest.raises(ClientError, match="is `lethe"):
        client.status()
