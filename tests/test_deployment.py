"""The deployment files fit the service: commands, ports, configuration keys, time to stop, permissions, alarms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import botocore.session
import pytest
import trio
import yaml
from botocore.validate import ParamValidator

from ingestor.cli import main
from ingestor.config import load
from ingestor.core.datums import SERIES
from ingestor.core.model import HoleReason
from tests.fakes.cloudformation import read_template, statements, task_permissions, unrolled
from tests.fakes.service import run_for
from tests.fakes.world import MemoryWorld, config_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio.testing import MockClock

    from ingestor.config import Config
    from ingestor.core.datums import Datum

FOLDER = Path(__file__).parents[1] / "config"
STOP_MARGIN_S = 10  # between our own end and the kill
SHARDS = ("0", "1")
KNOWN = {  # what AWS puts in the place of a reference
    "AWS::Region": "eu-west-1",
    "AWS::StackName": "ingestor",
    "Environment": "production",
    "Symbols": "BTCUSDT,all:USDC",
    "Lanes": "8",
    "ShardBudgetShare": "0.45",
    "DataStream": "data",
    "HeartbeatStream": "beats",
    "DeadLetters": "https://sqs.eu-west-1.amazonaws.com/1/letters",
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def resolved(value: Any) -> Any:
    return KNOWN[value["Ref"]] if isinstance(value, dict) else value


def in_words_of_the_api(node: Any) -> Any:
    """Write what CloudFormation calls `StopTimeout` as ECS itself does: `stopTimeout`."""
    if isinstance(node, dict) and "Ref" not in node:
        return {key[0].lower() + key[1:]: in_words_of_the_api(value) for key, value in node.items()}
    return [in_words_of_the_api(each) for each in node] if isinstance(node, list) else node


def ecs_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "ecs" / name).read_text())
    return content


def template_task(shard: str) -> dict[str, Any]:
    """Return the task definition of a shard in the template."""
    task: dict[str, Any] = unrolled(read_template(), SHARDS)["Resources"][f"Task{shard}"]["Properties"]
    return task


def environment_of(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: resolved(each["value"]) for each in container["environment"]}


def container_of(task: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = task["containerDefinitions"]
    return dict(container)


CONTAINERS = {
    "ecs": container_of(ecs_file("task-definition.json")),
    "cloudformation": container_of(in_words_of_the_api(template_task("1"))),
}


def configured(name: str, environ: Mapping[str, str]) -> Config:
    """Load a packaged configuration under the environment of a deployment; a key that is none raises."""
    return load(FOLDER / f"{name}.yaml", environ)


def accept(*command: str) -> None:
    """Have the command line read `command`, without running it; raises when it cannot."""
    main.commands[command[0]].make_context(command[0], list(command[1:]))


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_a_task_of_ecs_fits_the_service(container: dict[str, Any]) -> None:
    """Its commands exist, its environment is read, its end leaves time, and only one place is writable."""
    accept(*container["command"])
    check = container["healthCheck"]
    assert check["command"][:2] == ["CMD", "ingestor"]
    accept(*check["command"][2:])
    assert "--started" in check["command"]
    assert check["startPeriod"] == 300
    config = configured("production", environment_of(container))
    assert config.service.shutdown_grace_s + STOP_MARGIN_S < container["stopTimeout"] <= 120  # Fargate's most
    assert container["readonlyRootFilesystem"]
    mounted = container["mountPoints"][0]["containerPath"]
    assert config.dead_letter.directory.is_relative_to(mounted)
    assert config.spool.directory is not None
    assert config.spool.directory.is_relative_to(mounted)
    assert container["portMappings"][0]["containerPort"] == config.health.port
    log = container["logConfiguration"]
    assert (log["logDriver"], log["options"]["mode"]) == ("awslogs", "non-blocking")


def test_the_files_for_ecs_are_what_its_api_takes() -> None:
    """By the model of the API that comes with botocore: names, types, what is required."""
    model = botocore.session.get_session().get_service_model("ecs")
    for name, operation in (("task-definition.json", "RegisterTaskDefinition"), ("service.json", "CreateService")):
        shape = model.operation_model(operation).input_shape
        assert shape is not None
        report = ParamValidator().validate(ecs_file(name), shape)
        assert not report.has_errors(), report.generate_report()


def test_the_files_for_ecs_say_what_the_template_says() -> None:
    """Whoever does not use CloudFormation gets the same task; names, image and log group are his own."""
    ours, theirs = ecs_file("task-definition.json"), in_words_of_the_api(template_task("0"))
    for task in (ours, theirs):
        container = container_of(task)
        for own in ("image", "environment", "logConfiguration"):
            del container[own]
        task["containerDefinitions"] = [container]
        for own in ("family", "executionRoleArn", "taskRoleArn"):
            del task[own]
    assert ours == theirs


def test_dead_letters_have_a_queue() -> None:
    """The place that is written to outlives the task."""
    configs = [configured("production", environment_of(container)) for container in CONTAINERS.values()]
    configs += [pod_config(deployment) for deployment in documents("kubernetes/shard-0.yaml")]
    assert [config.dead_letter.kind for config in configs] == ["sqs"] * 3
    assert configs[1].dead_letter.queue_url == KNOWN["DeadLetters"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_shard_of_the_template_knows_how_many_there_are(count: int) -> None:
    """The number is counted from their list, so every symbol has one task."""
    shards = [str(index) for index in range(count)]
    resources = unrolled(read_template(), shards)["Resources"]
    tasks = [resources[f"Task{shard}"]["Properties"]["ContainerDefinitions"][0] for shard in shards]
    configs = [configured("production", environment_of(in_words_of_the_api(task))) for task in tasks]
    assert [(config.shard.index, config.shard.count) for config in configs] == [(each, count) for each in range(count)]


def test_deploys_overlap() -> None:
    """The new task runs before the old one stops, one task a shard."""
    template = unrolled(read_template(), SHARDS)["Resources"]
    services = [in_words_of_the_api(template[f"Service{shard}"]["Properties"]) for shard in SHARDS]
    assert [service["taskDefinition"] for service in services] == [{"Ref": "Task0"}, {"Ref": "Task1"}]
    for service in (ecs_file("service.json"), *services):
        assert service["desiredCount"] == 1
        deployment = service["deploymentConfiguration"]
        assert (deployment["minimumHealthyPercent"], deployment["maximumPercent"]) == (100, 200)


def test_the_task_role_allows_what_the_service_calls_and_no_more() -> None:
    """Reading is for the heartbeat stream alone; metrics are for one namespace, which is the configured one.

    That a running service asks for nothing else is seen in `tests/integration/test_service.py`.
    """
    assert task_permissions() == {
        "kinesis:DescribeStreamSummary": ["DataStream", "HeartbeatStream"],
        "kinesis:PutRecords": ["DataStream", "HeartbeatStream"],
        "kinesis:GetRecords": ["HeartbeatStream"],
        "kinesis:GetShardIterator": ["HeartbeatStream"],
        "kinesis:ListShards": ["DataStream", "HeartbeatStream"],
        "sqs:SendMessage": ["DeadLetters"],
        "cloudwatch:PutMetricData": ["*"],
    }
    (metrics,) = (each for each in statements(with_key=False) if each["Resource"] == "*")
    namespace = configured("production", {}).metrics.cloudwatch.namespace
    assert metrics["Condition"] == {"StringEquals": {"cloudwatch:namespace": namespace}}


def test_a_key_of_ones_own_encrypts_everything_and_the_task_may_use_it() -> None:
    """To write and to read back, through Kinesis and SQS only; without one the role has nothing to do with keys."""
    with_key = task_permissions(with_key=True)
    more = {action: names for action, names in with_key.items() if action not in task_permissions()}
    assert more == {"kms:Decrypt": ["KeyArn"], "kms:GenerateDataKey": ["KeyArn"]}
    condition = statements(with_key=True)[-1]["Condition"]["StringEquals"]["kms:ViaService"]
    assert [each["Fn::Sub"].partition(".")[0] for each in condition] == ["kinesis", "sqs"]
    resources = read_template()["Resources"]
    for stream in ("DataStream", "HeartbeatStream"):
        chosen = resources[stream]["Properties"]["StreamEncryption"]["KeyId"]["Fn::If"]
        assert chosen == ["HasKey", {"Ref": "KeyArn"}, "alias/aws/kinesis"]
    queue = resources["DeadLetters"]["Properties"]
    assert queue["KmsMasterKeyId"]["Fn::If"][:2] == ["HasKey", {"Ref": "KeyArn"}]
    assert queue["SqsManagedSseEnabled"]["Fn::If"] == ["HasKey", {"Ref": "AWS::NoValue"}, True]


def test_the_streams_fit_the_configuration() -> None:
    """A checkpoint that is gone cannot be resumed from, and shards without lanes stay idle."""
    template = read_template()
    hours = template["Resources"]["HeartbeatStream"]["Properties"]["RetentionPeriodHours"]
    assert hours * 3600 >= configured("production", {}).heartbeat.resume_lookback_s
    lanes, shards = (template["Parameters"][name]["Default"] for name in ("Lanes", "StreamShards"))
    assert lanes >= 2 * shards


def test_tasks_can_divide_what_a_shard_takes() -> None:
    """They do not know of each other; one alone has the share that is the default of the configuration."""
    alone = configured("production", {}).kinesis.shard_budget_share
    assert read_template()["Parameters"]["ShardBudgetShare"]["Default"] == alone
    assert configured("production", environment_of(CONTAINERS["cloudformation"])).kinesis.shard_budget_share == 0.45
    assert common()["ConfigMap"]["data"]["INGESTOR__KINESIS__SHARD_BUDGET_SHARE"] == str(alone)


class Outlet:
    """Notes which metrics are published."""

    def __init__(self) -> None:
        self.published: set[tuple[str, frozenset[tuple[str, str]]]] = set()

    async def publish(self, datums: Sequence[Datum], at_ms: int) -> None:
        await trio.lowlevel.checkpoint()
        self.published |= {(datum.name, frozenset(datum.dimensions)) for datum in datums}


async def test_alarms_watch_what_a_task_publishes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A name or a dimension that nobody publishes would be silent for ever."""
    alarms = [
        each["Properties"]
        for each in unrolled(read_template(), ["0"])["Resources"].values()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    ]
    assert all(len(alarm["AlarmDescription"]) > 60 for alarm in alarms)
    ours = [alarm for alarm in alarms if not alarm["Namespace"].startswith("AWS/")]
    watched = {
        (alarm["MetricName"], frozenset((each["Name"], resolved(each["Value"])) for each in alarm["Dimensions"]))
        for alarm in ours
    }
    assert len(watched) == len(ours) == 5

    container = container_of(in_words_of_the_api(unrolled(read_template(), ["0"])["Resources"]["Task0"]["Properties"]))
    deployed = configured("production", environment_of(container))
    assert {alarm["Namespace"] for alarm in ours} == {deployed.metrics.cloudwatch.namespace}
    assert deployed.metrics.cloudwatch.mode == "api"
    world, outlet = MemoryWorld(), Outlet()
    config = config_for(world, tmp_path).model_copy(update={"service": deployed.service, "shard": deployed.shard})
    line = await run_for(5, config, world)
    line.service.metrics.beats.labels("failed").inc()  # what never happened is not published
    await line.service._publisher(outlet).publish()
    assert watched - outlet.published == set()


