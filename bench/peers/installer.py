"""Installs the systems that zbroker is measured beside, each from its own packages by the ordinary clients.

    bench/peers/install [kafka] [nats] [rabbitmq] [redis]

Everything goes into `bench/peers/.installed` (or `$ZBROKER_BENCH_PEERS`), but for Debian's packages of RabbitMQ and
Redis, which take root. What cannot be installed is said in a sentence and is skipped later; how long it took and what
it takes of the disk is kept beside it. Uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOAD = Path(__file__).with_name("load")
HOME = Path(os.environ.get("ZBROKER_BENCH_PEERS", Path(__file__).with_name(".installed")))
NATS_SERVER = "github.com/nats-io/nats-server/v2@v2.15.2"
CLIENTS = {
    "kafka": "confluent-kafka==2.16.1",
    "nats": "nats-py==2.16.0",
    "rabbitmq": "rstream==1.1.1",
    "redis": "redis[hiredis]==8.1.0",
}
DEBIAN = {
    "rabbitmq": ("/usr/lib/rabbitmq/bin/rabbitmq-server", ["rabbitmq-server", "erlang-*"]),
    "redis": ("/usr/bin/redis-server", ["redis-server", "redis-tools"]),
}


def python_of(name: str) -> Path:
    """The Python on which a peer's client is installed."""
    return HOME / name / "venv" / "bin" / "python"


def run(*command: object, **env: str) -> None:
    """Runs an installer's step; its output is shown only where it fails."""
    found = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if found.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command))}` failed: {found.stdout.strip()[-800:]}")


def needs(*programs: str) -> None:
    """Programs that have to be there."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        raise RuntimeError(f"it needs {', '.join(missing)}")


def client(name: str) -> None:
    """Its Python client, in an environment of its own."""
    if not python_of(name).exists():
        run(sys.executable, "-m", "venv", HOME / name / "venv")
    run(python_of(name), "-m", "pip", "install", "-q", CLIENTS[name])


def debian(name: str) -> None:
    """Its server, from Debian's packages; a service that they start is stopped."""
    program, packages = DEBIAN[name]
    if Path(program).exists():
        return
    needs("apt-get")
    if os.geteuid():
        raise RuntimeError(f"Debian's {packages[0]} is not installed, and installing it takes root")
    run("apt-get", "update", "-qq")
    run(
        "apt-get", "install", "-y", "-qq", "--no-install-recommends", packages[0],
        DEBIAN_FRONTEND="noninteractive",
    )  # fmt: skip
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "stop", packages[0]], check=False, capture_output=True)


def maven(name: str, source: str) -> None:
    """Its jars, and the load generator compiled against them."""
    needs("java", "javac", "mvn")
    lib, classes = HOME / name / "lib", HOME / name / "classes"
    run(
        "mvn", "-B", "-q", "-f", LOAD / f"{name}.xml", "dependency:copy-dependencies",
        "-DincludeScope=runtime", f"-DoutputDirectory={lib}",
    )  # fmt: skip
    run("javac", "-cp", f"{lib}/*", "-d", classes, LOAD / "Words.java", LOAD / source)


def kafka() -> None:
    """Server and Java client from Maven Central, confluent-kafka from PyPI."""
    maven("kafka", "KafkaLoad.java")
    client("kafka")


def nats() -> None:
    """Server and Go client as Go modules, nats-py from PyPI."""
    needs("go")
    folder = HOME / "nats"
    run("go", "install", NATS_SERVER, GOBIN=str(folder / "bin"))
    run("go", "build", "-C", LOAD / "natsload", "-o", folder / "bin" / "natsload", ".")
    client("nats")


def rabbitmq() -> None:
    """Server from Debian, Java client from Maven Central, rstream from PyPI."""
    debian("rabbitmq")
    maven("rabbitmq", "RabbitLoad.java")
    client("rabbitmq")


def redis() -> None:
    """Server and its own benchmark from Debian, redis-py from PyPI."""
    debian("redis")
    client("redis")


def size_of(name: str) -> int:
    """Bytes on disk of the server's part, without the clients in Python."""
    if name in DEBIAN:
        listed = subprocess.run(
            ["dpkg-query", "-Wf", "${db:Status-Abbrev} ${Installed-Size}\n", *DEBIAN[name][1]],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        return 1024 * sum(int(row.split()[1]) for row in listed.splitlines() if row[:2] == "ii")
    folder = HOME / name / ("lib" if name == "kafka" else "bin")
    return sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.is_file() and path.name != "natsload"
    )


INSTALLERS: dict[str, Callable[[], None]] = {
    "kafka": kafka,
    "nats": nats,
    "rabbitmq": rabbitmq,
    "redis": redis,
}


def install(name: str) -> str | None:
    """None once it is there, or a sentence that says why it is not."""
    kept = HOME / f"{name}.json"
    kept.unlink(missing_ok=True)
    (HOME / name).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        INSTALLERS[name]()
    except (OSError, RuntimeError) as error:
        return f"{name} is not installed: {error}"
    facts = {"seconds": round(time.monotonic() - start, 1), "bytes": size_of(name)}
    kept.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return None


def main() -> None:
    """Installs what is named; exits with 1 where anything is missing."""
    wanted = sys.argv[1:] or list(INSTALLERS)
    unknown = [name for name in wanted if name not in INSTALLERS]
    if unknown:
        sys.exit(f"there is no {', '.join(unknown)}; there are {', '.join(INSTALLERS)}")
    failed = [sentence for name in wanted if (sentence := install(name))]
    for name in wanted:
        if (HOME / f"{name}.json").exists():
            print(f"{name}: {(HOME / f'{name}.json').read_text(encoding='utf-8').strip()}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
