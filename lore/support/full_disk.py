"""Names a file system that takes no more bytes. Python says so by an OSError; torch, safetensors and tokenizers say it in words of
their own, such as "basic_ios::clear: iostream error"."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lore.support.errors import LoreError, reason

NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
WORDS = re.compile(r"basic_ios|iostream error|inline_container|PytorchStreamWriter|No space left|quota exceeded", re.IGNORECASE)
OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def full_disk_named(folder: Path, then: str) -> Iterator[None]:
    """Translates errors of a write for which there is no room into a LoreError. folder: what is written; then: what to do
    afterwards, as a sentence."""
    try:
        yield
    except (LoreError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free / 1e9
        raise LoreError(
            f"A file of {folder} could not be written: {reason(error)}. Its file system has {free:.3g} GB free.\n"
            f"Free some space or raise the quota. {then}"
        ) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in NUMBERS
    text = str(error)
    numbers = {int(number) for number in OS_ERROR.findall(text)}
    return bool(numbers & NUMBERS) or WORDS.search(text) is not None