def test_alarms_watch_what_a_task_has_left() -> None:
    """CPU and memory of every shard's own service, as ECS measures them."""
    resources = unrolled(read_template(), SHARDS)["Resources"]
    alarms = [each["Properties"] for each in resources.values() if each["Type"] == "AWS::CloudWatch::Alarm"]
    watched = set()
    for alarm in alarms:
        if alarm["Namespace"] != "AWS/ECS":
            continue
        cluster, service = (each["Value"] for each in alarm["Dimensions"])
        name, attribute = service["Fn::GetAtt"]
        assert (resources[name]["Type"], attribute) == ("AWS::ECS::Service", "Name")
        assert cluster == resources[name]["Properties"]["Cluster"]
        watched.add((alarm["MetricName"], name))
    assert watched == {
        (metric, f"Service{shard}") for metric in ("CPUUtilization", "MemoryUtilization") for shard in SHARDS
    }


def test_holes_that_nobody_expects_are_all_but_those_of_a_disconnect_and_a_first_start() -> None:
    """As in the Prometheus rule; a reason that does not exist would leave nothing out."""
    (series,) = (each for each in SERIES if each.name == "HolesUnexpected")
    label, reasons = series.never
    assert label == "reason"
    assert set(reasons) == {"disconnected", "first_start"} <= set(get_args(HoleReason))
    rules = (FOLDER / "prometheus" / "rules.yml").read_text()
    (alert,) = set(re.findall(r'holes_declared_total\{reason!~"(.*?)"', rules))
    assert set(alert.split("|")) == set(reasons)


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def common() -> dict[str, dict[str, Any]]:
    """Return what the shards share, by kind."""
    return {each["kind"]: each for each in documents("kubernetes/common.yaml")}


