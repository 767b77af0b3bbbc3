"""Texts that fit DICOM's attributes, in every character set."""

import unicodedata

LONG = 64  # characters of a Long String (LO)
SHORT = 16  # of a Short String (SH) and of a Code String (CS)


def plain(text: str, length: int = LONG) -> str:
    r"""A text in ASCII without control characters and backslashes, at most ``length`` characters.

    The results keep the character set of their series, and ASCII is a part of every one. An accent is
    left out, a character of another script becomes ``?``; the backslash separates values in DICOM.
    """
    letters = unicodedata.normalize("NFKD", text)
    letters = "".join(one for one in letters if not unicodedata.combining(one))
    shown = (
        one if one.isascii() and one.isprintable() and one != "\\" else " " if one.isspace() else "?"
        for one in letters
    )
    return " ".join("".join(shown).split())[:length].rstrip() or "?"
