"""The bodies that the HTTP server reads and writes: TGI's own format and the two of OpenAI. No I/O.

Simplified: sampling, penalties, stop sequences, grammars and tools are read and change nothing; one prompt a request.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from exporter.simulator.batcher import Token
from exporter.simulator.tokenizer import answer_word, prompt_tokens, token_id

DEFAULT_NEW_TOKENS = 100
_FINISH = {"length": "length", "eos": "eos_token", "time_limit": "time_limit"}
_OPENAI_FINISH = {"length": "length", "eos": "stop", "time_limit": "stop"}


class InvalidBody(ValueError):
    """A body that cannot be served; the message is for the client."""


class AnswerFormat(Protocol):
    """The format in which one request is answered. `events` are complete server-sent events."""

    text: str
    prompt: tuple[str, ...]
    max_new_tokens: int
    min_new_tokens: int
    streams: bool
    priority: int

    def opening(self) -> bytes:
        """What may be sent before the first token."""
        ...

    def events(self, tokens: Sequence[Token]) -> bytes:
        """The tokens that are sent together, and what follows the last one."""
        ...

    def whole(self, tokens: Sequence[Token]) -> bytes:
        """The one JSON answer of a request without a stream."""
        ...


@dataclass
class TgiFormat:
    """POST /generate and /generate_stream."""

    text: str
    prompt: tuple[str, ...]
    max_new_tokens: int
    streams: bool
    details: bool
    full_text: bool
    min_new_tokens: int = 0
    priority: int = 0

    def opening(self) -> bytes:
        return b""

    def events(self, tokens: Sequence[Token]) -> bytes:
        """One event a token: TGI never packs them."""
        return b"".join(self._event(token) for token in tokens)

    def whole(self, tokens: Sequence[Token]) -> bytes:
        answer: dict[str, Any] = {"generated_text": self._text(tokens[-1])}
        if self.details:
            answer["details"] = self._details(tokens[-1]) | {
                "prefill": [],
                "tokens": [_token(token) for token in tokens],
            }
        return encoded(answer)

    def _event(self, token: Token) -> bytes:
        last = token.end is not None
        return event(
            {
                "index": token.index + 1,
                "token": _token(token),
                "generated_text": self._text(token) if last else None,
                "details": self._details(token) if last and self.details else None,
            }
        )

    def _text(self, last: Token) -> str:
        text = "".join(answer_word(last.request.id, index) for index in range(last.index + 1))
        return self.text + text if self.full_text else text

    def _details(self, last: Token) -> dict[str, Any]:
        return {
            "finish_reason": _FINISH[last.end or "length"],
            "generated_tokens": last.index + 1,
            "seed": None,
            "input_length": len(self.prompt),
        }


@dataclass
class OpenAiFormat:
    """POST /v1/completions, and with `chat` /v1/chat/completions."""

    text: str
    prompt: tuple[str, ...]
    max_new_tokens: int
    streams: bool
    chat: bool
    model: str
    created: int
    include_usage: bool
    min_new_tokens: int = 0
    priority: int = 0

    def opening(self) -> bytes:
        """The chat form tells the role first, with no token."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.chat else b""

    def events(self, tokens: Sequence[Token]) -> bytes:
        text = _text_of(tokens)
        end = tokens[-1].end
        finish = _OPENAI_FINISH[end] if end else None
        sent = self._chunk({"role": "assistant", "content": text} if self.chat else text, finish)
        if end is None:
            return sent
        if self.include_usage:
            sent += event(self._frame([], stream=True) | {"usage": self._usage(tokens[-1])})
        return sent + b"data: [DONE]\n\n"

    def whole(self, tokens: Sequence[Token]) -> bytes:
        text = _text_of(tokens)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": _OPENAI_FINISH[tokens[-1].end or "length"],
            "logprobs": None,
        }
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return encoded(self._frame([choice], stream=False) | {"usage": self._usage(tokens[-1])})

    def _chunk(self, text: Any, finish: str | None) -> bytes:
        choice = {"index": 0, ("delta" if self.chat else "text"): text, "logprobs": None, "finish_reason": finish}
        # A client that asked for the usage finds the key in every chunk, null until the last.
        usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        return event(self._frame([choice], stream=True) | usage)

    def _frame(self, choices: list[dict[str, Any]], stream: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": "", "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self, last: Token) -> dict[str, int]:
        prompt, completion = len(self.prompt), last.index + 1
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def tgi(body: bytes, streams: bool) -> TgiFormat:
    """The form of a TGI request; raises InvalidBody."""
    asked = _object(body)
    text = asked.get("inputs")
    if not isinstance(text, str):
        raise InvalidBody("inputs: expected a text")
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidBody("parameters: expected an object")
    truncate = _count(parameters, "truncate", least=1)
    new = _count(parameters, "max_new_tokens", least=1)
    return TgiFormat(
        text=text,
        prompt=_prompt(text, truncate or 0),
        max_new_tokens=DEFAULT_NEW_TOKENS if new is None else new,
        streams=streams,
        details=parameters.get("details") is True,
        full_text=parameters.get("return_full_text") is True,
    )


