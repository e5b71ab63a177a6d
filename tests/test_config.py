"""Reading the configuration: right values in, every mistake out at once."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import yaml

from ingestor.config import BackfillRange, Config, adopt, differences, keys, load, to_yaml
from ingestor.core.errors import ConfigError
from ingestor.resources import config_path

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "ingestor.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    """Return what `load` complains about."""
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), environ)
    return list(caught.value.problems)


@pytest.mark.parametrize("text", ["", "# nothing\n", "kinesis:\nbinance:\n"])
def test_nothing_said_is_the_default(tmp_path: Path, text: str) -> None:
    """An empty file, or a section with nothing below it, changes nothing."""
    assert load(written(tmp_path, text), {}) == Config()


@pytest.mark.parametrize("name", ["local", "production"])
def test_the_configurations_that_come_with_the_program_are_valid(name: str) -> None:
    """What is shipped loads, and says which environment it is for."""
    assert load(config_path(f"{name}.yaml"), {}).service.environment == name


def leaves(values: dict[str, object], path: str = "") -> dict[str, object]:
    """Return the values of nested sections by their paths."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found


# What users were promised: a key that is renamed, or whose default changes, breaks what they have written.
CONTRACT = """
service: {name: ingestor, environment: local, shutdown_grace_s: 25}
logging: {level: info, format: json}
binance:
  websocket_url: wss://stream.binance.com:9443
  rest_url: https://api.binance.com
  archive_url: https://data.binance.vision
  symbols: [BTCUSDT, ETHUSDT]
  streams: [trade, depth, kline]
  kline_intervals: [1m]
  connections: {max_streams: 200, redundancy: 1, rollover_after_s: 82800, silence_limit_s: 30,
                backoff: {initial_s: 1, max_s: 60, multiplier: 2, jitter: true}}
  rest: {max_weight_share: 0.8, timeout_s: 10, max_attempts: 8}
  book: {snapshot_levels: 1000, resnapshot_s: 3600}
  allow_plaintext: false
repair: {enabled: true, max_trades_per_gap: 1000000}
backfill: []
kinesis:
  stream_name: bitcoin-market-data
  region: us-east-1
  endpoint_url: null
  partition_key: symbol
  aggregation: kpl
  encoding: avro
  batch: {max_records: 500, max_bytes: 4000000, flush: interval, flush_interval_s: 1.0}
  retry: {max_attempts: 10, initial_s: 0.1, max_s: 10}
  circuit_breaker: {failure_threshold: 5, reset_timeout_s: 30}
  allow_plaintext: false
  blob_bytes: 49900
  timeouts: {connect_s: 3, read_s: 6}
  shard_budget_share: 0.9
  lanes: 8
heartbeat: {stream_name: ingestor-heartbeat, interval_s: 5, resume: true, resume_lookback_s: 86400}
spool: {directory: null, max_bytes: 1073741824, memory_max_bytes: 33554432}
channels: {max_batches: 256, max_bytes: 67108864}
dead_letter: {kind: file, directory: ./dead-letter, queue_url: null}
health: {host: 0.0.0.0, port: 8080}
metrics: {cloudwatch: {mode: none, namespace: Ingestor, interval_s: 60}}
shard: {index: 0, count: 1}
"""


def test_keys_and_defaults_are_those_that_were_promised(tmp_path: Path) -> None:
    """All of them, and no other."""
    assert load(written(tmp_path, CONTRACT), {}) == Config()
    assert leaves(yaml.safe_load(CONTRACT)).keys() == leaves(Config().model_dump(mode="json")).keys()


def test_the_local_configuration_spells_out_what_is_most_often_changed() -> None:
    """Venue, streams, batches, retries, delays and intervals, as by default; what differs is for this machine."""
    path = config_path("local.yaml")
    spelled = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    for section in ("binance", "kinesis.batch", "kinesis.retry", "binance.connections.backoff", "heartbeat", "health"):
        assert any(key.startswith(f"{section}.") for key in spelled), section
    defaults = leaves(Config().model_dump(mode="json"))
    loaded = leaves(load(path, {}).model_dump(mode="json"))
    changed = {key for key, value in loaded.items() if value != defaults[key]}
    assert changed == {"logging.format", "kinesis.endpoint_url", "health.host"} < spelled.keys()


