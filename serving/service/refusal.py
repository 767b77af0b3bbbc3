"""What a client is told when its scan isn't segmented, and whose fault it was."""

from http import HTTPStatus

from segdistill.files import DiskFullError, SegdistillError
from segdistill.volume import VolumeError
from segdistill.volume.memory import TooLittleMemoryError

LATER = "Tell its administrator, whose log has the reason, and send the scan again later."


def refusal(error: SegdistillError) -> tuple[HTTPStatus, str]:
    """The status and the words for an error.

    What is wrong with the scan is the client's to mend, and it reads what. What is wrong here isn't, and
    the message may name folders of this machine: it stays in the log. Only how much memory a scan needs
    is told, which its sender can change.
    """
    match error:
        case DiskFullError():
            return HTTPStatus.INSUFFICIENT_STORAGE, f"The disk of this service is full. {LATER}"
        case TooLittleMemoryError():
            return HTTPStatus.SERVICE_UNAVAILABLE, str(error)
        case VolumeError():
            return HTTPStatus.BAD_REQUEST, str(error)
        case _:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"This service can't run its network now. {LATER}"
