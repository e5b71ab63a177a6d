"""Alerts and dashboard name what the service really exports, and tell a person what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ingestor.metrics import open_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "config"
RULES = yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads((FOLDER / "grafana" / "ingestor.json").read_text())
WORDS = frozenset({"and", "or", "unless", "bool", "offset"})
OF_PROMETHEUS = frozenset({"up"})


def rules(kind: str) -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


ALERTS = {alert["alert"]: alert for alert in rules("alert")}
RECORDS = {record["record"] for record in rules("record")}


def exported() -> set[str]:
    """Return the name of every sample that a scrape may hold."""
    names: set[str] = set()
    for family in open_metrics().registry.collect():
        names |= {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        if family.type == "counter" and family.name not in names:
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        elif family.type == "gauge":
            names.add(family.name)
    return names


def names_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", re.sub(r"\b\d+[smhd]\b", "", bare))
    return set(words) - WORDS


def queries() -> Iterator[str]:
    """Return every query of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if isinstance(variable["query"], dict):
            yield re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]["query"])


def test_names_are_found_in_expressions() -> None:
    """Neither functions nor labels nor times are metrics."""
    text = 'sum by (le, job) (rate(a_total{x="b_total"}[5m])) / on (job) (rec:x:y > 0) unless c offset 10m'
    assert names_in(text) == {"a_total", "rec:x:y", "c"}


@pytest.mark.parametrize("rule", rules("expr"), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_what_is_exported(rule: dict[str, Any]) -> None:
    """A name that does not exist would be silent for ever."""
    assert names_in(rule["expr"]) - exported() - RECORDS - OF_PROMETHEUS == set()


def test_every_query_of_the_dashboard_reads_what_is_exported() -> None:
    """It must not need the rules to be loaded."""
    asked = list(queries())
    assert len(asked) > 25
    assert {name for query in asked for name in names_in(query)} - exported() - OF_PROMETHEUS == set()


def test_the_dashboard_shows_every_metric_of_our_own() -> None:
    """What is counted and shown nowhere is not looked at."""
    shown = {name for query in queries() for name in names_in(query)}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    unseen = {name for name in ours if not any(each.startswith(name) for each in shown)}
    assert {name for name in unseen if not name.startswith("process_")} == {"channel_batches", "ingestor_build_info"}


def test_the_panels_do_not_overlap() -> None:
    """Grafana would move them, each time differently."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(column for column, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    """Whoever is woken reads one line and knows where to look; log lines that it names exist."""
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    runbook = alert["annotations"]["runbook"]
    assert len(runbook) > 60
    code = "".join(path.read_text() for path in sorted((ROOT / "ingestor").rglob("*.py")))
    assert [word for word in re.findall(r"`(\w+)`", runbook) if f'"{word}"' not in code] == []


def test_every_alert_has_a_unit_test() -> None:
    """One that expects silence first and the alert then; promtool runs them among the integration tests."""
    text = (FOLDER / "prometheus" / "rules_test.yml").read_text()
    for test in yaml.safe_load(text)["tests"]:
        name = test["name"].partition(",")[0]
        expected = [len(each["exp_samples"]) for each in test["promql_expr_test"]]
        assert expected[0] == 0 < expected[1], name
        assert all(f'"{name}"' in each["expr"] for each in test["promql_expr_test"])
    assert {test["name"].partition(",")[0] for test in yaml.safe_load(text)["tests"]} == set(ALERTS)
