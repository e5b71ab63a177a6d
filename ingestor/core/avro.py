"""Compiles an Avro schema into one straight Python function from our structs to bytes, and explains what does not fit.

The bytes are those of fastavro, which stays the authority: a property test holds the two identical over the schema.
The speed comes from never interpreting the schema while encoding, from one loop for a whole batch, and from a fact
about market data: prices, symbols, times and the high bits of ids repeat, so their bytes are kept, in bounded tables
or from one record to the next.

The compiled function is optimistic: it checks what Python would silently let pass (a bool for a number, a float for an
id) and leaves the rest to raise. Whatever it raises, `explain` then walks schema and record to name field and reason.
Decimals come as text and are never rounded.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeGuard, cast

from ingestor.core.errors import EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

TABLE_LIMIT = 32768
"""Entries that a table of seen values may hold before it starts over; such a table of decimals takes 6 MB."""

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
        if len(value) <= LONGEST_KEPT:
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


def _decimal_heads(shape: DecimalBytes, prefix: bytes) -> list[bytes]:
    """Return what stands before a decimal, by the size of its number; an octet holds two digits and more."""
    return [prefix + long_bytes(size) for size in range(shape.precision + 1)]


def _usual(shape: DecimalBytes, text: str, digits: str) -> str:
    """Return the condition under which `digits`, which is `text` without its point, is the number: as venues write it.

    It is no more than what `unscaled` accepts: ASCII digits, as many behind the point as the scale, no sign.
    """
    return (
        f"{shape.scale} < len({digits}) <= {shape.precision} and {text}[{-shape.scale - 1}] == '.'"
        f" and {digits}.isdecimal() and {digits}.isascii()"
    )


def _decimal_table(shape: DecimalBytes, prefix: bytes, always: Mapping[Any, bytes]) -> _Table:
    precision, scale = shape.precision, shape.scale
    point = -scale - 1
    heads = _decimal_heads(shape, prefix)

    def make(text: str) -> bytes:
        digits = text.replace(".", "", 1)
        usual = scale < len(digits) <= precision and text[point] == "."
        usual = usual and digits.isdecimal() and digits.isascii()  # then it needs no regular expression
        number = int(digits) if usual else unscaled(text, precision, scale)
        size = (number.bit_length() + 8) >> 3
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
_Piece: TypeAlias = str | bytes  # an expression whose value is bytes, or bytes that are always the same


class _Field(NamedTuple):
    """A field of a record, and the variable that holds its value."""

    name: str
    shape: Shape
    variable: str


class _Branch(NamedTuple):
    """A field that is a record or null."""

    name: str
    shape: Nullable
    variable: str


class Encoder:
    """Writes records of one shape as a prefix and their Avro bytes."""

    def __init__(
        self, shape: Record, *, prefix: bytes = b"", repeats: str = "", unique: frozenset[str] = frozenset()
    ) -> None:
        """`repeats` names a long of the record that the records inside it tend to say again: then it costs nothing.

        `unique` names decimals that are seldom the same twice; a table would only fill up with them.
        """
        self._shape = shape
        generator = _Generator(repeats, unique)
        code = compile(generator.function(shape, prefix), "<encoder compiled from a schema>", "exec")
        exec(code, generator.constants)  # noqa: S102 - our own source, from our own schema; of the data it holds nothing
        self._encode_into: Callable[[Iterable[Any], list[bytes]], None] = generator.constants["encode_into"]

    def encode(self, record: Any) -> bytes:
        """Return the bytes of one record; EncodeError, naming the field, if it does not fit."""
        [encoded], refusals = self.encode_all([record])
        for refusal in refusals.values():
            raise refusal
        return encoded

    def encode_all(self, records: Sequence[Any]) -> tuple[list[bytes], dict[int, EncodeError]]:
        """Return the bytes of each record, none for those that do not fit, and what is wrong with these by position."""
        encoded: list[bytes] = []
        refusals: dict[int, EncodeError] = {}
        while True:
            try:
                self._encode_into(islice(records, len(encoded), None), encoded)
            except Exception as error:  # noqa: BLE001 - whatever a wrong value raises; what is no wrong value goes on
                position = len(encoded)
                refusals[position] = self._refusal(records[position], error)
                encoded.append(b"")
            else:
                return encoded, refusals

    def _refusal(self, record: Any, error: Exception) -> EncodeError:
        for problem in explain(self._shape, record):
            refusal = EncodeError(problem)
            refusal.__cause__ = error
            return refusal
        raise error  # a record without a fault: the fault is ours


class _Generator:
    """Writes the source of one function: a loop that checks and prepares the fields of a record, and joins all pieces.

    A long is first compared with the one that the record before had in its place. What was read at once has one time
    of receipt, and events of the same time come together.
    """

    def __init__(self, repeats: str, unique: frozenset[str]) -> None:
        self.constants: dict[str, Any] = {"NOTHING": object(), "join": b"".join, "LOW": _LOW, "SMALL": _SMALL}
        self.constants |= {"HIGH32": _HighBits(32), "HIGH64": _HighBits(64)}
        self._repeats = repeats
        self._unique = unique
        self._repeated: tuple[str, str] | None = None  # variables of the long `repeats`, and of its octets
        self._first_lines: list[str] = []
        self._lines: list[str] = []
        self._indent = 2
        self._variables = 0
        self._tables: dict[tuple[Shape, int | None, bytes], str] = {}

    def function(self, shape: Record, prefix: bytes) -> str:
        fields = self._take_apart(shape, "record")
        branches = _branches(fields)
        head = self._head(prefix, fields[: len(fields) - len(branches)])
        self._branch(head, branches)
        parameters = ", ".join(f"{name}={name}" for name in self.constants)  # as parameters they are found faster
        return "\n".join(
            [
                f"def encode_into(records, encoded, {parameters}):",
                *self._first_lines,
                "    for record in records:",
                *self._lines,
            ]
        )

    def _head(self, prefix: bytes, fields: Sequence[_Field]) -> list[_Piece]:
        """Say the fields that every record has. A text at the very front keeps the prefix in its table."""
        pieces: list[_Piece] = [prefix]
        if fields and isinstance(fields[0].shape, Text):
            pieces = [f"{self._table(fields[0].shape, None, prefix)}[{fields[0].variable}]"]
            fields = fields[1:]
        for is_tabled, group in groupby(fields, self._is_tabled):
            members = list(group)
            if is_tabled and len(members) > 1:
                pieces += self._run(members)
            else:
                pieces += [piece for field in members for piece in self._field(field)]
        return pieces

    def _is_tabled(self, field: _Field) -> bool:
        shape = field.shape.item if isinstance(field.shape, Nullable) else field.shape
        return isinstance(shape, _Tabled) and field.name not in self._unique

    def _run(self, run: Sequence[_Field]) -> list[_Piece]:
        """Say tabled fields that stand together as one piece, that of the record before while they are the same."""
        octets, *known = [self._variable() for _ in range(len(run) + 1)]
        self._first_lines.append(f"    {' = '.join([octets, *known])} = NOTHING")
        changes = [f"{field.variable} is not {before}" for field, before in zip(run, known, strict=True)]
        with self._block(f"if {' or '.join(changes)}:"):
            pieces = [piece for field in run for piece in self._pieces(field.shape, field.variable)]
            self._say(f"{octets} = {' + '.join(_sources(pieces))}")
            self._say(f"{', '.join(known)} = {', '.join([field.variable for field in run])}")
        return [octets]

    def _branch(self, head: list[_Piece], branches: Sequence[_Branch]) -> None:
        """Say the records at the end, of which a record has one: a way for each alone, and one for anything else."""
        absent: list[_Piece] = [long_bytes(branch.shape.null_index) for branch in branches]
        for place, branch in enumerate(branches):
            others = [f"{other.variable} is None" for other in branches if other is not branch]
            condition = " and ".join([f"{branch.variable} is not None", *others])
            with self._block(f"{'elif' if place else 'if'} {condition}:"):
                present = [long_bytes(1 - branch.shape.null_index), *self._pieces(branch.shape.item, branch.variable)]
                self._write([*head, *absent[:place], *present, *absent[place + 1 :]])
        with self._block("else:" if branches else "if True:"):
            rest = [piece for branch in branches for piece in self._nullable(branch.shape, branch.variable)]
            self._write([*head, *rest])

    def _write(self, pieces: list[_Piece]) -> None:
        self._say(f"encoded.append(join(({', '.join(_sources(pieces))},)))")

    def _field(self, field: _Field) -> list[_Piece]:
        shape, value = field.shape, field.variable
        item, null_index = (shape.item, shape.null_index) if isinstance(shape, Nullable) else (shape, None)
        if field.name in self._unique and isinstance(item, DecimalBytes):
            return self._decimal(item, null_index, value)
        pieces = self._pieces(shape, value)
        if field.name == self._repeats and self._repeated is None:
            self._repeated = value, str(pieces[-1])
        return pieces

    def _decimal(self, shape: DecimalBytes, null_index: int | None, value: str) -> list[_Piece]:
        """Say how the usual text of a decimal becomes bytes without a table; anything else goes through one."""
        digits, octets, size = self._variable(), self._variable(), self._variable()
        heads = f"HEADS{null_index}"
        self.constants[heads] = _decimal_heads(shape, b"" if null_index is None else long_bytes(1 - null_index))
        self._say(f"{digits} = '' if {value} is None else {value}.replace('.', '', 1)")
        with self._block(f"if {_usual(shape, value, digits)}:"):
            self._say(f"{digits} = int({digits})")
            self._say(f"{size} = {digits}.bit_length() + 8 >> 3")
            self._say(f"{octets} = {heads}[{size}] + {digits}.to_bytes({size}, 'big')")
        self._say(f"else: {octets} = {self._table(shape, null_index)}[{value}]")
        return [octets]

    def _pieces(self, shape: Shape, value: str) -> list[_Piece]:
        """Say what must be said first, and return the pieces whose bytes, joined, are `value`."""
        match shape:
            case Whole():
                return self._whole(shape, value)
            case Flag():
                return self._flag(value)
            case Nullable():
                return self._nullable(shape, value)
            case Many():
                return self._many(shape, value)
            case Record():
                return self._record(shape, value)
            case _:
                return [f"{self._table(shape, None)}[{value}]"]

    def _whole(self, shape: Whole, value: str) -> list[_Piece]:
        zigzag, octets, last = self._variable(), self._variable(), self._variable()
        self._first_lines.append(f"    {last} = {octets} = None")
        if self._repeated is not None:
            self._say(f"if {value} is {self._repeated[0]}: {last}, {octets} = {value}, {self._repeated[1]}")
        with self._block(f"{'if' if self._repeated is None else 'elif'} {value} is not {last}:"):
            self._say(f"if type({value}) is not int: raise TypeError")
            with self._block(f"if {value} != {last}:"):
                self._say(f"{zigzag} = {value} << 1 if {value} >= 0 else ~({value} << 1)")
                self._say(f"{octets} = {_VARINT.format(zigzag, shape.bits)}")
            self._say(f"{last} = {value}")
        return [octets]

    def _flag(self, value: str) -> list[_Piece]:
        octets = self._variable()
        self._say(f"if {value} is True: {octets} = b'\\x01'")
        self._say(f"elif {value} is False: {octets} = b'\\x00'")
        self._say("else: raise TypeError")
        return [octets]

    def _nullable(self, shape: Nullable, value: str) -> list[_Piece]:
        if isinstance(shape.item, _Tabled):
            return [f"{self._table(shape.item, shape.null_index)}[{value}]"]
        out = self._variable()
        self._say(f"if {value} is None: {out} = {long_bytes(shape.null_index)!r}")
        with self._block("else:"):
            pieces = [long_bytes(1 - shape.null_index), *self._pieces(shape.item, value)]
            self._say(f"{out} = {' + '.join(_sources(pieces))}")
        return [out]

    def _record(self, shape: Record, value: str) -> list[_Piece]:
        return [piece for field in self._take_apart(shape, value) for piece in self._field(field)]

    def _take_apart(self, shape: Record, value: str) -> list[_Field]:
        """Give every field of a record a variable."""
        fields = [_Field(name, item, self._variable()) for name, item in shape.fields]
        if shape.positional:
            self._say(f"if type({value}) is not tuple: raise TypeError")
            self._say(f"{', '.join([field.variable for field in fields])}, = {value}")
        else:
            for field in fields:
                self._say(f"{field.variable} = {value}.{field.name}")
        return fields

    def _many(self, shape: Many, value: str) -> list[_Piece]:
        out, count = self._variable(), self._variable()
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
        names = [self._variable() for _ in shape.fields]
        pieces = [f"{self._table(item, None)}[{name}]" for name, (_, item) in zip(names, shape.fields, strict=True)]
        self._say(f"{out} = [{' + '.join(pieces)} for {', '.join(names)}, in {value}]")

    def _items(self, shape: Shape, value: str, out: str) -> None:
        item = self._variable()
        self._say(f"{out} = []")
        with self._block(f"for {item} in {value}:"):
            self._say(f"{out}.append({' + '.join(_sources(self._pieces(shape, item)))})")

    def _table(self, shape: Shape, null_index: int | None, lead: bytes = b"") -> str:
        """Return the name of the table from values of `shape` to `lead`, the branch of a nullable one, and bytes."""
        key = (shape, null_index, lead)
        if key not in self._tables:
            self._tables[key] = f"TABLE{len(self._tables)}"
            self.constants[self._tables[key]] = _table(*key)
        return self._tables[key]

    def _variable(self) -> str:
        self._variables += 1
        return f"v{self._variables}"

    def _say(self, line: str) -> None:
        self._lines.append("    " * self._indent + line)

    @contextmanager
    def _block(self, opening: str) -> Iterator[None]:
        self._say(opening)
        self._indent += 1
        yield
        self._indent -= 1


def _sources(pieces: Iterable[_Piece]) -> list[str]:
    """Return the expressions of some pieces, constants that stand together made one."""
    sources: list[str] = []
    for is_constant, group in groupby(pieces, lambda piece: isinstance(piece, bytes)):
        members = list(group)
        sources += [repr(b"".join(cast("list[bytes]", members)))] if is_constant else cast("list[str]", members)
    return sources


def _branches(fields: Sequence[_Field]) -> list[_Branch]:
    """Return the nullable records that stand at the end of a record, one beside the other."""
    branches: list[_Branch] = []
    for name, shape, variable in reversed(fields):
        if not isinstance(shape, Nullable) or not isinstance(shape.item, Record):
            break
        branches.insert(0, _Branch(name, shape, variable))
    return branches


def _is_tuple_of_tabled(shape: Shape) -> TypeGuard[Record]:
    return isinstance(shape, Record) and shape.positional and all(isinstance(item, _Tabled) for _, item in shape.fields)


def _table(shape: Shape, null_index: int | None, lead: bytes = b"") -> dict[Any, bytes]:
    prefix = lead if null_index is None else lead + long_bytes(1 - null_index)
    always = {} if null_index is None else {None: lead + long_bytes(null_index)}
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