def test_every_key_has_a_meaning_in_one_line_and_its_default() -> None:
    """The table in the README, `ingestor check --keys` and the schema are made of it."""
    listed = {key.path: key for key in keys()}
    defaults = leaves(Config().model_dump(mode="json"))
    assert listed.keys() == defaults.keys() | {f"backfill[].{name}" for name in BackfillRange.model_fields}
    assert {path: yaml.safe_load(listed[path].default) for path in defaults} == defaults
    for key in listed.values():
        assert key.kind, key.path
        assert key.meaning.endswith((".", "`.")), key.path
        assert "\n" not in key.meaning
        assert 10 < len(key.meaning) <= 112, key.path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("service.shutdown_grace_s", "seconds"),
        ("kinesis.blob_bytes", "bytes"),
        ("kinesis.aggregation", "kpl, none"),
        ("kinesis.endpoint_url", "text or null"),
        ("binance.symbols", "list of text"),
        ("binance.kline_intervals", "list of 1s … 1M"),
        ("backfill", "list of sections"),
        ("spool.directory", "path or null"),
        ("kinesis.lanes", "whole number"),
        ("repair.enabled", "true or false"),
    ],
)
def test_a_type_is_said_in_words(path: str, kind: str) -> None:
    """Whoever reads it need not know Python."""
    assert {key.path: key.kind for key in keys()}[path] == kind


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """Scalars, lists as JSON or with commas, nested keys in any case, null, and whole sections as JSON."""
    config = load(
        written(tmp_path, "kinesis: {lanes: 3, region: eu-west-1, endpoint_url: 'http://localhost:1'}\n"),
        {
            "INGESTOR__KINESIS__LANES": "5",
            "INGESTOR__KINESIS__BATCH__FLUSH_INTERVAL_S": "0.5",
            "ingestor__kinesis__endpoint_url": "null",
            "INGESTOR__BINANCE__SYMBOLS": '["btcusdt", "ALL:eur"]',
            "INGESTOR__BINANCE__STREAMS": "trade, depth",
            "INGESTOR__HEARTBEAT": '{"interval_s": 2}',
            "INGESTOR__HEALTH__PORT": "",
            "INGESTOR_OTHER": "not ours",
            "HOME": "/",
        },
    )
    assert (config.kinesis.lanes, config.kinesis.region, config.kinesis.endpoint_url) == (5, "eu-west-1", None)
    assert config.kinesis.batch.flush_interval_s == 0.5
    assert config.binance.symbols == ("BTCUSDT", "all:EUR")
    assert config.binance.streams == ("trade", "depth")
    assert config.heartbeat.interval_s == 2
    assert config.health.port == 8080


def test_settings_are_frozen() -> None:
    """Nobody changes a setting while the service runs."""
    with pytest.raises(ValueError, match="frozen"):
        Config().kinesis.lanes = 3