def openai(body: bytes, chat: bool, model: str, created: int) -> OpenAiFormat:
    """The form of an OpenAI request; raises InvalidBody. `created` in Unix seconds."""
    asked = _object(body)
    text, prompt = _conversation(asked.get("messages")) if chat else _completion(asked.get("prompt"))
    new = next(
        (
            found
            for key in ("max_completion_tokens", "max_tokens")
            if (found := _count(asked, key, least=1)) is not None
        ),
        DEFAULT_NEW_TOKENS,
    )
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidBody("stream_options: expected an object")
    priority = asked.get("priority", 0)
    if not isinstance(priority, int):
        raise InvalidBody("priority: expected a whole number")
    return OpenAiFormat(
        text=text,
        prompt=prompt,
        max_new_tokens=new,
        streams=asked.get("stream") is True,
        chat=chat,
        model=model,
        created=created,
        include_usage=options.get("include_usage") is True,
        # Extensions of vLLM and SGLang which fix the length.
        min_new_tokens=new if asked.get("ignore_eos") is True else _count(asked, "min_tokens", least=0) or 0,
        priority=priority,
    )


def tokenized(body: bytes) -> bytes:
    """POST /tokenize: the tokens of "inputs"; raises InvalidBody."""
    text = _object(body).get("inputs")
    if not isinstance(text, str):
        raise InvalidBody("inputs: expected a text")
    tokens = prompt_tokens(text, 0, special=True)
    return encoded([{"id": token_id(token), "text": token} for token in tokens])


def event(value: object) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"


def encoded(value: object) -> bytes:
    """JSON as TGI writes it: text in UTF-8, not in escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def problem(message: str, kind: str) -> dict[str, str]:
    return {"error": message, "error_type": kind}


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise InvalidBody(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidBody("the body is not a JSON object")
    return value


def _count(values: dict[str, Any], key: str, least: int) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidBody(f"{key}: expected a whole number from {least}")
    return value


def _prompt(text: str, truncate: int = 0) -> tuple[str, ...]:
    if not text:
        raise InvalidBody("the prompt is empty")
    return tuple(prompt_tokens(text, truncate, special=True))


def _completion(prompt: object) -> tuple[str, tuple[str, ...]]:
    """A text, a list of one text, or a list of token ids."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt, _prompt(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        tokens = tuple(f"<{token}>" for token in prompt)
        return "".join(tokens), tokens
    raise InvalidBody("prompt: expected one text, or one list of token ids")


def _conversation(messages: object) -> tuple[str, tuple[str, ...]]:
    """The chat template: one token before each message that says whose it is, and one that asks for the answer."""
    if not isinstance(messages, list) or not messages:
        raise InvalidBody("messages: expected a list with at least one message")
    tokens, texts = ["<s>"], []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if not isinstance(role, str) or not isinstance(content, str):
            raise InvalidBody("messages: expected objects with a role and a content of text")
        tokens += [f"<|{role}|>", *_prompt(content)[1:]]
        texts.append(content)
    return "\n".join(texts), (*tokens, "<|assistant|>")


def _token(token: Token) -> dict[str, Any]:
    word = answer_word(token.request.id, token.index)
    return {"id": token_id(word), "text": word, "logprob": -1.0, "special": False}


def _text_of(tokens: Sequence[Token]) -> str:
    return "".join(answer_word(token.request.id, token.index) for token in tokens)
