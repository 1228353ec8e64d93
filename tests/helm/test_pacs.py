"""What the chart promises about the PACS gateway, checked on what Helm renders; no pod runs here."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from medvl.client.cli import main
from medvl.pacs.config import Destination

CHART = Path(__file__).parents[2] / "helm" / "medvl"
README = (CHART / "README.md").read_text("utf-8")
SENDERS = [{"ipBlock": {"cidr": "10.20.0.0/24"}}]
RECEIVERS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "archive"}}}]
PACS = {"enabled": True, "destination": "ORTHANC@10.20.0.7:4242", "senders": SENDERS}
NAME = "demo-medvl-pacs"


@pytest.fixture
def pacs(render):
    """Resources of a release with a gateway, its values laid over the least that it needs."""
    return lambda **values: render({"pacs": PACS | values})


def pod(resources):
    return resources["StatefulSet", NAME]["spec"]["template"]["spec"]


def container(resources):
    (container,) = pod(resources)["containers"]
    return container


def policy(resources):
    return resources["NetworkPolicy", NAME]["spec"]


@pytest.fixture
def configuration(monkeypatch):
    """What ``medvl pacs`` understands of a pod's command line, by its own parser and checks."""
    read = []

    async def serve(config):
        read.append(config)

    monkeypatch.setattr("medvl.pacs.run.configure_log", lambda: None)
    monkeypatch.setattr("medvl.pacs.run._serve", serve)

    def understood(resources):
        program, *command = container(resources)["command"]
        assert program == "medvl"
        assert main([*command, *container(resources)["args"]]) == 0
        return read.pop()

    return understood


def test_without_a_gateway_there_is_nothing_of_it(chart):
    """Nothing that is rendered knows of it, whatever else its values say."""
    for values in ({}, {"pacs": PACS | {"enabled": False}}):
        files = chart.render(values, name="demo", namespace="radiology")
        assert not [name for name, text in files.items() if "pacs" in text or "11112" in text]
        assert not files["medvl/templates/pacs.yaml"].strip()


def test_a_gateway_changes_nothing_else_but_who_may_call_the_orchestrator(render, pacs):
    """What was there stays as it was; the caller is the gateway's pod, and nobody has to name it."""
    before, after = render({}), pacs()
    assert {key: resource for key, resource in before.items() if resource != after[key]}.keys() == {
        ("NetworkPolicy", "demo-medvl-orchestrator")
    }
    assert after.keys() - before.keys() == {
        ("Service", NAME),
        ("StatefulSet", NAME),
        ("NetworkPolicy", NAME),
        ("PersistentVolumeClaim", f"{NAME}-spool"),
    }
    old, new = (copy.deepcopy(r["NetworkPolicy", "demo-medvl-orchestrator"]) for r in (before, after))
    caller = new["spec"]["ingress"][0]["from"].pop()
    assert new == old
    assert caller == {"podSelector": after["StatefulSet", NAME]["spec"]["selector"]}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"service": {"type": "NodePort", "nodePort": 30112}, "labels": ["liver", "left kidney"]},
        {"service": {"type": "LoadBalancer", "port": 104, "annotations": {"example.com/internal": "true"}}},
        {"spool": {"existingClaim": "spool"}, "destination": "A@pacs.example:104", "receivers": RECEIVERS},
    ],
    ids=json.dumps,
)
def test_every_resource_is_valid_on_the_oldest_and_newest_kubernetes(pacs, values, version):
    for resource in pacs(**values).values():
        kubernetes_validate.validate(resource, version, strict=True)


def test_lints_without_a_warning():
    report = helm.lint(CHART, {"pacs": PACS}, strict=True)
    assert not report["errors"]
    assert all(message["severity"] <= 1 for message in report["messages"])


