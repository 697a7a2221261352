"""An agent that holds passphrases in memory for a while, and gives them to this user's processes alone.

One line each way over a Unix socket of mode 0600; both ends ask the kernel who the other is. Nothing is
written to disk, and the process can be neither dumped nor traced by its own user.
"""

import base64
import contextlib
import ctypes
import os
import resource
import socket
import stat
import struct
import time
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "bmif-agent.sock"
SOCKET_VARIABLE = "BMIF_AGENT_SOCKET"
REPLY_S = 2.0
"""Longest exchange: whoever is silent for longer is left."""
MAX_LINE = 4096
_PR_SET_DUMPABLE = 4
_CREDENTIALS = struct.Struct("3i")


class AgentError(ValueError):
    """The agent can't be reached as it should be, or is not this user's."""


def get_socket_path() -> Path | None:
    """`BMIF_AGENT_SOCKET`, else in `XDG_RUNTIME_DIR`; None where neither is set."""
    named, folder = os.environ.get(SOCKET_VARIABLE), os.environ.get("XDG_RUNTIME_DIR")
    if named:
        return Path(named)
    return Path(folder) / SOCKET_NAME if folder else None


def get_peer_user(connection: socket.socket) -> int:
    """The user at the other end, by the kernel's word."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _read_line(connection: socket.socket) -> str:
    data = b""
    end = time.monotonic() + REPLY_S
    while not data.endswith(b"\n") and len(data) < MAX_LINE:
        connection.settimeout(max(0.001, end - time.monotonic()))
        piece = connection.recv(MAX_LINE - len(data))
        if not piece:
            break
        data += piece
    return data.decode("ascii", "replace").strip()


def _exchange(line: str, path: Path | None = None) -> str | None:
    """The agent's answer to one line; None where no agent listens."""
    path = path or get_socket_path()
    if path is None or not path.exists():
        return None
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise AgentError(f"{path} is no socket; remove it, or name another by {SOCKET_VARIABLE}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REPLY_S)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None  # what an agent left behind that was killed
        except OSError as error:
            raise AgentError(f"the agent at {path} can't be reached: {error}") from error
        if get_peer_user(connection) != os.geteuid():
            raise AgentError(f"the agent at {path} is another user's; start your own `bmif keys agent`")
        try:
            connection.sendall(line.encode() + b"\n")
            return _read_line(connection)
        except (BrokenPipeError, ConnectionResetError):
            return None  # it had been told to stop, and ended before it came to this line
        except OSError as error:
            raise AgentError(f"the agent at {path} does not answer: {error}") from error


def ask_agent(purpose: str) -> str | None:
    """The passphrase that the agent holds for a purpose; None if there is no agent or it has none.

    Raises: AgentError.
    """
    answer = _exchange(f"get {purpose}")
    if answer is None or answer == "none":
        return None
    word, _, text = answer.partition(" ")
    try:
        if word == "ok":
            return base64.b64decode(text, validate=True).decode("utf-8")
    except ValueError:
        pass
    raise AgentError("the agent's answer can't be understood; stop it with `bmif keys agent --stop`")


def stop_agent() -> bool:
    """Have the agent end and forget; False if there is none. Raises: AgentError."""
    return _exchange("stop") is not None


def get_agent_status() -> str | None:
    """What the agent holds and for how long; None if there is none. Raises: AgentError."""
    return _exchange("status")


class Agent:
    """Holds passphrases by purpose and serves them until stopped or its time is over."""

    def __init__(self, path: Path, passphrases: Mapping[str, bytes], lifetime_s: float) -> None:
        """Listens at once. Raises: AgentError if another agent does, or its folder is open to others."""
        self._passphrases = dict(passphrases)
        self._end = time.monotonic() + lifetime_s
        self._path = path
        folder = path.absolute().parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise AgentError(f"others may write in {folder}; set XDG_RUNTIME_DIR to a folder of your own")
        if _exchange("status", path) is not None:
            raise AgentError(f"an agent listens at {path} already; `bmif keys agent --stop` ends it")
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise AgentError(f"{path}: {error}; name a shorter one by {SOCKET_VARIABLE}") from error
        finally:
            os.umask(before)
        self._socket.listen(16)

    def run(self) -> None:
        """Serve; the socket is gone when this returns."""
        try:
            while (left := self._end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    return
                with connection, contextlib.suppress(OSError):
                    if not self._serve(connection):
                        return
        finally:
            self._passphrases.clear()
            self._socket.close()
            self._path.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket) -> bool:
        """False once it is asked to stop."""
        if get_peer_user(connection) != os.geteuid():
            return True
        word, _, rest = _read_line(connection).partition(" ")
        answer = "unknown"
        if word == "get":
            found = self._passphrases.get(rest)
            answer = "none" if found is None else f"ok {base64.b64encode(found).decode()}"
        elif word == "status":
            held = ",".join(sorted(self._passphrases))
            answer = f"{held} {max(0, round(self._end - time.monotonic()))}"
        elif word == "stop":
            answer = "stopped"
        connection.sendall(answer.encode() + b"\n")
        return word != "stop"


def protect_process() -> None:
    """No core file of this process, and no look into its memory by its own user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def detach() -> bool:
    """Go on in a process of its own, apart from the terminal; False in the one that was started."""
    if os.fork():
        return False
    os.setsid()
    with open(os.devnull, "r+b") as nothing:
        for number in (0, 1, 2):
            os.dup2(nothing.fileno(), number)
    return True
