"""``understudy audit prove``: that a record is in a sealed segment, for somebody who has nothing else of the record.

A proof is JSON: the record, the path from it to the Merkle root, and the signed manifest that holds the root.
``check`` needs the proof alone, hashlib, and for the signature Ed25519.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from understudy.errors import RecordError
from understudy.record import merkle
from understudy.record.manifest import Manifest
from understudy.record.signing import MANIFEST, is_signed
from understudy.record.sources import Source


def prove(source: Source, id: str) -> Iterator[dict[str, Any]]:
    """A proof for every sealed record of the exchanges with this id, oldest first. Raises RecordError."""
    for number in source.sealed():
        manifest, segment = source.manifest(number), source.open_sealed(number)
        columns = ("n", "sha", "document", "exchange_id", "request_id", "client_request_id", "id")
        rows = [row for row in segment.rows(("n", "sha", *columns[3:])) if row["n"] is not None]
        shas = [row["sha"] for row in rows]
        for index, row in enumerate(rows):
            if id in (row["exchange_id"], row["request_id"], row["client_request_id"], row["id"]):
                yield _proof(manifest, row, merkle.path(shas, index), segment.document(row["offset"]))


def check(proof: Mapping[str, Any]) -> str:
    """Verify a proof; what it proves, in words. Whose the key is that it names is for the reader to know.

    Raises:
        RecordError: it does not prove anything.
    """
    try:
        sha = bytes.fromhex(proof["sha"])
        if proof["document"] is not None and sha256(proof["document"].encode()).digest() != sha:
            raise RecordError("the document has another hash than the proof says")
        n = None if proof["document"] is None else json.loads(proof["document"])["n"]
        if n is not None and n != proof["n"]:
            raise RecordError(f"the document is record {n}, the proof says {proof['n']!r}")
        steps = [merkle.Step(bytes.fromhex(sibling), side == "left") for side, sibling in proof["path"]]
        body = proof["manifest"].encode()
        manifest = json.loads(body)
        if merkle.root_from(sha, steps).hex() != manifest["merkle_root"]:
            raise RecordError("the path does not lead to the manifest's Merkle root")
        signature = proof["signature"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"not a proof: {type(error).__name__}: {error}") from error
    which = "a record that was erased" if n is None else f"record {n}"
    what = f"{which} is in segment {manifest['segment']} of {manifest['writer']}"
    if signature is None:
        return f"{what}, whose manifest is not signed"
    if not is_signed(signature, MANIFEST, body):
        raise RecordError("the manifest's signature does not hold")
    return f"{what}, signed by {signature['key']}"


def _proof(
    manifest: Manifest, row: Mapping[str, Any], steps: list[merkle.Step], document: bytes | None
) -> dict[str, Any]:
    return {
        "n": row["n"],
        "sha": row["sha"].hex(),
        "document": None if document is None else document.decode(),
        "path": [["left" if step.is_left else "right", step.sibling.hex()] for step in steps],
        "manifest": manifest.body.decode(),
        "signature": manifest.signature,
    }
