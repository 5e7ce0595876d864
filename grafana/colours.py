"""What a colour means, the same on every dashboard. After Okabe and Ito: colour-blind people can tell them apart.

Green, orange and vermillion judge. Sky blue is a number that nothing judges. Purples are batch sizes,
from dark to light, so that the order shows without the hues. Lines by target or SLO have Grafana's palette.
"""

BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILLION, PURPLE, GREY = "#E69F00", "#D55E00", "#CC79A7", "#999999"

GOOD, WARNING, BAD, NEUTRAL = GREEN, ORANGE, VERMILLION, SKY

# Legend → colour.
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
PARTS = {"forward": "#0B6E78", "decode": "#2FA6A0", "concat": "#8FD1B9", "rest of the server": GREY, "overhead": YELLOW}
BATCH_SIZES = {
    1: "#5B3F9E",
    2: "#7350B5",
    4: "#8C62C7",
    8: "#A677D3",
    16: "#BF8EDB",
    32: "#D4A6E3",
    64: "#E4BEEA",
    128: "#EFD4F1",
    256: "#F6E6F7",
}
