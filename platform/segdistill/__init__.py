"""segdistill: 3D segmentation teachers distilled into students that a hospital runs on its own CPUs.

Rooms, from the bottom up: ``volume`` (a scan), ``runtime`` (inference), ``cohort`` (sites) and
``network`` (teacher and students), ``training``, ``evaluation`` and ``registry``. Imports go one way.
"""

__version__ = "0.1.0"
