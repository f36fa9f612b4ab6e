"""compose.yaml: parsed by a library that knows the Compose Specification, and closed where it must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hilum_deploy import DOCKERFILE, ROOT, settings_variables, stages

yaml = pytest.importorskip("yaml")

COMPOSE = ROOT / "compose.yaml"
SHM = ROOT / "deploy" / "compose.shm.yaml"


def filled(node: Any, environment: Mapping[str, str]) -> Any:
    """What was read with ``${NAME:-default}`` and ``${NAME-default}`` replaced in its texts, as Compose does."""
    if isinstance(node, dict):
        return {key: filled(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, environment) for value in node]
    if not isinstance(node, str):
        return node

    def value(found: re.Match[str]) -> str:
        name, colon, default = found.groups()
        given = environment.get(name)
        return default if given is None or (colon and not given) else given

    return re.sub(r"\$\{([A-Z_]+)(:?)-([^}]*)\}", value, node)


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


GPU = env_file(ROOT / "deploy" / "gpu.env")


def services(environment: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    read = filled(yaml.safe_load(COMPOSE.read_text()), environment)
    return dict(read["services"])


@pytest.mark.parametrize("environment", [{}, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("path", [COMPOSE, SHM], ids=lambda path: path.name)
def test_the_file_is_a_compose_file(path: Path, environment: dict[str, str]) -> None:
    compose = pytest.importorskip("compose_spec")
    text = yaml.safe_dump(filled(yaml.safe_load(path.read_text()), environment))
    assert sorted(compose.PyCompose.from_yaml(text).service_names()) == ["gateway", "triton"]
    with pytest.raises(ValueError, match="depends_onn"):
        compose.PyCompose.from_yaml(text.replace("depends_on", "depends_onn"))


def test_by_default_there_is_the_gateway_alone_with_its_own_engine() -> None:
    found = services()
    assert [name for name, service in found.items() if "profiles" not in service] == ["gateway"]
    assert found["gateway"]["environment"]["HILUM_TRITON"] == ""
    assert found["gateway"]["depends_on"] == {"triton": {"condition": "service_healthy", "required": False}}


def test_on_a_gpu_the_gateway_asks_the_triton_that_has_it() -> None:
    found = services(GPU)
    assert found["triton"]["profiles"] == ["gpu"]
    assert found["gateway"]["environment"]["HILUM_TRITON"] == "triton:8001"
    assert found["gateway"]["environment"]["HILUM_REPOSITORY"] == ""  # which models there are is Triton's to say
    (device,) = found["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_nobody_but_the_gateway_reaches_triton() -> None:
    read = yaml.safe_load(COMPOSE.read_text())
    triton = read["services"]["triton"]
    assert triton["networks"] == ["engine"]
    assert read["networks"]["engine"] == {"internal": True}
    assert "ports" not in triton
    assert "network_mode" not in triton
    assert [name for name, service in read["services"].items() if "engine" in service["networks"]] == [
        "gateway",
        "triton",
    ]


def test_the_gateway_is_published_on_this_machine_only_unless_told() -> None:
    assert services()["gateway"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services({"GATEWAY_BIND": "10.0.0.7"})["gateway"]["ports"] == ["10.0.0.7:8000:8000"]


@pytest.mark.parametrize("name", ["gateway", "triton"])
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "user", "pid"} & set(service) == set()
    assert [mount for mount in service["volumes"] if isinstance(mount, dict) and not mount["read_only"]] == []


@pytest.mark.parametrize("name", ["gateway", "triton"])
def test_a_service_is_built_and_checked_as_its_image_says(name: str) -> None:
    service, stage = services()[name], stages(DOCKERFILE.read_text())[name]
    assert service["build"] == {"context": ".", "target": name}
    assert service["healthcheck"]["test"] == ["CMD", *stage.command("HEALTHCHECK")]
    mounted = {mount.split(":")[1] for mount in service["volumes"] if isinstance(mount, str)}
    assert mounted == set(re.findall(r"/\w+", stage.one("VOLUME")))


def test_models_lie_where_both_look() -> None:
    found = services()
    mounts = [m for service in found.values() for m in service["volumes"] if isinstance(m, dict)]
    assert [mount["target"] for mount in mounts] == ["/models", "/models"]
    assert {(ROOT / mount["source"]).resolve() for mount in mounts} == {(ROOT / "model_repository").resolve()}
    assert found["gateway"]["environment"]["HILUM_REPOSITORY"] == "/models"


def test_shared_memory_needs_one_ipc_namespace_and_triton_first() -> None:
    shared = yaml.safe_load(SHM.read_text())["services"]
    assert (shared["gateway"]["ipc"], shared["triton"]["ipc"]) == ("service:triton", "shareable")
    assert shared["gateway"]["depends_on"] == {"triton": {"condition": "service_healthy"}}
    assert shared["triton"]["environment"] == {"TRITON_CLIENT_SHM": "true"}


def test_the_override_on_the_page_is_a_compose_file_with_settings_that_exist() -> None:
    compose = pytest.importorskip("compose_spec")
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    assert compose.PyCompose.from_yaml(text).service_names() == ["gateway"]
    assert set(yaml.safe_load(text)["services"]["gateway"]["environment"]) <= settings_variables()


def test_every_variable_of_compose_is_on_the_page() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    named = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text())) | set(GPU)
    assert {name for name in named if f"`{name}`" not in page} == set()
