"""The gate before the service, in front of an application that reads the form for real."""

from collections.abc import AsyncIterator

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


async def _ping(_: Request) -> JSONResponse:
    return JSONResponse({})


def ask(
    method: str = "POST",
    path: str = "/segment",
    content: bytes | AsyncIterator[bytes] | None = None,
    files: object = None,
    data: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Send one request through the gate."""
    app = Starlette(routes=[Route("/segment", _tell, methods=["POST"]), Route("/livez", _ping)])
    gate = UploadGate(app, LIMIT, ("/segment",))

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=gate)
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
