"""The daemon on a router, as an operator sees it: both protocols, a background load, no secret anywhere."""

import json
from pathlib import Path

from tests.end_to_end.parts import daemon_running
from tests.processes import wait_until
from tests.router.parts import SimulatedRouter, simulated_router

TOKEN = "s3cret-t0ken"
SHORT = {"sequence_length": 32, "decode_length": 4}


def write_config(file: Path, router: SimulatedRouter) -> Path:
    document = {
        "targets": [
            {"name": "tgis", "kind": "fmaas", "address": router.grpc},
            {
                "name": "chat",
                "kind": "http",
                "api": "chat",
                "address": f"http://{router.http}",
                "bearer_token_env": "ROUTER_TOKEN",
            },
        ],
        "workloads": [
            {**SHORT, "name": "short", "batch_sizes": [1, 4], "interval": "500ms"},
            {**SHORT, "name": "cached", "batch_sizes": [1], "prompt_cache": "hit", "interval": "1s"},
            {**SHORT, "name": "open", "load": {"mode": "open", "rate": "10/s"}, "targets": ["chat"]},
            {**SHORT, "name": "closed", "load": {"mode": "closed", "users": 2}, "targets": ["tgis"]},
        ],
        "slos": [{"name": "open-ttft", "workload": "open", "ttft": "2s"}],
        "max_duty_cycle": 1,
        "log_level": "debug",
        "web": {"listen_address": "127.0.0.1:0"},
    }
    file.write_text(json.dumps(document))
    return file


def test_a_router_is_probed_in_batches_and_under_loads_over_both_protocols(tmp_path: Path) -> None:
    with simulated_router("--token", TOKEN) as router:
        config = write_config(tmp_path / "c.yaml", router)
        with daemon_running(config, {"ROUTER_TOKEN": TOKEN}) as daemon:
            for target, load in (("tgis", "closed"), ("chat", "open")):
                for workload, size in (("short", 1), ("short", 4), ("cached", 1), (load, 1)):
                    series = {"target": target, "workload": workload, "batch_size": str(size)}
                    daemon.await_sum("tgi_probe_attempts_total", 3, outcome="ok", **series)
                    # On a busy machine some values are withheld.
                    ttft = daemon.sum_of("tgi_probe_time_to_first_token_seconds_count", **series)
                    withheld = daemon.sum_of("tgi_probe_withheld_values_total", measure="ttft", **series)
                    assert ttft + withheld >= 3 * size
                daemon.await_sum("tgi_probe_start_spread_seconds_count", 3, target=target, batch_size="4")
                setups = daemon.sum_of("tgi_probe_connection_setup_seconds_count", target=target)
                setups += daemon.sum_of("tgi_probe_withheld_values_total", target=target, measure="connection_setup")
                assert setups >= 4
                assert daemon.sum_of("tgi_probe_target_up", target=target) == 1
            daemon.await_sum("tgi_probe_slo_requests_total", 3, target="chat", verdict="good")
            assert daemon.sum_of("tgi_probe_target_info", target="chat", kind="http", protocol="http/chat") == 1
            assert daemon.sum_of("tgi_probe_workload_info", workload="cached", prompt_cache="hit", mode="batch") == 1
            assert daemon.sum_of("tgi_probe_workload_info", workload="open", mode="open") == 1
            pages = [daemon.get(path).text for path in ("/metrics", "/config", "/")]
            daemon.process.terminate()
            assert daemon.process.wait() == 0
            said = daemon.process.output
        wait_until(lambda: router.state()["in_flight"] == 0, "the server has let go", router.process)
        assert "ROUTER_TOKEN" in pages[1]
        assert not [page for page in (*pages, said) if TOKEN in page]