def test_all_mistakes_are_reported_at_once_with_their_path(tmp_path: Path) -> None:
    """Unknown keys, wrong types, bounds and contradictions come out together, each named and where it came from."""
    text = """
service: {shutdown_grace_s: 9}
kinesis:
  batch: {max_records: 600, max_byte: 5}
  lanes: [1]
  endpoint_url: http://kinesis.internal:4566
binance: {symbols: [BTCUSDT, "b?d"]}
dead_letter: {kind: sqs}
"""
    assert problems(tmp_path, text, INGESTOR__HEALTH__PORT="70000", INGESTOR__KINSIS__LANES="3") == [
        "binance.symbols[1]: Input should be BTCUSDT, or all:USDT for every symbol quoted in USDT, found 'b?d'",
        "kinesis.batch.max_records: Input should be less than or equal to 500, found 600",
        "kinesis.batch.max_byte: there is no such key; did you mean 'max_bytes'?",
        "kinesis.lanes: Input should be a valid integer, found [1]",
        "health.port (from INGESTOR__HEALTH__PORT): Input should be less than or equal to 65535, found '70000'",
        "kinsis (from INGESTOR__KINSIS__LANES): there is no such key; did you mean 'kinesis'?",
        "kinesis.endpoint_url: http:// to kinesis.internal needs `kinesis.allow_plaintext: true`, or use https://",
        "dead_letter.queue_url: is missing although `dead_letter.kind` is sqs",
        "service.shutdown_grace_s: is 9: no time for a last put, which may take 9 s (`kinesis.timeouts`)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "metrics: {cloudwatch: {mode: off}}",
            "metrics.cloudwatch.mode: Input should be 'none', 'api' or 'emf', found False",
        ),
        ("kinesis: {region: no}", "kinesis.region: Input should be a valid string, found False"),
        ("kinesis: {lanes: yes}", "kinesis.lanes: Input should be a number, found True"),
        ("kinesis: {retry: {initial_s: on}}", "kinesis.retry.initial_s: Input should be a number, found True"),
    ],
)
def test_words_that_yaml_turns_into_booleans_are_explained(tmp_path: Path, text: str, problem: str) -> None:
    """`off` is no mode and `yes` is no number, and the message says how that came about."""
    hint = " (YAML reads yes, no, on and off as true and false: quote a text)"
    assert problems(tmp_path, text) == [problem + hint]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("binance: {symbols: [BTCUSDT, btcusdt]}", "binance.symbols: BTCUSDT stands there more than once"),
        (
            "{service: {environment: ''}, metrics: {cloudwatch: {mode: emf}}}",
            "service.environment: is ''; CloudWatch wants 1 to 1024 visible characters of ASCII",
        ),
        (
            "{service: {name: Zürich}, metrics: {cloudwatch: {mode: api}}}",
            "service.name: is 'Zürich'; CloudWatch wants 1 to 1024 visible characters of ASCII",
        ),
        (
            "metrics: {cloudwatch: {mode: api, namespace: AWS/Mine}}",
            "metrics.cloudwatch.namespace: begins with AWS/, which is kept for services of AWS",
        ),
        ("binance: {streams: [trade, trade]}", "binance.streams: trade stands there more than once"),
        (
            "binance: {streams: [kline], kline_intervals: []}",
            "binance.kline_intervals: is empty although `binance.streams` asks for kline",
        ),
        (
            "binance: {symbols: []}",
            "binance.symbols: Input should be a list that is not empty, found []",
        ),
        (
            "binance: {symbols: BTCUSDT}",
            "binance.symbols: Input should be a list, found 'BTCUSDT'",
        ),
        (
            "binance: {websocket_url: 'https://stream.binance.com'}",
            "binance.websocket_url: should begin with wss:// and name a host, found 'https://stream.binance.com'",
        ),
        ("binance: {rest_url: 'http://[::1'}", "binance.rest_url: is not an address: Invalid IPv6 URL"),
        (
            "binance: {archive_url: 'http://archive.localhost'}",
            "binance.archive_url: http:// to archive.localhost needs `binance.allow_plaintext: true`, or use https://",
        ),
        (
            "binance: {rest_url: 'https://me:secret@api.binance.com'}",
            "binance.rest_url: should hold neither a user name nor a query: credentials come from the AWS chain only",
        ),
        (
            "binance: {websocket_url: 'ws://10.0.0.1'}",
            "binance.websocket_url: ws:// to 10.0.0.1 needs `binance.allow_plaintext: true`, or use wss://",
        ),
        ("shard: {index: 2, count: 2}", "shard.index: is 2, and with `shard.count` 2 the last is 1"),
        (
            "binance: {connections: {backoff: {initial_s: 5, max_s: 2}}}",
            "binance.connections.backoff.max_s: is 2, less than `initial_s` 5",
        ),
        ("kinesis: {retry: {initial_s: 5, max_s: 2}}", "kinesis.retry.max_s: is 2, less than `initial_s` 5"),
        (
            "heartbeat: {stream_name: bitcoin-market-data}",
            "heartbeat.stream_name: is the data stream too; the checkpoint needs a stream of its own",
        ),
        (
            "kinesis: {batch: {max_bytes: 60000}}",
            "kinesis.batch.max_bytes: is 60000, too little for blobs of `kinesis.blob_bytes` 49900",
        ),
        ("kinesis: {region: ''}", "kinesis.region: String should match pattern '^[a-z0-9-]+$', found ''"),
        (
            "kinesis: {batch: {flush_interval_s: .inf}}",
            "kinesis.batch.flush_interval_s: Input should be a finite number, found inf",
        ),
        ("nonsense: 1", "nonsense: there is no such key"),
        ("kinesis: text", "kinesis: Input should be a section with keys of its own, found 'text'"),
    ],
)
def test_each_mistake_has_its_words(tmp_path: Path, text: str, problem: str) -> None:
    """One mistake is one line, beginning with where it is."""
    assert problems(tmp_path, text) == [problem]


