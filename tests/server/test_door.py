"""Who may come in under which host name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from hilum_serving import Server
from starlette.responses import PlainTextResponse

from hilum_server.auth import Accounts, Doorkeeper
from hilum_server.door import LOOPBACK_NAMES, Door, DoorRules
from hilum_server.metrics import Metrics
from hilum_server.settings import Settings


@pytest.mark.parametrize(
    ("host", "client", "status"),
    [
        ("rebound.example:8000", "10.1.2.3", 403),
        ("gateway.clinic:8000", "10.1.2.3", 200),
        ("10.1.0.5:8000", "10.1.2.3", 200),
        ("localhost", "10.1.2.3", 200),
        ("gateway.clinic:8000", "10.2.0.1", 401),
        ("rebound.example:8000", "10.2.0.1", 401),
    ],
)
async def test_a_page_cannot_use_the_network_its_reader_is_trusted_for(
    tmp_path: Path, host: str, client: str, status: int
) -> None:
    given: dict[str, Any] = {"server": {"host": "0.0.0.0"}, "auth": {"trusted_networks": ["10.1.0.0/16"]}}
    keeper = Doorkeeper(Settings.model_validate(given), Accounts(tmp_path))
    rules = DoorRules(LOOPBACK_NAMES | {"gateway.clinic"}, login=True, max_requests=5)
    door = Door(PlainTextResponse("in"), rules, keeper, Metrics())
    transport = httpx.ASGITransport(door, client=(client, 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://10.1.0.5:8000") as http:
        answer = await http.get("/api/jobs", headers={"Host": host})
    assert answer.status_code == status


async def test_a_key_opens_under_any_name(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    _, secret = accounts.new_key("anna", "user")
    keeper = Doorkeeper(Settings.model_validate({"server": {"host": "0.0.0.0"}}), accounts)
    door = Door(PlainTextResponse("in"), DoorRules(LOOPBACK_NAMES, True, 5), keeper, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://any.example") as http:
        assert (await http.get("/", headers={"Authorization": f"Bearer {secret}"})).status_code == 200


@pytest.mark.parametrize("origin", ["http://[", "https://[::1", "null", "nonsense"])
def test_an_origin_that_is_no_address_is_a_foreign_one(server: Server, origin: str) -> None:
    answer = server.http.post("/api/jobs", json={"image": "x"}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")


def test_head_is_get_without_the_body(server: Server, volume: Path) -> None:
    job = server.finished(server.submit(server.put(volume))["id"])["id"]
    for path in ("/healthz", "/readyz", "/", f"/api/jobs/{job}/result", "/api/jobs/none"):
        got, head = server.http.get(path), server.http.head(path)
        assert head.status_code == got.status_code and not head.content
        for name in ("content-length", "content-type", "x-content-sha256"):
            assert head.headers.get(name) == got.headers.get(name)
    assert server.http.head(f"/api/jobs/{job}/events").status_code == 405, "it would last as long as the job"
    assert 'hilum_requests_total{method="HEAD",route="/healthz",status="200"}' in server.http.get("/metrics").text
