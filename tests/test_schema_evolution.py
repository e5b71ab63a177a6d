"""The schemas as a contract: released ones stay readable both ways, and what a value means never changes."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import fastavro
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import make_avsc_object
from fastavro.schema import fingerprint, to_parsing_canonical_form

from ingestor.core.model import MarketData
from ingestor.resources import read_schema, released_schemas
from ingestor.serializer import Serializer, decode_heartbeat
from tests.fakes.market_records import fastavro_bytes, market_record

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASED = [
    (name, version, text) for name in ("market_data", "heartbeat") for version, text in released_schemas(name).items()
]
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}
EIGHT_FIELDS: dict[str, Any] = {  # the user's own description of the record, ../shared/spec
    "type": "record",
    "name": "MarketData",
    "namespace": "ingestor.v1",
    "fields": [
        {"name": "symbol", "type": "string"},
        {"name": "timestamp", "type": "long"},
        {"name": "price", "type": ["null", DECIMAL], "default": None},
        {"name": "volume", "type": ["null", DECIMAL], "default": None},
        {"name": "bid_price", "type": ["null", DECIMAL], "default": None},
        {"name": "ask_price", "type": ["null", DECIMAL], "default": None},
        {"name": "source", "type": {"type": "enum", "name": "Source", "symbols": ["websocket", "rest", "unknown"]}},
        {
            "name": "event_type",
            "type": {
                "type": "enum",
                "name": "EventType",
                "symbols": ["trade", "depth", "kline", "unknown"],
                "default": "unknown",
            },
        },
    ],
}


def is_compatible(reader: str, writer: str) -> bool:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # the library has no types
    result = checker.get_compatibility(make_avsc_object(json.loads(reader)), make_avsc_object(json.loads(writer)))
    return result.compatibility is SchemaCompatibilityType.compatible


def meanings(schema: Any, path: str = "", named: dict[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every field and array item by path, with all that decides what its values mean."""
    named = {} if named is None else named
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"]
        yield f"{path}?", "null" in schema
        for branch in branches:
            yield from meanings(branch, path, named)
    elif isinstance(schema, str):
        yield (path, schema) if schema not in named else (path, named[schema]["type"])
    elif schema["type"] == "record":
        named[schema["name"]] = schema
        yield path, "record"
        for field in schema["fields"]:
            yield from meanings(field["type"], f"{path}.{field['name']}", named)
            if "unit" in field:
                yield f"{path}.{field['name']} in", field["unit"]
    elif schema["type"] == "array":
        yield path, "array"
        yield from meanings(schema["items"], f"{path}[]", named)
    elif schema["type"] == "map":
        yield path, "map"
        yield from meanings(schema["values"], f"{path}{{}}", named)
    else:
        kind = schema["type"]
        yield path, (kind, schema.get("logicalType"), schema.get("precision"), schema.get("scale"))


def changed_meanings(old: str, new: str) -> list[str]:
    """Return the paths of fields that both schemas have and that mean something else in `new`."""
    before, after = dict(meanings(json.loads(old))), dict(meanings(json.loads(new)))
    return [path for path, meaning in before.items() if path in after and after[path] != meaning]


@pytest.mark.parametrize(("name", "version", "text"), RELEASED)
def test_today_reads_every_release_and_every_release_reads_today(name: str, version: str, text: str) -> None:
    """Full compatibility, transitive, by the checker of the Avro project."""
    assert version
    assert is_compatible(reader=read_schema(name), writer=text)
    assert is_compatible(reader=text, writer=read_schema(name))


@pytest.mark.parametrize(("name", "version", "text"), RELEASED)
def test_no_field_of_a_release_means_something_else_today(name: str, version: str, text: str) -> None:
    """Logical type, precision, scale and unit: no library looks at them, and no fingerprint changes with them."""
    assert version
    assert changed_meanings(text, read_schema(name)) == []


@pytest.mark.parametrize(("name", "version", "text"), RELEASED)
def test_no_field_of_a_release_is_gone_today(name: str, version: str, text: str) -> None:
    """The libraries would allow it where there is a default, and a reader would take that for what the venue sent."""
    assert version
    before, after = (dict(meanings(json.loads(each))) for each in (text, read_schema(name)))
    assert before.keys() - after.keys() == set()


@pytest.mark.parametrize(("name", "version", "text"), RELEASED)
def test_the_namespace_carries_the_major_version(name: str, version: str, text: str) -> None:
    """A breaking change needs a new name, because readers resolve by it."""
    assert json.loads(text)["namespace"] == json.loads(read_schema(name))["namespace"] == f"ingestor.v{version[0]}"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"scale": 8', '"scale": 4', ".price"),
        ('"precision": 38', '"precision": 28', ".price"),
        ('"logicalType": "decimal", ', "", ".price"),
        ('{"name": "timestamp", "type": "long"', '{"name": "timestamp", "type": "double"', ".timestamp"),
        ('"unit": "ms"', '"unit": "us"', ".timestamp in"),
    ],
)
def test_a_change_of_meaning_would_be_noticed(old: str, new: str, path: str) -> None:
    """The rule itself works: a quiet change is caught although the libraries see none."""
    text = read_schema("market_data")
    assert old in text
    assert path in changed_meanings(text, text.replace(old, new, 1))


