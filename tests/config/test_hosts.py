"""International hosts and paths go over the network as DNS and HTTP have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter.config import notation
from exporter.config.target import Target, Tls
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig
from tests.router.parts import Probing, target, workload


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("http://münchen.example:8000/pfad", "http://xn--mnchen-3ya.example:8000/pfad"),
        ("http://BÜCHER.example", "http://xn--bcher-kva.example"),
        ("https://例え.example/", "https://xn--r8jz45g.example/"),
        ("http://\uff48\uff4f\uff53\uff54:80", "http://host:80"),
        ("http://h:1/ä b/%20/%zz", "http://h:1/%C3%A4%20b/%20/%25zz"),
        ("http://[::1]:80/ä", "http://[::1]:80/%C3%A4"),
        ("http://h:1/a%20b", "http://h:1/a%20b"),
        ("HTTP://Host/Path", "HTTP://Host/Path"),
    ],
)
def test_a_url_is_kept_as_it_goes_over_the_network(written: str, asked: str) -> None:
    target = Target(name="t", kind="http", address=written, metrics_url=written)
    assert (target.address, target.metrics_url) == (asked, asked)


@pytest.mark.parametrize("kind", ["shard", "fmaas"])
def test_the_host_of_a_grpc_address_too(kind: str) -> None:
    target = Target.model_validate({"name": "t", "kind": kind, "address": "münchen.example:8033"})
    assert target.address == "xn--mnchen-3ya.example:8033"


def test_a_path_of_other_characters_reaches_the_server() -> None:
    with Router(RouterConfig()) as router, Probing(target("tgi", f"{router.http}/ünter wegs", None)) as client:
        client.prober.connect(5.0)
        result = client.prober.probe(workload(), 1, lambda: False)
        assert result.code == "NOT_FOUND"


@given(st.text(max_size=20) | st.from_regex(r"https?://[^/]{1,12}(:[0-9]{1,6})?(/.{0,8})?", fullmatch=True))
def test_whatever_address_is_taken_is_ascii_and_stays_as_it_is(text: str) -> None:
    for kind in ("http", "fmaas"):
        try:
            found = Target.model_validate({"name": "t", "kind": kind, "address": text}).address
        except ValidationError:
            continue
        assert found.startswith("unix:") or found.isascii()
        assert notation.ascii_address(found) == found


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("name", ["", " ", "a\0b", "a\nb"])
def test_a_file_name_that_no_file_can_have_is_refused(key: str, name: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of a file"):
        Tls.model_validate({"cert_file": "c", key: name})
