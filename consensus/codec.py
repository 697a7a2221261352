"""Canonical msgpack: one value has exactly one encoding, and nothing else decodes.

Dataclasses are arrays in field order, tuples arrays, `None` nil, enums their text; a field whose type is a
union of dataclasses is the array [tag, fields...] with tags from 0 in the order of the union. The decoder
is driven by the expected type, so hostile bytes can neither nest deeper than that type nor claim memory
that their own length does not pay for.
"""

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from consensus.types import MAX_AMOUNT, Address, Amount, Hash32, Height, Millis, Signature

T = TypeVar("T")

ToWire = Callable[[object], object]
"""Checks a value's type and turns it into what msgpack packs."""
Parse = Callable[[bytes, int], tuple[object, int]]
"""Reads a value at a position; returns it with the position after it."""

MIN_INT = -(2**63)
MAX_INT = 2**64 - 1


class CodecError(ValueError):
    """The value has no encoding, or the bytes are not the canonical encoding of the expected type."""


class NonCanonicalError(CodecError):
    """The bytes mean a value of the expected type but are not its one encoding."""


def encode(value: object) -> bytes:
    """The canonical bytes of a dataclass instance.

    Raises: CodecError if a field has another type than declared or an integer out of range.
    """
    return pack(_get_codec(type(value))[0](value))


def encode_integers(values: tuple[int, ...]) -> bytes:
    """The canonical bytes of a tuple of integers."""
    return pack(_integers_to_wire(values))


def decode(cls: type[T], data: bytes) -> T:
    """The instance of `cls` whose `encode` is exactly `data`.

    Raises: CodecError for anything else, NonCanonicalError where only the form is wrong.
    """
    value = decode_stored(cls, data)
    if encode(value) != data:
        raise NonCanonicalError("not the canonical encoding")
    return value


def decode_stored(cls: type[T], data: bytes) -> T:
    """Like `decode` for bytes whose hash is already known to be ours: skips the canonical comparison."""
    value, end = _get_codec(cls)[1](data, 0)
    if end != len(data):
        raise CodecError(f"{len(data) - end} bytes too many")
    return cast(T, value)


def decode_leading_integer(data: bytes, at: int) -> int:
    """The integer that begins at this position, whatever follows it. Raises: CodecError."""
    return _parse_integer(data, at)[0]


def pack(wire: object) -> bytes:
    try:
        return cast(bytes, msgpack.packb(wire, use_bin_type=True))
    except (OverflowError, ValueError, TypeError) as error:
        raise CodecError(str(error)) from error


# --- integers, bytes, text --------------------------------------------------------------------

_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_SIGNED = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}


def _read_byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CodecError("truncated")
    return data[at]


def _read_number(data: bytes, at: int, size: int, signed: bool) -> int:
    if at + size > len(data):
        raise CodecError("truncated")
    return int.from_bytes(data[at : at + size], "big", signed=signed)


def _parse_integer(data: bytes, at: int) -> tuple[int, int]:
    head = _read_byte(data, at)
    if head < 0x80:
        return head, at + 1
    if head >= 0xE0:
        return head - 256, at + 1
    if size := _UNSIGNED.get(head):
        return _read_number(data, at + 1, size, False), at + 1 + size
    if size := _SIGNED.get(head):
        return _read_number(data, at + 1, size, True), at + 1 + size
    raise CodecError(f"expected an integer, got type byte {head:#04x}")


def _parse_sized(data: bytes, at: int, sizes: dict[int, int], what: str) -> tuple[bytes, int]:
    head = _read_byte(data, at)
    if what == "text" and 0xA0 <= head < 0xC0:
        length, start = head - 0xA0, at + 1
    elif size := sizes.get(head):
        length, start = _read_number(data, at + 1, size, False), at + 1 + size
    else:
        raise CodecError(f"expected {what}, got type byte {head:#04x}")
    if start + length > len(data):
        raise CodecError("truncated")
    return data[start : start + length], start + length


def _parse_array_length(data: bytes, at: int) -> tuple[int, int]:
    head = _read_byte(data, at)
    if 0x90 <= head < 0xA0:
        return head - 0x90, at + 1
    if size := _ARRAY.get(head):
        length = _read_number(data, at + 1, size, False)
        if length > len(data) - at:
            raise CodecError("an array longer than the bytes that follow")
        return length, at + 1 + size
    raise CodecError(f"expected an array, got type byte {head:#04x}")


