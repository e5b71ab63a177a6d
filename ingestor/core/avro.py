"""Compiles an Avro schema into one straight Python function from our structs to bytes, and explains what does not fit.

The bytes are those of fastavro, which stays the authority: a property test holds the two identical over the schema.
The speed comes from never interpreting the schema while encoding, and from a fact about market data: prices, symbols
and the high bits of times and ids repeat, so their bytes are kept in bounded tables.

The compiled function is optimistic: it checks what Python would silently let pass (a bool for a number, a float for an
id) and leaves the rest to raise. Whatever it raises, `explain` then walks schema and record to name field and reason.
Decimals come as text and are never rounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeGuard

from ingestor.core.errors import EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Encoder: TypeAlias = "Callable[[Any], bytes]"

TABLE_LIMIT = 65536
"""Entries that a table of seen values may hold before it starts over; such a table of decimals takes 12 MB."""

LONGEST_KEPT = 64
"""Longer texts are encoded but not kept, so that a table cannot be filled with megabytes."""


# --- the schema, as far as we use Avro --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """`int` or `long`."""

    bits: int


@dataclass(frozen=True)
class Flag:
    """`boolean`."""


@dataclass(frozen=True)
class Text:
    """`string`."""


@dataclass(frozen=True)
class DecimalBytes:
    """`bytes` with the logical type decimal."""

    precision: int
    scale: int


@dataclass(frozen=True)
class Choice:
    """`enum`."""

    symbols: tuple[str, ...]


@dataclass(frozen=True)
class Nullable:
    """A union of null and one other type, in either order."""

    item: Shape
    null_index: int


@dataclass(frozen=True)
class Many:
    """`array`."""

    item: Shape


@dataclass(frozen=True)
class Record:
    """`record`; a positional one is read from a tuple, any other from attributes."""

    fields: tuple[tuple[str, Shape], ...]
    positional: bool


Shape: TypeAlias = Whole | Flag | Text | DecimalBytes | Choice | Nullable | Many | Record


def read_shape(schema: object, *, positional: frozenset[str] = frozenset()) -> Record:
    """Return the shape of a record schema (parsed JSON); records named in `positional` are tuples in our model.

    Raises ValueError for a type that this encoder does not know (float, double, map, fixed, wider unions).
    """
    shape = _Reader(positional).read(schema)
    if not isinstance(shape, Record):
        raise ValueError("the schema of an encoder is a record")  # noqa: TRY004 - it is the schema that is wrong, a value
    return shape


class _Reader:
    """Reads shapes; remembers named ones, because Avro defines a name once and refers to it from then on."""

    _plain: ClassVar[Mapping[str, Shape]] = {"int": Whole(32), "long": Whole(64), "boolean": Flag(), "string": Text()}

    def __init__(self, positional: frozenset[str]) -> None:
        self._positional = positional
        self._named: dict[str, Shape] = {}

    def read(self, schema: object) -> Shape:  # noqa: PLR0911 - one return for each kind of type
        match schema:
            case str(name) if name in self._plain or name in self._named:
                return self._plain.get(name) or self._named[name]
            case ["null", item]:
                return Nullable(self.read(item), null_index=0)
            case [item, "null"]:
                return Nullable(self.read(item), null_index=1)
            case {"type": "bytes", "logicalType": "decimal", "precision": int(precision), "scale": int(scale)}:
                return DecimalBytes(precision, scale)
            case {"type": "array", "items": items}:
                return Many(self.read(items))
            case {"type": "enum", "name": str(name), "symbols": [*symbols]}:
                return self._name(name, Choice(tuple(symbols)))
            case {"type": "record", "name": str(name), "fields": [*fields]}:
                members = tuple((field["name"], self.read(field["type"])) for field in fields)
                return self._name(name, Record(members, name in self._positional))
            case {"type": str(name)} if name in self._plain:
                return self._plain[name]
            case _:
                raise ValueError(f"this encoder does not know the type {schema!r}")

    def _name(self, name: str, shape: Shape) -> Shape:
        self._named[name] = shape
        return shape


# --- bytes of single values -------------------------------------------------------------------------------------------


def _varint(zigzag: int) -> bytes:
    octets = bytearray()
    while zigzag > 0x7F:
        octets.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    octets.append(zigzag)
    return bytes(octets)


def long_bytes(value: int) -> bytes:
    """Return the Avro bytes of an int or long."""
    return _varint(value << 1 if value >= 0 else ~(value << 1))


def unscaled(text: str, precision: int, scale: int) -> int:
    """Return decimal `text` as a whole number of 10 ** -scale, exactly; EncodeError if that cannot be."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise EncodeError(f"{text[:40]!r} is not a decimal")
    sign, whole, fraction = match.groups(default="")
    fraction = fraction.rstrip("0")
    if len(fraction) > scale:
        raise EncodeError(f"{text[:60]!r} has more than {scale} decimals")
    digits = (whole + fraction.ljust(scale, "0")).lstrip("0")
    if len(digits) > precision:
        raise EncodeError(f"{text[:60]!r} has more than {precision} digits")
    return int(f"{sign}{digits or 0}")


