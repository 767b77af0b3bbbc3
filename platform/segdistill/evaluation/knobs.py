"""The knobs of the evaluation."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from segdistill.params import Count, Positive, Share


@dataclass(frozen=True)
class EvaluationKnobs:
    """The ``evaluation`` part of params.yaml.

    Attributes:
        nsd_tolerance_mm: surface distance that NSD counts as agreement, mm.
        timing_cases: number of test cases that are timed.
        confidence: coverage of the paired intervals.
        margin: share of the teacher's Dice that a student may lose and still count as non-inferior.
    """

    nsd_tolerance_mm: Positive
    timing_cases: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    margin: Share