def test_the_gateway_understands_its_command_line(pacs, configuration):
    """Every value arrives where it belongs."""
    resources = pacs(
        aeTitle="MEDVL CT",
        destination="ORTHANC@pacs.example:104",
        receivers=RECEIVERS,
        labels=["liver", "left kidney"],
        geometryPolicy="resample",
        quiet_s=7.5,
        keep_h=0,
        keep_refused_h=1,
    )
    config = configuration(resources)
    assert config.ae_title == "MEDVL CT"
    assert config.destination == Destination("ORTHANC", "pacs.example", 104)
    assert config.labels == ("liver", "left kidney")
    assert (config.geometry_policy, config.quiet_s) == ("resample", 7.5)
    assert (config.keep_s, config.keep_refused_s) == (0.0, 3600.0)
    assert config.host == "0.0.0.0"
    mounts = {m["mountPath"]: m for m in container(resources)["volumeMounts"]}
    assert "readOnly" not in mounts[str(config.spool)]


def test_the_charts_defaults_are_the_gateways_own(pacs, configuration, monkeypatch):
    """As far as the chart has to name them."""
    config = configuration(pacs())
    plain = {"command": ["medvl", "pacs"], "args": ["--spool=/spool", f"--destination={PACS['destination']}"]}
    monkeypatch.setenv("MEDVL_ENDPOINT", config.endpoint)
    own = {"StatefulSet": {"spec": {"template": {"spec": {"containers": [plain]}}}}}
    assert configuration({("StatefulSet", NAME): own["StatefulSet"]}) == config


def test_ports_and_names_agree(pacs, configuration):
    """From the Service to the gateway, and from it to the orchestrator's Service."""
    resources = pacs(service={"port": 104})
    config = configuration(resources)
    (port,) = resources["Service", NAME]["spec"]["ports"]
    (own,) = container(resources)["ports"]
    assert (port["port"], port["targetPort"], own["containerPort"]) == (104, own["name"], config.port)
    labels = resources["StatefulSet", NAME]["spec"]["template"]["metadata"]["labels"]
    assert resources["Service", NAME]["spec"]["selector"].items() <= labels.items()
    called, _, number = config.endpoint.partition(":")
    assert int(number) in {p["port"] for p in resources["Service", called]["spec"]["ports"]}


def test_every_probe_asks_for_the_title_by_c_echo(pacs, configuration):
    """A bare connection would count as one of the ten associations of the gateway for half a minute."""
    resources = pacs(aeTitle="CT AI")
    config = configuration(resources)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container(resources)[probe]["exec"]["command"]
        assert asked == ["python", "/opt/medvl/dicom_echo.py", f"127.0.0.1:{config.port}", config.ae_title]
        assert container(resources)[probe]["timeoutSeconds"] == 5


def test_a_spool_has_one_gateway(pacs):
    """Never two pods, and no value that makes two."""
    resources = pacs()
    assert resources["StatefulSet", NAME]["spec"]["replicas"] == 1
    with pytest.raises(helm.HelmError):
        pacs(replicas=2)


