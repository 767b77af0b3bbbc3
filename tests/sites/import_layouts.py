"""Small real datasets on disk, in the layouts that hospitals keep theirs in."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (16, 16, 16)
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
AFFINE[:3, 3] = (-12.0, -10.0, -16.0)

# One FreeSurfer code for each of the ten structures, in the order of the task's codes 1 to 10.
FREESURFER_CODES = (24, 4, 1002, 2, 10, 11, 17, 16, 8, 7)
PATIENT = b"DOE^JANE 1970-01-01"


def scan_array(seed: int) -> np.ndarray:
    """A scan of SHAPE, int16, different for every seed."""
    return np.random.default_rng(seed).integers(1, 900, SHAPE, dtype=np.int16)


def label_array(codes: tuple[int, ...] = tuple(range(1, 11))) -> np.ndarray:
    """A label map of SHAPE with a slab of each code, background in the first slice."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for place, code in enumerate(codes, start=1):
        labels[place] = code
    return labels


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Save with a patient's name in every free-text field and in an extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    for field in ("descrip", "aux_file", "db_name"):
        image.header[field] = PATIENT[:18]
    image.header["intent_name"] = b"JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", PATIENT))
    nib.save(image, path)
    return path


def save_mgz(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Save as FreeSurfer's MGZ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.MGHImage(array.astype(np.int32), affine), path)
    return path


def make_nnunet(root: Path, train: int = 10, test: int = 0, test_labels: bool = True) -> Path:
    """An nnU-Net raw dataset whose label names are the task's structures, codes reversed."""
    from segdistill.sites.protocol import read_protocol

    names = read_protocol("brain_mri").structures.values()
    labels = {"background": 0} | {name: 11 - code for code, name in enumerate(names, start=1)}
    for half, count in (("Tr", train), ("Ts", test)):
        for number in range(count):
            case = f"{half}case_{number:03d}"
            seed = number + (1000 if half == "Ts" else 0)
            save_nifti(root / f"images{half}" / f"{case}_0000.nii.gz", scan_array(seed))
            if half == "Tr" or test_labels:
                save_nifti(root / f"labels{half}" / f"{case}.nii.gz", label_array())
    write_dataset(root, labels=labels, numTraining=train)
    return root


def write_dataset(root: Path, **changes: object) -> None:
    """Write dataset.json, or change keys of the one that is there; None removes a key."""
    path = root / "dataset.json"
    body = {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}
    if path.exists():
        body = json.loads(path.read_text())
    body |= changes
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not None}))


def make_bids(root: Path, subjects: int = 5, sessions: int = 2) -> Path:
    """A BIDS dataset with sessions, sidecars and a derivative 'manual' with its dseg.tsv."""
    from segdistill.sites.protocol import read_protocol

    rows = ["index\tname", "0\tbackground"]
    rows += [f"{code}\t{name}" for code, name in read_protocol("brain_mri").structures.items()]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "demo", "BIDSVersion": "1.9.0"}')
    for number in range(subjects):
        for session in range(sessions):
            sub, ses = f"sub-{number:02d}", f"ses-{session}"
            stem = f"{sub}_{ses}"
            scan = root / sub / ses / "anat" / f"{stem}_T1w.nii.gz"
            save_nifti(scan, scan_array(100 * number + session))
            (scan.parent / f"{stem}_T1w.json").write_text(
                json.dumps(
                    {"MagneticFieldStrength": 3, "PatientName": "DOE", "InstitutionName": "St. X"}
                )
            )
            label = root / "derivatives" / "manual" / sub / ses / "anat" / f"{stem}_dseg.nii.gz"
            save_nifti(label, label_array())
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("\n".join(rows) + "\n")
    return root


def make_freesurfer(root: Path, subjects: int = 4, image: str = "orig.mgz") -> Path:
    """A FreeSurfer subjects folder, with the fsaverage that FreeSurfer puts there."""
    for number in range(subjects):
        mri = root / f"bert{number}" / "mri"
        save_mgz(mri / image, scan_array(number))
        save_mgz(mri / "aparc.DKTatlas+aseg.mgz", label_array(FREESURFER_CODES))
    save_mgz(root / "fsaverage" / "mri" / "orig.mgz", scan_array(99))
    return root
