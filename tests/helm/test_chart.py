"""What the chart promises to a cluster, checked on what Helm renders; no pod runs here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from medvl.orchestrator.config import load_config
from medvl.orchestrator.server import ALIVE, SERVICE

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "medvl"
README = (CHART / "README.md").read_text("utf-8")
PLACEMENT = {
    "nodeSelector": {"nvidia.com/gpu.present": "true"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "medvl"}}}
            ]
        }
    },
    "runtimeClassName": "nvidia",
    "priorityClassName": "urgent",
}
WORKLOADS = [("Deployment", "demo-medvl-orchestrator"), ("StatefulSet", "demo-medvl-triton")]
QUANTITY = re.compile(r"[0-9.]+(m|Ki|Mi|Gi|Ti)?")


def pods(resources):
    return [resources[key]["spec"]["template"]["spec"] for key in WORKLOADS]


def containers(resources):
    return [c for pod in pods(resources) for c in (*pod.get("initContainers", ()), *pod["containers"])]


def triton_container(resources):
    return pods(resources)[1]["containers"][0]


def test_lints_without_a_warning():
    """Helm's strict lint has nothing above information to say."""
    report = helm.lint(CHART, strict=True)
    assert not report["errors"]
    assert all(message["severity"] <= 1 for message in report["messages"])


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_every_resource_is_valid_on_the_oldest_and_newest_kubernetes(resources, version):
    """Nothing unknown, removed or mistyped; and no custom resource, so a bare cluster accepts the chart."""
    for resource in resources.values():
        kubernetes_validate.validate(resource, version, strict=True)


