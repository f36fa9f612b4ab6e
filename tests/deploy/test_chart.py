"""The chart, rendered by Helm itself: valid for the oldest and the newest Kubernetes, closed where it must be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hilum_helm as helm
import pytest
from hilum_deploy import CHART, ROOT, settings_variables

pytest.importorskip("helm_python")
yaml = pytest.importorskip("yaml")

Values = dict[str, Any]
Manifest = dict[str, Any]

SECOND = {"triton": {"enabled": True}}
FULL = {
    "nameOverride": "seg",
    "imagePullSecrets": [{"name": "registry"}],
    "gateway": {
        "tls": {"secretName": "seg-tls"},
        "settings": {"HILUM_KEEP_HOURS": "24", "HILUM_TRUSTED_NETWORKS": "10.1.0.0/16"},
        "data": {"size": "1Ti", "storageClass": "fast"},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"c": "d"},
    },
    "models": {"storageClass": "shared", "accessMode": "ReadWriteOnce"},
    "triton": {
        "enabled": True,
        "replicas": 3,
        "variant": "onnxruntime-fp16",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"gpu": "yes"},
        "podAnnotations": {"e": "f"},
    },
    "networkPolicy": {
        "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
        "gatewayEgress": [{"to": [{"ipBlock": {"cidr": "10.2.0.5/32"}}], "ports": [{"port": 104, "protocol": "TCP"}]}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    },
}
CASES: dict[str, Values] = {
    "alone": {},
    "triton": SECOND,
    "full": FULL,
    "own-models": {"models": {"enabled": True, "existingClaim": "shelf"}, "networkPolicy": {"enabled": False}},
}


def render(values: Values) -> dict[tuple[str, str], Manifest]:
    """The manifests by kind and name."""
    files = helm.render(values)
    documents = [d for name, text in files.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text) if d]
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def pods(manifests: dict[tuple[str, str], Manifest]) -> dict[str, Manifest]:
    """What each workload's pods are, by the component's name."""
    found = [d for d in manifests.values() if d["kind"] in ("StatefulSet", "Deployment")]
    return {d["metadata"]["labels"]["app.kubernetes.io/component"]: d["spec"]["template"]["spec"] for d in found}


def container(pod: Manifest) -> Manifest:
    (only,) = pod["containers"]
    return dict(only)


def environment(pod: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(pod)["env"]}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_linter_is_content(values: Values) -> None:
    said = helm.lint(values)
    assert said["errors"] == []
    assert [m for m in said["messages"] if m["severity"] > 1] == []  # 1 is a hint: the chart has no icon


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_manifest_is_what_kubernetes_takes(values: Values, version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    manifests = render(values)
    assert len(manifests) >= 2
    for manifest in manifests.values():
        kubernetes.validate(manifest, version, strict=True)


def test_a_manifest_with_a_typing_error_would_be_found() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    service = render({})["Service", "hospital-gateway"]
    service["spec"]["selectorr"] = service["spec"].pop("selector")
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(service, "1.37", strict=True)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_no_pod_has_more_rights_than_it_needs(values: Values) -> None:
    for pod in pods(render(values)).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"hostNetwork", "hostPID", "hostIPC"} & set(pod) == set()
        assert [volume for volume in pod["volumes"] if "hostPath" in volume] == []
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(each["resources"]) == {"requests", "limits"}
            assert "memory" in each["resources"]["limits"]


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_mount_has_its_volume(values: Values) -> None:
    for manifest in render(values).values():
        if manifest["kind"] not in ("StatefulSet", "Deployment"):
            continue
        claims = [claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])]
        pod = manifest["spec"]["template"]["spec"]
        there = {volume["name"] for volume in pod["volumes"]} | set(claims)
        mounted = {m["name"] for c in [*pod["containers"], *pod.get("initContainers", [])] for m in c["volumeMounts"]}
        assert mounted == there


def test_without_a_gpu_there_is_the_gateway_alone() -> None:
    manifests = render({})
    assert sorted(manifests) == [
        ("NetworkPolicy", "hospital-gateway"),
        ("Service", "hospital-gateway"),
        ("StatefulSet", "hospital-gateway"),
    ]
    assert manifests["StatefulSet", "hospital-gateway"]["spec"]["replicas"] == 1
    assert "HILUM_TRITON" not in environment(pods(manifests)["gateway"])


def test_the_gateway_asks_the_triton_that_has_the_gpu() -> None:
    manifests = render(FULL)
    service = manifests["Service", "seg-triton"]
    found = pods(manifests)
    assert environment(found["gateway"])["HILUM_TRITON"] == f"seg-triton:{service['spec']['ports'][0]['port']}"
    assert container(found["triton"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert manifests["Deployment", "seg-triton"]["spec"]["replicas"] == 3
    assert environment(found["triton"])["TRITON_VARIANT"] == "onnxruntime-fp16"


@pytest.mark.parametrize(
    ("values", "reader", "other"), [(SECOND, "triton", "gateway"), ({"models": {"enabled": True}}, "gateway", "triton")]
)
def test_models_are_read_only_for_the_one_that_runs_them(values: Values, reader: str, other: str) -> None:
    found = pods(render(values))
    (mount,) = [m for m in container(found[reader])["volumeMounts"] if m["name"] == "models"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)
    (volume,) = [v for v in found[reader]["volumes"] if v["name"] == "models"]
    assert volume["persistentVolumeClaim"] == {"claimName": "hospital-models", "readOnly": True}
    assert "models" not in [v["name"] for v in found.get(other, {}).get("volumes", [])]
    named = environment(found["gateway"]).get("HILUM_REPOSITORY")
    assert named == ("/models" if reader == "gateway" else None)


def test_the_claim_of_models_is_the_charts_unless_one_is_named() -> None:
    kept = render(SECOND)["PersistentVolumeClaim", "hospital-models"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    named = render(CASES["own-models"])
    assert "PersistentVolumeClaim" not in {kind for kind, _ in named}
    (volume,) = [v for v in pods(named)["gateway"]["volumes"] if v["name"] == "models"]
    assert volume["persistentVolumeClaim"]["claimName"] == "shelf"


def test_shared_memory_is_as_large_as_was_said() -> None:
    pod = pods(render({"triton": {"enabled": True, "shmSize": "3Gi"}}))["triton"]
    (volume,) = [v for v in pod["volumes"] if v["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(pod)["volumeMounts"]


def test_only_the_gateway_reaches_triton_whatever_is_set() -> None:
    for values in (SECOND, {**SECOND, "networkPolicy": {"enabled": False}}):
        manifests = render(values)
        policy = manifests["NetworkPolicy", "hospital-triton"]["spec"]
        assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "triton"
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (rule,) = policy["ingress"]
        (peer,) = rule["from"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
        assert rule["ports"] == [{"port": "grpc", "protocol": "TCP"}]
        assert policy["egress"] == []
        assert manifests["Service", "hospital-triton"]["spec"]["type"] == "ClusterIP"


def test_selectors_find_the_pods_they_mean() -> None:
    manifests = render(FULL)
    for manifest in manifests.values():
        if manifest["kind"] not in ("StatefulSet", "Deployment"):
            continue
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        name = manifest["metadata"]["name"]
        for selector in (
            manifest["spec"]["selector"]["matchLabels"],
            manifests["Service", name]["spec"]["selector"],
            manifests["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"],
        ):
            assert selector.items() <= labels.items()
            assert selector["app.kubernetes.io/component"] == name.rpartition("-")[2]


def test_probes_ask_what_the_servers_answer() -> None:
    found = pods(render(FULL))
    paths = {
        name: {
            probe: container(pod)[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")
        }
        for name, pod in found.items()
    }
    assert paths == {
        "gateway": {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"},
        "triton": {"startup": "/v2/health/ready", "liveness": "/v2/health/live", "readiness": "/v2/health/ready"},
    }
    assert container(found["gateway"])["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert container(pods(render({}))["gateway"])["livenessProbe"]["httpGet"]["scheme"] == "HTTP"


def test_settings_that_the_chart_leaves_open_are_all_the_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    free = set(schema["properties"]["gateway"]["properties"]["settings"]["propertyNames"]["enum"])
    image = {"HILUM_HOST", "HILUM_PORT", "HILUM_DATA"}
    managed = set(environment(pods(render(FULL))["gateway"])) - {"HILUM_KEEP_HOURS", "HILUM_TRUSTED_NETWORKS"}
    managed |= set(environment(pods(render(CASES["own-models"]))["gateway"]))
    assert free == settings_variables() - managed - image
    assert environment(pods(render(FULL))["gateway"])["HILUM_KEEP_HOURS"] == "24"


@pytest.mark.parametrize(
    "values",
    [
        {"gatway": {}},
        {"gateway": {"settings": {"HILUM_PORT": "80"}}},
        {"gateway": {"settings": {"HILUM_NONSENSE": "1"}}},
        {"gateway": {"settings": {"HILUM_KEEP_HOURS": 24}}},
        {"gateway": {"image": {"tag": "latest"}}},
        {"gateway": {"replicas": 2}},
        {"gateway": {"admin": {"secretName": ""}}},
        {"triton": {"replicas": 0}},
        {"triton": {"variant": "x --allow-client-shm=true"}},
        {"triton": {"service": {"type": "LoadBalancer"}}},
        {"triton": {"shmSize": "lots"}},
        {"models": {"accessMode": "Any"}},
        {"networkPolicy": {"gatewayFrom": [{}]}},
    ],
    ids=json.dumps,
)
def test_values_that_make_no_sense_are_refused(values: Values) -> None:
    with pytest.raises(helm.ValuesError):
        render(values)


def test_the_defaults_keep_to_their_own_schema() -> None:
    _, metadata = helm.defaults()
    assert metadata["appVersion"] in (ROOT / "pyproject.toml").read_text()


def test_a_job_of_the_defaults_fits_into_its_container() -> None:
    pod = pods(render({}))["gateway"]
    limits = container(pod)["resources"]["limits"]
    assert float(environment(pod)["HILUM_MEMORY_GIB"]) + 2 <= float(limits["memory"].removesuffix("Gi"))
    assert environment(pod)["HILUM_THREADS"] == limits["cpu"]


def test_the_first_user_is_made_once(tmp_path: Path) -> None:
    (first,) = pods(render({}))["gateway"]["initContainers"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HILUM_DATA": str(tmp_path),
        "USERNAME": "anna",
        "PASSWORD": "a $quoted 'word",
    }
    command = [*first["command"], *first["args"]]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (made.returncode, made.stdout) == (0, "User anna (admin) may log in.\n"), made.stderr
    from hilum_server.auth import Accounts

    assert Accounts(tmp_path).of_password("anna", "a $quoted 'word") is not None
    before = (tmp_path / "accounts.json").read_bytes()
    again = subprocess.run(command, env=environment | {"PASSWORD": "another one"}, capture_output=True, timeout=120)
    assert (again.returncode, again.stdout) == (0, b"")
    assert (tmp_path / "accounts.json").read_bytes() == before
    environment["PASSWORD"] = "short"
    (tmp_path / "accounts.json").unlink()
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode != 0


def test_the_notes_say_how_to_make_the_first_login() -> None:
    notes = helm.render({})["hilum/templates/NOTES.txt"]
    assert "kubectl -n imaging create secret generic hilum-admin" in notes
    assert re.search(r"service/hospital-gateway 8000:8000", notes)


def test_the_pod_that_writes_models_is_what_kubernetes_takes_and_writes_to_the_charts_claim() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    (text,) = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), flags=re.DOTALL)
    pod = yaml.safe_load(text)
    kubernetes.validate(pod, "1.37", strict=True)
    rendered = helm.render(SECOND, "hilum")["hilum/templates/models.yaml"]
    assert (
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == yaml.safe_load(rendered)["metadata"]["name"]
    )
    used = render(SECOND)["StatefulSet", "hospital-gateway"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert pod["spec"]["containers"][0]["image"] == used
