"""The packaged service takes scans with altered bytes: its own grid comes back, or a reason."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from segdistill.files import read_json
from segdistill.volume import read_label_map, read_volume, same_grid
from tests.live_server import Live, free_port, serve, watched
from tests.mutated import intact_files, mutated_files
from tests.onnx_models import ball_file
from tests.small_family import TASK

pytestmark = pytest.mark.slow
OF_EACH = 15


@pytest.fixture(scope="module")
def live(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The packaged bento, served."""
    here = tmp_path_factory.mktemp("uploads")
    port = free_port()
    env = watched(here, BENTOML_HOME=str(packaged / "bentos"))
    bento = read_json(packaged / "registry" / TASK / "bento.json")["bento"]
    command = [sys.executable, "-m", "bentoml", "serve", bento, "--port", str(port)]
    with serve(command, port, "/readyz", here, env, here / "serve.log") as live:
        yield live


def test_every_altered_scan_is_answered_on_its_grid_or_with_a_reason(live: Live, tmp_path: Path) -> None:
    """Altered scans get 200 with a label map on their grid, or 400 and why; a sound one passes after."""
    answers = []
    for number, (name, body) in enumerate(mutated_files(OF_EACH)):
        answer = httpx.post(f"{live.url}/segment", files={"scan": (name, body)}, timeout=120)
        answers.append(answer.status_code)
        assert answer.status_code in (200, 400), (number, name, answer.text)
        if answer.status_code == 400:
            assert len(answer.json()["error"]) > 20
            continue
        (tmp_path / "labels.nii.gz").write_bytes(answer.content)
        (tmp_path / name).write_bytes(body)
        assert same_grid(read_label_map(tmp_path / "labels.nii.gz"), read_volume(tmp_path / name)), name
    assert len(answers) == OF_EACH * len(intact_files()) >= 60
    assert {200, 400} == set(answers)

    ball = ball_file(tmp_path / "ball.nii.gz")
    sound = (tmp_path / "ball.nii.gz").read_bytes()
    answer = httpx.post(f"{live.url}/segment", files={"scan": ("scan.nii.gz", sound)}, timeout=120)
    assert answer.status_code == 200
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    assert np.array_equal(read_label_map(tmp_path / "labels.nii.gz").array == 1, ball)
