# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads, checks and refuses HTTP requests in ASGI's form, for the web page and for `radd serve`.

A server at a loopback address is open to the browser of its user, and to any web site in that browser. Two headers show
the request of another site: Host has the name that the site gave the address (DNS rebinding), and Origin names the
site. [`Names`] checks both.
"""

import asyncio
import contextlib
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_SECONDS = 30.0
# Limits for reading and discarding the rest of a body that is too large. A client that sends everything before it reads
# then gets the refusal.
DRAINED_BYTES, DRAINED_SECONDS = 2**23, 2.0
LONGEST_INTEGER = 300  # digits


class Refused(Exception):
    """Says that a request is refused: an HTTP status of 4xx or 5xx, and the reason in one line.

    retry_after: seconds after which the client may try again; None if that does not help.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None):
        super().__init__(reason)
        self.status, self.retry_after = status, retry_after


class Names:
    """Holds the host names that requests may use for the server.

    Args:
        hosts: names besides those of this machine. A browser sends the host name that its user sees. So the server can
            refuse the name of another site that resolves to this machine (DNS rebinding).
        addresses_allowed: also accept any IP address, such as 192.168.1.7. No site can have one as its name.
    """

    def __init__(self, hosts: Iterable[str] = (), addresses_allowed: bool = False):
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}
        self.addresses_allowed = addresses_allowed

    def __contains__(self, host: str | None) -> bool:
        return host is not None and (host in self.hosts or (self.addresses_allowed and is_address(host)))

    def check_sender(self, headers: dict[str, list[str]]) -> None:
        """Raises Refused for requests with another host name, and for those from the page of another site."""
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or host_of(f"//{hosts[0]}") not in self:
            raise Refused(421, "Nothing is served here under that host name: allow it by --allowed-host.")
        for origin in origins:
            host = host_of(origin)
            if origin.partition("//")[2] != hosts[0] and (host is None or host not in self.hosts.difference(LOOPBACK)):
                raise Refused(
                    403,
                    "Only a page of this server itself may call it: allow other names by --allowed-host.",
                )


def headers_of(scope: Scope) -> dict[str, list[str]]:
    """Returns the values of each header by its name in lower case."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def host_of(url: str) -> str | None:
    """Returns the host of an origin or of `//host:port`, in lower case, without brackets and a last dot, or None."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises an error for a port that is no number
    except ValueError:
        return None
    plain = re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]@:]*)(:\d*)?", parts.netloc)
    if parts.path or parts.query or parts.fragment or not plain or not parts.hostname:
        return None
    return parts.hostname.removesuffix(".")


def is_address(host: str) -> bool:
    """Tells whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tells whether a server that listens at `host` is reachable only from this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def address_of(scope: Scope) -> str:
    """Returns the key of the visitor who sends a request, see [`visitor_at`]."""
    client = scope.get("client")
    return visitor_at(client[0]) if client else ""


def visitor_at(address: str) -> str:
    """Returns a key for the visitor at an address. For an IPv6 address it is the network of 64 bits."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(number, ipaddress.IPv4Address):
        return str(number)
    return str(number.ipv4_mapped or ipaddress.ip_network((int(number) >> 64 << 64, 64)))


async def read_body(receive: Receive, headers: dict[str, list[str]], largest: int) -> bytes:
    """Returns the body of a request. Raises Refused if it has more than `largest` bytes or is late."""
    too_large = Refused(413, f"A request must have at most {largest:,} bytes.")
    length = headers.get("content-length", ["0"])[0]
    if not length.isdecimal() or int(length[:20]) > largest:
        if "expect" not in headers:  # a client with this header waits for the answer before it sends the body
            await _drain(receive)
        raise too_large
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "The request has no end.")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > largest:
                    break
    except TimeoutError:
        raise Refused(408, f"A request must arrive within {BODY_SECONDS:g} s.") from None
    if len(body) > largest:
        if more:
            await _drain(receive)
        raise too_large
    return bytes(body)


async def _drain(receive: Receive) -> None:
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def object_of(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body. Raises Refused for another body."""
    try:
        value = json.loads(body, parse_constant=_no_number, parse_int=_integer)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except RecursionError:
        reason = "lists or objects are nested too deep"
    except ValueError as error:
        reason = str(error)
    else:
        if isinstance(value, dict):
            return value
        reason = f"it is {'null' if value is None else 'a ' + JSON_KINDS[type(value)]}"
    raise Refused(400, f"A request must be a JSON object: {reason}.")


JSON_KINDS = {list: "list", str: "string", int: "number", float: "number", bool: "boolean"}


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number in JSON")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"an integer has {len(digits)} digits; it must have at most {LONGEST_INTEGER}")
    return int(digits)


def accepts(headers: dict[str, list[str]], kind: str) -> bool:
    """Tells whether the header Accept names a media type, such as "text/event-stream"."""
    for each in ",".join(headers.get("accept", [])).lower().split(","):
        name, *parameters = "".join(each.split()).split(";")
        if name == kind:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


async def answer(send: Send, refusal: Refused) -> None:
    """Sends a refusal as JSON."""
    body = json.dumps({"error": str(refusal), "detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
