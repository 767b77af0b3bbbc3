"""The gate before the service: one file, not too large, and never an address to fetch.

BentoML takes bodies of any size, and fetches an address that stands where a file should. So the gate is
closed to every request that could bring a body, but for a POST to a path that takes an upload, matched
as the application itself would. Every upload is read here first, to a temporary file without a name, and
only a form with exactly one file in the field ``scan`` goes on. It goes on under a neutral file name:
names of files often hold names of patients.
"""

import asyncio
import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.routing import Match, Route

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
FIELD = "scan"
FULL = "The disk of this service is full. Tell its administrator, and send the scan again later."
HOW = "Send it as a form: curl -F scan=@scan.nii.gz"
CHUNK = 1 << 20
# A refused client that goes on sending is listened to for this long, or it would see a broken
# connection instead of the answer.
LINGER_S = 5.0

_BOUNDARY = b"segdistill"
_HEAD = (
    b"--" + _BOUNDARY + b"\r\n"
    b'Content-Disposition: form-data; name="scan"; filename="%b"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
)
_TAIL = b"\r\n--" + _BOUNDARY + b"--\r\n"


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Gone(Exception):  # noqa: N818
    """The client left before its upload was whole."""


class _Body:
    """A request's body as it comes in."""

    def __init__(self, receive: "Receive") -> None:
        self.receive = receive
        self.seen = 0
        self.more = True

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while self.more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.more = False
                raise _Gone
            chunk = message.get("body", b"")
            self.seen += len(chunk)
            self.more = message.get("more_body", False)
            yield chunk

    async def drain(self) -> None:
        """Throw away the rest, for a while."""
        with contextlib.suppress(TimeoutError, _Gone):
            async with asyncio.timeout(LINGER_S):
                async for _ in self.chunks():
                    pass


class UploadGate:
    """ASGI middleware that lets only a form with one file in the field ``scan`` through.

    Answers 404 (an address that takes no upload), 405 (one that does, asked otherwise than by POST), 413
    (body over the limit, announced or not), 415 (not a form), 400 (another form, or a body where none
    belongs), 507 (the disk is full).
    """

    def __init__(self, app: "ASGIApp", max_body_bytes: int, paths: tuple[str, ...]) -> None:
        """Put the gate before ``app``.

        Args:
            app: the application behind the gate.
            max_body_bytes: largest body, bytes.
            paths: the paths that take an upload; others take no body at all.
        """
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.paths = paths
        self.routes = [Route(path, app, methods=["POST"]) for path in paths]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one connection."""
        if scope["type"] != "http" or (scope["method"] in READING and not _has_body(scope)):
            await self.app(scope, receive, send)
            return
        headers, body = Headers(scope=scope), _Body(receive)
        try:
            self._must_take_uploads(scope)
            upload = await self._read(headers, body)
        except _Refused as refused:
            # Who waits for '100 Continue' hasn't sent anything yet.
            if headers.get("expect", "").lower() != "100-continue":
                await body.drain()
            await _answer(send, refused.status, str(refused))
            return
        except _Gone:
            return
        try:
            clean, replay = await _clean(scope, upload, receive)
            await self.app(clean, replay, send)
        finally:
            await upload.close()

    def _must_take_uploads(self, scope: "Scope") -> None:
        """Refuse what isn't a POST to one of the paths, under whatever root a proxy or server gives."""
        found = {route.matches(scope)[0] for route in self.routes}
        if Match.FULL in found:
            return
        where = f"A scan goes by POST to {' or '.join(self.paths)}."
        if scope["method"] in READING:
            raise _Refused(400, f"A {scope['method']} request has no body here. {where}")
        if Match.PARTIAL in found:
            raise _Refused(405, f"Not by {scope['method']}. {where}")
        raise _Refused(404, f"This address takes no upload. {where}")

    async def _read(self, headers: Headers, body: "_Body") -> UploadFile:
        """Read the upload; the file is whole, rewound, and no larger than allowed."""
        limit_mb = self.max_body_bytes / 1e6
        too_large = f"The upload is larger than this service takes ({limit_mb:g} MB)."
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "multipart/form-data":
            # What was sent instead is not repeated: a header may hold anything.
            raise _Refused(415, f"A scan comes as multipart/form-data. {HOW}.")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise _Refused(413, too_large)

        async def limited() -> AsyncGenerator[bytes, None]:
            async for chunk in body.chunks():
                if body.seen > self.max_body_bytes:
                    raise _Refused(413, too_large)
                yield chunk

        try:
            # No plain field at all: BentoML would fetch what stands in one.
            form = await MultiPartParser(headers, limited(), max_files=1, max_fields=0).parse()
        except MultiPartException as error:
            raise _Refused(
                400, f"The form must hold one file in the field '{FIELD}' and nothing else. {HOW}."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _Refused(507, FULL) from error
        upload = form.get(FIELD)
        if not isinstance(upload, UploadFile):
            await form.close()
            raise _Refused(400, f"The form has no file in the field '{FIELD}'. {HOW}.")
        if shutil.disk_usage(tempfile.gettempdir()).free < (upload.size or 0):  # BentoML copies it
            await form.close()
            raise _Refused(507, FULL)
        return upload


def _has_body(scope: "Scope") -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _clean(scope: "Scope", upload: UploadFile, receive: "Receive") -> tuple["Scope", "Receive"]:
    """A scope and a body for the application that hold the file alone, under a neutral name."""
    magic = await upload.read(2)
    await upload.seek(0)
    head = _HEAD % (b"scan.nii.gz" if magic == b"\x1f\x8b" else b"scan.nii")
    length = len(head) + (upload.size or 0) + len(_TAIL)
    dropped = (b"content-type", b"content-length", b"transfer-encoding", b"expect")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers.append((b"content-type", b"multipart/form-data; boundary=" + _BOUNDARY))
    headers.append((b"content-length", str(length).encode()))

    async def parts() -> AsyncGenerator[bytes, None]:
        yield head
        while chunk := await upload.read(CHUNK):
            yield chunk
        yield _TAIL

    body = parts()
    done = False

    async def replay() -> "Message":
        nonlocal done
        if done:
            # What the application waits for now is the client leaving.
            return await receive()
        try:
            return {"type": "http.request", "body": await anext(body), "more_body": True}
        except StopAsyncIteration:
            done = True
            return {"type": "http.request", "body": b"", "more_body": False}

    return {**scope, "headers": headers}, replay


async def _answer(send: "Send", status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
