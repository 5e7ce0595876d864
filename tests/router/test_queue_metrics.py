"""Whether users wait, read off a router's metrics."""

import pytest

from exporter.observation import Failure, Outcome
from exporter.probes.router.queue_metrics import users_waiting

TGI = """\
# HELP tgi_queue_size how many wait
# TYPE tgi_queue_size gauge
tgi_queue_size {queue}
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size {running}
tgi_request_count{{method="x"}} 7
"""


@pytest.mark.parametrize(
    ("queue", "running", "own", "waiting"),
    [
        ("0", "12", 0, 0),  # all are served: nobody waits
        ("3", "12", 0, 3),
        ("3", "12", 3, 3),  # ours may all be running
        ("3", "0", 3, 0),  # only ours are there
        ("3", "2", 4, 1),
        ("3", "2", 9, 0),
        ("0", "0", 0, 0),
        ("3.0", "12.0", 0, 3),
    ],
)
def test_users_wait_where_the_queue_cannot_be_all_ours(queue: str, running: str, own: int, waiting: int) -> None:
    assert users_waiting(TGI.format(queue=queue, running=running), own) == waiting


def test_gauges_with_labels_count_together() -> None:
    page = 'vllm:num_requests_waiting{model="a"} 1.0\nvllm:num_requests_waiting{model="b"} 2.0\n'
    assert users_waiting(page + 'vllm:num_requests_running{model="a"} 4.0\n', 0) == 3


def test_sglang_is_understood() -> None:
    assert users_waiting('sglang:num_queue_reqs{model_name="a"} 5\nsglang:num_running_reqs{model_name="a"} 1\n', 0) == 5


@pytest.mark.parametrize(
    "page", ["", "tgi_batch_current_size 3\n", "<html>not here</html>", "tgi_queue_size_bucket 3\n"]
)
def test_a_page_that_names_no_queue_says_nothing(page: str) -> None:
    assert users_waiting(page, 0) is None


@pytest.mark.parametrize("number", ["abc", "+Inf", "-Inf", "NaN", "1e999", "1e308"])
@pytest.mark.parametrize("gauge", ["queue", "running"])
def test_a_number_that_is_none_is_a_failure_and_never_an_empty_queue(number: str, gauge: str) -> None:
    with pytest.raises(Failure) as caught:
        users_waiting(TGI.format(**{"queue": "1", "running": "1", gauge: number}), 0)
    assert caught.value.outcome is Outcome.MALFORMED