def pod_config(deployment: dict[str, Any]) -> Config:
    """Return the configuration that a pod runs with, its index read from its label."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    environ = dict(common()["ConfigMap"]["data"])
    for each in pod_of(deployment)["containers"][0]["env"]:
        field = each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        label = re.fullmatch(r"metadata\.labels\['(\w+)'\]", field)
        environ[each["name"]] = labels[label[1]] if label else each["value"]
    return configured("production", environ)


def test_a_pod_fits_the_service() -> None:
    """Probes ask what is answered, on the port where it is; nothing but its own folder is writable."""
    (deployment,) = documents("kubernetes/shard-0.yaml")
    pod, config = pod_of(deployment), pod_config(deployment)
    (container,) = pod["containers"]
    accept(*container["args"])
    assert (config.shard.index, config.shard.count) == (0, 1)
    assert config.service.shutdown_grace_s + STOP_MARGIN_S < pod["terminationGracePeriodSeconds"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert [probe["path"] for probe in probes] == ["/started", "/ready", "/live"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": config.health.port}
    assert {probe["port"] for probe in probes} == {"http"}
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 300 < deployment["spec"]["progressDeadlineSeconds"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"]
    user = re.findall(r"^USER (\d+):", (FOLDER.parent / "Dockerfile").read_text(), re.MULTILINE)
    assert [str(pod["securityContext"]["runAsUser"])] == user
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert config.spool.directory is not None
    assert config.spool.directory.is_relative_to(mount["mountPath"])
    assert config.dead_letter.directory.is_relative_to(mount["mountPath"])
    assert config.spool.max_bytes < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert container["envFrom"][0]["configMapRef"]["name"] == common()["ConfigMap"]["metadata"]["name"]
    assert pod["serviceAccountName"] == common()["ServiceAccount"]["metadata"]["name"]


def test_a_drain_takes_one_shard_at_a_time_and_is_never_blocked() -> None:
    """A budget that allows none would hold a node for ever, because each shard is one pod."""
    (deployment,) = documents("kubernetes/shard-0.yaml")
    budget = common()["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() < labels.items()  # of every shard


def test_another_shard_is_made_as_its_first_lines_say() -> None:
    """Name, selector, labels and so the index of the shard; nothing else differs."""
    text = (FOLDER / "kubernetes" / "shard-0.yaml").read_text()
    edits = re.findall(r"-e 's/(.*?)/(.*?)/'", text)
    assert len(edits) == 2
    manifest = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for old, new in edits:
        manifest = re.sub(old, new, manifest, flags=re.MULTILINE)
    other, first = yaml.safe_load(manifest), yaml.safe_load(text)
    assert other["metadata"]["name"] == "ingestor-1"
    assert other["spec"]["selector"]["matchLabels"]["shard"] == "1"
    assert other["spec"]["template"]["metadata"]["labels"]["shard"] == "1"
    assert pod_of(other) == pod_of(first)


def test_compose_runs_the_local_configuration_against_an_emulator() -> None:
    """Its streams are those of the configuration, and its page is reached from this machine alone."""
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    ingestor, emulator = services["ingestor"], services["kinesis"]
    accept(*ingestor["command"])
    config = configured("local", ingestor["environment"])
    host, _, container_port = ingestor["ports"][0].rpartition(":")
    assert int(container_port) == config.health.port
    assert host.startswith("127.0.0.1:")
    assert config.health.host == "0.0.0.0"  # noqa: S104 - of the container
    assert str(config.kinesis.endpoint_url) == services["streams"]["environment"]["AWS_ENDPOINT_URL"]
    assert str(config.kinesis.endpoint_url).endswith(f":{emulator['entrypoint'][-1]}")
    assert str(configured("local", {}).kinesis.endpoint_url).endswith(f":{emulator['ports'][0].split(':')[1]}")
    assert config.spool.directory is not None
    assert config.spool.directory.is_relative_to(ingestor["volumes"][0].partition(":")[2])
    assert config.service.shutdown_grace_s + STOP_MARGIN_S < float(ingestor["stop_grace_period"].removesuffix("s"))
    assert "localstack" not in emulator["image"]