def test_whole_gives_triton_one_gpu_and_none_gives_it_the_cpu_configurations(render):
    """gpu.profile alone decides both."""
    none, whole = (triton_container(render({"gpu": {"profile": p}})) for p in ("none", "whole"))
    assert whole["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in none["resources"]["limits"]
    assert "--model-config-name=cpu" in none["args"]
    assert "--model-config-name=cpu" not in whole["args"]


def test_every_quantity_is_a_string(resources):
    """Server-side apply refuses bare numbers."""
    claim = resources["PersistentVolumeClaim", "demo-medvl-models"]
    values = [v for c in containers(resources) for part in c["resources"].values() for v in part.values()]
    values += [v["emptyDir"]["sizeLimit"] for pod in pods(resources) for v in pod["volumes"] if "emptyDir" in v]
    values.append(claim["spec"]["resources"]["requests"]["storage"])
    assert all(isinstance(v, str) and QUANTITY.fullmatch(v) for v in values)


def test_every_pod_meets_the_restricted_standard_and_holds_no_token(resources):
    """Pod Security "restricted", a root filesystem that cannot be written, and no service-account token."""
    for pod in pods(resources):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [v for v in pod["volumes"] if "hostPath" in v]
    for container in containers(resources):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_triton_gets_shared_memory_of_the_configured_size(render):
    """Containers default to 64 MB of /dev/shm, which Triton's Python models outgrow."""
    resources = render({"triton": {"sharedMemory": "3Gi"}})
    volumes = {v["name"]: v for v in pods(resources)[1]["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in triton_container(resources)["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}


def test_readiness_is_asked_over_grpc(resources):
    """The standard health service decides about traffic, on both hops."""
    services = [pod["containers"][0]["readinessProbe"]["grpc"].get("service") for pod in pods(resources)]
    assert services == [SERVICE, None]


def test_an_orchestrator_that_hangs_is_restarted(resources):
    """A minute is given to one that is late; Triton's state is no reason."""
    probe = pods(resources)[0]["containers"][0]["livenessProbe"]
    assert probe["grpc"] == {"port": 8500, "service": ALIVE}
    assert probe["periodSeconds"] * probe["failureThreshold"] == 60


def test_nothing_is_served_before_the_repository_holds_its_manifest(resources):
    """An init container proves the repository that Triton is then given."""
    verify = pods(resources)[1]["initContainers"][0]["command"]
    assert verify == ["medvl-export", "verify", "/store/repository"]
    assert f"--model-repository={verify[-1]}/models" in triton_container(resources)["args"]


def test_engines_are_compared_with_the_gpu_that_will_run_them(render):
    """The init container sees the pod's GPU, of which the pod needs no second one; without engines it asks for none."""
    none, whole = (pods(render({"gpu": {"profile": p}}))[1]["initContainers"][0] for p in ("none", "whole"))
    assert whole["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in none["resources"]["limits"]


def test_the_orchestrator_accepts_its_configuration(render, tmp_path):
    """The ConfigMap is read by the orchestrator's own reader, with the chart's addresses and the user's limits."""
    resources = render({"orchestrator": {"config": {"drain_s": 7.5, "series": {"max_series_bytes": 536870912}}}})
    path = tmp_path / "orchestrator.json"
    path.write_text(resources["ConfigMap", "demo-medvl-orchestrator"]["data"]["orchestrator.json"])
    config = load_config(path)
    ports = {p["name"]: p["port"] for p in resources["Service", "demo-medvl-triton"]["spec"]["ports"]}
    assert config.triton == f"demo-medvl-triton:{ports['grpc']}"
    assert config.series.max_series_bytes == 536870912
    assert config.drain_s == 7.5
    assert pods(resources)[0]["terminationGracePeriodSeconds"] > config.drain_s


def test_a_changed_configuration_restarts_the_orchestrator(render):
    """Pods read their configuration once, so the pod template must change with it."""

    def checksum(drain_s):
        resources = render({"orchestrator": {"config": {"drain_s": drain_s}}})
        return resources[WORKLOADS[0]]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(10) != checksum(20)


def test_by_default_nothing_may_talk_to_any_pod(resources):
    """One policy selects every pod of the release and allows nothing; others open single doors."""
    deny = resources["NetworkPolicy", "demo-medvl-deny"]["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not deny.keys() & {"ingress", "egress"}
    for key in WORKLOADS:
        labels = resources[key]["spec"]["template"]["metadata"]["labels"]
        assert deny["podSelector"]["matchLabels"].items() <= labels.items()


def test_only_the_orchestrator_reaches_triton(resources):
    """Triton takes calls from one component on one port, and may call nobody."""
    triton = resources["NetworkPolicy", "demo-medvl-triton"]["spec"]
    [rule] = triton["ingress"]
    [peer] = rule["from"]
    labels = resources[WORKLOADS[0]]["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert rule["ports"] == [{"protocol": "TCP", "port": 8001}]
    assert "egress" not in triton


def test_an_existing_claim_is_used_and_none_is_made(render):
    """modelStore.existingClaim replaces the chart's own claim."""
    resources = render({"modelStore": {"existingClaim": "models-2026"}})
    assert not [kind for kind, _ in resources if kind == "PersistentVolumeClaim"]
    assert pods(resources)[1]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models-2026"}


def test_the_claim_of_the_readme_can_be_made_and_filled(render):
    """Its resources are valid, and its pod mounts for writing, under the same number, what Triton mounts."""
    text, *_ = re.findall(r"^ *```yaml\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
    claim, pod = yaml.safe_load_all(textwrap.dedent(text))
    for resource in (claim, pod):
        kubernetes_validate.validate(resource, "1.37", strict=True)
    triton = pods(render({"modelStore": {"existingClaim": claim["metadata"]["name"]}}))[1]
    assert pod["spec"]["volumes"][0] == triton["volumes"][0]
    context = triton["securityContext"].items()
    assert {name: value for name, value in context if name != "fsGroupChangePolicy"} == pod["spec"]["securityContext"]
    (container,) = pod["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": "store", "mountPath": "/store"}]


def test_every_value_is_in_the_readme():
    """As far as its table goes: an image and resources are one row."""
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    for part, members in values.items():
        assert not [f"{part}.{name}" for name in members if f"`{part}.{name}`" not in README]


@pytest.mark.parametrize("claim", ["", "models-2026"])
def test_the_notes_say_where_to_look(chart, claim):
    """For the claim that will be mounted."""
    (notes,) = [
        text
        for name, text in chart.render({"modelStore": {"existingClaim": claim}}, name="demo", namespace="a").items()
        if name.endswith("NOTES.txt")
    ]
    assert claim or "demo-medvl-models" in notes
    assert "kubectl -n a logs demo-medvl-triton-0 -c verify-repository" in notes


def test_an_image_can_be_pinned_by_digest(render):
    """A digest wins over the tag."""
    digest = "sha256:" + "0" * 64
    resources = render({"triton": {"image": {"tag": "x", "digest": digest}}})
    assert triton_container(resources)["image"] == f"medvl-sam2-triton@{digest}"


def test_settings_of_tritons_models_reach_them(render):
    """Each by the name of its environment variable."""
    resources = render({"triton": {"settings": {"MEDVL_SEGMENTER_THREADS": "4"}}})
    assert {"name": "MEDVL_SEGMENTER_THREADS", "value": "4"} in triton_container(resources)["env"]


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize(("component", "workload"), [("orchestrator", WORKLOADS[0]), ("triton", WORKLOADS[1])])
def test_pods_run_where_they_are_told_to(render, component, workload, version):
    """Such as on nodes that a taint keeps for those with a GPU; the other component's as before."""
    resources, before = render({component: PLACEMENT}), render({})
    kubernetes_validate.validate(resources[workload], version, strict=True)
    pod = resources[workload]["spec"]["template"]["spec"]
    assert {name: pod.pop(name) for name in PLACEMENT} == PLACEMENT
    assert resources == before


def test_the_nodes_of_the_readme_are_taken(render):
    """As they stand there."""
    (text,) = re.findall(r"^```yaml\n(triton:.*?)^```", README, re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(text)
    assert pods(render(values))[1].items() >= values["triton"].items()


def test_version_compatible_engines_are_allowed_where_they_are_expected(render):
    """They bring code of their own."""
    allowed, plain = (
        triton_container(render({"gpu": {"profile": "whole"}, "triton": {"versionCompatibleEngines": value}}))["args"]
        for value in (True, False)
    )
    assert set(allowed) - set(plain) == {"--backend-config=tensorrt,version-compatible=true"}


@pytest.mark.parametrize(
    "values",
    [
        {"gpu": {"profile": "mig"}},
        {"gpus": 1},
        {"triton": {"replica": 2}},
        {"triton": {"replicas": 0}},
        {"triton": {"sharedMemory": 2}},
        {"triton": {"resources": {"limits": {"nvidia.com/gpu": "2"}}}},
        {"triton": {"image": {"digest": "sha256:short"}}},
        {"triton": {"settings": {"PATH": "/tmp"}}},
        {"triton": {"settings": {"MEDVL_SEGMENTER_THREAD": "4"}}},
        {"triton": {"settings": {"MEDVL_LLM_MAX_SEQUENCES": 8}}},
        {"triton": {"tolerations": [{}]}},
        {"triton": {"tolerations": [{"key": "gpu", "operator": "exists"}]}},
        {"triton": {"nodeSelector": {"gpu": True}}},
        {"orchestrator": {"affinity": {"nodes": {}}}},
        {"orchestrator": {"runtimeClassName": "No Class"}},
        {"orchestrator": {"config": {"listen": "0.0.0.0:1"}}},
        {"orchestrator": {"config": {"series": {"max_slice": 4}}}},
        {"orchestrator": {"config": {"series": {"max_store_bytes": 1000000000}}}},
        {"orchestrator": {"config": {"drain_s": 0}}},
        {"modelStore": {"path": "../other"}},
        {"networkPolicy": {"clients": []}},
        {"networkPolicy": {"clients": [{}]}},
    ],
    ids=json.dumps,
)
def test_a_value_that_breaks_a_rule_is_refused(render, values):
    """Unknown names, unquoted quantities, what the chart sets, limits that cannot be, and a policy that lets all in."""
    with pytest.raises(helm.HelmError):
        render(values)


def test_the_rules_for_configuration_and_settings_are_the_codes_own():
    """values.schema.json cannot drift from what is read; ``python scripts/helm_schema.py`` renews it."""
    subprocess.run([sys.executable, ROOT / "scripts" / "helm_schema.py", "--check"], check=True)
