"""Certificates and keys for one deployment: an authority of its own, the server's certificate, a key pair per node. Knows no process.

``python -m fedsim.real.certificates FOLDER NODES HOST...`` makes them for real machines.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAYS = 365
"""How long certificates hold."""
EARLIER = datetime.timedelta(hours=1)
"""How far back they begin to hold: clocks differ."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where they lie: the authority's and the server's certificate, the server's key, and the nodes' key pairs in order.

    Nodes' keys are ECDSA P-384 in OpenSSH's format, as ``ssh-keygen -t ecdsa -b 384`` makes them, which is what Flower reads.
    """

    authority: Path
    server: Path
    server_key: Path
    node_keys: Sequence[Path]

    def public(self, node: int) -> Path:
        """Return where the public key of *node* lies."""
        return self.node_keys[node].with_suffix(".pub")


def make_certificates(folder: Path, nodes: int, hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> Certificates:
    """Make in *folder* what TLS and authenticated nodes need: for a server that is reached as *hosts*, and *nodes* nodes.

    The authority's own key is forgotten: nobody can sign another server. Private keys can be read by their owner only.
    Raises FileExistsError where some are there already: they are in use, who knows by whom.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(words: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words)])

    def known(host: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            return x509.DNSName(host)

    found = Certificates(
        folder / "ca.pem", folder / "server.pem", folder / "server.key", tuple(folder / f"node-{i}.key" for i in range(nodes))
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path in (found.authority, found.server, found.server_key, *found.node_keys):
        if path.exists():
            raise FileExistsError(17, "File exists", str(path))
    began = datetime.datetime.now(datetime.UTC) - EARLIER
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def draft(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named("fedsim deploy")).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(began)
            .not_valid_after(began + datetime.timedelta(days=DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        )  # fmt: skip

    def usage(*, signs: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip

    authority = (
        draft("fedsim deploy", authority_key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs=True), critical=True).sign(authority_key, hashes.SHA256())
    )  # fmt: skip
    server = (
        draft(hosts[0], server_key).add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([known(host) for host in hosts]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )  # fmt: skip
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    found.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    found.server.write_bytes(server.public_bytes(Encoding.PEM))
    _private(found.server_key, server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for path in found.node_keys:
        key = ec.generate_private_key(ec.SECP384R1())
        _private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return found


def _private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def main(words: Sequence[str]) -> int:
    """Make certificates as *words* say, and return the exit code."""
    if len(words) < 3 or not words[1].isdigit():
        print("usage: python -m fedsim.real.certificates FOLDER NODES HOST [HOST ...]", file=sys.stderr)
        return 2
    folder, nodes, hosts = Path(words[0]), int(words[1]), words[2:]
    try:
        made = make_certificates(folder, nodes, hosts)
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"{made.authority} for everybody, {made.server} and {made.server_key} for the server, node-N.key for client N alone.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
