"""Counts what a process moves over its sockets, Dask's connections all of them: TLS taken off."""

from dataclasses import dataclass

from tornado.iostream import IOStream, SSLIOStream


@dataclass(slots=True)
class Wire:
    """Bytes since the counting began."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: "Wire") -> "Wire":
        return Wire(self.sent + other.sent, self.received + other.received)

    def minus(self, before: "Wire") -> "Wire":
        return Wire(self.sent - before.sent, self.received - before.received)


_wire = Wire()
_counted: set[type[IOStream]] = set()


def count_wire() -> None:
    """From now on, in this process; once is enough."""
    for stream in (IOStream, SSLIOStream):
        if stream not in _counted:
            _counted.add(stream)
            _wrap(stream)


def _wrap(stream: type[IOStream]) -> None:
    write, read = stream.write_to_fd, stream.read_from_fd

    def write_to_fd(self: IOStream, data: memoryview) -> int:
        count = write(self, data)
        _wire.sent += count
        return count

    def read_from_fd(self: IOStream, buffer: bytearray | memoryview) -> int | None:
        count = read(self, buffer)
        _wire.received += count or 0
        return count

    stream.write_to_fd = write_to_fd  # type: ignore[method-assign]
    stream.read_from_fd = read_from_fd  # type: ignore[method-assign, assignment]


def read_wire() -> Wire:
    """What this process moved so far."""
    return Wire(_wire.sent, _wire.received)
