"""The protocol's gRPC messages, and requests and answers from and to them.

`serving.api.routes.grpc` has the service's methods. The descriptors, `open_inference.binpb`, are
made from `open_inference.proto` by
`python -m grpc_tools.protoc -I. --descriptor_set_out=open_inference.binpb open_inference.proto`.
They have a descriptor pool of their own, so that a process may also load a client's copy of them.
Serve's proxy hands a message to a replica as the bytes that it received.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from serving.api.inference_protocol.model import MODEL, InferRequest, Wanted, request_of
from serving.api.inference_protocol.tensors import (
    NamedTensor,
    ProtocolError,
    checked_shape,
    floats,
    from_elements,
    from_raw,
    to_raw,
)

SERVICE = "inference.GRPCInferenceService"
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
)


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the methods. Serve's proxy calls this.

    `servicer` is the proxy's stand-in. The calls go on to `serving.api.routes.grpc` in a replica.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@cache
def message(name: str) -> Any:
    """The class of the message type `name`."""
    pool = _pool()
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))


def service() -> Any:
    """The service's descriptor."""
    return _pool().FindServiceByName(SERVICE)


@cache
def _pool() -> Any:
    file = resources.files("serving.api.inference_protocol").joinpath("open_inference.binpb")
    pool = descriptor_pool.DescriptorPool()
    for each in descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()).file:
        pool.Add(each)
    return pool


def parse(name: str, data: bytes) -> Any:
    """A message of type `name` from its bytes. Raises `ProtocolError`."""
    try:
        return message(name).FromString(data)
    except DecodeError:
        raise ProtocolError(f"the bytes are no {name}") from None


def read_request(asked: Any, *, most: int) -> InferRequest:
    """The request in a ModelInferRequest. `most`: largest number of images. Raises
    `ProtocolError`."""
    raws = list(asked.raw_input_contents)
    if raws and len(raws) != len(asked.inputs):
        raise ProtocolError(f"{len(raws)} raw_input_contents for {len(asked.inputs)} inputs")
    if raws:
        inputs = [
            from_raw(each.name, each.datatype, list(each.shape), raw)
            for each, raw in zip(asked.inputs, raws, strict=True)
        ]
    else:
        inputs = [_from_contents(each) for each in asked.inputs]
    outputs = [_wanted(each, raw=bool(raws)) for each in asked.outputs]
    request = request_of(asked.id, inputs, outputs, most=most)
    if outputs or not raws:
        return request
    return InferRequest(
        request.id,
        request.images,
        tuple(Wanted(each.name, binary=True) for each in request.outputs),
    )


def write_response(request: InferRequest, release: int, outputs: Sequence[NamedTensor]) -> Message:
    """A ModelInferResponse; its tensors are raw if the request's were."""
    response = message("ModelInferResponse")(
        model_name=MODEL, model_version=str(release), id=request.id
    )
    for wanted, tensor in zip(request.outputs, outputs, strict=True):
        entry = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if wanted.binary:
            response.raw_output_contents.append(to_raw(tensor))
        elif isinstance(tensor.data, tuple):
            entry.contents.bytes_contents.extend(tensor.data)
        else:
            entry.contents.fp32_contents.extend(tensor.data.reshape(-1).tolist())
    found: Message = response
    return found


def describe(metadata: Mapping[str, Any], name: str) -> Message:
    """The metadata that REST answers with, as a message of type `name`."""
    plain = {key: value for key, value in metadata.items() if key not in ("inputs", "outputs")}
    response = message(name)(**plain)
    for side in ("inputs", "outputs"):
        for each in metadata.get(side, ()):
            getattr(response, side).add(**each)
    found: Message = response
    return found


def _from_contents(given: Any) -> NamedTensor:
    contents, shape = given.contents, list(given.shape)
    sizes = checked_shape(given.name, given.datatype, shape)
    if given.datatype == "BYTES":
        return from_elements(given.name, sizes, tuple(contents.bytes_contents))
    numbers = np.array(contents.fp32_contents, np.float32)
    if numbers.size != np.prod(sizes):
        raise ProtocolError(
            f"input {given.name!r} has {numbers.size} numbers; {shape} has {int(np.prod(sizes))}"
        )
    return floats(given.name, numbers.reshape(sizes))


def _wanted(given: Any, *, raw: bool) -> Wanted:
    classes = (
        given.parameters["classification"].int64_param
        if "classification" in given.parameters
        else 0
    )
    if classes < 0:
        raise ProtocolError(f"classification is {classes}; it is how many classes to return")
    return Wanted(given.name, classes, raw)
