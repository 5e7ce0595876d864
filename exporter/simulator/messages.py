"""Converts the shard's protobuf messages to the simulator's values and back. generate.v2 only lacks fields of v3."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from exporter.pb import generate_v2_pb2, generate_v3_pb2
from exporter.simulator.batch_cache import CachedSequence, Prompt, SequenceStep, ServerBatch
from exporter.simulator.options import Config, Protocol
from exporter.simulator.tokenizer import generated_word, token_id, tokenised, truncated

METHODS = ("Info", "ServiceDiscovery", "ClearCache", "FilterBatch", "Warmup", "Prefill", "Decode", "Health")


def module_of(protocol: Protocol) -> ModuleType:
    return generate_v3_pb2 if protocol == "v3" else generate_v2_pb2


def prompts_of(config: Config, requests: Sequence[Any]) -> list[Prompt]:
    """Tokenise the requests of a Prefill. RuntimeError if one has not exactly one text chunk (v3)."""
    return [_prompt(config, request) for request in requests]


def _prompt(config: Config, request: Any) -> Prompt:
    v3 = config.protocol == "v3"
    paged = config.attention == "paged"
    text = _only_text(request.input_chunks.chunks) if v3 else request.inputs
    text_tokens = tokenised(text, special=v3 and paged and request.add_special_tokens)
    tokens = truncated(text_tokens, request.truncate)
    return Prompt(
        request_id=request.id,
        tokens=tuple(tokens),
        max_new_tokens=request.stopping_parameters.max_new_tokens,
        cached_tokens=min(request.cache_len, len(tokens)) if v3 and paged else 0,
        blocks=tuple(request.blocks) if v3 else (),
        slots=tuple(request.slots) if v3 else (),
        has_parameters=request.HasField("parameters"),
        prefill_logprobs=request.prefill_logprobs,
        top_n_tokens=request.top_n_tokens,
        text_tokens=len(text_tokens),
        top_k=request.parameters.top_k,
    )


def _only_text(chunks: Sequence[Any]) -> str:
    if len(chunks) != 1 or not chunks[0].HasField("text"):
        raise RuntimeError(f"Request has {len(chunks)} input chunks, the model takes exactly one of text")
    text: str = chunks[0].text
    return text


def info(config: Config) -> Any:
    paged = config.attention == "paged"
    answer = module_of(config.protocol).InfoResponse(
        requires_padding=not paged, dtype=config.dtype, device_type=config.device, speculate=config.speculate
    )
    if config.protocol == "v3":
        answer.support_chunking = answer.use_prefix_caching = paged
        answer.attention_impl = config.attention_name
        answer.block_size = config.block_size
    return answer


def cached_batch(config: Config, batch: ServerBatch, max_tokens: int) -> Any:
    answer = module_of(config.protocol).CachedBatch(
        id=batch.id,
        request_ids=[sequence.prompt.request_id for sequence in batch.sequences],
        size=batch.size,
        max_tokens=max_tokens,
    )
    if config.protocol == "v3":
        answer.current_tokens = sum(sequence.context for sequence in batch.sequences)
    return answer


def generations(config: Config, steps: Sequence[SequenceStep], rank: int) -> list[Any]:
    """This rank's share of the answers: every `ranks`-th one."""
    return [_generation(module_of(config.protocol), step) for step in steps[rank :: config.ranks]]


def _generation(wire: Any, step: SequenceStep) -> Any:
    prompt, total = step.sequence.prompt, step.sequence.generated
    words = [_word(step.sequence, at) for at in range(total - step.new_tokens, total)]
    answer = wire.Generation(request_id=prompt.request_id, tokens=_tokens(wire, words))
    if prompt.prefill_logprobs and step.prefilled:
        answer.prefill_tokens.CopyFrom(_tokens(wire, prompt.tokens))
        answer.prefill_tokens.logprobs[0] = math.nan  # as in TGI: the first token has no probability
    if prompt.top_n_tokens:
        top = [generated_word(prompt.request_id + 1, at) for at in range(prompt.top_n_tokens)]
        answer.top_tokens.extend(_tokens(wire, top) for _ in words)
    if step.sequence.finished:
        answer.generated_text.text = "".join(_word(step.sequence, at) for at in range(total))
        answer.generated_text.generated_tokens = total
        answer.generated_text.finish_reason = wire.FINISH_REASON_LENGTH
    return answer


def _word(sequence: CachedSequence, at: int) -> str:
    """The word number `at` of an answer. One that goes on beyond its end has no place in the cache any more."""
    return sequence.words[at] if at < len(sequence.words) else generated_word(sequence.prompt.request_id, at)


def _tokens(wire: Any, texts: Sequence[str]) -> Any:
    ids = [token_id(text) for text in texts]
    return wire.Tokens(ids=ids, logprobs=[-1.0] * len(ids), texts=texts, is_special=[False] * len(ids))


def batch_of(method: str, request: Any) -> tuple[int | None, int]:
    """The id and size a request speaks of, for the record; of a Decode, its first batch's."""
    match method:
        case "Prefill" | "Warmup":
            return request.batch.id, len(request.batch.requests)
        case "Decode" if request.batches:
            return request.batches[0].id, sum(batch.size for batch in request.batches)
        case "FilterBatch":
            return request.batch_id, len(request.request_ids)
        case "ClearCache" if request.HasField("id"):
            return request.id, 0
        case _:
            return None, 0
