"""segdistill: 3D segmentation teachers distilled into students that a hospital runs on its own CPUs.

Rooms, from the bottom up: ``volume`` (a scan), ``runtime`` (inference), ``sites`` (real data);
``simulation`` (people, scanners), ``tuning`` (the fastest way to run a bundle), ``dicom_results`` (what
goes to the PACS), ``network`` (teacher and students); ``interop`` (nnU-Net); ``training``,
``evaluation``, ``registry``; ``studies``.
"""

__version__ = "0.1.0"
