"""The command line: arguments in, calls and exit codes out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result

from ingestor import __version__
from ingestor.cli import load_config, main
from ingestor.config import keys
from ingestor.core.errors import IngestorError, SinkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestor.config import Config


@pytest.fixture(autouse=True)
def hangups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave SIGHUP as it is in this process."""
    monkeypatch.setattr("ingestor.hangup.hold_hangups", lambda: None)


def invoke(*arguments: str, **environ: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments, env=environ)


class Recorder(ModuleType):
    """Stands in for the module a command imports, and notes what it is asked."""

    def __init__(self, name: str, answer: object = 0) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer = answer

    def note(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> object:
        self.calls.append((name, arguments, options))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def run(self, config: Config, *more: object) -> object:
        return self.note("run", (config, *more), {})

    def run_demo(self, **options: Any) -> object:
        return self.note("run_demo", (), options)

    def run_simulator(self, **options: Any) -> object:
        return self.note("run_simulator", (), options)

    async def tail(self, config: Config, **options: Any) -> object:
        return self.note("tail", (config,), options)

    async def audit(self, config: Config, **options: Any) -> object:
        return self.note("audit", (config,), options)


def stand_in(patch: pytest.MonkeyPatch, name: str, answer: object = 0) -> Recorder:
    """Put a recorder where the command looks for module `name`, also as an attribute of its package."""
    recorder = Recorder(name, answer)
    package, _, last = name.rpartition(".")
    import_module(package)
    patch.setitem(sys.modules, name, recorder)
    patch.setattr(sys.modules[package], last, recorder, raising=False)
    return recorder


def test_help_lists_every_command() -> None:
    """What the README names is there, with one line each, and nothing else."""
    result = invoke("--help")
    assert result.exit_code == 0
    listed = result.output.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines()] == [
        *("audit", "backfill", "check", "dead-letter", "demo", "health", "run", "simulate", "tail")
    ]
    assert "..." not in listed, "a line that is cut says nothing"


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


PROMISED = {
    "run": "--config",
    "demo": "--seconds --replay --chaos",
    "simulate": "--replay --speed",
    "backfill": "--symbol --stream --interval --start --end --from-id --to-id --via --to --state --plain --dry-run",
    "tail": "--stream --json",
    "audit": "--symbol --start --end --cross-check --json",
    "list": "",
    "show": "",
    "replay": "",
    "check": "--config --connect",
    "health": "--live --started --ready",
}


def test_commands_and_options_are_those_that_were_promised() -> None:
    """Whoever wrote one into a deployment finds it again; others may come."""
    options = {each.name: {name for param in each.params for name in param.opts} for each in commands(main)}
    assert options.keys() == PROMISED.keys() | {"dead-letter"}
    missing = {name: set(wanted.split()) - options[name] for name, wanted in PROMISED.items()}
    assert {name: names for name, names in missing.items() if names} == {}


@pytest.mark.parametrize("command", list(commands(main)), ids=lambda command: command.name)
def test_every_option_says_what_it_does(command: click.Command) -> None:
    """A name alone is a riddle to a new user."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []


def test_what_a_service_wrote_can_be_looked_at_without_naming_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of production is taken, as for a backfill."""
    inspection = stand_in(monkeypatch, "ingestor.inspection")
    assert invoke("tail").exit_code == 0
    assert inspection.calls[0][1][0].service.environment == "production"


