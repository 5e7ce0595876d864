"""PromQL: durations, numbers, and the expressions that several rules share. Pure."""

UNITS = (("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
REQUESTS, ATTEMPTS = "tgi_probe_slo_requests_total", "tgi_probe_attempts_total"
# `increase` extrapolates to the edges of its range, by up to half an interval at the start and one at the end. With
# five scrapes (four intervals) that is a factor of at most 1.4; with two it would be 2.5.
LEAST_SCRAPES, EXTRAPOLATION = 5, 1.5


def duration(seconds: float) -> str:
    """`5m`, `1h30m`, `700ms`; weeks only where nothing else is left, since a period of 30d is not 4w2d."""
    left = round(seconds * 1000)
    text = ""
    for unit, size in UNITS if left % UNITS[0][1] == 0 and left > UNITS[0][1] else UNITS[1:]:
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def number(value: float) -> str:
    """`0.144`, not `0.14400000000000002`."""
    return f"{value:.12g}"


def percent(ratio: float) -> str:
    """`99.9 %`"""
    return f"{ratio * 100:.10g} %"


def error_ratio(matchers: str, window: float, dropped: str) -> str:
    """Bad requests ÷ all requests, of rates, which survive a restart; no sample where nothing was judged."""
    bad, every = f'{REQUESTS}{{{matchers},verdict="bad"}}', f"{REQUESTS}{{{matchers}}}"
    span = duration(window)
    return (
        f"sum without ({dropped}) (rate({bad}[{span}]))\n/\n"  #
        f"(sum without ({dropped}) (rate({every}[{span}])) > 0)"
    )


def bad_requests(matchers: str, window: float, dropped: str) -> str:
    """The number, less than `EXTRAPOLATION` times too high; no sample before there are `LEAST_SCRAPES`."""
    bad = f'{REQUESTS}{{{matchers},verdict="bad"}}[{duration(window)}]'
    return f"sum without ({dropped}) (increase({bad}) and count_over_time({bad}) >= {LEAST_SCRAPES})"