_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?")


class _Table(dict[Any, bytes]):
    """A bounded memory from value to bytes: what is missing is made, what is full starts over from `always`."""

    def __init__(self, make: Callable[[Any], bytes], always: Mapping[Any, bytes]) -> None:
        super().__init__(always)
        self._make = make
        self._always = always

    def __missing__(self, value: Any) -> bytes:
        made = self._make(value)
        if len(made) <= LONGEST_KEPT and len(value) <= LONGEST_KEPT:
            if len(self) >= TABLE_LIMIT:
                self.clear()
                self.update(self._always)
            self[value] = made
        return made


class _HighBits(dict[int, bytes]):
    """A bounded memory from the bits above the lowest 14 of a zigzag number to the rest of its varint."""

    def __init__(self, bits: int) -> None:
        self._limit = 1 << (bits - 14)

    def __missing__(self, high: int) -> bytes:
        if high >= self._limit:
            raise OverflowError
        if len(self) >= TABLE_LIMIT:
            self.clear()
        made = self[high] = _varint(high)
        return made


def _decimal_table(shape: DecimalBytes, prefix: bytes, always: Mapping[Any, bytes]) -> _Table:
    precision, scale = shape.precision, shape.scale
    point = -scale - 1
    heads = [prefix + long_bytes(size) for size in range(precision + 1)]  # an octet holds two digits and more

    def make(text: str) -> bytes:
        digits = text[:point] + text[point + 1 :]
        usual = text[point : point + 1] == "." and scale < len(digits) <= precision
        usual = usual and digits.isdecimal() and digits.isascii()  # then it needs no regular expression
        number = int(digits) if usual else unscaled(text, precision, scale)
        size = (number.bit_length() + 8) // 8
        return heads[size] + number.to_bytes(size, "big", signed=True)

    return _Table(make, always)


def _text_table(prefix: bytes, always: Mapping[Any, bytes]) -> _Table:
    def make(text: str) -> bytes:
        octets = text.encode()
        return prefix + long_bytes(len(octets)) + octets

    return _Table(make, always)


# --- the generator ----------------------------------------------------------------------------------------------------

_LOW = [bytes((low & 0x7F | 0x80, low >> 7 | 0x80)) for low in range(1 << 14)]  # two octets that are not the last
_SMALL = [_varint(zigzag) for zigzag in range(1 << 14)]  # numbers that end within two octets

_VARINT = "LOW[{0} & 16383] + HIGH{1}[{0} >> 14] if {0} > 16383 else SMALL[{0}]"
_Tabled = Text | DecimalBytes | Choice  # their bytes come from a table of values seen before


def compile_encoder(shape: Record, *, prefix: bytes = b"") -> Encoder:
    """Return a function that writes a record of `shape` as `prefix` and its Avro bytes.

    It raises EncodeError, naming the field, for a record that does not fit.
    """
    generator = _Generator()
    code = compile(generator.function(shape, prefix), "<encoder compiled from a schema>", "exec")
    exec(code, generator.constants)  # noqa: S102 - our own source, from our own schema; of the data it holds nothing
    optimistic: Encoder = generator.constants["encode"]

    def encode(record: Any) -> bytes:
        try:
            return optimistic(record)
        except Exception as error:
            for problem in explain(shape, record):
                raise EncodeError(problem) from error
            raise  # a record without a fault: the fault is ours

    return encode