@pytest.mark.parametrize(
    "text",
    [
        "binance: {websocket_url: 'ws://127.0.0.1:9443', rest_url: 'http://[::1]:80', archive_url: 'http://localhost'}",
        "binance: {websocket_url: 'ws://venue.internal', allow_plaintext: true}",
        "kinesis: {endpoint_url: 'http://localstack:4566', allow_plaintext: true}",
        "binance: {symbols: ['all:*', 币安人生USDT]}",
        "kinesis: {batch: {max_bytes: 60000}, aggregation: none}",
    ],
)
def test_what_is_meant_is_accepted(tmp_path: Path, text: str) -> None:
    """Plain text to this machine or on request, every symbol, and names beyond Latin letters."""
    load(written(tmp_path, text), {})


def test_past_ranges_are_checked(tmp_path: Path) -> None:
    """Intervals where they belong, times that can be read, one symbol each; a YAML date is a time too."""
    text = """
backfill:
  - {symbol: btcusdt, stream: trade, start: 2024-01-01, end: 2024-01-02T00:00:00Z}
  - {symbol: BTCUSDT, stream: kline, start: 2024-01-01, end: 2024-01-02}
  - {symbol: "all:USDT", stream: trade, interval: 1m, start: 2024-01-02 00:00:00, end: "2024-01-01"}
"""
    assert problems(tmp_path, text) == [
        "backfill[1].interval: is missing: klines have one",
        "backfill[2].interval: is set: trades have none",
        "backfill[2].symbol: is a selector, and a past range is of one symbol",
        "backfill[2].end: is not after `start` 2024-01-02T00:00:00",
    ]
    text = "backfill: [{symbol: BTCUSDT, stream: trade, start: yesterday, and: 2024-01-01}]"
    assert problems(tmp_path, text) == [
        "backfill[0].start: Input should be a time such as 2024-01-31 or 2024-01-31T12:00:00Z, found 'yesterday'",
        "backfill[0].end: is missing",
        "backfill[0].and: there is no such key; did you mean 'end'?",
    ]


def test_a_contradiction_is_not_told_about_a_broken_value(tmp_path: Path) -> None:
    """Where a value is broken its default stands in, and nothing is concluded from that."""
    text = "shard: {index: 3, count: zero}\nkinesis: {timeouts: {read_s: -1}}\nservice: {shutdown_grace_s: 5}"
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == [
        "kinesis.timeouts.read_s",
        "shard.count",
    ]


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    """A mistake is one readable line."""
    (problem,) = problems(tmp_path, f"kinesis: {{stream_name: {'x' * 300}}}")
    assert problem.endswith("xxx...")
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"kinesis: {lanes: 3\nbinance: 4", ":2:8: "),
        (b"kinesis:\n\tlanes: 3", ":2:1: "),
        (b"kinesis: {lanes: 3}\nkinesis: {lanes: 4}\n", ":2:1: the key 'kinesis' stands twice"),
        (b"kinesis: {lanes: 3, lanes: 4}\n", ":1:21: the key 'lanes' stands twice"),
        (b"a: !!python/object/apply:os.system [ls]", ":1:4: could not determine a constructor"),
        (b"\xff\xfe\xff", ": not UTF-8 text at byte 0"),
        (b"a: \x01", ": unacceptable character"),
        (b"- kinesis\n", ": holds a list, and sections such as `kinesis:` are expected"),
        (b"a: 2024-13-01", ":1:4: '2024-13-01' looks like a timestamp and is none (quote a text)"),
        (b"a: !!float x", ":1:4: 'x' looks like a float and is none"),
        (b"a: !!timestamp x", ":1:4: 'x' looks like a timestamp and is none"),
        (b"? [a]\n: b", ":1:3: a key has to be a plain word"),
        (b"[" * 1000, ": is nested too deeply"),
    ],
)
def test_a_broken_file_is_reported_with_its_place(tmp_path: Path, content: bytes, where: str) -> None:
    """Line and column where there are any, and nothing in the file is executed."""
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}{where}")


