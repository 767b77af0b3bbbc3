"""What goes into a bento."""

import grimp

from serving.packaging.bento import LIBRARY, SERVICE


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
