"""Reads our CloudFormation template the way AWS does: short forms of functions, and what moto does not know of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = Path(__file__).parents[2] / "config" / "cloudformation" / "ingestor.yaml"
LOOP = "Fn::ForEach::"


class Loader(yaml.SafeLoader):
    """Reads `!Ref x` as `{"Ref": x}` and `!Sub x` as `{"Fn::Sub": x}`."""


def function(loader: yaml.Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    """Return the long form of a function."""
    value: Any = None
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name == "Ref" else f"Fn::{name}": value}


Loader.add_multi_constructor("!", function)


def read_template() -> dict[str, Any]:
    """Return the template with its functions in their long form."""
    template: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader)  # noqa: S506 - it is the safe loader with tags
    return template


def unrolled(template: dict[str, Any], shards: Sequence[str]) -> dict[str, Any]:
    """Return the template as the transform `AWS::LanguageExtensions` leaves it for `shards`."""
    resources: dict[str, Any] = {}
    for name, resource in template["Resources"].items():
        if not name.startswith(LOOP):
            resources[name] = resource
            continue
        variable, collection, body = resource
        for shard in shards:
            resources |= replaced(counted(body, collection, shards), variable, shard)
    return {**{key: value for key, value in template.items() if key != "Transform"}, "Resources": resources}


def counted(node: Any, collection: Any, values: Sequence[str]) -> Any:
    """Put the number of `values` in the place of `Fn::Length` of the collection."""
    if node == {"Fn::Length": collection}:
        return str(len(values))
    if isinstance(node, dict):
        return {key: counted(each, collection, values) for key, each in node.items()}
    return [counted(each, collection, values) for each in node] if isinstance(node, list) else node


def replaced(node: Any, variable: str, value: str) -> Any:
    """Put `value` in the place of a loop's `variable`."""
    if node == {"Ref": variable}:
        return value
    if isinstance(node, dict):
        if isinstance(node.get("Ref"), dict):  # the name of a resource, put together
            return {"Ref": replaced(node["Ref"]["Fn::Sub"], variable, value)}
        if "Fn::GetAtt" in node and isinstance(node["Fn::GetAtt"][0], dict):  # likewise
            name, attribute = node["Fn::GetAtt"]
            return {"Fn::GetAtt": [replaced(name["Fn::Sub"], variable, value), attribute]}
        return {replaced(key, variable, value): replaced(each, variable, value) for key, each in node.items()}
    if isinstance(node, list):
        return [replaced(each, variable, value) for each in node]
    return node.replace(f"${{{variable}}}", value) if isinstance(node, str) else node


def statements(*, with_key: bool) -> list[dict[str, Any]]:
    """Return what the role of a task allows, with a key of the customer's own or without."""
    (policy,) = read_template()["Resources"]["TaskRole"]["Properties"]["Policies"]
    chosen = []
    for statement in policy["PolicyDocument"]["Statement"]:
        if "Fn::If" not in statement:
            chosen.append(statement)
        elif with_key:
            chosen.append(statement["Fn::If"][1])
    return chosen


def task_permissions(*, with_key: bool = False) -> dict[str, list[str]]:
    """Return the resources by name, a parameter's or `*`, on which the role of a task allows each action."""
    allowed: dict[str, list[str]] = {}
    for statement in statements(with_key=with_key):
        for action in as_list(statement["Action"]):
            allowed.setdefault(action, []).extend(resource_name(each) for each in as_list(statement["Resource"]))
    return allowed


def as_list(value: Any) -> list[Any]:
    """Return what IAM takes alone or in a list as a list."""
    return value if isinstance(value, list) else [value]


def resource_name(resource: Any) -> str:
    """Return the logical name that a reference is to."""
    if not isinstance(resource, dict):
        return str(resource)
    return str(resource["Ref"] if "Ref" in resource else resource["Fn::GetAtt"][0])
