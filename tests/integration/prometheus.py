"""A real Prometheus, Debian's, with our sample configuration and our rules, on a clock that runs faster.

Only durations are made shorter, all by the same factor: how often it scrapes and evaluates, windows, offsets, `for`,
and thresholds of a minute or more. What is asked of the metrics stays word for word what `config/prometheus` holds.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import pytest
import trio
import yaml

from tests.integration.engines import clean_environment, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

FOLDER: Final = Path(__file__).parents[2] / "config" / "prometheus"
UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
DURATION: Final = re.compile(r"(\d+)(ms|[smhd])\b")
IN_EXPRESSION: Final = re.compile(r"(?<=\[)[^\]]+(?=\])|(?<=offset )\w+")
MINUTES: Final = re.compile(r"(?<=> )\d{2,}$")  # a threshold in whole minutes, of a metric in seconds
POLL_S: Final = 0.25
NO_EXCEPTIONS: Final[Mapping[str, float]] = {}


class Firing(NamedTuple):
    """An alert, and the task that it fires for; "" when it is about all of them."""

    alert: str
    instance: str


def quicker(duration: str, factor: float) -> str:
    """Divide a duration such as `5m` by `factor`."""
    match = DURATION.fullmatch(duration)
    assert match is not None, duration
    return f"{math.ceil(int(match[1]) * UNITS_S[match[2]] * 1_000 / factor)}ms"


def quicker_expression(expression: str, factor: float) -> str:
    """Divide the windows and offsets of a PromQL expression by `factor`, and a threshold of a minute or more."""
    shorter = IN_EXPRESSION.sub(lambda match: quicker(match[0], factor), expression)
    if "_seconds" not in expression:
        return shorter
    return MINUTES.sub(lambda match: f"{int(match[0]) / factor:g}" if int(match[0]) >= 60 else match[0], shorter)


def quicker_rules(rules: dict[str, Any], factor: float, exceptions: Mapping[str, float] = NO_EXCEPTIONS) -> Any:
    """Divide every duration in a file of rules by `factor`, those of some alerts by another one."""
    groups = []
    for group in rules["groups"]:
        shorter = [_quicker_rule(rule, exceptions.get(rule.get("alert"), factor)) for rule in group["rules"]]
        groups.append(group | {"rules": shorter} | _quicker_keys(group, ("interval",), factor))
    return {"groups": groups}


def _quicker_rule(rule: dict[str, Any], factor: float) -> dict[str, Any]:
    return rule | {"expr": quicker_expression(rule["expr"], factor)} | _quicker_keys(rule, ("for",), factor)


def _quicker_keys(settings: dict[str, Any], keys: Iterable[str], factor: float) -> dict[str, str]:
    return {key: quicker(settings[key], factor) for key in keys if key in settings}


class Prometheus:
    """One server. `watch` says what it scrapes, `fired` which alerts have fired, `query` asks anything."""

    def __init__(self, http: httpx.AsyncClient, targets: Path) -> None:
        self._http = http
        self._targets = targets
        self._began_s = trio.current_time()

    def watch(self, targets: Iterable[str]) -> None:
        """Scrape these (`host:port`) from now on, and nothing else."""
        fresh = self._targets.with_suffix(".new")
        fresh.write_text(json.dumps([{"targets": list(targets)}]))
        fresh.rename(self._targets)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        answer = await self._http.get("/api/v1/query", params={"query": expression})
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    async def fired(self, since_s: float = 0.0) -> set[Firing]:
        """Return what has fired since a moment of the loop's clock, or since the server started."""
        ago_ms = math.ceil((trio.current_time() - max(since_s, self._began_s)) * 1_000)
        series = await self.query(f'last_over_time(ALERTS{{alertstate="firing"}}[{ago_ms}ms])')
        return {Firing(each["metric"]["alertname"], each["metric"].get("instance", "")) for each in series}

    async def wait_for(self, expression: str) -> None:
        """Wait until an expression has an answer with a number in it."""
        while all(each["value"][1] == "NaN" for each in await self.query(expression)):  # noqa: ASYNC110 - a process
            await trio.sleep(POLL_S)


@asynccontextmanager
async def open_prometheus(
    folder: Path, factor: float, exceptions: Mapping[str, float] = NO_EXCEPTIONS
) -> AsyncIterator[Prometheus]:
    """Run a server for the length of this block, with its data below `folder`; skips the test where there is none.

    Its durations are divided by `factor`, those of some alerts by another one.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on this machine's path; Debian has it in the package of that name")
    targets = folder / "targets.json"
    write_configuration(folder, targets, factor, exceptions)
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        f"--query.lookback-delta={quicker('5m', factor)}",  # its default, made shorter as well
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command, env=clean_environment(), stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=30) as http:
            await wait_ready(process, http, folder)
            yield Prometheus(http, targets)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def write_configuration(folder: Path, targets: Path, factor: float, exceptions: Mapping[str, float]) -> None:
    """Write the sample configuration with targets that can change, and the rules, both with shorter durations."""
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    settings["global"] = {key: quicker(duration, factor) for key, duration in settings["global"].items()}
    for job in settings["scrape_configs"]:
        del job["static_configs"]
        job["file_sd_configs"] = [{"files": [str(targets)]}]
    targets.write_text("[]")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    for name in settings["rule_files"]:
        rules = yaml.safe_load((FOLDER / name).read_text())
        (folder / name).write_text(yaml.safe_dump(quicker_rules(rules, factor, exceptions)))


async def wait_ready(process: trio.Process, http: httpx.AsyncClient, folder: Path) -> None:
    """Wait until the server answers; AssertionError with its log if it ends instead."""
    while True:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            if (await http.get("/-/ready")).is_success:
                return
        except httpx.TransportError:
            pass
        await trio.sleep(0.05)


def panel_queries(dashboard: dict[str, Any], instance: str) -> list[str]:
    """Return every query of a Grafana dashboard, the variables filled in as Grafana does for one task."""
    fill = partial(re.sub, r"\$instance\b", instance)
    panels = [fill(target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return panels + [re.sub(r"label_values\((.*), \w+\)", r"\1", query) for query in variables]
