"""No patient fields: what a NIfTI file could say about a person, and the check that ours says none."""

from pathlib import Path

import nibabel as nib

# Free text of the NIfTI-1 and Analyze headers; exporters put names, numbers and dates into them.
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")


def patient_fields(path: Path) -> list[str]:
    """The places of a NIfTI file's header that could name a patient and aren't empty.

    Returns:
        Names of free-text fields, and ``extensions`` if there are any; empty for a clean file.
    """
    header = nib.Nifti1Image.from_filename(path).header
    filled = [name for name in TEXT_FIELDS if name in header and header[name].item().strip(b"\0 ")]
    return [*filled, "extensions"] if header.extensions else filled
