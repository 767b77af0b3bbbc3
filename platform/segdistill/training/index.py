"""What kinds of case there are to train on, from the index of the prepared ones alone."""

from pathlib import Path

from segdistill.files import read_json


def any_rendered(data: Path) -> bool:
    """Whether there are label maps whose scans are rendered while training.

    Args:
        data: folder of prepared cases.
    """
    return any(entry.get("rendered") for entry in read_json(data / "index.json"))


def any_unlabelled(data: Path) -> bool:
    """Whether there are scans to train on that only a teacher can label.

    Args:
        data: folder of prepared cases.
    """
    index = read_json(data / "index.json")
    return any(entry["split"] == "train" and not entry["labelled"] for entry in index)