def test_the_spool_outlives_the_release_and_can_be_written(pacs):
    """By the user that the gateway runs as."""
    resources = pacs(spool={"size": "80Gi", "storageClass": "fast"})
    claim = resources["PersistentVolumeClaim", f"{NAME}-spool"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "80Gi"}},
    }
    volumes = {v["name"]: v for v in pod(resources)["volumes"]}
    assert volumes["spool"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    context = pod(resources)["securityContext"]
    assert context["fsGroup"] == context["runAsGroup"] == 1000


def test_an_existing_claim_is_used_and_none_is_made(pacs):
    resources = pacs(spool={"existingClaim": "spool-2026"})
    assert ("PersistentVolumeClaim", f"{NAME}-spool") not in resources
    volumes = {v["name"]: v for v in pod(resources)["volumes"]}
    assert volumes["spool"]["persistentVolumeClaim"] == {"claimName": "spool-2026"}


def test_the_pod_meets_the_restricted_standard_and_holds_no_token(pacs):
    """As the others do; it writes to its spool and its scratch alone."""
    resources = pacs()
    orchestrator = resources["Deployment", "demo-medvl-orchestrator"]["spec"]["template"]["spec"]
    for name in ("automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert pod(resources)[name] == orchestrator[name]
    assert container(resources)["securityContext"] == orchestrator["containers"][0]["securityContext"]
    assert [m["mountPath"] for m in container(resources)["volumeMounts"]] == ["/spool", "/tmp"]


def test_its_pod_runs_where_it_is_told_to(pacs):
    placement = {
        "nodeSelector": {"zone": "radiology"},
        "tolerations": [{"key": "zone", "operator": "Equal", "value": "radiology", "effect": "NoExecute"}],
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "runtimeClassName": "gvisor",
        "priorityClassName": "urgent",
    }
    resources = pacs(**placement)
    kubernetes_validate.validate(resources["StatefulSet", NAME], "1.37", strict=True)
    assert pod(resources).items() >= placement.items()


def test_by_default_nothing_may_talk_to_it(pacs):
    """The policy that allows nothing selects it, too."""
    resources = pacs()
    denied = resources["NetworkPolicy", "demo-medvl-deny"]["spec"]["podSelector"]["matchLabels"]
    assert denied.items() <= resources["StatefulSet", NAME]["spec"]["template"]["metadata"]["labels"].items()


def test_it_takes_from_senders_and_talks_to_orchestrator_destination_and_dns_alone(pacs):
    resources = pacs()
    rules = policy(resources)
    assert rules["podSelector"] == resources["StatefulSet", NAME]["spec"]["selector"]
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    assert rules["ingress"] == [{"from": SENDERS, "ports": [{"protocol": "TCP", "port": 11112}]}]
    orchestrator, destination, dns = rules["egress"]
    assert orchestrator == {
        "to": [{"podSelector": resources["Deployment", "demo-medvl-orchestrator"]["spec"]["selector"]}],
        "ports": [{"protocol": "TCP", "port": 8500}],
    }
    assert destination == {
        "to": [{"ipBlock": {"cidr": "10.20.0.7/32"}}],
        "ports": [{"protocol": "TCP", "port": 4242}],
    }
    assert dns == resources["NetworkPolicy", "demo-medvl-orchestrator"]["spec"]["egress"][-1]


@pytest.mark.parametrize("destination", ["PACS@10.20.0.7:104", "PACS@pacs.archive:104"])
def test_results_go_to_the_receivers_that_are_named(pacs, destination):
    """Also instead of an address; and to the port of their pods, where a Service maps it."""
    plain, mapped = (
        policy(pacs(destination=destination, receivers=RECEIVERS, **values))["egress"][1]
        for values in ({}, {"receiverPort": 4242})
    )
    assert plain == {"to": RECEIVERS, "ports": [{"protocol": "TCP", "port": 104}]}
    assert mapped == {"to": RECEIVERS, "ports": [{"protocol": "TCP", "port": 4242}]}


def test_senders_outside_of_the_cluster_reach_it_by_their_own_addresses(pacs):
    """Without that, the NetworkPolicy could not tell them from others."""
    internal = pacs(service={"nodePort": 30112})["Service", NAME]["spec"]
    assert internal["type"] == "ClusterIP"
    assert "externalTrafficPolicy" not in internal
    assert "nodePort" not in internal["ports"][0]
    node = pacs(service={"type": "NodePort", "nodePort": 30112})["Service", NAME]["spec"]
    assert (node["externalTrafficPolicy"], node["ports"][0]["nodePort"]) == ("Local", 30112)
    annotations = {"example.com/internal": "true"}
    balanced = pacs(service={"type": "LoadBalancer", "annotations": annotations})["Service", NAME]
    assert (balanced["spec"]["type"], balanced["spec"]["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert balanced["metadata"]["annotations"] == annotations


def test_an_image_can_be_pinned_by_digest(pacs):
    digest = "sha256:" + "0" * 64
    assert container(pacs(image={"digest": digest}))["image"] == f"medvl-sam2-gateway@{digest}"


def test_the_notes_say_what_a_pacs_has_to_know(chart):
    files = chart.render({"pacs": PACS | {"service": {"type": "NodePort"}}}, name="demo", namespace="a")
    notes = files["medvl/templates/NOTES.txt"]
    assert f"MEDVL@{NAME}.a.svc:11112" in notes
    assert f"kubectl -n a get service {NAME}" in notes
    assert f"{NAME}-spool" in notes


def test_the_values_of_the_readme_are_taken(render, configuration):
    """For a PACS outside of the cluster."""
    (text,) = re.findall(r"^```yaml\n(pacs:.*?)^```", README, re.MULTILINE | re.DOTALL)
    resources = render(yaml.safe_load(text))
    for resource in resources.values():
        kubernetes_validate.validate(resource, "1.37", strict=True)
    address = configuration(resources).destination.host
    assert policy(resources)["egress"][1]["to"] == [{"ipBlock": {"cidr": f"{address}/32"}}]


@pytest.mark.parametrize("title", ["A", "ORTHANC", "CT AI 2", "A-TITLE_OF_16.CH", "[X]^~!#%?"])
def test_titles_that_the_chart_takes_reach_the_gateway(pacs, configuration, title):
    config = configuration(pacs(aeTitle=title, destination=f"{title}@10.0.0.1:65535"))
    assert (config.ae_title, config.destination) == (title, Destination(title, "10.0.0.1", 65535))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"destination": ""}, "pacs.destination, where results are sent, is AET@host:port"),
        ({"destination": "pacs:104"}, "pacs.destination"),
        ({"destination": "PACS@host"}, "pacs.destination"),
        ({"destination": "PACS@host:0"}, "pacs.destination"),
        ({"destination": "PACS@host:65536"}, "pacs.destination"),
        ({"destination": "PACS@host name:104"}, "pacs.destination"),
        ({"destination": "A-TITLE-THAT-IS-TOO-LONG@10.0.0.1:104"}, "at most 16 characters"),
        ({"destination": "PACS@pacs.example:104"}, "pacs.receivers is empty"),
        ({"senders": []}, "pacs.senders is empty: nobody could send"),
        ({"senders": [{}]}, "/pacs/senders/0"),
        ({"receivers": [{}]}, "/pacs/receivers/0"),
        ({"receiverPort": 65536}, "/pacs/receiverPort"),
        ({"aeTitle": ""}, "'/pacs/aeTitle': minLength"),
        ({"aeTitle": "A-TITLE-THAT-IS-TOO-LONG"}, "'/pacs/aeTitle': maxLength: got 24, want 16"),
        ({"aeTitle": "A\\B"}, "without backslash"),
        ({"aeTitle": "$(HOME)"}, "without backslash, @ and $"),
        ({"aeTitle": " A"}, "without a space around them"),
        ({"labels": "liver"}, "'/pacs/labels': got string, want array"),
        ({"labels": ["liver,spleen"]}, "/pacs/labels/0"),
        ({"labels": ["liver", "liver"]}, "items at 0 and 1 are equal"),
        ({"geometryPolicy": "ignore"}, "value must be one of 'reject', 'resample', 'warn'"),
        ({"quiet_s": 0}, "/pacs/quiet_s"),
        ({"keep_h": -1}, "/pacs/keep_h"),
        ({"image": {"digest": "sha256:short"}}, "/pacs/image/digest"),
        ({"resources": {"limits": {"memory": 4}}}, "/pacs/resources/limits/memory"),
        ({"spool": {"size": 50}}, "/pacs/spool/size"),
        ({"spool": {"existingClaim": "No Claim"}}, "/pacs/spool/existingClaim"),
        ({"service": {"type": "ExternalName"}}, "/pacs/service/type"),
        ({"service": {"port": 0}}, "/pacs/service/port"),
        ({"service": {"annotations": {"a": True}}}, "/pacs/service/annotations/a"),
        ({"port": 104}, "additional properties 'port' not allowed"),
    ],
    ids=json.dumps,
)
def test_a_value_that_breaks_a_rule_is_refused_by_name(pacs, values, said):
    with pytest.raises(helm.HelmError) as refusal:
        pacs(**values)
    assert said in str(refusal.value)
