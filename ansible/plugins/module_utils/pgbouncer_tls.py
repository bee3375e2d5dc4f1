"""What TLS says between a pooler, its clients and PostgreSQL: asked over the wire."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator

from .refused import Refused

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's protocol: the message that asks for TLS, answered by S or N."""


def pem_pair_error(certificate: str, key: str) -> str | None:
    """Return why a certificate and a key (paths) do not belong together; None when they do."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        return str(error)
    return None


def server_tls_error(host: str, port: int, ca_file: str, full: bool) -> str | None:
    """Return why PostgreSQL's certificate would be refused; None also when it does not answer.

    A database that is down must not stand in the way of a change of the pooler, and one that asks
    for a client certificate has shown its own before.
    """
    context = tls_context(ca_file, full)
    try:
        with plain_for_tls(host, port) as plain, context.wrap_socket(plain, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"{host}:{port}: {error.verify_message}"
    except (OSError, Refused):
        return None


def tls_context(ca_file: str | None = None, full: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = full
    context.verify_mode = ssl.CERT_REQUIRED if ca_file else ssl.CERT_NONE
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


@contextlib.contextmanager
def plain_for_tls(host: str, port: int) -> Iterator[socket.socket]:
    """Ask for TLS as PostgreSQL's protocol does; raise Refused when the other side offers none."""
    with socket.create_connection((host, port), timeout=5) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            raise Refused(f"{host}:{port} offers no TLS")
        yield plain


def served_certificate(host: str, port: int) -> bytes:
    """Return the certificate (DER) that a PgBouncer shows its clients.

    One that asks for a client certificate ends the handshake; up to TLS 1.2 it has shown its own in
    clear text by then, and with 1.3 our side of the handshake is complete before.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = tls_context().wrap_bio(incoming, outgoing, server_hostname=host)
    received = b""
    with plain_for_tls(host, port) as plain:
        try:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    secure.do_handshake()
                    return secure.getpeercert(binary_form=True)
                plain.sendall(outgoing.read())
                if not (part := plain.recv(65536)):
                    raise Refused(f"{host}:{port} ended the handshake")
                incoming.write(part)
                received += part
        except (OSError, Refused):
            if certificate := clear_certificate(received):
                return certificate
            raise


def clear_certificate(received: bytes) -> bytes | None:
    """Return the first certificate (DER) among the TLS records that a server sent in clear text."""
    handshake = b""
    while len(received) >= 5 and received[0] == 22:  # RFC 5246, 6.2.1: a record of the handshake
        length = int.from_bytes(received[3:5], "big")
        handshake += received[5 : 5 + length]
        received = received[5 + length :]
    while len(handshake) >= 4:
        end = 4 + int.from_bytes(handshake[1:4], "big")
        if handshake[0] == 11:  # 7.4.2: the length of the list, then each certificate's length
            return handshake[10 : 10 + int.from_bytes(handshake[7:10], "big")]
        handshake = handshake[end:]
    return None
