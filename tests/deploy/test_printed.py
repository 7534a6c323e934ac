"""What is printed for real machines says what a local deployment does, and starts nothing."""

from __future__ import annotations

import shlex
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args

from fedsim.real import commands
from fedsim.real.certificates import main, make_certificates

Cli = Callable[..., Any]


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no process begin."""

    def refuse(*_words: object, **_named: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_blocks(cli: Cli, scenario_file: Callable[..., Path], nothing_starts: None) -> None:
    """One block for the server and one for each client: what is set, TLS, a key of its own for each, nothing that reaches out."""
    answer = cli("deploy", scenario_file(), "--nodes", 3, "--set", "server.rounds=4", "--seed", 5, "--print")
    server, *clients = answer.out.split("\n# --- Client ")
    typed = [shlex.split(line, comments=True) for line in server.splitlines() if line and not line.startswith("#")]
    runs = next(words for words in typed if words[:2] == ["flwr", "run"])
    link = next(words for words in typed if words and words[0] == "flower-superlink")

    assert (0, 3) == (answer.code, len(clients))
    assert {"set": '["server.rounds=4"]', "seed": 5, "nodes": 3, "time-scale": 1.0} == parse_config_args([runs[-2]])
    assert {"--enable-supernode-auth", "--ssl-certfile", "--disable-runtime-dependency-installation"} <= set(link)
    assert 3 == sum(words[:3] == ["flwr", "supernode", "register"] for words in typed)
    for number, block in enumerate(clients):
        node = shlex.split(next(line for line in block.splitlines() if line.startswith("flower-supernode")))
        assert f"certificates/node-{number}.key" == node[node.index("--auth-supernode-private-key") + 1]
        assert node[node.index("--node-config") + 1].startswith(f"partition-id={number} num-partitions=3 ")
        assert all(f"{name}={value}" in block for name, value in commands.QUIET.items())


def test_compose(cli: Cli, scenario_file: Callable[..., Path], nothing_starts: None) -> None:
    """The compose file is YAML with a service for the server, one for each client with its own key alone, and one for the run."""
    answer = cli("deploy", scenario_file(), "--nodes", 2, "--print", "--compose")
    services = yaml.safe_load(answer.out)["services"]

    assert {"superlink", "registered", "run", "supernode-0", "supernode-1"} == set(services)
    for number in range(2):
        node = services[f"supernode-{number}"]
        assert f"/certificates/node-{number}.key" in node["command"]
        assert [f"node-{number}.key"] == [v.split(":")[1].rpartition("/")[2] for v in node["volumes"] if ".key" in v]
        assert {"registered": {"condition": "service_completed_successfully"}} == node["depends_on"]
    assert "1" == services["superlink"]["environment"]["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"]


def test_certificates(tmp_path: Path) -> None:
    """The server's certificate holds for its names and was signed by the authority; keys are P-384 and nobody else can read them."""
    made = make_certificates(tmp_path, 2, ["fed.example.org", "127.0.0.1"])
    authority, server = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (made.authority, made.server))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ssl.create_default_context(cafile=str(made.authority)).load_cert_chain(made.server, made.server_key)
    server.verify_directly_issued_by(authority)
    pairs = [
        (load_ssh_private_key(path.read_bytes(), None), load_ssh_public_key(made.public(node).read_bytes()))
        for node, path in enumerate(made.node_keys)
    ]

    assert ["fed.example.org"] == names.get_values_for_type(x509.DNSName)
    assert ["127.0.0.1"] == [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    for private, public in pairs:
        assert isinstance(private, ec.EllipticCurvePrivateKey) and "secp384r1" == private.curve.name
        assert private.public_key() == public
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (made.server_key, *made.node_keys)}


def test_certificates_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The module is a command too; keys that are there are not written over, and words that are lacking are told."""
    words = [str(tmp_path / "made"), "1", "fed.example.org"]

    before = main(words), (tmp_path / "made" / "ca.pem").read_bytes()

    assert (0, 1, 2) == (before[0], main(words), main(words[:2]))
    assert before[1] == (tmp_path / "made" / "ca.pem").read_bytes()
    assert "ca.pem: File exists." in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["--nodes", "17"], "clients.count = 17: are too many SuperNodes for one machine"),
    (["--nodes", "3", "--time-scale", "0"], "--time-scale 0: must be more than 0"),
    (["--nodes", "3", "--port", "99999"], "--port 99999: must be between 1 and 65535"),
    (["--nodes", "3", "--compose"], "--compose: goes with --print"),
    (["--nodes", "3", "--set", "server.strategy.kind=FedAvgg"], "Did you mean 'FedAvg'?"),
    (["--nodes", "0"], "'--nodes': 0 is not in the range"),
])  # fmt: skip
def test_what_cannot_be(words: list[str], said: str, cli: Cli, scenario_file: Callable[..., Path], nothing_starts: None) -> None:
    """Each is one line and exit code 2, before anything is started."""
    answer = cli("deploy", scenario_file(), *words)

    assert 2 == answer.code
    assert said in answer.err and 1 == len(answer.err.splitlines())


def test_a_folder_in_the_way(cli: Cli, scenario_file: Callable[..., Path], nothing_starts: None, tmp_path: Path) -> None:
    """As in a simulation, a folder with something in it is not written into."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    answer = cli("deploy", scenario_file(), "--nodes", 2, "--out", tmp_path / "run")

    assert 2 == answer.code and "is there already and not empty" in answer.err


@pytest.mark.parametrize(("found", "said"), [("1.30.0", "flwr 1.30.0 is too old"), ("", "Flower is not installed here")])
def test_no_flower(found: str, said: str, cli: Cli, scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Flower that is too old, or absent, is told with what to install."""

    def version(_name: str) -> str:
        if not found:
            raise commands.PackageNotFoundError
        return found

    monkeypatch.setattr(commands, "version", version)
    answer = cli("deploy", scenario_file(), "--nodes", 2)

    assert 2 == answer.code and said in answer.err and "pip install 'flwr>=1.38,<2'" in answer.err


def test_programs_that_are_not_there(cli: Cli, scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python without Flower's commands beside it, nor on PATH, is told which."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = cli("deploy", scenario_file(), "--nodes", 2)

    assert 2 == answer.code and "flower-superlink of flwr" in answer.err and "is neither beside" in answer.err
