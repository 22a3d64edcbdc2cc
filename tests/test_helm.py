"""The chart: what it refuses, and that what it renders is locked down, starts, and says only what a cluster may see."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import gateway
from gateway import config

CHART = Path(__file__).parents[1] / "helm" / "tollkeeper"
EXAMPLE = CHART / "examples" / "values.yaml"
SECRET = {"OPENAI_API_KEY": "sk-1", "CHECKOUT_KEY": "tk-checkout-1", "TOLLKEEPER_ADMIN_KEY": "an-admin-key"}
KUBERNETES = "1.33.0"


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """As helm merges values: mappings key by key, everything else replaced."""
    both = dict(one)
    for key, value in other.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def test_the_example_values_hold_a_configuration_that_starts(tmp_path: Path) -> None:
    values = merged(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(EXAMPLE.read_text()))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values["config"]))
    read = config.load(tmp_path / "config.yaml", SECRET)
    assert list(read.providers) == ["openai"]
    assert read.teams["checkout"].keys[0].key.get_secret_value() == "tk-checkout-1"


def test_the_chart_installs_the_version_it_stands_beside() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == gateway.__version__


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program: the installed one, or built here from its source with Go."""
    if found := shutil.which("helm"):
        return found
    go = shutil.which("go")
    if go is None or os.environ.get("TOLLKEEPER_BUILD_HELM") != "1":
        pytest.skip("NOT RENDERED: the chart's templates need helm (or Go, and TOLLKEEPER_BUILD_HELM=1 to build it)")
    folder = tmp_path_factory.mktemp("helm")
    build = [go, "install", "helm.sh/helm/v3/cmd/helm@latest"]
    subprocess.run(build, env={**os.environ, "GOBIN": str(folder)}, check=True, timeout=900)
    return str(folder / "helm")


def template(helm: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", "try", str(CHART), "--kube-version", KUBERNETES, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def render(helm: str, *options: str) -> dict[str, Any]:
    """Kind -> object, from the example values and the options."""
    done = template(helm, "-f", str(EXAMPLE), *options)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def refusal(helm: str, *options: str) -> str:
    done = template(helm, *options)
    assert done.returncode != 0, done.stdout
    return done.stderr


@pytest.mark.timeout(960)
def test_the_pod_is_locked_down(helm: str) -> None:
    pod = render(helm)["Deployment"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]} == {
        "/etc/tollkeeper": True,
        "/data": False,
        "/tmp": False,
    }


def test_probes_ask_what_they_are_for_and_a_stop_leaves_time_to_end(helm: str) -> None:
    pod = render(helm, "--set", "config.server.grace_seconds=60")["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert pod["terminationGracePeriodSeconds"] == 75
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] < 15


def test_the_rendered_configuration_is_valid_and_holds_references_in_place_of_secrets(
    helm: str, tmp_path: Path
) -> None:
    objects = render(helm)
    (tmp_path / "config.yaml").write_text(objects["ConfigMap"]["data"]["config.yaml"])
    assert config.load(tmp_path / "config.yaml", SECRET).server.grace_seconds == 30
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "tollkeeper"}}]
    assert container["args"][:3] == ["serve", "--config", "/etc/tollkeeper/config.yaml"]
    assert "Secret" not in objects


def test_a_changed_configuration_restarts_the_pod(helm: str) -> None:
    def checksum(*options: str) -> str:
        return str(
            render(helm, *options)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        )

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "config.server.ping_seconds=15")


def test_the_service_stays_within_the_cluster_and_leaves_the_admin_port_out(helm: str) -> None:
    objects = render(helm, "--set", "config.server.admin_port=4001", "--set", "config.server.port=4100")
    service = objects["Service"]["spec"]
    assert service["type"] == "ClusterIP"
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 4100}, {"name": "admin", "containerPort": 4001}]
    policy = objects["NetworkPolicy"]["spec"]
    assert [one["ports"] for one in policy["ingress"]] == [[{"protocol": "TCP", "port": "http"}]]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"][2]["ports"] == [{"port": 4318, "protocol": "TCP"}]


def test_selectors_find_the_pod(helm: str) -> None:
    objects = render(helm, "--set", "serviceMonitor.enabled=true")
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"].items() <= labels
    assert (
        objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= objects["Service"]["metadata"]["labels"].items()
    )
    for kind, where in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("Deployment", "selector"),
    ):
        assert objects[kind]["spec"][where]["matchLabels"].items() <= labels


def test_records_live_where_the_values_say(helm: str) -> None:
    kept = render(helm)
    claim = kept["PersistentVolumeClaim"]["metadata"]["name"]
    data = {one["name"]: one for one in kept["Deployment"]["spec"]["template"]["spec"]["volumes"]}["data"]
    assert data["persistentVolumeClaim"] == {"claimName": claim}
    assert kept["Deployment"]["spec"]["strategy"]["type"] == "Recreate"
    passing = render(helm, "--set", "persistence.enabled=false")
    assert "PersistentVolumeClaim" not in passing
    data = {one["name"]: one for one in passing["Deployment"]["spec"]["template"]["spec"]["volumes"]}["data"]
    assert data["emptyDir"] == {}
    given = render(helm, "--set", "persistence.existingClaim=mine")
    assert "PersistentVolumeClaim" not in given


def test_several_pods_may_share_a_database_whose_address_is_in_the_secret(helm: str) -> None:
    for store in ("${DATABASE}", "postgresql://u:${PASSWORD}@db:5432/toll", "postgresql://u@db:5432/toll"):
        objects = render(helm, "--set", "replicas=2", "--set", f"config.store={store}")
        assert objects["Deployment"]["spec"]["replicas"] == 2
        assert store in objects["ConfigMap"]["data"]["config.yaml"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "secretName is not set: name an existing Secret"),
        (("--set", "secretName=x"), "config.providers is empty: name at least one"),
        (("-f", str(EXAMPLE), "--set", "replicas=2"), "--set replicas=1"),
        (("-f", str(EXAMPLE), "--set", "replica=2"), "'replica' not allowed"),
        (("-f", str(EXAMPLE), "--set", "config.providers.openai.api_key=sk-plain"), "put it into the Secret"),
        (
            ("-f", str(EXAMPLE), "--set", "config.store=postgresql://u:sk-plain@db/toll"),
            "config.store holds a password",
        ),
        (("-f", str(EXAMPLE), "--set", "config.teams.b.keys[0].key=plain"), "put it into the Secret"),
    ],
)
def test_what_cannot_work_is_refused_with_its_mend(helm: str, options: tuple[str, ...], says: str) -> None:
    told = refusal(helm, *options)
    assert says in told
    assert "sk-plain" not in told
