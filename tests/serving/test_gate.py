"""The gate before the service, in front of an application that reads the form for real."""

import errno
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serving.service.gate import UploadGate

LIMIT = 100_000


async def _tell(request: Request) -> JSONResponse:
    form = await request.form()
    scan = form["scan"]
    assert isinstance(scan, UploadFile)
    body = await scan.read()
    return JSONResponse({"fields": list(form), "name": scan.filename, "bytes": len(body)})


async def _open(_: Request) -> JSONResponse:
    """A door that must not be reached."""
    return JSONResponse({"open": True})


async def _ping(_: Request) -> JSONResponse:
    return JSONResponse({})


def ask(
    method: str = "POST",
    path: str = "/segment",
    content: bytes | AsyncIterator[bytes] | None = None,
    files: object = None,
    data: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    root_path: str = "",
) -> httpx.Response:
    """Send one request through the gate."""
    app = Starlette(
        routes=[
            Route("/segment", _tell, methods=["POST"]),
            Route("/livez", _ping),
            Route("/{other:path}", _open, methods=["POST", "PUT", "PATCH", "DELETE"]),
        ]
    )
    gate = UploadGate(app, LIMIT, ("/segment",))

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=gate, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(
                method, path, content=content, files=files, data=data, headers=headers
            )

    return anyio.run(go)


def form(*parts: tuple[str, str | None, bytes], boundary: str = "xyz") -> bytes:
    """A form's bytes: (field, file name or None for a plain field, value) each."""
    lines = []
    for field, filename, value in parts:
        name = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'
        lines.append(head.encode() + value + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


FORM = {"content-type": "multipart/form-data; boundary=xyz"}


@pytest.mark.parametrize(
    ("body", "name"),
    [(b"\x5c\x01" + b"n" * 9000, "scan.nii"), (b"\x1f\x8b" + b"z" * 9000, "scan.nii.gz")],
)
def test_a_file_passes_whole_and_under_a_neutral_name(body: bytes, name: str) -> None:
    """A file reaches the service with all its bytes and without the name the client gave it."""
    answer = ask(files={"scan": ("DOE_JANE_1980.nii.gz", body)})
    assert answer.json() == {"fields": ["scan"], "name": name, "bytes": len(body)}


def test_an_address_in_place_of_a_file_is_refused() -> None:
    """A plain field named scan, which BentoML would fetch, is answered with 400."""
    answer = ask(content=form(("scan", None, b"http://127.0.0.1:1/scan.nii")), headers=FORM)
    assert answer.status_code == 400
    assert "must hold one file in the field 'scan'" in answer.json()["error"]


@pytest.mark.parametrize(
    "parts",
    [
        [("scan", "a.nii", b"1"), ("scan", "b.nii", b"2")],
        [("scan", "a.nii", b"1"), ("more", None, b"2")],
        [("image", "a.nii", b"1")],
        [],
    ],
    ids=["two files", "a file and a field", "another field", "nothing"],
)
def test_a_form_with_anything_but_one_scan_is_refused(
    parts: list[tuple[str, str | None, bytes]],
) -> None:
    """Two files, a further field, another field's name or no part at all are answered with 400."""
    answer = ask(content=form(*parts), headers=FORM)
    assert answer.status_code == 400
    assert "curl -F scan=@scan.nii.gz" in answer.json()["error"]


@pytest.mark.parametrize(
    "body", [b"no form at all", form(("scan", "a.nii", b"1"))[:-20]], ids=["no form", "cut off"]
)
def test_a_form_that_is_damaged_is_refused(body: bytes) -> None:
    """A body that isn't a whole form is answered with 400."""
    assert ask(content=body, headers=FORM).status_code == 400


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/vnd.bentoml+pickle",
        "",
    ],
)
def test_another_content_type_is_refused(kind: str) -> None:
    """A body that is announced as anything but a form is answered with 415."""
    answer = ask(content=b"http://127.0.0.1:1/scan.nii", headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    """A body whose announced length is over the limit is answered with 413 and the limit."""
    answer = ask(files={"scan": ("a.nii", b"0" * (LIMIT + 1))})
    assert answer.status_code == 413
    assert "0.1 MB" in answer.json()["error"]


def test_a_body_that_does_not_tell_its_length_is_stopped_at_the_limit() -> None:
    """A chunked body is answered with 413 as soon as it is over the limit."""
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        yield form(("scan", "a.nii", b""))[:-11]
        for _ in range(LIMIT // 1000 + 1):
            read += 1000
            yield b"0" * 1000

    assert ask(content=chunks(), headers=FORM).status_code == 413
    assert read > LIMIT


def test_what_takes_no_upload_is_left_alone() -> None:
    """Health checks pass the gate as they are."""
    assert ask("GET", "/livez").status_code == 200


CLOSED = [
    ("POST", "/segment/submit"),
    ("POST", "//segment"),
    ("POST", "/segment/"),
    ("POST", "/%2fsegment"),
    ("POST", "/segment%2f"),
    ("POST", "/SEGMENT"),
    ("POST", "/api/segment"),
    ("POST", "/segment;x=1"),
    ("POST", "/"),
    ("POST", "/livez"),
    ("PUT", "/volumes/cancel"),
    ("PATCH", "/anything"),
    ("DELETE", "/anything"),
    ("QUERY", "/anything"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("root_path", ["", "/brains"])
def test_the_gate_is_closed_to_all_but_the_known_uploads(method: str, path: str, root_path: str) -> None:
    """Whatever is asked otherwise than by reading, anywhere but at the known addresses, gets 404."""
    answer = ask(
        method,
        root_path + path,
        content=form(("scan", "a.nii", b"1")),
        headers=FORM,
        root_path=root_path,
    )
    assert answer.status_code == 404
    assert "A scan goes by POST to /segment." in answer.json()["error"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_an_upload_is_a_post(method: str) -> None:
    """The right address with another method gets 405."""
    answer = ask(method, content=form(("scan", "a.nii", b"1")), headers=FORM)
    assert answer.status_code == 405


@pytest.mark.parametrize("where", ["/segment", "/segment?x=1"])
@pytest.mark.parametrize("root_path", ["", "/brains", "/api/v1"])
def test_below_any_root_the_address_is_the_same(where: str, root_path: str) -> None:
    """Where a proxy puts the service under a root, uploads go through the gate as without one."""
    good = ask(path=root_path + where, files={"scan": ("a.nii", b"12")}, root_path=root_path)
    assert good.json()["bytes"] == 2
    bad = ask(path=root_path + where, content=b"http://127.0.0.1:1/", root_path=root_path)
    assert bad.status_code == 415


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/livez", "/segment", "/anything"])
def test_reading_brings_no_body(method: str, path: str) -> None:
    """A request that reads is refused with a body, told its length or not."""
    assert ask(method, path, content=b"body").status_code == 400

    async def chunks() -> AsyncIterator[bytes]:
        yield b"body"

    assert ask(method, path, content=chunks()).status_code == 400


def test_a_full_disk_is_the_fault_of_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upload that the disk can't hold, or can't hold twice, gets 507 without a path."""
    files = {"scan": ("a.nii", b"0" * 2000)}
    nearly = shutil.disk_usage(tmp_path)._replace(free=1999)
    monkeypatch.setattr("serving.service.gate.shutil.disk_usage", lambda _: nearly)
    answer = ask(files=files)
    assert answer.status_code == 507
    assert answer.json()["error"].startswith("The disk of this service is full.")
    monkeypatch.undo()

    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space", str(tmp_path))

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    answer = ask(files=files)
    assert answer.status_code == 507
    assert "/" not in answer.json()["error"]
