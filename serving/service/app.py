"""The service: one scan in, a label map on the same grid and volumes in ml out, over HTTP on the CPU."""

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segdistill import telemetry

# BentoML reads the switches while it is imported.
os.environ.update(telemetry.OFF)

import bentoml
from bentoml.validators import ContentType
from starlette.responses import JSONResponse

from segdistill.files import SegdistillError
from serving.contract import find_served, find_setting, verified
from serving.service.gate import UploadGate
from serving.service.port import check_port

# What segmenting needs is imported where a worker starts: the process that watches over the workers
# loads this module, too, and they wait for it.
if TYPE_CHECKING:
    from segdistill.runtime.quality import Quality
    from segdistill.runtime.segment import Segmentation

# The command line has asked, and remembers the answer, before this module was loaded.
if _stats := sys.modules.get("bentoml._internal.utils.analytics.usage_stats"):
    _stats.do_not_track.cache_clear()

log = logging.getLogger("bentoml.segdistill")
LABELS = "labels.nii.gz"
DESCRIPTION = """\
# segdistill

One scan in, a label map on the same grid out. **Research use, not a medical device.**

    curl -F scan=@scan.nii.gz -o labels.nii.gz http://127.0.0.1:3000/segment
    curl -F scan=@scan.nii.gz http://127.0.0.1:3000/volumes

`/segment` gives the label map (`.nii.gz`), and in its headers the model and the volumes, so that one
pass gives all: `X-Segdistill-Model`, `-Version`, `-Digest`, `-Volumes-Ml` and `-Quality`. `/volumes`
gives the volumes and the quality as JSON. Where the quality's verdict is `check`, a person must look at
the label map before anybody uses it.
"""

# Loopback unless the operator says otherwise (--host, or BENTOML_HOST in a container).
HOST, PORT = "127.0.0.1", 3000


class _Documented(bentoml.Service[Any]):  # type: ignore[misc]
    """Shows our own description in OpenAPI, also when it is served from the source tree."""

    @property
    def doc(self) -> str:
        return DESCRIPTION


def _answered(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, whose refusals are answers with their own status and words.

    BentoML's exceptions have a status, but from 500 on it puts words of its own in the place of ours,
    and below 500 a list around them.
    """

    @functools.wraps(endpoint)
    def answer(self: "Service", scan: Path, ctx: bentoml.Context) -> Any:
        try:
            return endpoint(self, scan, ctx)
        except SegdistillError as error:
            from serving.service.refusal import refusal

            status, message = refusal(error)
            # The client knows its file by another name than ours.
            message = message.replace(str(scan), "scan")
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                log.error("failed: %s", str(error).replace(str(scan), "scan"))
            else:
                log.info("refused: %s", message)
            ctx.response.status_code = status
            return JSONResponse({"error": message})

    return answer


try:
    SERVED, FOLDER = find_served()
except SegdistillError as _error:
    # BentoML shows its own errors as one line, all others with a traceback.
    raise bentoml.exceptions.BentoMLException(str(_error)) from None


@bentoml.service(
    name=f"segdistill-{SERVED.task.replace('_', '-')}",
    description=DESCRIPTION,
    workers=1,
    # One scan at a time has all cores; a few wait, the rest are told to come back (429).
    threads=1,
    traffic={"timeout": 600, "max_concurrency": 8},
    http={"host": HOST, "port": PORT},
    service_class=_Documented,
)
class Service:
    """Serves exactly one sealed bundle; refuses to start on any other bytes."""

    def __init__(self) -> None:
        from segdistill.runtime.segment import Segmentator

        bundle = verified(SERVED, FOLDER)
        setting, why = find_setting(SERVED, bundle)
        self.segmentator = Segmentator(bundle, setting=setting)
        log.info("serves %s, version %s", SERVED.name, SERVED.numbered)
        log.info("runs with %s", why)
        self.model = {
            "task": SERVED.task,
            "name": SERVED.name,
            "version": SERVED.version,
            "bundle_digest": SERVED.bundle_digest,
            "plan_digest": bundle.provenance["plan_sha256"],
            "setting": setting.to_json(),
        }

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Refuse to start, before any worker does, unless every digest is right and the port is free."""
        try:
            find_setting(SERVED, verified(SERVED, FOLDER))
            check_port(HOST, PORT)
        except SegdistillError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from None

    def __is_ready__(self) -> bool:
        """What ``/readyz`` says: whether there is an engine that can be trusted."""
        return self.segmentator.ready()

    @bentoml.api(route="/segment")  # type: ignore[untyped-decorator]
    @_answered
    def segment(
        self, scan: Path, ctx: bentoml.Context
    ) -> Annotated[Path, ContentType("application/gzip")]:
        """Segment a scan (.nii or .nii.gz, form field `scan`) and give the label map on its grid."""
        labels = Path(ctx.temp_dir) / LABELS
        outcome = self._segment(scan, labels)
        ctx.response.headers.update(
            {
                "X-Segdistill-Model": SERVED.name,
                "X-Segdistill-Version": SERVED.numbered,
                "X-Segdistill-Digest": SERVED.bundle_digest,
                "X-Segdistill-Volumes-Ml": json.dumps(_rounded(outcome.volumes_ml)),
                "X-Segdistill-Quality": json.dumps(_briefly(outcome.quality)),
            }
        )
        return labels

    @bentoml.api(route="/volumes")  # type: ignore[untyped-decorator]
    @_answered
    def volumes(self, scan: Path, ctx: bentoml.Context) -> dict[str, Any]:
        """Segment a scan (.nii or .nii.gz, form field `scan`) and give each structure's volume in ml."""
        outcome = self._segment(scan, Path(ctx.temp_dir) / LABELS)
        return {
            "volumes_ml": _rounded(outcome.volumes_ml),
            "quality": outcome.quality.to_json(),
            "model": self.model,
            "seconds": {step: round(wall, 4) for step, (wall, _) in outcome.timings.items()},
            "notice": "Research use, not a medical device.",
        }

    def _segment(self, scan: Path, labels: Path) -> "Segmentation":
        start = time.perf_counter()
        outcome = self.segmentator.segment_file(scan, labels)
        log.info("segmented %s voxels in %.2f s", outcome.labels.shape, time.perf_counter() - start)
        return outcome


def _briefly(quality: "Quality") -> dict[str, Any]:
    """Without the single structures: proxies take headers of a few thousand bytes."""
    body = quality.to_json()
    return {name: body[name] for name in ("confidence", "verdict", "reasons")}


def _rounded(volumes_ml: dict[str, float]) -> dict[str, float]:
    return {name: round(ml, 3) for name, ml in volumes_ml.items()}


Service.add_asgi_middleware(  # type: ignore[attr-defined]
    UploadGate, max_body_bytes=int(SERVED.max_body_mb * 1e6), paths=("/segment", "/volumes")
)
