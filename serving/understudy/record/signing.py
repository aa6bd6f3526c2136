"""Ed25519 signatures of manifests and checkpoints, by the key of ``record.signing_key``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from understudy.errors import ConfigError
from understudy.record.lines import Chain

MANIFEST, CHECKPOINT = b"understudy manifest\n", b"understudy checkpoint\n"  # what a signature is of, signed with it


class Signer:
    """One private key."""

    def __init__(self, path: str | Path) -> None:
        """Read a PEM file, as ``understudy audit keygen`` or ``openssl genpkey -algorithm ed25519`` makes it.

        Raises:
            ConfigError: it cannot be read, or holds no Ed25519 key.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as fault:
            raise ConfigError(f"record.signing_key: {str(path)!r} cannot be read: {fault}") from fault
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"record.signing_key: {str(path)!r} holds no Ed25519 key")
        self._key = key
        self.public_key = key.public_key().public_bytes_raw().hex()

    def checkpoint(self, writer: str, chain: Chain) -> dict[str, str | int]:
        """The detail of a checkpoint: where a writer's chain stands, signed."""
        head = chain.head.hex()
        return {"n": chain.n, "chain": head, **self.sign(CHECKPOINT, checkpoint_message(writer, chain.n, head))}

    def sign(self, what: bytes, message: bytes) -> dict[str, str]:
        """The signature, with the key that made it."""
        return {"key": self.public_key, "signature": self._key.sign(what + message).hex()}


def is_signed(signature: Mapping[str, str], what: bytes, message: bytes) -> bool:
    """Whether the signature is by the key it names. Whose key that is, is for the reader to know."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["key"]))
        key.verify(bytes.fromhex(signature["signature"]), what + message)
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return False
    return True


def checkpoint_message(writer: str, n: int, chain: str) -> bytes:
    """What a checkpoint signs: that ``writer`` had ``n`` records, with this chain over them."""
    return f"{writer}\n{n}\n{chain}\n".encode("utf-8", "surrogatepass")


def make_key(path: Path) -> str:
    """A new private key in a file of its own, 0600; the public key in hex.

    Raises:
        ConfigError: the file is there already, or cannot be made.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}") from fault
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
    return key.public_key().public_bytes_raw().hex()
