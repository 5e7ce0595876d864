"""A process of its own that speaks fmaas with the generated code of vllm-tgis-adapter: two files of one package cannot
live in one process.

    python adapter_peer.py call HOST:PORT       calls a router, prints what it decoded as JSON
    python adapter_peer.py serve FILE           serves on a free port, prints it, and writes what it decoded to FILE
"""

import importlib
import json
import sys
import types
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

PEERS = Path(sys.prefix) / "peers"


def stubs() -> tuple[Any, Any]:
    """Its messages and stubs, without its server, which would need vLLM."""
    sys.path.insert(0, str(PEERS))
    package = types.ModuleType("vllm_tgis_adapter.grpc")
    package.__path__ = [str(PEERS / "vllm_tgis_adapter" / "grpc")]
    sys.modules[package.__name__] = package
    base = package.__name__ + ".pb.generation_pb2"
    return importlib.import_module(base), importlib.import_module(base + "_grpc")


def call(address: str) -> dict[str, Any]:
    wire, stub = stubs()
    with grpc.insecure_channel(address) as channel:
        service = stub.GenerationServiceStub(channel)
        parameters = wire.Parameters(
            method=wire.GREEDY,
            sampling=wire.SamplingParameters(temperature=1.0, top_k=4, top_p=0.5, typical_p=0.5, seed=7),
            stopping=wire.StoppingCriteria(max_new_tokens=4, min_new_tokens=4, time_limit_millis=10_000),
            response=wire.ResponseOptions(generated_tokens=True, token_logprobs=True),
            decoding=wire.DecodingParameters(repetition_penalty=1.0),
            truncate_input_tokens=3,
        )
        prompt = wire.GenerationRequest(text="north river stone")
        answers = {
            "stream": [
                MessageToDict(message, preserving_proto_field_name=True)
                for message in service.GenerateStream(
                    wire.SingleGenerationRequest(model_id="m", request=prompt, params=parameters), timeout=20
                )
            ],
            "batch": service.Generate(
                wire.BatchedGenerationRequest(model_id="m", requests=[prompt, prompt], params=parameters), timeout=20
            ),
            "tokens": service.Tokenize(
                wire.BatchedTokenizeRequest(
                    model_id="m",
                    requests=[wire.TokenizeRequest(text="a river")],
                    return_tokens=True,
                    return_offsets=True,
                ),
                timeout=20,
            ),
            "info": service.ModelInfo(wire.ModelInfoRequest(model_id="m"), timeout=20),
        }
    return {
        name: answer if isinstance(answer, list) else MessageToDict(answer, preserving_proto_field_name=True)
        for name, answer in answers.items()
    }


def serve(file: str) -> None:
    """Answers every stream with an early message, two tokens at once, an empty message, and the end."""
    wire, stub = stubs()

    class Service(stub.GenerationServiceServicer):  # type: ignore[misc, name-defined]  # generated, without types
        def GenerateStream(self, request: Any, context: Any) -> Any:
            with open(file, "a", encoding="utf-8") as decoded:
                decoded.write(json.dumps(MessageToDict(request, preserving_proto_field_name=True)) + "\n")
            yield wire.GenerationResponse(input_token_count=7)
            yield wire.GenerationResponse(generated_token_count=2, text=" a b")
            yield wire.GenerationResponse(generated_token_count=2)
            yield wire.GenerationResponse(generated_token_count=3, text=" c", stop_reason=wire.MAX_TOKENS)

        def ModelInfo(self, request: Any, context: Any) -> Any:
            return wire.ModelInfoResponse(model_kind=wire.ModelInfoResponse.DECODER_ONLY, max_sequence_length=4096)

        def Tokenize(self, request: Any, context: Any) -> Any:
            return wire.BatchedTokenizeResponse(
                responses=[wire.TokenizeResponse(token_count=len(one.text.split())) for one in request.requests]
            )

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    stub.add_GenerationServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "call":
        print(json.dumps(call(sys.argv[2])))
    else:
        serve(sys.argv[2])
