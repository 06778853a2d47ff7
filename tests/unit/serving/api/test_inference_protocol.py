"""The Open Inference Protocol's tensors and bodies: what is read, refused and answered."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.inference_protocol import rpc
from serving.api.inference_protocol.model import InferRequest, Wanted, answer, checked_pixels
from serving.api.inference_protocol.rest import read_request, write_response
from serving.api.inference_protocol.tensors import (
    NamedTensor,
    ProtocolError,
    floats,
    from_json,
    from_raw,
    to_json,
    to_raw,
)

CLASSES = ("ant", "bee", "cow")


def read(*inputs: dict[str, Any], raw: bytes = b"", **more: Any) -> InferRequest:
    header = json.dumps({"inputs": list(inputs), **more}).encode()
    return read_request(header + raw, len(header) if raw else None, most=4)


def image_input(*images: bytes, shape: list[int] | None = None) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": shape or [len(images)], "data": data}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_raw_bytes_come_back_as_they_went(elements: list[bytes]) -> None:
    tensor = NamedTensor("image", (len(elements),), tuple(elements))
    assert from_raw("image", "BYTES", [len(elements)], to_raw(tensor)) == tensor


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6))
def test_numbers_come_back_raw_and_as_json(numbers: list[float]) -> None:
    tensor = floats("pixels", np.array(numbers, np.float32).reshape(1, 2, 3))
    for again in (
        from_raw("pixels", "FP32", [1, 2, 3], to_raw(tensor)),
        from_json("pixels", "FP32", [1, 2, 3], to_json(tensor)),
    ):
        np.testing.assert_array_equal(again.data, tensor.data)


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_any_raw_bytes_are_read_whole_or_refused(raw: bytes) -> None:
    for datatype, shape in (("BYTES", [2]), ("FP32", [1, 2])):
        try:
            found = from_raw("x", datatype, shape, raw)
        except ProtocolError:
            continue
        assert len(to_raw(found)) == len(raw)


def test_images_and_pixels_are_read_from_json_and_from_raw_bytes() -> None:
    assert read(image_input(b"one", b"two")).images == (b"one", b"two")
    assert read(image_input(b"one", shape=[1, 1])).images == (b"one",)
    raw = struct.pack("<I", 3) + b"one"
    described = {"name": "image", "datatype": "BYTES", "shape": [1]}
    sized = {**described, "parameters": {"binary_data_size": len(raw)}}
    assert read(sized, raw=raw).images == (b"one",)
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [1, 1, 1, 2], "data": [[[[1, 2.5]]]]}
    np.testing.assert_array_equal(read(pixels).images, [[[[1, 2.5]]]])


IMAGE = image_input(b"x")
PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [1, 1, 1, 2], "data": [1, 2]}
BAD = [
    ("no inputs", [], {}, "inputs are none"),
    ("both inputs", [IMAGE, PIXELS], {}, "either 'image' or 'pixels'"),
    ("an unknown input", [{**IMAGE, "name": "picture"}], {}, "'picture'"),
    ("another datatype", [{**PIXELS, "datatype": "FP16"}], {}, "FP16"),
    ("numbers as image", [{**PIXELS, "name": "image"}], {}, "must be BYTES"),
    ("files as pixels", [{**IMAGE, "name": "pixels"}], {}, "must be FP32"),
    ("a wrong rank", [{**PIXELS, "shape": [1, 2]}], {}, "must be FP32"),
    ("no size at all", [{**PIXELS, "shape": [0, 1, 1, 2]}], {}, "1 or more"),
    ("a bool as size", [{**PIXELS, "shape": [True, 1, 1, 2]}], {}, "1 or more"),
    ("a shape that is a text", [{**PIXELS, "shape": "1112"}], {}, "list"),
    ("too few numbers", [{**PIXELS, "data": [1]}], {}, "1 numbers"),
    ("ragged lists", [{**PIXELS, "data": [[1], [2, 3]]}], {}, "differ in length"),
    ("texts for numbers", [{**PIXELS, "data": ["1", "2"]}], {}, "numbers"),
    ("no data", [{**PIXELS, "data": None}], {}, "numbers"),
    ("numbers beyond any", [{**PIXELS, "data": [10**400, 1]}], {}, "numbers"),
    ("no base64", [{**IMAGE, "data": ["%"]}], {}, "base64"),
    ("numbers for files", [{**IMAGE, "data": [1]}], {}, "base64"),
    ("too many images", [image_input(*[b"x"] * 5)], {}, "5 images"),
    ("an unknown output", [IMAGE], {"outputs": [{"name": "age"}]}, "no output 'age'"),
    ("outputs that are none", [IMAGE], {"outputs": "label"}, "list of objects"),
    ("a size of no bytes", [{**IMAGE, "parameters": {"binary_data_size": 9}}], {}, "0 bytes"),
    ("parameters that are none", [{**IMAGE, "parameters": []}], {}, "object"),
    ("an id that is none", [IMAGE], {"id": 4}, "string"),
]


@pytest.mark.parametrize(
    ("inputs", "more", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_request_that_is_not_as_the_protocol_has_it_is_refused_with_a_word(
    inputs: list[dict[str, Any]], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProtocolError, match=words):
        read(*inputs, **more)


@pytest.mark.parametrize(
    ("body", "length"), [(b"", None), (b"[]", None), (b"{", None), (b"{}", 9), (b"[" * 9999, None)]
)
def test_a_body_that_is_no_request_is_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(ProtocolError):
        read_request(body, length, most=4)


def test_an_output_is_given_once_however_often_it_is_asked_for() -> None:
    """Otherwise a small request could ask for any number of large answers."""
    with pytest.raises(ProtocolError, match="once"):
        read(image_input(b"a"), outputs=[{"name": "logits"}] * 3)


def test_bytes_that_nothing_names_are_refused() -> None:
    with pytest.raises(ProtocolError, match="follow the last input"):
        read(IMAGE, raw=b"more")


def test_pixels_must_be_finite_and_of_the_models_size() -> None:
    good = np.zeros((2, 3, 4, 4), np.float32)
    assert checked_pixels(good, (3, 4, 4)) is good
    with pytest.raises(ProtocolError, match=r"\[3, 8, 8\]"):
        checked_pixels(good, (3, 8, 8))
    good[0, 0, 0, 0] = np.inf
    with pytest.raises(ProtocolError, match="finite"):
        checked_pixels(good, (3, 4, 4))


MASKED = np.array([[1.0, -np.inf, 3.0], [2.0, -np.inf, 0.0]], np.float32)


def test_what_is_masked_is_in_no_output() -> None:
    wanted = [Wanted("probabilities"), Wanted("logits"), Wanted("label"), Wanted("logits", 3)]
    shares, logits, label, top = answer(MASKED, CLASSES, wanted)
    np.testing.assert_allclose(np.sum(shares.data, -1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(shares.data)[:, 1], 0)
    assert np.isfinite(np.asarray(logits.data)).all()
    assert label.data == (b"cow", b"ant")
    # Three classes were asked for; only two are not masked.
    assert (top.shape, top.data[0]) == ((2, 2), b"3.000000:2:cow")
    assert not [each for each in top.data if b"bee" in bytes(each)]


def test_a_response_says_what_its_raw_bytes_are() -> None:
    wanted = (Wanted("label", binary=True), Wanted("probabilities"), Wanted("logits", binary=True))
    request = InferRequest("mine", (b"a", b"b"), wanted)
    body, length = write_response(request, 7, answer(MASKED, CLASSES, wanted))
    assert length is not None
    said = json.loads(body[:length])
    assert (said["id"], said["model_version"]) == ("mine", "7")
    label, shares, logits = said["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in (label, logits)]
    assert body[length : length + sizes[0]] == struct.pack("<I3sI3s", 3, b"cow", 3, b"ant")
    assert len(body) == length + sum(sizes)
    assert len(shares["data"]) == 6
    body, length = write_response(InferRequest("", (b"a",), ()), 7, [])
    assert (json.loads(body)["outputs"], length) == ([], None)


# -- gRPC


def rpc_request(**more: Any) -> Any:
    """A request message, read again from its bytes."""
    made = rpc.message("ModelInferRequest")(model_name="lethe", id="mine", **more)
    return rpc.parse("ModelInferRequest", made.SerializeToString())


def test_messages_carry_images_and_pixels_raw_or_not() -> None:
    image = {"name": "image", "datatype": "BYTES", "shape": [1]}
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [1, 1, 1, 2]}
    raw = rpc_request(inputs=[image], raw_input_contents=[struct.pack("<I", 3) + b"one"])
    read_raw = rpc.read_request(raw, most=4)
    assert (read_raw.images, read_raw.id) == ((b"one",), "mine")
    plain = rpc_request(inputs=[{**image, "contents": {"bytes_contents": [b"one"]}}])
    assert rpc.read_request(plain, most=4).images == (b"one",)
    numbers = rpc_request(inputs=[{**pixels, "contents": {"fp32_contents": [1, 2.5]}}])
    np.testing.assert_array_equal(rpc.read_request(numbers, most=4).images, [[[[1, 2.5]]]])

    # A raw request gets a raw answer; another one doesn't.
    for request, is_raw in ((read_raw, True), (rpc.read_request(plain, most=4), False)):
        response = rpc.write_response(request, 7, answer(MASKED[:1], CLASSES, request.outputs))
        assert len(response.raw_output_contents) == (2 if is_raw else 0)
        assert (response.model_version, response.id) == ("7", "mine")
    assert response.outputs[1].contents.bytes_contents[0] == b"cow"
    assert sum(response.outputs[0].contents.fp32_contents) == pytest.approx(1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"inputs": []}, "inputs are none"),
        ({"inputs": [{"name": "image"}], "raw_input_contents": [b"", b""]}, "2 raw_input_contents"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}]}, "1 or more"),
        ({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [2]}]}, "0 numbers"),
    ],
)
def test_a_message_that_is_not_as_the_protocol_has_it_is_refused(
    more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProtocolError, match=words):
        rpc.read_request(rpc_request(**more), most=4)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(ProtocolError, match="no ModelInferRequest"):
        rpc.parse("ModelInferRequest", b"\xff\xff\xff")


def test_the_descriptors_have_every_method_that_is_served() -> None:
    service = rpc.service()
    assert tuple(method.name for method in service.methods) == rpc.METHODS
    for method in rpc.METHODS:
        assert rpc.message(f"{method}Request").DESCRIPTOR.full_name
        assert rpc.message(f"{method}Response").DESCRIPTOR.full_name
