"""What of a text may be written: ``record.text``. Applied to a record before it is encoded, in the writer's thread.

    full      everything
    redacted  what the redactors find is replaced, in every text: prompt, body, answers, parameters (stop strings,
              schemas), tags, errors, ids that clients chose. Token ids say what the text says, so they are left out
              (``num_tokens``, ``num_prompt_tokens`` stay) where the text had a hit, and where it is not known. A body
              is written as what it was read as; one that is no JSON is kept as a keyed hash.
    none      no text and no token ids; a keyed hash of each, so that equal ones can still be told

Fails closed: a record whose redaction raises is written as ``none`` and counted. A tag or an id with a hit becomes a
pseudonym, a hash keyed with the record's own secret, which is never in the record: sessions stay units, also beside
records that have their names in the clear (``known_as``), and erasing by tag still finds them. Labels are what somebody
gave on purpose for judging: they are redacted, never left out.
Control records are the operator's own words and stay as they are.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from understudy.record.chat import offers_tools
from understudy.record.codec import well_formed

logger = logging.getLogger(__name__)

Document = dict[str, Any]
Redactor = Callable[[str], str]
Mode = Literal["full", "redacted", "none"]
REDACTION_FAILED = "redaction failed (%s); what it was to read is kept as hashes and metrics only (said once, counted)"
PSEUDONYM = "hmac:"
OUR_TAGS = frozenset({"session", "tenant"})  # names with a meaning here; what a client calls so is in the value
MIN_DIGITS = 7  # a shorter number in a JSON body is no card and no phone
NOT_TEXT = frozenset(
    {"stop_token_ids", "allowed_token_ids", "logprob_token_ids"}
)  # of the vocabulary, whatever was said
OF_A_SCHEMA = frozenset({"enum", "examples"})  # may list numbers and nulls
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C; anything else is a client's text


class Privacy:
    """One record's rule.

    Args:
        mode: ``record.text``.
        redactors: each gets the text that the one before has left. They may be anybody's and may raise.
        secret: keys the pseudonyms.

    Attributes:
        secret: may become another one before the first record.
        num_failed: records that were written as ``none`` because a redactor raised.
    """

    def __init__(self, mode: Mode = "full", redactors: Sequence[Redactor] = (), secret: bytes = b"") -> None:
        self.mode, self._redactors, self.secret = mode, tuple(redactors), secret
        self.num_failed = 0

    def apply(self, document: Document) -> Document:
        """The record as it may be written; the one given is not changed."""
        if self.mode == "full" or document["kind"] == "control":
            return document
        if self.mode == "redacted":
            try:
                return _Redaction(self.redact, self.pseudonym).record(document)
            except Exception as fault:  # noqa: BLE001  # fails closed, counted; its words may hold the text: not logged
                if not self.num_failed:
                    logger.error(REDACTION_FAILED, type(fault).__name__)
                self.num_failed += 1
        return _Hashes(self).record(document)

    def id(self, id: str) -> str:
        """An id, or the pseudonym under which it was recorded."""
        if self.mode == "full":
            return id
        return id if self._redacted(id) == id else self.pseudonym(id)

    def redact(self, text: str) -> str:
        """Through all redactors. Raises what they raise."""
        for redactor in self._redactors:
            text = redactor(text)
            if not isinstance(text, str):
                raise TypeError(f"a redactor returned {type(text).__name__}, not text")
        return text

    def pseudonym(self, text: str) -> str:
        """The same for the same text, in this record only."""
        return PSEUDONYM + hmac.digest(self.secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:24]

    def known_as(self, name: str) -> str:
        """The same for a name and for the pseudonym under which it was, or will be, recorded. Runs no redactor."""
        return name if name.startswith(PSEUDONYM) else self.pseudonym(name)

    def tag(self, value: str) -> str:
        """The value of a tag as it is recorded. May run the redactors."""
        return self.known_as(value) if self.mode == "none" or value.startswith(PSEUDONYM) else self.id(value)

    def label(self, text: str) -> str:
        """A label as it may be written."""
        if self.mode == "full":
            return text
        redacted = self._redacted(text)
        return self.pseudonym(text) if redacted is None else redacted

    def _redacted(self, text: str) -> str | None:
        try:
            return self.redact(text)
        except Exception as fault:  # noqa: BLE001  # the same
            if not self.num_failed:
                logger.error(REDACTION_FAILED, type(fault).__name__)
            self.num_failed += 1
            return None


class _Hashes:
    """``none``: numbers and words of ours stay, texts and token ids become keyed hashes or nothing."""

    def __init__(self, privacy: Privacy) -> None:
        self._privacy, self._pseudonym = privacy, privacy.pseudonym

    def record(self, document: Document) -> Document:
        done = dict(document)
        for name in ("request_id", "client_request_id", "id"):
            if document.get(name):
                done[name] = self._privacy.id(document[name])
        _drop_traceparent(done)
        match document["kind"]:
            case "feedback":
                done |= {name: self._privacy.label(done[name]) for name in ("label", "name") if done.get(name)}
            case "accepted":
                prompt = document["champion"]["prompt_token_ids"]
                done |= {
                    "body": None,
                    "offers_tools": None if (body := document["body"]) is None else offers_tools(as_sent(body)),
                    "prompt_text": None,
                    "prompt_hmac": self._pseudonym(" ".join(map(str, prompt))),
                    "tags": {
                        name if name in OUR_TAGS else self._privacy.id(name): self._pseudonym(value)
                        for name, value in document["tags"].items()
                    },
                    "parameters": {name: self._value(value) for name, value in document["parameters"].items()},
                    "champion": self._observation(document["champion"]),
                }
            case "ended":
                done["detail"] = None
                if document["observation"] is not None:
                    done["observation"] = self._observation(document["observation"])
        return done

    def _observation(self, seen: Mapping[str, Any]) -> Document:
        answers = [self._answer(each) for each in seen["answers"]]
        done = {**seen, "answers": answers, "scores": _without_ids(seen["scores"])}
        if seen["error"] is not None:  # its kind is ours, its words may be anybody's
            kind = seen["error"].partition(":")[0]
            done["error"] = kind if kind.isidentifier() else "error"
        if (prompt := seen["prompt_token_ids"]) is not None:
            done |= {"prompt_token_ids": (), "num_prompt_tokens": len(prompt)}
        return done

    def _answer(self, answer: Mapping[str, Any]) -> Document:
        hashed = self._pseudonym(answer["text"])
        return {**answer, "text": "", "text_hmac": hashed, "token_ids": (), "num_tokens": len(answer["token_ids"])}

    def _value(self, value: Any) -> Any:
        plain = value is None or isinstance(value, bool | int | float)
        return value if plain else self._pseudonym(json.dumps(value, default=repr, sort_keys=True))


class _Redaction:
    """Walks one record. ``text`` replaces a text; what comes back changed had a hit."""

    def __init__(self, text: Redactor, pseudonym: Redactor) -> None:
        self._text, self._pseudonym = text, pseudonym

    def record(self, document: Document) -> Document:
        done = dict(document)
        for name in ("request_id", "client_request_id", "id"):
            if document.get(name):
                done[name] = self._id(document[name])
        _drop_traceparent(done)
        if document["kind"] == "feedback":
            return done | {name: self._text(done[name]) for name in ("label", "name") if done.get(name)}
        for name in ("detail", "prompt_text"):
            if document.get(name) is not None:
                done[name] = self._text(document[name])
        if document["kind"] == "accepted":
            body, body_is_clean = self._body(document["body"])
            done |= body
            done["tags"] = {
                name if name in OUR_TAGS else self._text(name): self._id(value)
                for name, value in document["tags"].items()
            }
            done["parameters"] = self._walk(document["parameters"])
            known = document["prompt_text"] is not None or document["body"] is not None
            clean = known and body_is_clean and done["prompt_text"] == document["prompt_text"]
            done["champion"] = self._observation(document["champion"], prompt_is_clean=clean)
        elif document.get("observation") is not None:
            done["observation"] = self._observation(document["observation"], prompt_is_clean=False)
        return done

    def _id(self, id: str) -> str:
        return id if self._text(id) == id else self._pseudonym(id)

    def _observation(self, seen: Mapping[str, Any], *, prompt_is_clean: bool) -> Document:
        done = dict(seen)
        if seen["error"] is not None:
            done["error"] = self._text(seen["error"])
        prompt = seen["prompt_token_ids"]
        if prompt is not None and not prompt_is_clean:  # null is the champion's, which has its own rule
            done |= {"prompt_token_ids": (), "num_prompt_tokens": len(prompt)}
        done["answers"] = [self._answer(each) for each in seen["answers"]]
        done["scores"] = _without_ids(seen["scores"])
        return done

    def _answer(self, answer: Mapping[str, Any]) -> Document:
        text = self._text(answer["text"])
        if text == answer["text"] and (text or not answer["token_ids"]):
            return dict(answer)
        return {**answer, "text": text, "token_ids": (), "num_tokens": len(answer["token_ids"])}

    def _body(self, body: str | None) -> tuple[Document, bool]:
        """The request as the server has read it, and whether all of it is known to be clean.

        What the server did not see, such as the first of two equal keys, is not in it, nor is a prompt in numbers.
        """
        if body is None:
            return {"body": None}, True
        try:
            parsed = json.loads(as_sent(body))  # bytes: they may be UTF-16
        except (ValueError, RecursionError):
            return self._no_body(body), False
        if _is_in_numbers("", parsed):
            return self._no_body(body), False
        walked = self._walk(_without_numbers(parsed))
        return {"body": _json(walked)}, bool(walked == parsed)

    def _no_body(self, body: str) -> Document:
        return {"body": None, "body_hmac": self._pseudonym(body), "offers_tools": offers_tools(as_sent(body))}

    def _walk(self, value: Any) -> Any:
        match value:
            case str():
                return self._text(value)
            case bool() | None:
                return value
            case int() | float():
                text = str(value)
                return value if len(text) < MIN_DIGITS or self._text(text) == text else self._text(text)
            case Mapping():
                return {self._text(str(name)): self._walk(each) for name, each in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._walk(each) for each in value]
            case _:
                return self._text(repr(value))


def as_sent(body: str) -> bytes:
    """The bytes of a body from its document."""
    return body.encode("utf-8", "surrogateescape")


def _without_ids(scores: Sequence[Mapping[str, Any]]) -> list[Document]:
    """Numbers only: the challenger's own first choices are nearly the champion's text, whatever that had in it."""
    return [{name: () if name == "top1" else value for name, value in each.items()} for each in scores]


def _without_numbers(value: Any) -> Any:
    """A request, with null for every part of it, however deep, that is a prompt as token ids or as embeddings."""
    match value:
        case dict():
            hidden = "data" if value.get("type") == "prompt_embeds" else None
            return {
                name: None if name == hidden or _is_in_numbers(name, each) else _without_numbers(each)
                for name, each in value.items()
            }
        case list():
            return [_without_numbers(each) for each in value]
        case _:
            return value


def _is_in_numbers(name: str, value: Any) -> bool:
    """Whether a part of a request can be a prompt as token ids or as embeddings: no redactor can read it."""
    if name == "prompt_embeds":
        return value is not None
    if name in NOT_TEXT or name in OF_A_SCHEMA or not isinstance(value, list):
        return False
    return any(not isinstance(one, str | dict) for one in value)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if well_formed(text) == text else json.dumps(value, separators=(",", ":"))


def _drop_traceparent(document: Document) -> None:
    if not TRACEPARENT.fullmatch(document.get("traceparent") or ""):
        document.pop("traceparent", None)


FULL = Privacy()
