"""What a test asks of the simulator and sets in it."""

import httpx2
import pytest

from gateway.demo.control import Control
from gateway.demo.reply import Refusal


def test_a_rate_adds_its_fault_about_so_often_and_the_same_after_each_start() -> None:
    def drawn() -> list[bool]:
        control = Control()
        control.add_rate({"rate": 0.1, "fault": "status=503"})
        return [bool(control.choose("", b"{}")) for _ in range(2000)]

    first = drawn()
    assert 150 < sum(first) < 250
    assert drawn() == first


def test_a_rate_can_be_for_one_model_and_a_request_has_the_last_word() -> None:
    control = Control()
    control.add_rate({"rate": 1, "fault": "status=503", "model": "sim-large"})
    assert control.choose("", b'{"model":"sim-small"}') == {}
    assert control.choose("", b'{"model":"sim-large"}') == {"status": "503"}
    assert control.choose("status=500", b'{"model":"sim-large"}') == {"status": "500"}


@pytest.mark.parametrize(
    "entry", [None, {}, {"fault": "status=503"}, {"rate": 2, "fault": "close"}, {"rate": 1, "fault": "x"}]
)
def test_a_rate_that_makes_no_sense_is_refused(entry: object) -> None:
    with pytest.raises(Refusal):
        Control().add_rate(entry)


async def test_rates_are_set_and_forgotten_over_http_and_counted(http: httpx2.AsyncClient) -> None:
    assert (await http.post("/sim/faults", json={"rate": 1, "fault": "status=503"})).json()[0]["rate"] == 1
    assert (await http.get("/v1/models")).status_code == 503
    stats = (await http.get("/sim/stats")).json()
    assert stats["faults"] == {"status": 1}
    assert stats["answers"] == [{"endpoint": "models", "status": 503, "count": 1}]
    assert stats["open"] == 1
    assert stats["cpu_seconds"] > 0
    await http.delete("/sim/faults")
    assert (await http.get("/v1/models")).status_code == 200
