"""Scans made from label maps while training, in torch, on the training's device.

A label map says where every tissue of one person's head or trunk is; how a scan of it looks is drawn
anew for every patch, in the manner of SynthSeg (Billot et al., Medical Image Analysis 2023). From the
inside out:

- ``labelmap``: a person's map, memory-mapped, with what its tissues look like;
- ``making``: it, from a segmentation;
- ``tissues``: which code is which tissue, and how bright it may be: data, one file per task;
- ``contrast``: how bright every code is in one scan, in MR and in CT;
- ``knobs``: how much everything may differ;
- ``smooth``: fields that change slowly in space, and the one way in which they reach the voxels;
- ``scene``: one drawn person in one drawn scanner, a handful of numbers;
- ``modality``: which of these are MR's and which CT's;
- ``scanner``: what that scanner sees, wherever one looks;
- ``render``: a patch of it, normalised as the served scan would have been;
- ``whole``: all of it, as a scan in a file.
"""