def test_a_field_without_default_would_be_noticed() -> None:
    """The checker of the Avro project is really asked."""
    schema = json.loads(read_schema("market_data"))
    schema["fields"].append({"name": "added", "type": "long"})
    assert not is_compatible(reader=json.dumps(schema), writer=read_schema("market_data"))


def test_every_field_beyond_the_first_eight_has_a_default() -> None:
    """So that data of the plain schema can be read."""
    fields = json.loads(read_schema("market_data"))["fields"]
    assert [field["name"] for field in fields[:8]] == [field["name"] for field in EIGHT_FIELDS["fields"]]
    assert all("default" in field for field in fields[8:])


def test_a_reader_with_the_plain_schema_reads_todays_data() -> None:
    """The user's eight fields are enough to read what we write."""
    writer = fastavro.parse_schema(json.loads(read_schema("market_data")), named_schemas={})
    reader = fastavro.parse_schema(EIGHT_FIELDS, named_schemas={})
    data = Serializer().encode(market_record())
    fields = fastavro.schemaless_reader(io.BytesIO(data[10:]), writer, reader)
    assert fields == {
        "symbol": "BTCUSDT",
        "timestamp": 1_790_000_000_122,
        "price": Decimal("86412.57000000"),
        "volume": Decimal("0.00120000"),
        "bid_price": None,
        "ask_price": None,
        "source": "websocket",
        "event_type": "trade",
    }


def test_a_plain_reader_meets_a_hole_as_an_unknown_event() -> None:
    """The default of the enum is what keeps old readers going when kinds are added."""
    writer = fastavro.parse_schema(json.loads(read_schema("market_data")), named_schemas={})
    reader = fastavro.parse_schema(EIGHT_FIELDS, named_schemas={})
    data = Serializer().encode(market_record(event_type="hole"))
    fields = fastavro.schemaless_reader(io.BytesIO(data[10:]), writer, reader)
    assert isinstance(fields, dict)
    assert fields["event_type"] == "unknown"


def test_todays_schema_reads_plain_data() -> None:
    """And the other way round: what is not there is what its default says."""
    plain = {"symbol": "BTCUSDT", "timestamp": 1, "price": Decimal("1.5"), "source": "rest", "event_type": "trade"}
    data = fastavro_bytes(EIGHT_FIELDS, plain)
    writer = fastavro.parse_schema(EIGHT_FIELDS, named_schemas={})
    reader = fastavro.parse_schema(json.loads(read_schema("market_data")), named_schemas={})
    fields = fastavro.schemaless_reader(io.BytesIO(data), writer, reader)
    assert isinstance(fields, dict)
    assert (fields["price"], fields["sequence"], fields["trade"]) == (Decimal("1.50000000"), 0, None)


def test_a_release_with_fewer_fields_is_resolved_to_todays_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the plain schema a release of ours, its data would decode to records, what is not there by its default."""
    monkeypatch.setattr("ingestor.serializer.released_schemas", lambda _name: {"0": json.dumps(EIGHT_FIELDS)})
    plain = {"symbol": "BTCUSDT", "timestamp": 1, "price": Decimal("1.5"), "source": "rest", "event_type": "trade"}
    crc = fingerprint(to_parsing_canonical_form(EIGHT_FIELDS), "CRC-64-AVRO")
    record = Serializer().decode(b"\xc3\x01" + bytes.fromhex(crc) + fastavro_bytes(EIGHT_FIELDS, plain))
    assert record == MarketData("BTCUSDT", 1, "1.50000000", None, None, None, "rest", "trade", 0, 0)


@pytest.mark.parametrize(("name", "version", "text"), RELEASED)
def test_data_of_every_release_is_decoded(name: str, version: str, text: str) -> None:
    """By its own fingerprint, resolved to today's schema."""
    assert version
    schema = json.loads(text)
    crc = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    header = b"\xc3\x01" + bytes.fromhex(crc)
    if name == "market_data":
        fields = {"symbol": "BTCUSDT", "timestamp": 1, "source": "rest", "event_type": "trade"}
        assert Serializer().decode(header + fastavro_bytes(schema, fields)).symbol == "BTCUSDT"
    else:
        texts = dict.fromkeys(["service", "environment", "rest_host", "data_stream", "instance", "version"], "x")
        numbers = dict.fromkeys(["started_ms", "sent_ms", "beat", "part", "parts"], 1)
        assert decode_heartbeat(header + fastavro_bytes(schema, texts | numbers))["interval_ms"] == 5000