class _Generator:
    """Writes the source of one function: statements that check and prepare, then one join of all pieces."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {"LOW": _LOW, "SMALL": _SMALL, "join": b"".join}
        self.constants |= {"HIGH32": _HighBits(32), "HIGH64": _HighBits(64)}
        self._lines: list[str] = []
        self._indent = 1
        self._names = 0
        self._tables: dict[tuple[Shape, int | None], str] = {}

    def function(self, shape: Record, prefix: bytes) -> str:
        pieces = self._record(shape, "record")
        self._say(f"return join(({prefix!r}, {', '.join(pieces)}))")
        return "\n".join(["def encode(record):", *self._lines])

    def _pieces(self, shape: Shape, value: str) -> list[str]:
        """Say what must be said first, and return the expressions whose bytes, joined, are `value`."""
        match shape:
            case Whole():
                return self._whole(shape, value)
            case Flag():
                self._say(f"if {value} is not True and {value} is not False: raise TypeError")
                return [f"(b'\\x01' if {value} else b'\\x00')"]
            case Nullable():
                return self._nullable(shape, value)
            case Many():
                return self._many(shape, value)
            case Record():
                return self._record(shape, value)
            case _:
                return [f"{self._table(shape, None)}[{value}]"]

    def _whole(self, shape: Whole, value: str) -> list[str]:
        zigzag = self._name()
        self._say(f"if type({value}) is not int: raise TypeError")
        self._say(f"{zigzag} = {value} << 1 if {value} >= 0 else ~({value} << 1)")
        return [f"({_VARINT.format(zigzag, shape.bits)})"]

    def _nullable(self, shape: Nullable, value: str) -> list[str]:
        null, present = long_bytes(shape.null_index), long_bytes(1 - shape.null_index)
        if isinstance(shape.item, _Tabled):
            return [f"{self._table(shape.item, shape.null_index)}[{value}]"]
        out = self._name()
        self._say(f"if {value} is None: {out} = {null!r}")
        self._say("else:")
        self._indent += 1
        pieces = self._pieces(shape.item, value)
        self._say(f"{out} = {' + '.join([repr(present), *pieces])}")
        self._indent -= 1
        return [out]

    def _record(self, shape: Record, value: str) -> list[str]:
        names = [self._name() for _ in shape.fields]
        if shape.positional:
            self._say(f"if type({value}) is not tuple: raise TypeError")
            self._say(f"{', '.join(names)}, = {value}")
        else:
            for name, (field, _) in zip(names, shape.fields, strict=True):
                self._say(f"{name} = {value}.{field}")
        return [
            piece for name, (_, item) in zip(names, shape.fields, strict=True) for piece in self._pieces(item, name)
        ]

    def _many(self, shape: Many, value: str) -> list[str]:
        out, count = self._name(), self._name()
        self._say(f"if type({value}) is not list: raise TypeError")
        if _is_tuple_of_tabled(shape.item):
            self._tuples(shape.item, value, out)
        else:
            self._items(shape.item, value, out)
        self._say(f"{count} = len({out}) << 1")
        self._say(f"{out} = ({_VARINT.format(count, 64)}) + join({out}) + b'\\x00' if {out} else b'\\x00'")
        return [out]

    def _tuples(self, shape: Record, value: str, out: str) -> None:
        """Say how levels become bytes, our innermost loop: one comprehension, with the types checked in C."""
        self._say(f"if {value} and set(map(type, {value})) != {{tuple}}: raise TypeError")
        names = [self._name() for _ in shape.fields]
        pieces = [f"{self._table(item, None)}[{name}]" for name, (_, item) in zip(names, shape.fields, strict=True)]
        self._say(f"{out} = [{' + '.join(pieces)} for {', '.join(names)}, in {value}]")

    def _items(self, shape: Shape, value: str, out: str) -> None:
        item = self._name()
        self._say(f"{out} = []")
        self._say(f"for {item} in {value}:")
        self._indent += 1
        self._say(f"{out}.append({' + '.join(self._pieces(shape, item))})")
        self._indent -= 1

    def _table(self, shape: Shape, null_index: int | None) -> str:
        """Return the name of the table from values of `shape` to bytes, branch number of a nullable one included."""
        key = (shape, null_index)
        if key not in self._tables:
            self._tables[key] = f"TABLE{len(self._tables)}"
            self.constants[self._tables[key]] = _table(shape, null_index)
        return self._tables[key]

    def _name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def _say(self, line: str) -> None:
        self._lines.append("    " * self._indent + line)


def _is_tuple_of_tabled(shape: Shape) -> TypeGuard[Record]:
    return isinstance(shape, Record) and shape.positional and all(isinstance(item, _Tabled) for _, item in shape.fields)


def _table(shape: Shape, null_index: int | None) -> dict[Any, bytes]:
    prefix = b"" if null_index is None else long_bytes(1 - null_index)
    always = {} if null_index is None else {None: long_bytes(null_index)}
    match shape:
        case DecimalBytes():
            return _decimal_table(shape, prefix, always)
        case Choice(symbols):
            return always | {symbol: prefix + long_bytes(index) for index, symbol in enumerate(symbols)}
        case _:
            return _text_table(prefix, always)


# --- what does not fit ------------------------------------------------------------------------------------------------


def explain(shape: Shape, value: object, path: str = "record") -> Iterator[str]:
    """Yield everything in `value` that does not fit `shape`, each with the path of its field.

    It must be no more lenient than the compiled encoder: what that refuses and this accepts counts as a bug of ours.
    """
    match shape:
        case Nullable(item):
            if value is not None:
                yield from explain(item, value, path)
        case Record(fields, positional):
            yield from _explain_record(fields, positional, value, path)
        case Many(item):
            if type(value) is not list:
                yield f"{path}: {_short(value)} is not a list"
            else:
                for index, member in enumerate(value):
                    yield from explain(item, member, f"{path}[{index}]")
        case _:
            problem = _problem(shape, value)
            if problem:
                yield f"{path}: {problem}"


def _explain_record(fields: tuple[tuple[str, Shape], ...], positional: bool, value: object, path: str) -> Iterator[str]:
    if positional:
        if type(value) is not tuple or len(value) != len(fields):
            yield f"{path}: {_short(value)} is not a tuple of {len(fields)}"
            return
        members = dict(zip((name for name, _ in fields), value, strict=True))
    else:
        members = {name: getattr(value, name) for name, _ in fields if hasattr(value, name)}
    for name, item in fields:
        if name in members:
            yield from explain(item, members[name], f"{path}.{name}")
        else:
            yield f"{path}: {type(value).__name__} has no {name}"


def _problem(shape: Shape, value: object) -> str | None:
    match shape:
        case Whole(bits):
            return _whole_problem(bits, value)
        case Flag():
            return None if value is True or value is False else f"{_short(value)} is not a bool"
        case Choice(symbols):
            return None if value in symbols else f"{_short(value)} is none of {', '.join(symbols)}"
        case _:
            return _text_problem(shape, value)


def _whole_problem(bits: int, value: object) -> str | None:
    if type(value) is not int:
        return f"{_short(value)} is not an int"
    return None if -(1 << bits - 1) <= value < 1 << bits - 1 else f"{_short(value)} does not fit {bits} bits"


def _text_problem(shape: Shape, value: object) -> str | None:
    if not isinstance(value, str):
        return f"{_short(value)} is not text"
    try:
        _table(shape, None)[value]
    except EncodeError as error:
        return str(error)
    except UnicodeEncodeError as error:
        return f"{_short(value)} is not Unicode text: {error.reason}"
    return None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an int of more than 4300 digits
        text = f"a {type(value).__name__} too large to write"
    return text if len(text) <= 60 else f"{text[:60]}..."
