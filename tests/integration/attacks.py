"""Requests that no HTTP server should take, as bytes: for the public API and for the peer port alike."""

import asyncio
import gzip
import re
import ssl
import zlib
from dataclasses import dataclass

DEADLINE_S = 20.0
STATUS_LINE = re.compile(rb"HTTP/1\.[01] [0-9]{3} ")


@dataclass(frozen=True, slots=True)
class Attack:
    """One exchange: bytes, and the only status that may answer the first of them; nothing may answer more."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = (400,)


def _post(path: str, headers: bytes, body: bytes = b"") -> bytes:
    return b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def build_smuggling(path: str) -> list[Attack]:
    """Two readings of where a request ends, for a path that takes posts."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    chunked, end = b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"
    return [
        Attack("both lengths", _post(path, b"Content-Length: 5\r\n" + chunked, end + hidden)),
        Attack("both lengths, other order", _post(path, chunked + b"Content-Length: 5\r\n", end + hidden)),
        Attack("two lengths", _post(path, b"Content-Length: 0\r\nContent-Length: 33\r\n", hidden)),
        Attack("one length twice", _post(path, b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}")),
        Attack("list of lengths", _post(path, b"Content-Length: 0, 33\r\n", hidden)),
        Attack("negative length", _post(path, b"Content-Length: -1\r\n", hidden)),
        Attack("signed length", _post(path, b"Content-Length: +2\r\n", b"{}")),
        Attack("hexadecimal length", _post(path, b"Content-Length: 0x2\r\n", b"{}")),
        Attack("endless length", _post(path, b"Content-Length: " + b"9" * 40 + b"\r\n")),
        Attack("endless chunk", _post(path, chunked, b"F" * 20 + b"\r\n")),
        Attack("negative chunk", _post(path, chunked, b"-1\r\n")),
        Attack("chunk without end", _post(path, chunked, b"2\r\n{}" + b"x" * 40), (400, 413, 415)),
        Attack("other coding", _post(path, b"Transfer-Encoding: xchunked\r\n", end + hidden)),
        Attack(
            "coding after chunked", _post(path, b"Transfer-Encoding: chunked, identity\r\n", end + hidden)
        ),
        Attack("two codings", _post(path, chunked + chunked, end + hidden)),
        Attack("space before the colon", _post(path, b"Transfer-Encoding : chunked\r\n", end + hidden)),
        Attack("tab in a name", _post(path, b"Transfer-\tEncoding: chunked\r\n", end + hidden)),
        Attack("folded header", _post(path, b"Transfer-Encoding:\r\n chunked\r\n", end + hidden)),
        Attack("bare line feeds", b"POST " + path.encode() + b" HTTP/1.1\nHost: x\n\n" + hidden),
        Attack("bare line feed in headers", _post(path, b"A: b\nContent-Length: 33\r\n", hidden)),
        Attack("bare carriage return", _post(path, b"A: b\rContent-Length: 33\r\n", hidden)),
        Attack("null byte", _post(path, b"A: b\x00\r\n", hidden)),
        Attack("other version", b"POST " + path.encode() + b" HTTP/9.9\r\nHost: x\r\n\r\n"),
        Attack("no host", b"POST " + path.encode() + b" HTTP/1.1\r\n\r\n"),
        Attack("two hosts", _post(path, b"Host: y\r\n")),
    ]


def build_oversize(path: str) -> list[Attack]:
    """More of headers than a server keeps."""
    many = b"".join(b"X-%d: a\r\n" % number for number in range(2_000))
    return [
        Attack("long header", _post(path, b"X: " + b"a" * 100_000 + b"\r\n")),
        Attack("long name of a header", _post(path, b"X" * 100_000 + b": a\r\n")),
        Attack("many headers", _post(path, many)),
        Attack("long path", _post(path + "?" + "a" * 100_000, b"")),
        Attack("long method", b"A" * 100_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n"),
        Attack("no request", bytes(1_000)),
    ]


def build_bombs(path: str, size: int = 16 * 1024 * 1024) -> list[Attack]:
    """Bodies that would become `size` bytes."""
    data = bytes(size)
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = squeezed.compress(data) + squeezed.flush()
    bodies = (
        ("gzip", gzip.compress(data)),
        ("deflate", zlib.compress(data)),
        ("deflate", raw),
        ("br", b"\x5b" * 99),
    )
    return [
        Attack(
            f"{coding} of {len(body)} bytes",
            _post(
                path,
                b"Content-Type: application/json\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n"
                % (coding.encode(), len(body)),
                body,
            ),
            (400, 413, 415, 422),
        )
        for coding, body in bodies
    ]


async def exchange(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """What is answered until the server closes the connection or says no more of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            if b"close" in answer.lower() or answer.startswith(b"HTTP/1.0"):
                answer += await reader.read()
        return answer
    except (ConnectionError, ssl.SSLError):
        return b""
    finally:
        writer.close()


async def check(port: int, attack: Attack, context: ssl.SSLContext | None = None) -> None:
    """The attack is answered once, by a refusal; a connection that is cut off counts as one."""
    try:
        answer = await exchange(port, attack.data, context)
    except asyncio.IncompleteReadError as error:
        answer = error.partial
    if answer:
        assert int(answer.split(b" ", 2)[1]) in attack.statuses, (attack.name, answer[:200])
    assert len(STATUS_LINE.findall(answer)) <= 1, (attack.name, answer[:400])
