"""The command line without a server: help, arguments that are wrong, files that are wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from completing import complete

from zbroker import __version__
from zbroker.cli.root import COMMANDS, cli
from zbroker.testing.nodes import free_ports

ENVIRONMENT = {"ZBROKER_DEBUG": "", "ZBROKER_SERVERS": None}


def invoke(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner(env=ENVIRONMENT).invoke(cli, arguments, input=stdin, prog_name="zbroker")


def one_sentence(result: Result, status: int) -> str:
    """What a failure says: one line on standard error, and nothing else anywhere."""
    assert result.exit_code == status, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("zbroker: error: ")
    assert "Traceback" not in result.output
    assert not result.stdout
    return lines[0].removeprefix("zbroker: error: ")


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


EVERY = list(commands())
IDS = [" ".join(path) or "zbroker" for path, _ in EVERY]


# Help ---


@pytest.mark.parametrize(("path", "command"), EVERY, ids=IDS)
def test_help_ends_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert not result.stderr
    last = result.stdout.rstrip().splitlines()[-1]
    assert "zbroker" in last
    title = next(line for line in reversed(result.stdout.splitlines()) if "Example" in line)
    examples = result.stdout.split(title)[1].splitlines()
    for example in filter(None, map(str.strip, examples)):
        check_example(example)


def check_example(example: str) -> None:
    """An example's arguments are what its command takes."""
    text = example.replace('eval "$(', "").replace(')"', "").split(" | ")[-1]
    words = shlex.split(text.split(" > ")[0].split(" < ")[0])
    assert words[0] == "zbroker", example
    command: click.Command = cli
    arguments = words[1:]
    context = click.Context(cli)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None, example
        command = found
    command.make_context(command.name, arguments)


def test_help_names_every_command_and_version() -> None:
    result = invoke("--help")
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert invoke("--version").stdout == f"zbroker {__version__}\n"


def test_help_loads_no_socket_library() -> None:
    code = (
        "import sys\n"
        "from zbroker.cli.root import cli\n"
        "sys.argv = ['zbroker', *sys.argv[1:]]\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["produce", "--help"], ["topic", "create", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        loaded = set(done.stderr.split())
        assert "click" in loaded
        assert not loaded & {"zmq", "rich", "yaml", "msgspec", "asyncio", "prometheus_client"}


def test_python_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"zbroker {__version__}\n"


# Arguments ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nope", "there is no command 'nope'"),
        ("produec t", "did you mean 'produce'?"),
        ("topic nope", "nope"),
        ("--nope", "--nope"),
        ("run", "missing argument 'CONFIG'"),
        ("produce", "missing argument 'TOPIC'"),
        ("produce t --acks most", "'most' is not one of 'all', 'leader', 'none'"),
        ("produce t --compression gzip", "'gzip' is not one of 'none', 'lz4', 'zstd'"),
        ("produce t --on-error retry", "'retry' is not one of 'stop', 'skip'"),
        ("produce t --json --null", "--json and --null exclude each other"),
        ("produce t --json --key-separator =", "--json and --key-separator exclude each other"),
        (r"produce t --key-separator '\q'", r"found '\q', expected \t, \n"),
        ("produce t --key-separator ''", "found nothing"),
        (r"produce t --key-separator '\n'", "holds a line's end"),
        (r"produce t --key-separator '\0' --null", "holds NUL"),
        ("produce bad/name", "found topic name 'bad/name'"),
        ("produce t --servers nowhere", "expected HOST:PORT"),
        ("produce t --servers ''", "found no server"),
        ("produce t --timeout soon", "found 'soon', expected seconds"),
        ("produce t --timeout 0", "expected more than no time"),
        ("topic create t --partitions 0", "0 is not in the range"),
        ("topic create t --set retention", "expected KEY=VALUE"),
        ("topic create t --set colour=red", "unknown setting 'colour'"),
        ("topic create t --set retenton=7d", "did you mean 'retention'?"),
        ("topic create t --set retention=soon", "found 'soon'"),
        (
            "topic create t --set cleanup=compact,burn",
            "expected delete or compact or compact,delete",
        ),
        ("topic create t --partitions 2 --set partitions=3", "partitions is given twice"),
        ("topic create __t", "begin with __"),
        ("topic create ''", "found topic name ''"),
        (f"topic create {'x' * 250}", "1 to 249"),
        ("topic alter t", "nothing to change"),
        ("topic delete-records t", "missing option '--before'"),
        ("topic delete-records t --before soon", "found 'soon', expected earliest"),
        ("dev --port 65533", "65533 is not in the range"),
        ("dev --nodes 0", "0 is not in the range"),
        ("dev --nodes 3 --port 65515", "3 nodes need ports up to 65538"),
        ("topic accept-loss t --yes", "missing option '--partition'"),
        ("topic move t --partition -1", "-1 is not in the range"),
        ("topic move t --to node1,,node2", "expected names of nodes, such as node1,node2"),
        ("topic move t --to node1,node1", "in which node1 stands twice"),
        ("cluster drain", "missing argument 'NODE'"),
        ("cluster drain ''", "expected a node's name"),
        ("cluster replace-voter", "missing argument 'NODE'"),
        ("cluster status --watch soon", "found 'soon', expected seconds"),
        ("group describe", "missing argument 'GROUP'"),
        ("group describe ''", "found '', expected 1 to 255 characters"),
        ("group describe g --watch soon", "found 'soon', expected seconds"),
        ("group reset g", "say where to"),
        ("group reset g --to latest --shift 1", "say where to"),
        ("group reset g --to soon", "found 'soon', expected earliest"),
        ("group reset g --shift far", "'far' is not a valid integer"),
        ("group reset g --to 0 --partition 1", "give one --topic"),
        ("group reset g --to 0 --topic bad/name", "found topic name 'bad/name'"),
        ("consume t --group g --partition 0", "--group and --partition exclude each other"),
        ("consume t --group ''", "found '', expected 1 to 255 characters"),
        ("run x --log-format xml", "'xml' is not one of"),
        ("completion tcsh", "'tcsh' is not one of"),
    ],
)
def test_what_is_wrong_in_the_arguments(line: str, said: str) -> None:
    sentence = one_sentence(invoke(*shlex.split(line)), 2)
    assert said in sentence
    assert "--help`" in sentence


