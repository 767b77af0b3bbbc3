"""What goes into a bento."""

import subprocess
import sys
from pathlib import Path

import grimp

from segdistill.runtime.plan import Structure
from serving.contract import Served
from serving.packaging.bento import LIBRARY, SERVICE, write_context
from tests.onnx_models import threshold_bundle


def test_a_bento_holds_all_that_its_modules_import() -> None:
    """Whatever of the repository a module in the bento imports, in functions too, is in the bento."""
    graph = grimp.build_graph(
        "segdistill", "serving", exclude_type_checking_imports=True, cache_dir=None
    )
    inside = {f"segdistill.{name.removesuffix('.py')}" for name in LIBRARY}
    inside |= {f"serving.{name.removesuffix('.py')}" for name in SERVICE}
    modules = {name for name in graph.modules if ".".join(name.split(".")[:2]) in inside}
    assert {"serving.service.app", "segdistill.tuning.__main__"} <= modules
    needed = {other for name in modules for other in graph.find_modules_directly_imported_by(name)}
    assert needed - modules <= {"segdistill", "serving"}  # their __init__.py are in it, too


def test_a_bento_carries_the_codes_of_its_structures(tmp_path: Path) -> None:
    """From the sources of a bento alone, DICOM results get the codes of the task's label protocol."""
    bundle = threshold_bundle(
        tmp_path / "bundle",
        task="abdominal_ct",
        label_protocol="abdomen-11",
        structures=(Structure(1, "spleen"),),
    )
    served = Served("abdominal_ct", "champion", 1, "x4", bundle.digest, "segdistill:1", 0, 1.0)
    write_context(tmp_path / "context", served, None)
    code = (
        "import sys, segdistill; from pathlib import Path\n"
        "from segdistill.runtime.bundle import Bundle\n"
        "from serving.contract import HERE, Served, find_codes\n"
        "assert {HERE.parent, Path(segdistill.__file__).parents[1]} == {Path.cwd()}\n"
        f"found = find_codes({served!r}, Bundle.read(Path({str(bundle.folder)!r})))\n"
        "print(found['spleen'].kind.value)\n"
        "print(sorted({'torch', 'mlflow', 'ray', 'monai', 'bentoml'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "context",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["78961009", "[]"], done.stderr
