"""A manifest says that a segment is sealed, what is in it, and where the writer's chain and counts stand after it.

    STORE/manifests/00000007.json     {"body": {...}, "signature": {...} or null}

``body.previous`` is the SHA-256 of the manifest before, so that manifests form a chain as records do. What may change
later without anybody's fault, such as the size of a file from which a record was erased, is not in it. A manifest is
written when the segment's files are durable; from then on the segment is what the manifest says, and the log's file
of that number is retired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

import msgspec

from understudy.errors import RecordError
from understudy.record.store import Store

FOLDER = "manifests"
NO_MANIFEST = "0" * 64


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One Parquet file of a segment: the records of one rollout and one day (UTC)."""

    path: str
    rollout: str
    day: str
    num_records: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a sealed segment is.

    Attributes:
        segment: its number; ``writer``: whose log it was.
        files: its Parquet files.
        num_records: in all of them; ``num_unchained`` of them are of version 1 and have no chain.
        first_n, last_n: of the chained ones, null where there are none.
        chain_before, chain: hex; the chain before the first and after the last of them.
        merkle_root: hex; over the ``sha`` of the chained ones, in their order.
        first_unix_s, last_unix_s: the earliest and the latest time of a record, none later than its sealing.
        previous: hex; SHA-256 of the manifest before, zeros for the first.
        ledger: the counts of all segments up to here, see recover.Ledger.
        sealed_unix_s: when.
    """

    segment: int
    writer: str
    files: tuple[SealedFile, ...]
    num_records: int
    num_unchained: int
    first_n: int | None
    last_n: int | None
    chain_before: str
    chain: str
    merkle_root: str
    first_unix_s: float
    last_unix_s: float
    previous: str
    ledger: Mapping[str, Any]
    sealed_unix_s: float
    version: int = 2
    signature: Mapping[str, str] | None = field(default=None, compare=False)

    @property
    def body(self) -> bytes:
        """What is signed and hashed."""
        document = asdict(self)
        del document["signature"]
        return msgspec.json.encode(document, order="sorted")

    @property
    def sha(self) -> str:
        """Hex; the next manifest's ``previous``."""
        return sha256(self.body).hexdigest()


class _Shell(msgspec.Struct):
    body: Manifest
    signature: dict[str, str] | None = None


def manifest_path(segment: int) -> str:
    """Where a segment's manifest is."""
    return f"{FOLDER}/{segment:08d}.json"


def write_manifest(store: Store, manifest: Manifest) -> None:
    """From here on the segment is sealed. Raises OSError."""
    shell = b'{"body":%b,"signature":%b}\n' % (manifest.body, msgspec.json.encode(manifest.signature))
    store.write(manifest_path(manifest.segment), shell)


def read_manifest(store: Store, segment: int) -> Manifest:
    """The manifest of a sealed segment.

    Raises:
        FileNotFoundError: the segment is not sealed.
        RecordError: the manifest cannot be read.
    """
    path = manifest_path(segment)
    try:
        shell = msgspec.json.decode(store.read(path), type=_Shell)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RecordError(f"{store.url}/{path}: {error}") from error
    return replace(shell.body, signature=shell.signature)


def sealed_segments(store: Store) -> list[int]:
    """The numbers of the segments that are sealed, oldest first. Raises OSError."""
    names = (path.removeprefix(FOLDER + "/").removesuffix(".json") for path in store.list(FOLDER))
    return sorted(int(name) for name in names if name.isdecimal())
