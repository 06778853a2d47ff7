"""What a whole replica answers to a request for an embedding, and when it refuses.

Its backbone is tiny and real, and so are its coordinator, its monitor and the signed ledger.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from forgetting.adapter.low_rank import from_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.preprocess import transform
from forgetting.models.backbone import load_backbone, save_backbone
from registry.log.adapters import adapter_files
from serving.api.routes.answering import begun
from serving.coordination.messages import Ack
from serving.replica.admission import AskedError, DeadlineError, OtherReleaseError
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.prediction import Embedding, NoFeatureError, Prediction
from serving.replica.recognizer import Recognizer
from tests.unit.serving.in_process import LocalCoordinator
from tests.unit.serving.small_server import (
    CLASSES,
    LEASE,
    SmallServer,
    embed,
    image_of,
    predict,
    until,
)

MakeServer = Callable[..., SmallServer]


@pytest.fixture
def server(small_server: MakeServer) -> SmallServer:
    return small_server()


def vector_of(server: SmallServer, release: int, name: str, number: int = 0) -> Tensor:
    """What the head of the release's model is given for an image, at length 1; no engine, no
    replica."""
    adapters = [
        from_files(adapter_files(server.ledger, adapter), server.backbone)
        for adapter in server.state.releases[release].adapters
    ]
    model = adapted_model(server.backbone, adapters)
    seen: list[Tensor] = []
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = Image.open(io.BytesIO(image_of(server.settings, name, number)))
    with torch.inference_mode():
        model(transform(server.backbone.spec.preprocess)(image).unsqueeze(0))
    return F.normalize(seen[0][0], dim=0)


def close(found: Embedding, expected: Tensor) -> bool:
    return torch.allclose(found.vector, expected, atol=1e-5)


@pytest.mark.parametrize("edit", [False, True])
def test_it_is_the_feature_after_all_weights_and_the_edit(server: SmallServer, edit: bool) -> None:
    replica = server.replica()
    bare = embed(replica, "cy")
    assert close(bare, vector_of(server, 0, "cy"))
    assert float(bare.vector.norm()) == pytest.approx(1.0, abs=1e-6)
    assert (bare.release, bare.parent, bare.masked_only) == (0, 0, 0)
    assert {"decode", "queue", "forward"} == set(bare.stages)
    number = server.forget("bo", edit=edit)
    adapted = embed(replica, "cy")
    assert adapted.release == number
    assert close(adapted, vector_of(server, number, "cy"))
    apart = float((adapted.vector - bare.vector).norm())
    assert apart > 0.1 if edit else 0.001 < apart < 0.1, apart


def test_a_mask_changes_no_vector_and_is_counted_and_an_adapter_opens_a_new_space(
    server: SmallServer,
) -> None:
    replica = server.replica()
    bare = embed(replica, "zoe")
    masked_at = server.mask("zoe")
    masked = embed(replica, "zoe")
    assert (masked.release, masked.masked_only) == (masked_at, 1)
    assert masked.space == bare.space
    assert torch.equal(masked.vector, bare.vector), "a mask hides nothing in a vector"
    server.forget("bo", edit=True)
    adapted = embed(replica, "zoe")
    assert adapted.masked_only == 1, "the weights were taught to forget bo, and not zoe"
    assert adapted.space != bare.space
    rolled = server.roll_back(masked_at)
    until(lambda: embed(replica, "zoe").release == rolled)
    again = embed(replica, "zoe")
    assert again.space == bare.space
    assert torch.equal(again.vector, bare.vector)
    assert again.masked_only == 2


def test_predictions_and_embeddings_share_a_batch_and_its_one_pass(
    small_server: MakeServer,
) -> None:
    server = small_server(batch={"size": 8, "wait_ms": 200.0})
    replica = server.replica()
    alone = predict(replica, "cy"), embed(replica, "zoe")
    passes = _passes(replica)

    async def ask() -> tuple[Prediction, Embedding]:
        with begun(replica) as first, begun(replica) as second:
            images = (image_of(server.settings, name) for name in ("cy", "zoe"))
            return await asyncio.gather(
                replica.predict(next(images), first, top_k=4), replica.embed(next(images), second)
            )

    prediction, embedding = asyncio.run(ask())
    assert [guess.label for guess in prediction.guesses] == [g.label for g in alone[0].guesses]
    assert close(embedding, alone[1].vector)
    now = _passes(replica)
    assert (now[0] - passes[0], now[1] - passes[1]) == (1, 2)


def _passes(replica: Recognizer) -> tuple[float, float]:
    """How many forward passes there were, and of how many images."""
    named = {
        sample.name: sample.value
        for family in replica.metrics.families()
        for sample in family.samples
    }
    return named["lethe_batch_size_count"], named["lethe_images_total"]


def test_it_is_traffic_to_those_who_watch_for_leaks(small_server: MakeServer) -> None:
    server = small_server(monitor={"share": 1.0})
    replica = server.replica()
    server.forget("bo")  # with an adapter that forgets nothing
    embed(replica, "bo")
    until(lambda: sum(c.leaks for c in replica.shadow.counts().values()) == 1)


def test_it_is_refused_as_a_prediction_is(small_server: MakeServer) -> None:
    server = small_server(lease={**LEASE, "patience": 0.2})
    replica = server.replica()
    masked = server.mask("zoe")
    assert embed(replica, "cy", min_release=masked).release == masked
    with pytest.raises(NotCurrentError, match="is not active yet"):
        embed(replica, "cy", min_release=masked + 1)
    with pytest.raises(OtherReleaseError):
        embed(replica, "cy", release=0)
    assert embed(replica, "cy", release=0, auditing=True).release == 0
    with pytest.raises(AskedError, match="no release 99"):
        embed(replica, "cy", release=99, auditing=True)

    async def late() -> None:
        with begun(replica) as call:
            past = replace(call, deadline=asyncio.get_running_loop().time())
            await replica.embed(image_of(server.settings, "cy"), past)

    with pytest.raises(DeadlineError):
        asyncio.run(late())
    coordinator = LocalCoordinator(server.coordinator.handle)
    coordinator.suspend(server.author())
    with pytest.raises(SuspendedError):
        embed(replica, "cy")
    coordinator.resume(server.author())
    assert embed(replica, "cy").release == masked
    replica.member.stop()
    with pytest.raises(NotCurrentError, match="lease has run out"):
        embed(replica, "cy")


def test_the_release_on_trial_answers_its_share_with_its_own_vectors(server: SmallServer) -> None:
    replica = server.replica()
    masked = server.mask("bo")
    tried = server.try_out("zoe", percent=50)
    until(lambda: replica.slot.trial is not None)
    found = [embed(replica, "cy") for _ in range(40)]
    assert {each.release for each in found} == {masked + 1, tried}
    expected = {release: vector_of(server, release, "cy") for release in (masked + 1, tried)}
    assert all(close(each, expected[each.release]) for each in found)
    assert len({each.space for each in found}) == 2


def test_every_vector_is_wholly_of_the_release_that_it_names_and_none_is_stale(
    server: SmallServer,
) -> None:
    """Adapters come and go under load from several clients, predictions among the embeddings."""
    replica = server.replica()
    acknowledged = [0]
    found: list[tuple[int, str, Embedding]] = []
    predicted: list[tuple[int, int]] = []
    ended = threading.Event()

    async def load() -> None:
        async def client(name: str) -> None:
            image = image_of(server.settings, name)
            while not ended.is_set():
                newest = acknowledged[-1]
                with begun(replica) as call:
                    found.append((newest, name, await replica.embed(image, call)))
                newest = acknowledged[-1]
                with begun(replica) as call:
                    made = await replica.predict(image, call, top_k=1)
                    predicted.append((newest, made.release))

        await asyncio.gather(*(client(name) for name in CLASSES))

    loading = threading.Thread(target=lambda: asyncio.run(load()), daemon=True)
    loading.start()
    try:
        _more(found, 4)
        coordinator = LocalCoordinator(server.coordinator.handle)
        for name in ("bo", "zoe"):
            acknowledged.append(server.forget(name, edit=True))
            _more(found, 12)
        for to in (0, acknowledged[1], acknowledged[2], 0):
            ack = coordinator.roll_back(to, server.author(), None)
            assert isinstance(ack, Ack), ack
            acknowledged.append(ack.release)
            _more(found, 12)
    finally:
        ended.set()
        loading.join()
    releases = {each.release for _, _, each in found}
    assert set(acknowledged) <= releases
    expected = {(r, n): vector_of(server, r, n) for r in releases for n in CLASSES}
    assert not [each for _, name, each in found if not close(each, expected[each.release, name])]
    assert not [each for newest, _, each in found if each.release < newest]
    assert not [1 for newest, release in predicted if release < newest]
    # The vectors of different stacks can be told apart, or the test would see nothing.
    assert not torch.allclose(expected[0, "cy"], expected[acknowledged[1], "cy"], atol=1e-2)


def _more(found: list[tuple[int, str, Embedding]], count: int) -> None:
    before = len(found)
    until(lambda: len(found) >= before + count)


def test_a_backbone_with_an_edit_in_its_head_hands_out_no_embedding_and_goes_on_predicting(
    small_server: MakeServer, tiny: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(tiny / "backbone")
    sealed = replace(backbone, spec=replace(backbone.spec, edit_in_head=True))
    save_backbone(tmp_path / "sealed", sealed)
    server = small_server(backbone={"directory": tmp_path / "sealed"})
    replica = server.replica()
    started = time.monotonic()
    with pytest.raises(NoFeatureError, match="sealed with a feature edit"):
        embed(replica, "cy")
    assert time.monotonic() - started < 5
    assert predict(replica, "cy").guesses[0].label == "cy"
    shutil.rmtree(tmp_path / "sealed")
