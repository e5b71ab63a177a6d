"""The CloudFormation template: read by AWS' own linter, and made into resources by moto.

moto knows neither loops (`tests.fakes.cloudformation` unrolls them) nor alarms, which the linter and
`tests/test_deployment.py` look at.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.fakes.cloudformation import TEMPLATE, read_template, unrolled
from tests.integration.engines import CREDENTIALS, REGION

pytestmark = pytest.mark.integration

KEY_ARN = f"arn:aws:kms:{REGION}:123456789012:key/ours"
PARAMETERS = {
    "Image": "ingestor:latest",
    "Subnets": "subnet-1",
    "SecurityGroups": "sg-1",
    "Shards": "0,1",
    "StreamShards": "3",
}


def test_the_linter_finds_nothing() -> None:
    """Every property against the schema of its resource, references, functions, what CloudFormation itself refuses."""
    linter = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run([linter, "--regions", REGION, "--", TEMPLATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("key_arn", ["", KEY_ARN], ids=["key of AWS", "own key"])
def test_a_stack_of_two_shards_is_made(moto_url: str, key_arn: str) -> None:
    """Streams, queue, role and two services exist afterwards, and the tasks are told their names."""
    client = partial(
        boto3.client,
        endpoint_url=moto_url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    name = "own-key" if key_arn else "plain"
    parameters = {**PARAMETERS, "KeyArn": key_arn}
    cloudformation = client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(unrolled(read_template(), ["0", "1"])),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
    kinesis = client("kinesis")
    shards = {
        output: kinesis.describe_stream_summary(StreamName=outputs[output])["StreamDescriptionSummary"]
        for output in ("DataStream", "HeartbeatStream")
    }
    assert [summary["OpenShardCount"] for summary in shards.values()] == [3, 1]
    attributes = client("sqs").get_queue_attributes(QueueUrl=outputs["DeadLetters"], AttributeNames=["All"])
    assert attributes["Attributes"]["MessageRetentionPeriod"] == "1209600"
    assert attributes["Attributes"].get("KmsMasterKeyId", "") == key_arn

    ecs = client("ecs")
    (cluster,) = (arn for arn in ecs.list_clusters()["clusterArns"] if f"/{name}-" in arn)
    assert len(ecs.list_services(cluster=cluster)["serviceArns"]) == 2
    for shard in "01":
        task = ecs.describe_task_definition(taskDefinition=f"{name}-{shard}")["taskDefinition"]
        environment = {each["name"]: each["value"] for each in task["containerDefinitions"][0]["environment"]}
        assert (environment["INGESTOR__SHARD__INDEX"], environment["INGESTOR__SHARD__COUNT"]) == (shard, "2")
        assert environment["INGESTOR__KINESIS__STREAM_NAME"] == outputs["DataStream"]
        assert environment["INGESTOR__HEARTBEAT__STREAM_NAME"] == outputs["HeartbeatStream"]
        assert environment["INGESTOR__DEAD_LETTER__QUEUE_URL"] == outputs["DeadLetters"]

    resources = resources_by_action(task_policy(client("iam"), outputs["TaskRole"]))
    assert resources["kinesis:GetRecords"] == [shards["HeartbeatStream"]["StreamARN"]]
    assert resources["kinesis:PutRecords"] == [summary["StreamARN"] for summary in shards.values()]
    assert resources.get("kms:Decrypt", []) == ([key_arn] if key_arn else [])


def task_policy(iam: Any, role_arn: str) -> dict[str, Any]:
    """Return the policy of a role as moto has it after a stack: Python's text of a dictionary."""
    role = role_arn.rpartition("/")[2]
    document = iam.get_role_policy(RoleName=role, PolicyName="ingestor")["PolicyDocument"]
    policy: dict[str, Any] = ast.literal_eval(document) if isinstance(document, str) else document
    return policy


def resources_by_action(policy: dict[str, Any]) -> dict[str, list[str]]:
    """Return on what each action is allowed; where CloudFormation leaves a statement out, moto leaves None."""
    found: dict[str, list[str]] = {}
    for statement in filter(None, policy["Statement"]):
        actions, resources = (
            each if isinstance(each, list) else [each] for each in (statement["Action"], statement["Resource"])
        )
        for action in actions:
            found.setdefault(action, []).extend(resources)
    return found