def test_no_command_at_all_shows_help() -> None:
    for path in ((), ("topic",), ("log",), ("config",), ("cluster",)):
        result = invoke(*path)
        assert result.exit_code == 2
        assert "Usage: zbroker" in result.stderr
        assert not result.stdout


def test_servers_come_from_the_environment() -> None:
    runner = CliRunner(env={**ENVIRONMENT, "ZBROKER_SERVERS": "nonsense"})
    result = runner.invoke(cli, ["topic", "list"], prog_name="zbroker")
    assert "found 'nonsense', expected HOST:PORT" in one_sentence(result, 2)


# Files ---


def test_config_init_writes_what_check_accepts(tmp_path: Path) -> None:
    file = tmp_path / "node1.yaml"
    result = invoke("config", "init", str(file))
    assert result.exit_code == 0
    assert f"wrote {file}" in result.stderr
    assert not result.stdout
    checked = invoke("config", "check", str(file))
    assert checked.exit_code == 0
    assert checked.stdout.startswith(f"{file}: ok: node node1 at 127.0.0.1:5550")

    file.write_text("mine")
    assert "exists; choose another name" in one_sentence(invoke("config", "init", str(file)), 1)
    assert "exists" in one_sentence(invoke("config", "init", str(tmp_path)), 1)
    assert file.read_text() == "mine"
    assert invoke("config", "init", str(file), "--force").exit_code == 0
    assert file.read_text() != "mine"


def test_config_init_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "node1.yaml"
    assert str(path) in one_sentence(invoke("config", "init", str(path)), 1)


@pytest.mark.parametrize("command", [("run",), ("config", "check")])
def test_a_wrong_configuration(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "node: node1\ndata: d\ncluster:\n  nam: lab\n  nodes: {node1: localhost:5550}\n"
    )
    sentence = one_sentence(invoke(*command, str(file)), 1)
    assert sentence.startswith(f"{file}:4:3: ")
    assert "'nam'" in sentence
    missing = tmp_path / "missing.yaml"
    assert str(missing) in one_sentence(invoke(*command, str(missing)), 1)
    assert str(tmp_path) in one_sentence(invoke(*command, str(tmp_path)), 1)


@pytest.mark.parametrize("name", ["node1.yaml", "node2.yaml", "cluster.yaml"])
def test_a_dev_cluster_overwrites_no_file_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("node: mine\n")
    result = invoke("dev", "--nodes", "2", "--data", str(tmp_path), "--port", str(free_ports(14)))
    assert result.exit_code == 1
    assert f"{tmp_path / name} exists and is not from `zbroker dev`" in result.stderr
    assert (tmp_path / name).read_text() == "node: mine\n"


# Servers that are not there ---


@pytest.mark.parametrize(
    "line",
    [
        "topic list",
        "topic create t",
        "topic describe t",
        "topic alter t --partitions 2",
        "topic delete t",
        "topic delete-records t --before latest",
        "topic move t",
        "topic accept-loss t --partition 0",
        "cluster status",
        "cluster status --watch",
        "cluster drain node1",
        "cluster add-voter node1",
        "produce t",
        "consume t",
    ],
)
def test_nobody_answers(line: str) -> None:
    server = f"127.0.0.1:{free_ports()}"
    result = invoke(*shlex.split(line), "--servers", server, "--timeout", "200ms")
    sentence = one_sentence(result, 1)
    assert server in sentence
    assert "`zbroker dev`" in sentence


# Completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_ZBROKER_COMPLETE" in result.stdout


def test_completing_commands_and_options() -> None:
    name = "__main__.py" if "__main__" in complete("zbroker pro") else "zbroker"
    assert complete(f"{name} pro") == ["produce"]
    assert "describe" in complete(f"{name} topic ")
    assert complete(f"{name} produce t --acks l") == ["leader"]


def test_completing_a_topic_of_no_server() -> None:
    server = f"127.0.0.1:{free_ports()}"
    assert complete("zbroker topic describe ", ZBROKER_SERVERS=server) == []


# What should not happen ---


def test_a_bug_is_one_sentence_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines\x1b[2J")

    monkeypatch.setattr("zbroker.config.load", broken)
    sentence = one_sentence(invoke("run", "x.yaml"), 1)
    assert "RuntimeError: two\\nlines\\x1b[2J; run it again with ZBROKER_DEBUG=1" in sentence
    shown = CliRunner(env={"ZBROKER_DEBUG": "1"}).invoke(cli, ["run", "x.yaml"])
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zbroker.config.load", interrupted)
    assert invoke("run", "x.yaml").exit_code == 130


def test_json_on_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from zbroker.cli.common import say_json

    say_json({"a": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}