def _build_integer_codec(low: int, high: int) -> tuple[ToWire, Parse]:
    def to_wire(value: object) -> object:
        if type(value) is not int or not low <= value <= high:
            raise CodecError(f"expected an integer from {low} to {high}, got {value!r:.80}")
        return value

    def parse(data: bytes, at: int) -> tuple[object, int]:
        value, end = _parse_integer(data, at)
        if not low <= value <= high:
            raise CodecError(f"expected an integer from {low} to {high}, got {value}")
        return value, end

    return to_wire, parse


def _build_bytes_codec(lengths: tuple[int, ...]) -> tuple[ToWire, Parse]:
    def check(value: bytes) -> None:
        if lengths and len(value) not in lengths:
            raise CodecError(f"expected {lengths} bytes, got {len(value)}")

    def to_wire(value: object) -> object:
        if type(value) is not bytes:
            raise CodecError(f"expected bytes, got {type(value).__name__}")
        check(value)
        return value

    def parse(data: bytes, at: int) -> tuple[object, int]:
        value, end = _parse_sized(data, at, _BYTES, "bytes")
        check(value)
        return value, end

    return to_wire, parse


def _text_to_wire(value: object) -> object:
    if type(value) is not str:
        raise CodecError(f"expected text, got {type(value).__name__}")
    return value


def _parse_text(data: bytes, at: int) -> tuple[object, int]:
    value, end = _parse_sized(data, at, _TEXT, "text")
    try:
        return value.decode("utf-8"), end
    except UnicodeDecodeError as error:
        raise CodecError("text is not UTF-8") from error


def _boolean_to_wire(value: object) -> object:
    if type(value) is not bool:
        raise CodecError(f"expected a boolean, got {type(value).__name__}")
    return value


def _parse_boolean(data: bytes, at: int) -> tuple[object, int]:
    head = _read_byte(data, at)
    if head not in (0xC2, 0xC3):
        raise CodecError(f"expected a boolean, got type byte {head:#04x}")
    return head == 0xC3, at + 1


# --- composites -------------------------------------------------------------------------------


def _integers_to_wire(value: object) -> object:
    if type(value) is not tuple:
        raise CodecError(f"expected a tuple, got {type(value).__name__}")
    for item in value:
        if type(item) is not int or not MIN_INT <= item <= MAX_INT:
            raise CodecError(f"expected an integer from {MIN_INT} to {MAX_INT}, got {item!r:.80}")
    return value


def _build_tuple_codec(item_type: object) -> tuple[ToWire, Parse]:
    item_to_wire, item_parse = _compile(item_type)

    def to_wire(value: object) -> object:
        if type(value) is not tuple:
            raise CodecError(f"expected a tuple, got {type(value).__name__}")
        return [item_to_wire(item) for item in value]

    def parse(data: bytes, at: int) -> tuple[object, int]:
        length, at = _parse_array_length(data, at)
        items = []
        for _ in range(length):
            item, at = item_parse(data, at)
            items.append(item)
        return tuple(items), at

    return (_integers_to_wire if item_type is int else to_wire), parse


def _build_enum_codec(cls: type[Enum]) -> tuple[ToWire, Parse]:
    def to_wire(value: object) -> object:
        if type(value) is not cls:
            raise CodecError(f"expected {cls.__name__}, got {value!r:.80}")
        return value.value

    def parse(data: bytes, at: int) -> tuple[object, int]:
        text, end = _parse_text(data, at)
        try:
            return cls(text), end
        except ValueError as error:
            raise CodecError(str(error)) from error

    return to_wire, parse


FieldCodec = tuple[Callable[[object], list[object]], Callable[[bytes, int, int], tuple[object, int]]]
"""Fields of a dataclass without their array: to a list, and from (bytes, position, number of fields)."""

# Derived from the classes alone, hence the same whoever fills them first.
_FIELDS: dict[type, FieldCodec] = {}
_CODECS: dict[type, tuple[ToWire, Parse]] = {}


