"""What the built-in redactor looks for in a text, and how it tells a card from an order number.

E-mail addresses, keys and tokens of well-known forms, IBANs (mod 97, ISO 7064), payment cards (Luhn, ISO/IEC 7812),
IP addresses (as ``ipaddress`` reads them) and phone numbers with a country code, a trunk 0 or in North American form.
These are patterns: names, addresses and ids in prose pass. Every pattern is linear in the length of the text, and is
looked for in windows, because a regular expression holds the GIL for as long as it runs, and the champion's answers
wait for the GIL too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

WINDOW: Final = 8192  # characters between two chances for other threads
OVERLAP: Final = 16384  # as long as anything may be that is found whole


class Pattern(NamedTuple):
    """What is found is replaced by ``[name]``, as far as ``holds`` says that it is one (0: not at all)."""

    name: str
    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    holds: Callable[[str], int]


def redact(text: str) -> str:
    """The text with everything that was found replaced by its kind in brackets."""
    for each in PATTERNS:
        if each.hint.search(text):
            text = _replace(each, text)
    return text


def _replace(kind: Pattern, text: str) -> str:
    parts, at = [], 0
    for start, found in _matches(kind.pattern, text):
        if length := kind.holds(found):
            parts += [text[at:start], f"[{kind.name}]"]
            at = start + length
    return "".join([*parts, text[at:]]) if parts else text


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """As finditer, window by window; a match belongs to the window in which it begins."""
    at = 0
    while at < len(text):
        end = at + WINDOW
        for found in pattern.finditer(text, at, end + OVERLAP):
            if found.start() >= end:
                break
            yield found.start(), found[0]
            end = max(end, found.end())
        at = end


def is_card(text: str) -> int:
    """Luhn's sum, over 13 to 19 digits that are not all the same."""
    digits = [int(each) for each in text if each.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return 0
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return 0 if (sum(digits[-1::-2]) + sum(doubled)) % 10 else len(text)


def is_iban(text: str) -> int:
    """The country's letters and the check digits moved to the end, letters as numbers: 1 modulo 97.

    What comes after it may look as if it belonged to it, so shorter beginnings are tried too.
    """
    ends = [len(text), *(found.start() for found in reversed(list(re.finditer(" ", text))))]
    return next((end for end in ends if _is_iban(text[:end].replace(" ", ""))), 0)


def _is_iban(packed: str) -> bool:
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(each, 36)) for each in packed[4:] + packed[:4])) % 97 == 1


def is_ip(text: str) -> int:
    """IPv4 or IPv6; ``::`` alone is punctuation."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if len(text) > 3 else 0


def is_phone(text: str) -> int:
    """7 to 15 digits (E.164)."""
    return len(text) if 7 <= sum(each.isdigit() for each in text) <= 15 else 0


_KEYS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\beyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+"  # a JSON web token
    r"|\b(?:sk|pk|rk)[-_][\w-]{16,}+|\bgh[pousr]_\w{30,}+|\bgithub_pat_\w{30,}+|\bglpat-[\w-]{16,}+|\bhf_\w{20,}+"
    r"|\bA(?:KIA|SIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}+|\bxox[abeoprs]-[\w-]{10,}+|\bnpm_\w{30,}+"
    r"|(?i:\bbearer\s+)[\w.~+/-]{16,}+=*"
)
_DIGIT = re.compile(r"\d")
PATTERNS: Final = (
    Pattern("key", re.compile(r"[A-Za-z]"), re.compile(_KEYS), len),
    Pattern("email", re.compile("@"), re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)+"), len),
    Pattern(
        "iban",
        re.compile(r"[A-Z]{2}\d\d"),
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,8}(?![A-Za-z0-9])"),
        is_iban,
    ),
    Pattern("card", _DIGIT, re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)"), is_card),
    Pattern(
        "ip",
        re.compile(r"\d\.\d|:[0-9A-Fa-f]*:"),
        re.compile(
            r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}"
            r"|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3})(?![\w:]|\.\d)"
        ),
        is_ip,
    ),
    Pattern(
        "phone",
        _DIGIT,
        re.compile(
            r"(?<![\w.+])(?:(?:\+|00)[1-9](?:[ ().-]{0,2}\d){6,13}|0[1-9](?:[ ()/.-]{0,2}\d){6,11}"
            r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?!\w)"
        ),
        is_phone,
    ),
)
