"""A private PostgreSQL for tests: its own cluster in a temporary folder, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USER, PASSWORD = "tester", "s3cret/pass@word"


def programs() -> Path | None:
    """Where `initdb` and `pg_ctl` are, if they are installed."""
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


def why_not() -> str | None:
    """Why PostgreSQL can't be started here, or None."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    with contextlib.suppress(ImportError):
        import psycopg  # noqa: F401

        return None
    return 'psycopg is not installed (pip install "transfer-bo[postgres]")'


def free_port() -> int:
    """A port that nobody listens on, a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Cluster:
    """A running server."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """Its address, password and all."""
        password = PASSWORD.replace("/", "%2F").replace("@", "%40")
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/postgres"

    def control(self, *arguments: str) -> None:
        """Run `pg_ctl` on it."""
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        command = ["pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w"]
        _run([*command, "-o", settings, *arguments], self.folder)

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is as a crash."""
        self.control("-m", mode, "stop")

    def start(self) -> None:
        """Start it again."""
        self.control("start")


def _run(command: list[str], folder: Path) -> None:
    where = programs()
    assert where is not None
    # PostgreSQL refuses to run as root, as tests in a container do.
    other = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
    subprocess.run(
        [str(where / command[0]), *command[1:]],
        check=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        **(other if os.geteuid() == 0 else {}),  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Make a cluster, start it, and remove it after the block."""
    folder = Path(tempfile.mkdtemp(prefix="transfer-bo-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        made = Cluster(folder, free_port())
        _run(
            [
                "initdb",
                "-D",
                str(folder / "data"),
                "-U",
                USER,
                "-A",
                "scram-sha-256",
                "--pwfile",
                str(secret),
            ],
            folder,
        )
        made.start()
        try:
            yield made
        finally:
            with contextlib.suppress(subprocess.SubprocessError):
                made.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