@pytest.mark.parametrize("key", ["1", "on", "2024-01-01", "!!binary eA=="])
def test_a_key_is_the_text_that_stands_there(tmp_path: Path, key: str) -> None:
    """Whatever YAML takes it for, it is a key that nobody knows."""
    (problem,) = problems(tmp_path, f"logging: {{{key}: 1}}")
    assert problem.endswith(": there is no such key")


PIECES = (
    *(
        "? [a]\n: b\n",
        "&a [*a]",
        "*x",
        "!!binary x",
        "!!set {a}",
        "!!int x",
        "<<: 1",
        "- a\n",
        "[",
        "{",
        "}",
        "\t",
        "'",
    ),
    *('"', "|\n", "~", ".nan", "2024-13-45", "1: 2", "true: 1", "[[1]]", "{a: b}", "\x00", "\u0085", "---\n"),
)


def test_no_text_makes_reading_fail_without_a_word(tmp_path: Path) -> None:
    """A service that runs reads what a person has just written: what is wrong with it is said, and never a crash."""
    dice, path = Random(5), tmp_path / "ingestor.yaml"
    whole = config_path("production.yaml").read_text()
    refused = 0
    for _ in range(150):
        text = whole
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(text))
            text = text[:at] + dice.choice(PIECES) + text[at + dice.choice([0, 0, 7, 40]) :]
        path.write_text(text, encoding="utf-8")
        try:
            load(path, {})
        except ConfigError as error:
            refused += all(error.problems)
    assert refused > 50


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    """The message is the path and the reason."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory"):
        load(tmp_path / "nowhere.yaml", {})


def test_what_may_change_while_the_service_runs_is_adopted_and_nothing_else() -> None:
    """The level and what is subscribed to; the rest is named by its path, lists as one."""
    running = Config()
    wanted = Config.model_validate(
        {
            "logging": {"level": "debug", "format": "console"},
            "binance": {
                "symbols": ["BNBUSDT"],
                "streams": ["trade"],
                "kline_intervals": [],
                "book": {"resnapshot_s": 60},
            },
            "kinesis": {"lanes": 3, "batch": {"max_records": 7}},
            "backfill": [{"symbol": "BTCUSDT", "stream": "trade", "start": "2024-01-01", "end": "2024-01-02"}],
        }
    )
    adopted = adopt(running, wanted)
    assert differences(running, adopted) == [
        "logging.level",
        "binance.symbols",
        "binance.streams",
        "binance.kline_intervals",
    ]
    assert differences(adopted, wanted) == [
        "logging.format",
        "binance.book.resnapshot_s",
        "backfill",
        "kinesis.batch.max_records",
        "kinesis.lanes",
    ]
    assert differences(running, Config()) == []


def test_what_is_printed_can_be_loaded_again(tmp_path: Path) -> None:
    """The effective configuration is itself a configuration file with the same meaning."""
    config = load(written(tmp_path, "kinesis: {lanes: 3}\nspool: {directory: /var/spool}"), {})
    assert load(written(tmp_path, to_yaml(config)), {}) == config


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2hunter2@api.binance.com",
        "htps://me:hunter2hunter2@api.binance.com",
        "https://me:hunter2/hunter2@api.binance.com",
        "https://me:hunter2hunter2",
        "me:hunter2hunter2@api.binance.com",
        "https://[me:hunter2hunter2@api.binance.com",
        "https://api.binance.com?token=hunter2hunter2",
    ],
)
@pytest.mark.parametrize(
    "key", ["binance.rest_url", "binance.websocket_url", "kinesis.endpoint_url", "dead_letter.queue_url"]
)
def test_a_password_in_an_address_is_not_repeated(tmp_path: Path, key: str, url: str) -> None:
    """However the address is broken, and whether it stands in the file or in the environment."""
    section, name = key.split(".")
    (in_file,) = problems(tmp_path, f"{section}: {{{name}: '{url}'}}")
    (in_environment,) = problems(tmp_path, "", **{f"INGESTOR__{section}__{name}".upper(): url})
    for problem in (in_file, in_environment):
        assert problem.startswith(key)
        assert "hunter2" not in problem


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    """Somebody looks for a place to put keys; the answer does not quote them."""
    text = """
