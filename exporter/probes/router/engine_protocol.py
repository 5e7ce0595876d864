"""vLLM and SGLang over their own gRPC services (`engine_services`). Which one a server has is asked, not configured.

These servers may go on with a request whose stream is gone. So each request has an id of its own, and one that is given
up is also aborted by that id.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.router.engine_services import (
    EngineInfo,
    EngineReader,
    EngineService,
    PromptForms,
    VllmInference,
    services,
    token_ids,
)
from exporter.probes.router.grpc_calls import GrpcProtocol
from exporter.probes.router.protocol import Ask, Ending
from exporter.wire.http_codec import HttpRequest


class EngineProtocol(GrpcProtocol):
    """See `RouterProtocol`."""

    truncates = True
    tokenizes = False

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._candidates = services(target.kind)
        self._service: EngineService | None = None
        self._info = EngineInfo()
        self._facts: Facts | None = None
        # Random, so that two probers never name each other's requests.
        self._prefix = f"tgi-probe-{secrets.token_hex(8)}"
        self._requests = 0

    def exact(self) -> bool:
        return bool(self._info.vocabulary)

    def needs_facts(self) -> bool:
        return self._service is None or (self._service.ids_only and not self._info.vocabulary)

    def facts(self, ask: Ask) -> Facts:
        """Raises Failure where the server has none of the services. Once it had one, its last facts still hold."""
        first = [self._service] if self._service is not None else []
        missing = None
        for service in (*first, *(one for one in self._candidates if one is not self._service)):
            try:
                info = service.read_info(ask(self.with_headers(service.info())))
            except Failure as failure:
                if failure.outcome is Outcome.UNREACHABLE:
                    raise self.unreachable(failure) from None
                self._has_answered = True
                if failure.code == "UNIMPLEMENTED":
                    missing = failure
                    continue
                if self._facts is None:
                    raise self.explained(failure) from None
                return replace(self._facts, page="silent" if failure.outcome is Outcome.TIMEOUT else "refused")
            self._has_answered = True
            self._service = service
            return self._known(info)
        assert missing is not None
        raise self.explained(missing)

    def _known(self, info: EngineInfo) -> Facts:
        assert self._service is not None
        if self._service.ids_only and not info.vocabulary:
            detail = "GetModelInfo names no vocabulary, and prompts of this server are ids out of it"
            raise Failure(Outcome.MALFORMED, "OK", detail)
        self._info = info
        self._facts = Facts(
            protocol=self._service.name,
            ranks=1,
            model=self._target.model or info.model,
            max_total_tokens=info.max_total_tokens,
            max_input_tokens=info.max_input_tokens,
        )
        return self._facts

    def count_prompt(self, ask: Ask, text: str, workload: Workload) -> int | None:
        return None

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        assert self._service is not None  # `needs_facts`
        info, most = self._info, workload.sequence_length
        ids = token_ids(prompt, info.vocabulary, info.special, most) if info.vocabulary else []
        self._requests += 1
        request_id = f"{self._prefix}-{self._requests}"
        given = PromptForms(prompt, ids)
        model = self._target.model or info.model
        rank = self._target.data_parallel_rank
        return self.with_headers(self._service.generate(given, workload, request_id, seed, rank, model))

    def token_reader(self, workload: Workload) -> EngineReader:
        assert self._service is not None
        return self._service.reader(workload)

    def drop_option(self, endings: Sequence[Ending]) -> bool:
        """Older builds of vLLM have another name for the same service."""
        renamed = isinstance(self._service, VllmInference) and self._service.name != VllmInference.older
        if not renamed or any(code != "UNIMPLEMENTED" for _, code, _ in endings):
            return False
        self._service = VllmInference(VllmInference.older)
        if self._facts is not None:
            self._facts = replace(self._facts, protocol=self._service.name)
        return True

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        calls = self._service.abort(request_ids) if self._service is not None else []
        return [self.with_headers(call) for call in calls]

    def users_waiting(self, ask: Ask, own: int) -> int | None:
        request = self._service.loads(self._target.data_parallel_rank) if self._service is not None else None
        if self._service is None or request is None:
            return None
        load = self._service.read_loads(ask(self.with_headers(request)))
        return max(0, min(load.waiting, load.waiting + load.running - own))