def _get_fields(cls: type) -> FieldCodec:
    codec = _FIELDS.get(cls)
    if codec is None:
        codec = _FIELDS[cls] = _compile_fields(cls)
    return codec


def _compile_fields(cls: type) -> FieldCodec:
    hints = get_type_hints(cls)
    names = tuple(field.name for field in fields(cls))
    codecs = [_compile(hints[name]) for name in names]
    encoders = [codec[0] for codec in codecs]
    parsers = [codec[1] for codec in codecs]
    count = len(names)
    read = attrgetter(*names) if count > 1 else lambda value: (getattr(value, names[0]),)

    def to_list(value: object) -> list[object]:
        if type(value) is not cls:
            raise CodecError(f"expected {cls.__name__}, got {type(value).__name__}")
        return [encoder(item) for encoder, item in zip(encoders, read(value), strict=True)]

    def parse(data: bytes, at: int, length: int) -> tuple[object, int]:
        if length != count:
            raise CodecError(f"{cls.__name__} has {count} fields, got {length}")
        values = []
        for parser in parsers:
            value, at = parser(data, at)
            values.append(value)
        return cls(*values), at

    return to_list, parse


def _build_dataclass_codec(cls: type) -> tuple[ToWire, Parse]:
    to_list, parse_fields = _get_fields(cls)

    def parse(data: bytes, at: int) -> tuple[object, int]:
        length, at = _parse_array_length(data, at)
        return parse_fields(data, at, length)

    return to_list, parse


def _build_optional_codec(item_type: object) -> tuple[ToWire, Parse]:
    item_to_wire, item_parse = _compile(item_type)

    def to_wire(value: object) -> object:
        return None if value is None else item_to_wire(value)

    def parse(data: bytes, at: int) -> tuple[object, int]:
        if _read_byte(data, at) == 0xC0:
            return None, at + 1
        return item_parse(data, at)

    return to_wire, parse


def _build_union_codec(members: tuple[type, ...]) -> tuple[ToWire, Parse]:
    codecs = [_get_fields(member) for member in members]
    tags = {member: tag for tag, member in enumerate(members)}

    def to_wire(value: object) -> object:
        tag = tags.get(type(value))
        if tag is None:
            raise CodecError(f"{type(value).__name__} is no member of this union")
        return [tag, *codecs[tag][0](value)]

    def parse(data: bytes, at: int) -> tuple[object, int]:
        length, at = _parse_array_length(data, at)
        tag, at = _parse_integer(data, at)
        if not 0 <= tag < len(codecs):
            raise CodecError(f"unknown tag {tag}")
        return codecs[tag][1](data, at, length - 1)

    return to_wire, parse


_SPECIAL: dict[object, tuple[ToWire, Parse]] = {
    int: _build_integer_codec(MIN_INT, MAX_INT),
    Amount: _build_integer_codec(0, MAX_AMOUNT),
    Height: _build_integer_codec(0, MAX_AMOUNT),
    Millis: _build_integer_codec(0, MAX_AMOUNT),
    bytes: _build_bytes_codec(()),
    Hash32: _build_bytes_codec((32,)),
    Address: _build_bytes_codec((32,)),
    Signature: _build_bytes_codec((0, 64)),  # empty while what it will sign is being built
    str: (_text_to_wire, _parse_text),
    bool: (_boolean_to_wire, _parse_boolean),
}


def _get_codec(cls: type) -> tuple[ToWire, Parse]:
    codec = _CODECS.get(cls)
    if codec is None:
        if not is_dataclass(cls):
            raise CodecError(f"expected a dataclass, got {cls.__name__}")
        codec = _CODECS[cls] = _build_dataclass_codec(cls)
    return codec


def _compile(annotation: object) -> tuple[ToWire, Parse]:
    if annotation in _SPECIAL:
        return _SPECIAL[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _build_tuple_codec(arguments[0])
    if origin in (Union, types.UnionType):
        if types.NoneType in arguments:
            (item_type,) = (item for item in arguments if item is not types.NoneType)
            return _build_optional_codec(item_type)
        return _build_union_codec(arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _build_enum_codec(annotation)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _get_codec(annotation)
    raise CodecError(f"no encoding for {annotation!r}")
