"""Every line of an error status names the path that was asked, and at a 401 or 403 where the token is from."""

import pytest

from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.router.http_protocol import HttpProtocol


def said(code: str, **keys: str) -> str:
    target = Target.model_validate({"name": "t", "kind": "http", "api": "chat", "address": "http://h/llm", **keys})
    return HttpProtocol(target).explained(Failure(Outcome.REJECTED, code, "no")).detail


@pytest.mark.parametrize("code", ["BAD_REQUEST", "NOT_FOUND", "UNPROCESSABLE_ENTITY", "BAD_GATEWAY", "HTTP_529"])
def test_an_error_status_is_told_with_the_path_that_was_asked(code: str) -> None:
    assert said(code).startswith("no; asked for POST /llm/v1/chat/completions")


@pytest.mark.parametrize("code", ["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_what_is_no_status_has_no_path(code: str) -> None:
    assert "asked for" not in said(code)


@pytest.mark.parametrize("code", ["UNAUTHORIZED", "FORBIDDEN"])
def test_a_server_that_lets_nobody_in_is_told_with_the_key_of_the_token(code: str) -> None:
    assert said(code, bearer_token_env="LLM_TOKEN").endswith("the token is that of bearer_token_env: LLM_TOKEN")
    assert said(code, bearer_token_file="/t").endswith("the token is that of bearer_token_file: /t")
    assert "no token was sent: set bearer_token_env or bearer_token_file" in said(code)
