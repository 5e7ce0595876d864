"""A process of its own that is an engine over gRPC: two files of one package cannot live in one process.

    python engine_peer.py vllm|sglang|inference|generate FILE

It serves on a free port, prints it, and writes what it decoded to FILE. `vllm` and `sglang` are the generated code of
others (smg-grpc-proto). For vLLM's own service no package has stubs: `inference`, and `generate` for its older name,
are our own reading of the published files.

A prompt of HANGS tokens is answered with its first token, and then with nothing until the request is aborted.
"""

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

PEERS = Path(sys.prefix) / "peers"
HANGS = 13
CACHED = 4
MODEL, CONTEXT, VOCABULARY = "llama", 4096, 32000
# Tokens of a message. The first one has none: it only tells the prompt's length.
SIZES = (0, 1, 2, 1, 0, 3)


def pieces(length: int) -> Iterator[int]:
    """The tokens of each message of an answer of that length."""
    left = length
    while left:
        for size in SIZES:
            yield min(size, left)
            left -= min(size, left)
            if not left:
                return


class Written:
    """What was understood, one JSON object per line."""

    def __init__(self, file: str) -> None:
        self._file, self._lock = file, threading.Lock()

    def add(self, what: str, message: Any) -> None:
        line = json.dumps({what: MessageToDict(message, preserving_proto_field_name=True)})
        with self._lock, open(self._file, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class Aborts:
    """Requests that are to end."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def of(self, request_id: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(request_id, threading.Event())


def smg_service(flavor: str, written: Written) -> tuple[Any, Any]:
    """VllmEngine or SglangScheduler: the servicer, and what adds it to a server."""
    sys.path.insert(0, str(PEERS))
    file = {"vllm": "vllm_engine", "sglang": "sglang_scheduler"}[flavor]
    wire = importlib.import_module(f"smg_grpc_proto.generated.{file}_pb2")
    stub = importlib.import_module(f"smg_grpc_proto.generated.{file}_pb2_grpc")
    name = {"vllm": "VllmEngine", "sglang": "SglangScheduler"}[flavor]
    aborts = Aborts()

    class Service(getattr(stub, f"{name}Servicer")):  # type: ignore[misc]  # generated, without types
        def Generate(self, request: Any, context: Any) -> Any:
            written.add("generate", request)
            prompt, length = len(request.tokenized.input_ids), 0
            sampling = request.sampling_params
            length = sampling.max_tokens if flavor == "vllm" else sampling.max_new_tokens
            so_far, size = 0, 0
            for size in pieces(length):
                so_far += size
                yield wire.GenerateResponse(
                    chunk=wire.GenerateStreamChunk(
                        token_ids=[7] * size,
                        prompt_tokens=prompt,
                        completion_tokens=size if flavor == "vllm" else so_far,
                        cached_tokens=CACHED,
                    )
                )
                if prompt == HANGS and so_far and length > 1:
                    aborts.of(request.request_id).wait(30)
                    return
            yield wire.GenerateResponse(
                complete=wire.GenerateComplete(
                    output_ids=[7] * size,
                    finish_reason="length",
                    prompt_tokens=prompt,
                    completion_tokens=size if flavor == "vllm" else so_far,
                    cached_tokens=CACHED,
                )
            )

        def Abort(self, request: Any, context: Any) -> Any:
            written.add("abort", request)
            for one in request.request_ids if flavor == "vllm" else [request.request_id]:
                aborts.of(one).set()
            return wire.AbortResponse(**{"success": True} if flavor == "sglang" else {})

        def GetModelInfo(self, request: Any, context: Any) -> Any:
            return wire.GetModelInfoResponse(
                model_path="/models/llama",
                served_model_name=MODEL,
                max_context_length=CONTEXT,
                vocab_size=VOCABULARY,
                eos_token_ids=[8000],
                max_req_input_len=CONTEXT - 6,
            )

        def GetLoads(self, request: Any, context: Any) -> Any:
            written.add("loads", request)
            load = {"num_running_reqs": 3, "num_waiting_reqs": 2}
            return wire.GetLoadsResponse(dp_rank_count=1, loads=[wire.SchedulerLoad(**load)])

    return Service(), getattr(stub, f"add_{name}Servicer_to_server")


def inference_service(service: str, written: Written) -> grpc.GenericRpcHandler:
    """vLLM's own service under this name, and its Control."""
    from exporter.pb import vllm_inference_pb2 as wire

    aborts = Aborts()

    def generate(request: Any, context: Any) -> Any:
        written.add("generate", request)
        prompt = min(len(request.text.split()), request.truncate_prompt_tokens)
        yield wire.GenerateResponse(prompt_info=wire.PromptInfo(num_prompt_tokens=prompt))
        so_far, length = 0, request.stopping.max_new_tokens
        for size in pieces(length):
            so_far += size
            output = wire.Output(num_tokens=size)
            if so_far == length:
                output.finish_info.num_output_tokens = length
                output.finish_info.finish_reason = wire.FinishInfo.LENGTH
            yield wire.GenerateResponse(outputs=output)
            if prompt == HANGS and so_far and length > 1:
                aborts.of(request.request_id).wait(30)
                return

    def abort(request: Any, context: Any) -> Any:
        written.add("abort", request)
        for one in request.request_ids:
            aborts.of(one).set()
        return wire.AbortResponse()

    def model(request: Any, context: Any) -> Any:
        return wire.GetModelInfoResponse(model_id="m", served_model_name=MODEL)

    calls: dict[str, tuple[Any, Any, Any]] = {
        f"/{service}/GenerateStream": (grpc.unary_stream_rpc_method_handler, generate, wire.GenerateRequest),
        "/vllm.Control/Abort": (grpc.unary_unary_rpc_method_handler, abort, wire.AbortRequest),
        "/vllm.Control/GetModelInfo": (grpc.unary_unary_rpc_method_handler, model, wire.GetModelInfoRequest),
    }

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            found = calls.get(details.method)
            if found is None:
                return None
            kind, answer, message = found
            return kind(answer, message.FromString, lambda reply: reply.SerializeToString())

    return Handler()


def serve(flavor: str, file: str) -> None:
    written = Written(file)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    if flavor in ("vllm", "sglang"):
        service, add = smg_service(flavor, written)
        add(service, server)
    else:
        name = "vllm.Inference" if flavor == "inference" else "vllm.Generate"
        server.add_generic_rpc_handlers((inference_service(name, written),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