def test_a_tail_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ingestor tail | head` is no reason for a traceback; another error is."""
    stand_in(monkeypatch, "ingestor.inspection", answer=ExceptionGroup("", [BrokenPipeError()]))
    assert invoke("tail", "--config", "local").exit_code == 0
    stand_in(monkeypatch, "ingestor.inspection", answer=ExceptionGroup("", [BrokenPipeError(), ZeroDivisionError()]))
    assert invoke("tail", "--config", "local").exit_code == 1


def test_check_lists_every_key_with_its_meaning() -> None:
    """Neither a file nor anything else is needed for that."""
    result = invoke("check", "--keys")
    assert result.exit_code == 0
    for key in keys():
        assert f"{key.path}  ({key.kind}" in result.output
        assert f"    {key.meaning}\n" in result.output


def test_check_prints_a_schema_for_editors() -> None:
    """It knows keys, bounds and what they mean."""
    result = invoke("check", "--schema")
    section = json.loads(result.output)["$defs"]["Shard"]
    assert section["additionalProperties"] is False
    assert section["properties"]["count"]["exclusiveMinimum"] == 0
    assert "share the symbols" in section["properties"]["count"]["description"]


def test_the_version_is_told() -> None:
    """The version is the package's."""
    assert invoke("--version").output.strip().endswith(__version__)


def test_check_prints_what_a_valid_configuration_amounts_to(tmp_path: Path) -> None:
    """Defaults and environment are laid over the file, so a person sees what will be used."""
    path = tmp_path / "mine.yaml"
    path.write_text("kinesis: {lanes: 3}")
    result = invoke("check", "--config", str(path), INGESTOR__SHARD__COUNT="2")
    assert result.exit_code == 0
    assert "lanes: 3" in result.stdout
    assert "count: 2" in result.stdout
    assert result.stderr == f"{path}: valid\n"


def test_check_lists_every_problem_and_exits_with_two(tmp_path: Path) -> None:
    """Two mistakes are two lines."""
    path = tmp_path / "bad.yaml"
    path.write_text("kinesis: {lanes: 0}\nshard: {index: 1}")
    result = invoke("check", "--config", str(path))
    assert result.exit_code == 2
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["kinesis.lanes", "shard.index"]
    assert result.stdout == ""


def test_a_configuration_that_comes_with_the_program_is_found_by_name() -> None:
    """An installed program works from any folder."""
    result = invoke("check", "--config", "production")
    assert result.exit_code == 0
    assert "environment: production" in result.stdout


def test_a_file_wins_over_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the folder is what is meant."""
    (tmp_path / "local").write_text("service: {name: mine}")
    monkeypatch.chdir(tmp_path)
    assert "name: mine" in invoke("check", "--config", "local").stdout


def test_run_exits_with_what_the_service_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service gets the loaded configuration; its answer is the exit code."""
    app = stand_in(monkeypatch, "ingestor.app", answer=1)
    result = invoke("run", "--config", "production", INGESTOR__KINESIS__LANES="3")
    assert result.exit_code == 1
    config, read_again = app.calls[0][1]
    assert config.kinesis.lanes == 3
    assert read_again() == load_config("production")


def test_run_survives_a_hangup_from_before_it_reads_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or a wish to read it again would end the process, or be missed."""
    held: list[str] = []
    monkeypatch.setattr("ingestor.hangup.hold_hangups", lambda: held.append("held"))
    app = stand_in(monkeypatch, "ingestor.app")
    assert invoke("run", "--config", str(tmp_path / "nowhere.yaml")).exit_code == 2
    assert (held, app.calls) == (["held"], [])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (IngestorError("the port is taken"), 1, "error: the port is taken\n"),
        (
            SinkError("configuration", "ResourceNotFoundException", "no stream"),
            1,
            "error: ResourceNotFoundException: no stream\n",
        ),
    ],
)
def test_our_own_errors_are_a_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: IngestorError, code: int, text: str
) -> None:
    """A person gets a message; a traceback is for bugs."""
    stand_in(monkeypatch, "ingestor.app", answer=error)
    result = invoke("run", "--config", "local")
    assert (result.exit_code, result.stderr) == (code, text)


def test_our_own_errors_are_a_line_each_from_inside_of_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nurseries put them there, however deep."""
    errors = [IngestorError("the port is taken"), ExceptionGroup("inner", [IngestorError("and the disk is full")])]
    stand_in(monkeypatch, "ingestor.local.demo", answer=ExceptionGroup("outer", errors))
    result = invoke("demo")
    assert (result.exit_code, result.stderr) == (1, "error: the port is taken\nerror: and the disk is full\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("group", [KeyboardInterrupt()])])
def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Ctrl-C may reach any task, and is not taken for a failed proof."""
    stand_in(monkeypatch, "ingestor.local.demo", answer=error)
    result = invoke("demo")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_beside_our_own_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where all of it is known is a line enough."""
    group = ExceptionGroup("group", [IngestorError("lost"), ZeroDivisionError()])
    stand_in(monkeypatch, "ingestor.local.demo", answer=group)
    assert invoke("demo").exception is group


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is not made pretty."""
    stand_in(monkeypatch, "ingestor.app", answer=ZeroDivisionError())
    assert isinstance(invoke("run", "--config", "local").exception, ZeroDivisionError)


def test_demo_passes_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proof that fails is exit code 1."""
    recording = tmp_path / "ws.jsonl"
    recording.touch()
    demo = stand_in(monkeypatch, "ingestor.local.demo", answer=1)
    result = invoke("demo", "--seconds", "5", "--replay", str(recording), "--chaos", "--port", "9")
    assert result.exit_code == 1
    assert demo.calls == [("run_demo", (), {"seconds": 5.0, "replay": recording, "chaos": True, "port": 9})]


def test_simulate_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbols are upper case from here on."""
    simulator = stand_in(monkeypatch, "ingestor.local.simulate")
    assert invoke("simulate", "--symbol", "bnbusdt", "--port", "9443", "--past", "48").exit_code == 0
    assert simulator.calls[0][2] == {
        "symbols": ["BNBUSDT"],
        "seed": 0,
        "orders_per_s": 10.0,
        "past_h": 48.0,
        "replay": None,
        "speed": 1.0,
        "with_chaos": False,
        "host": "127.0.0.1",
        "port": 9443,
    }


def test_tail_ends_quietly_on_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C is how one stops watching."""
    inspection = stand_in(monkeypatch, "ingestor.inspection", answer=KeyboardInterrupt())
    assert invoke("tail", "--config", "local", "--stream", "other", "--json").exit_code == 0
    assert (inspection.calls[0][2]["stream"], inspection.calls[0][2]["as_json"]) == ("other", True)


def test_audit_exits_with_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are milliseconds in UTC, and something missing is exit code 1."""
    inspection = stand_in(monkeypatch, "ingestor.inspection", answer=1)
    start = ("--start", "1970-01-01T00:00:01", "--end", "1970-01-01T01:00:02+01:00")
    assert invoke("audit", "--config", "local", "--symbol", "btcusdt", *start, "--cross-check").exit_code == 1
    options = inspection.calls[0][2]
    assert (options["symbol"], options["start_ms"], options["end_ms"]) == ("BTCUSDT", 1000, 2000)
    assert options["cross_check"]


def test_a_time_that_is_none_is_a_wrong_command_line() -> None:
    """The message shows what a time looks like."""
    result = invoke("audit", "--config", "local", "--start", "yesterday")
    assert result.exit_code == 2
    assert "'yesterday' is no time such as 2026-01-31" in result.stderr


@pytest.mark.parametrize(
    "time", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999"]
)
def test_a_time_outside_of_every_calendar_is_a_wrong_command_line(time: str) -> None:
    """In UTC it would be in a year that cannot be written."""
    result = invoke("audit", "--config", "local", "--start", time)
    assert result.exit_code == 2
    assert "is no time such as 2026-01-31" in result.stderr


def test_health_without_a_service_fails_with_a_line() -> None:
    """The port comes from the same variable that sets the service's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = invoke("health", "--live", INGESTOR__HEALTH__PORT=str(port))
    assert result.exit_code == 1
    assert result.stdout.startswith(f"no answer from port {port}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("health", "--port", "65536"),
        ("health", "--port", "-1"),
        ("health", "--timeout", "-1"),
        ("health", "--timeout", "nan"),
        ("health", "--timeout", "inf"),
        ("demo", "--seconds", "nan"),
        ("simulate", "--past", "nan"),
        ("simulate", "--orders", "nan"),
        ("simulate", "--speed", "nan"),
    ],
)
def test_a_value_out_of_its_range_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """What is no number is out of every range, and nobody waits for ever."""
    stand_in(monkeypatch, "ingestor.local.demo")
    stand_in(monkeypatch, "ingestor.local.simulate")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[1]}'" in result.stderr


def test_a_host_that_can_have_no_address_fails_with_a_line() -> None:
    """Such as one with a name that is too long for the domain name system."""
    result = invoke("health", "--host", "a" * 64)
    assert result.exit_code == 1
    assert result.stdout.startswith("no answer from port 8080: ")


def test_health_loads_no_heavy_library() -> None:
    """It runs every few seconds beside the service."""
    heavy = "boto3", "pydantic", "quart", "trio", "fastavro", "msgspec", "yaml", "httpx", "rich"
    code = f"""
import sys
from ingestor.cli import main
try:
    main(["health", "--port", "1"])
except SystemExit:
    pass
sys.exit(", ".join(name for name in {heavy!r} if name in sys.modules) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("no answer from port 1: ")


def test_a_stop_while_it_loads_ends_it_with_0() -> None:
    """Nothing is to be drained yet; and without a handler the first process of a container ignores a signal."""
    code = """
import os, signal, sys, time, types
import ingestor

def run(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)

ingestor.app = sys.modules["ingestor.app"] = types.SimpleNamespace(run=run)
from ingestor.cli import main
main(["run", "--config", "local"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "stopped before it began\n"


def test_dead_letters_are_listed_shown_and_replayed(tmp_path: Path) -> None:
    """Through every command, on a letter that no code understands."""
    line = (
        b'{"reason":"invalid_json","detail":"?","first_seen_ms":1,"written_ms":2,"version":"1","raw_base64":"ew=="}\n'
    )
    (tmp_path / "1.jsonl").write_bytes(line)
    environ = {"INGESTOR__DEAD_LETTER__DIRECTORY": str(tmp_path)}
    listed = invoke("dead-letter", "list", "--config", "local", "--json", **environ)
    letter_id = json.loads(listed.stdout)["id"]
    assert invoke("dead-letter", "list", "--config", "local", "--reason", "gave_up", **environ).stdout == ""
    assert invoke("dead-letter", "show", "--config", "local", "--raw", letter_id, **environ).stdout == "{"
    unknown = invoke("dead-letter", "show", "--config", "local", "zz", **environ)
    assert (unknown.exit_code, unknown.stderr) == (1, "error: no letters begin with zz\n")
    refused = invoke("dead-letter", "replay", "--config", "local", "--dry-run", "--symbol", "X", **environ)
    assert (refused.exit_code, refused.stdout) == (0, "0 to send, 0 sent before, 0 refused\n")
    refused = invoke("dead-letter", "replay", "--config", "local", "--dry-run", letter_id[:4], **environ)
    assert refused.exit_code == 1
    assert "refused: it still is no message that we know" in refused.stdout


def test_no_complaint_repeats_a_secret_or_moves_the_terminal(tmp_path: Path) -> None:
    """Whatever stands in the file and in the environment."""
    path = tmp_path / "ingestor.yaml"
    environ = {"MY_PASSWORD": "Hunter2Hunter2", "HTTP_PROXY": "http://me:hunter3hunter3@p"}
    path.write_text('kinesis: {region: Hunter2Hunter2}\nservice: {name: {"\\x1b[2J": 1}}\n')
    result = invoke("check", "--config", str(path), **environ)
    assert result.exit_code == 2
    assert "kinesis.region" in result.output
    assert "hunter" not in result.output.lower()
    assert all(line.isprintable() for line in result.output.splitlines())


def test_the_probe_shows_no_more_than_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may be on the port."""
    monkeypatch.setattr("ingestor.probe.ask", lambda *_: (True, "200 \x1b[2J"))
    assert invoke("health").output == "200 \\x1b[2J\n"
