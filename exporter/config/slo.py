"""The keys of an objective."""

from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from exporter.config.fields import BatchSizes, Name, Names, PositiveSeconds, Real, Seconds, SettingsBlock, must

BudgetPeriod = Annotated[Seconds, must(lambda seconds: 3600 <= seconds <= 366 * 86400, "must be from 1h to 366d")]
MEASURES = ("ttft", "inter_token_latency", "time_per_output_token", "request_duration", "availability")


class Slo(SettingsBlock):
    """One objective for one workload: exactly one of the measures, and the share of requests that must meet it."""

    name: Name
    workload: str
    batch_sizes: BatchSizes | None = Field(None, description="all of the workload when left out")
    targets: Names | None = Field(None, description="all of the workload when left out")
    ttft: PositiveSeconds | None = Field(None, description="threshold for the time to first token")
    inter_token_latency: PositiveSeconds | None = Field(
        None, description="threshold for the wait for each token after the first"
    )
    time_per_output_token: PositiveSeconds | None = None
    request_duration: PositiveSeconds | None = None
    availability: Literal[True] | None = Field(None, description="true: success is all that is asked")
    objective: Real = Field(0.99, gt=0, lt=1, description="share of good requests, such as 0.99")
    period: BudgetPeriod = Field("30d", description="what the error budget is for, 1h to 366d")  # type: ignore[assignment]

    @property
    def measure(self) -> str:
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def threshold(self) -> float | None:
        """Seconds; None for availability."""
        return None if self.availability else cast(float, getattr(self, self.measure))

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "measure",
                "must have exactly one of " + ", ".join(MEASURES) + " (has {given})",
                {"given": " and ".join(given) or "none"},
            )
        return self