kinesis: {aws_secret_access_key: wJalrXUtnFEMIxK7MDENG}
heartbeat: {interval_s: {secret_access_key: wJalrXUtnFEMIxK7MDENG}}
health: {port: AKIAIOSFODNN7EXAMPLE}
channels: "https://me:wJalrXUtnFEMIxK7MDENG@host"
"""
    found = "\n".join(problems(tmp_path, text))
    assert "wJalrX" not in found
    assert "AKIA" not in found


@pytest.mark.parametrize(
    "text", ["? [a, b]\n: 1\n", "{a: 1}: 2\n", "a: " + "[" * 3_000, "a: " + "{b: " * 3_000, "a: 2024-02-30", "a: 0x_"]
)
def test_yaml_that_is_no_configuration_at_all_is_refused_in_words(tmp_path: Path, text: str) -> None:
    """Keys that are lists, and nesting without end."""
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(str(tmp_path))


PLAIN = [
    ("binance.websocket_url", "ws", "binance"),
    ("binance.rest_url", "http", "binance"),
    ("binance.archive_url", "http", "binance"),
    ("kinesis.endpoint_url", "http", "kinesis"),
    ("dead_letter.queue_url", "http", "kinesis"),
]


@pytest.mark.parametrize(("key", "scheme", "section"), PLAIN)
@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.1.1", "0.0.0.0", "[::2]", "localhost.example"])  # noqa: S104
def test_plain_text_over_a_network_has_to_be_allowed(
    key: str, scheme: str, section: str, host: str, tmp_path: Path
) -> None:
    """By the section that the address belongs to, and by no other."""
    outer, inner = key.split(".")
    text = f"{outer}: {{{inner}: '{scheme}://{host}:1/x'}}\n"
    (problem,) = problems(tmp_path, text)
    assert f"needs `{section}.allow_plaintext: true`" in problem
    load(written(tmp_path, text), {f"INGESTOR__{section.upper()}__ALLOW_PLAINTEXT": "true"})
    other = "KINESIS" if section == "binance" else "BINANCE"
    assert problems(tmp_path, text, **{f"INGESTOR__{other}__ALLOW_PLAINTEXT": "true"}) == [problem]


@pytest.mark.parametrize(("key", "scheme", "section"), PLAIN)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_plain_text_to_this_machine_is_allowed(key: str, scheme: str, section: str, host: str, tmp_path: Path) -> None:
    """Nobody else sees it."""
    outer, inner = key.split(".")
    load(written(tmp_path, f"{outer}: {{{inner}: '{scheme}://{host}:1/x'}}\n"), {})


@pytest.mark.parametrize("text", ["Backfill: [{}]", "KINESIS: {lanes: no}", "bacKfill: [1]\nbackfill: [2]", "Health:"])
def test_a_key_is_written_as_it_is_called(tmp_path: Path, text: str) -> None:
    """In capitals it is another one, and what is in it is not looked at twice."""
    assert any("there is no such key; did you mean" in problem for problem in problems(tmp_path, text))
    assert problems(tmp_path, "kinesis: {Lanes: 8}") == ["kinesis.Lanes: there is no such key; did you mean 'lanes'?"]
