"""What a colour means, the same on every dashboard. After Okabe and Ito: colour-blind people can tell them apart."""

BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILLION, PURPLE, GREY = "#E69F00", "#D55E00", "#CC79A7", "#999999"

GOOD, WARNING, BAD, NEUTRAL = GREEN, ORANGE, VERMILLION, SKY

# Legend → colour.
QUANTILES = {"average": GREY, "p50": SKY, "p90": YELLOW, "p99": PURPLE}
OUTCOMES = {
    "ok": GOOD,
    "timeout": ORANGE,
    "unreachable": VERMILLION,
    "rejected": PURPLE,
    "overloaded": YELLOW,
    "malformed": SKY,
    "refused": GREY,
    "quarantined": GREY,
    "not_ready": GREY,
    "disturbed": GREY,
}
REASONS = {"busy": ORANGE, "duty_cycle": SKY, "backoff": VERMILLION, "unsafe": GREY}
PARTS = {"forward": BLUE, "decode": SKY, "concat": YELLOW, "rest of the server": GREY, "overhead": ORANGE}

# From dark to light, so that the order shows without the hues.
BATCH_SIZES = {
    1: "#4A5FB5",
    2: "#3F86C6",
    4: "#3BA9C2",
    8: "#4CC3A5",
    16: "#86D67D",
    32: "#C6E35B",
    64: "#F7E04A",
    128: "#FDB338",
    256: "#F58231",
}
