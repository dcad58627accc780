"""E-mail addresses and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from megagpt.prepare.personal_data.context import said_before
from megagpt.prepare.personal_data.span import Span

# ---------------------------------------------------------------- e-mail

LOCAL_LENGTH = 64
"""Longest local part (RFC 5321, 4.5.3.1.1)."""
USERINFO_LENGTH = 200
"""Characters before an @ in which the `scheme://` of its URL is looked for."""
SERVICE_USERS = {"git", "hg", "svn", "anonymous"}
"""In `git@github.com:owner/name` and `ssh://git@...` they name a way in, not a person."""

_AT = re.compile(r"@|%40|&#0*64;|[\[(] ?at ?[\])]", re.IGNORECASE)
_DOMAIN = re.compile(r"(?:[^\W_][^\W_-]{0,62}(?:-{1,2}[^\W_]{1,62}){0,8}\.){1,8}(?:xn--[a-z0-9-]{2,59}|[^\W\d_]{2,24})(?![\w(])", re.IGNORECASE)
_SPELT_DOMAIN = re.compile(r" ?[a-z0-9-]{1,63}(?:(?:\.| ?[\[(] ?dot ?[\])] ?| dot )[a-z0-9-]{1,63}){0,4}(?:\.| ?[\[(] ?dot ?[\])] ?| dot )[a-z]{2,24}\b", re.IGNORECASE)
# Matched against the reversed text, from the @ towards the left. Letters of scripts that are written without spaces belong to the sentence unless
# the whole local part is written in them.
_LOCAL = re.compile(r"[A-Za-z0-9\u00c0-\u024f\u0370-\u052f._+'&~-]{1,65}")
_LOCAL_OF_OTHER_SCRIPTS = re.compile(r"[\w.+-]{1,65}")
_USERINFO = re.compile(r"://([^\s/@:?#\"'<>]*)(:?)[^\s/@?#\"'<>]*$")
_REMOTE_PATH = re.compile(r"[:/]\w")
_FILE_SUFFIXES = set(
    "png jpg jpeg gif svg webp ico css js jsx ts tsx html htm php asp json xml yaml yml txt pdf csv md exe dll jar class java cpp hpp conf cfg log".split()
)
"""No top-level domains; `icon@2x.png` is a picture for fine displays."""
_KEYWORDS = {"this", "super", "return"}
"""In Kotlin `this@Outer.name` is a label."""


def emails(text: str) -> Iterator[Span]:
    """Addresses around every @, also as `%40` and `&#64;` in URLs and HTML and spelt out as `name [at] host [dot] org`. Of a URL's `user:password@host`
    the whole stands for an address."""
    for at in _AT.finditer(text):
        spelt = text[at.start()] in "[("
        domain = (_SPELT_DOMAIN if spelt else _DOMAIN).match(text, at.end())
        if domain is None:
            continue
        end = _end_of_domain(text, domain)
        if end is not None and (start := _start_of_local(text, at, end)) is not None:
            yield Span(start, end, "EMAIL")


def _end_of_domain(text: str, domain: re.Match[str]) -> int | None:
    *names, last = domain[0].split(".")
    if last.lower() in _FILE_SUFFIXES:
        return None
    # `me@example.com.Then` lacks a space behind the full stop.
    if len(names) > 1 and last.istitle() and names[-1].islower() and len(names[-1]) > 1:
        return domain.end() - len(last) - 1
    return domain.end()


def _start_of_local(text: str, at: re.Match[str], end: int) -> int | None:
    stop = at.start() - (at[0][0] in "[(" and text[at.start() - 1 : at.start()] == " ")
    backwards = text[max(0, stop - LOCAL_LENGTH - 2) : stop][::-1]
    local = (_LOCAL.match(backwards) or _LOCAL_OF_OTHER_SCRIPTS.match(backwards) or [""])[0][::-1]
    if len(local) > LOCAL_LENGTH:
        return None
    local = local.rpartition("..")[2].lstrip(".'+-&~")
    before = text[stop - len(local) - 1 : stop - len(local)] if stop > len(local) else ""
    if before == "%" and at[0] == "%40" and re.match("[0-9A-Fa-f]{2}", local):
        local = local[2:]  # the rest of an escaped character
    elif before == "\\" and local[:1] in ("n", "r", "t"):
        local = local[1:]  # an escape of a string literal
    if text[at.start()] == "@" and (userinfo := _USERINFO.search(text, max(0, stop - USERINFO_LENGTH), stop)):
        if userinfo[1].lower() in SERVICE_USERS:
            return None
        return userinfo.start(1)
    if not local or local[-1] in ".-" or local in _KEYWORDS or (local in SERVICE_USERS and _REMOTE_PATH.match(text, end)):
        return None
    return stop - len(local)


# ---------------------------------------------------------------- IP

# Patterns begin with what is rare in texts, so that the search for it runs fast; what must not stand before it is looked at behind that.
_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])(?<![A-Za-z]-[0-9])[0-9]{0,2}(?:\.(?:0|[1-9]\d{0,2})){3}(?!\w|\.\w|-[A-Za-z])", re.ASCII)
_COLONS = re.compile(":[0-9A-Fa-f]{0,4}:")
_FIRST_PART = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}$", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:]|\.\w)", re.ASCII)
_PRODUCT = re.compile(r"[A-Za-z]/$")
"""Of a user agent: `Chrome/120.0.0.0`."""
SMALL_PART = 32
"""Four numbers below this are as likely a version or a section: they count where a word speaks of hosts. One random address in 4,096 is such."""


def ips(text: str, *, public_only: bool) -> Iterator[Span]:
    """Addresses of hosts.

    Args:
        public_only: leave out private, shared, documentation, loopback and reserved ranges, which name nobody.
    """
    for match in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(match[0])
        except ValueError:
            continue
        if _PRODUCT.search(text, max(0, match.start() - 2), match.start()) and address.packed[1] == 0:
            continue
        said = said_before(text, match.start())
        if said == "VERSION" or (said != "IP" and max(address.packed) < SMALL_PART):
            continue
        if not public_only or (address.is_global and not address.is_multicast):
            yield Span(match.start(), match.end(), "IP")
    for colons in _COLONS.finditer(text):
        first = _FIRST_PART.search(text, max(0, colons.start() - 5), colons.start())
        if first and (match := _IPV6.match(text, first.start())) and _is_ipv6(match[0], public_only=public_only):
            yield Span(match.start(), match.end(), "IP")


def _is_ipv6(text: str, *, public_only: bool) -> bool:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    parts = text.split(":")
    if "::" in text:
        # `std::dead::beef` of a program and `::` alone are valid too; addresses of hosts begin with a wide number, and those of networks end with ::.
        if len(parts[0]) < 3 or text.endswith("::") or not any(character.isdigit() for character in text):
            return False
    elif all(len(part) == 2 for part in parts):
        return False  # a hardware address (EUI-64)
    nobody = address.is_private or address.is_link_local or address.is_multicast or address.is_loopback or address.is_unspecified
    return not (public_only and nobody)
