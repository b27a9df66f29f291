"""Product photos from untrusted sources. All size limits are checked before pixels are decoded."""

import base64
import binascii
import io
import json
import os
import re
import stat
import warnings
from collections.abc import Mapping
from typing import Any

from lore.support.errors import LoreError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 36_000_000
"""6000 x 6000, larger than any shop photo. Pillow needs 4 bytes per pixel for at most four copies at a time: 0.6 GB."""
MAX_BYTES = 32 * 2**20
REASONS = ("image_missing", "image_corrupt", "image_too_large", "image_outside")
MAX_REFUSAL_BYTES = 2**16
_REFUSED = b"lore: photo not read "


class ImageError(LoreError):
    """An image that cannot be used; `reason` is one of REASONS, or image_refused by a model's processor."""

    def __init__(self, reason: str, found: str, expected: str):
        super().__init__(f"{found}; expected {expected}")
        self.reason, self.found, self.expected = reason, found, expected


def load_image(image: Mapping[str, Any] | bytes | str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Any:
    """Decodes to a Pillow RGB image. Applies the EXIF orientation and puts transparent parts on white. Raises ImageError.

    `image`: {"bytes", "path"} as datasets.Image stores it (bytes take precedence), or bytes, or a path.
    """
    from PIL import Image, ImageOps  # a dry run of an importer loads this module

    opened = _open(image_bytes(image, max_bytes=max_bytes), max_pixels)
    try:
        ImageOps.exif_transpose(opened, in_place=True)
        if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
            clear = opened.convert("RGBA")
            opened.close()
            white = Image.new("RGBA", clear.size, "white")
            return Image.alpha_composite(white, clear).convert("RGB")
        return opened.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise _corrupt(error) from error


def bounded(image: Any, max_pixels: int | None) -> Any:
    """The photo, scaled down if it has more than `max_pixels`. Keeps the aspect ratio. None: no limit."""
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    from PIL import Image  # a dry run of an importer loads this module

    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def check_image(image: Mapping[str, Any] | bytes | str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded bytes of an image, after decoding it as a check. Raises ImageError. JPEG is decoded at an eighth of its size,
    which finds every truncated file in a quarter of the time.
    """
    data = image_bytes(image, max_bytes=max_bytes)
    opened = _open(data, max_pixels)
    try:
        opened.draft("RGB", (max(1, opened.width // 8), max(1, opened.height // 8)))
        opened.load()
    except Exception as error:  # as in load_image
        raise _corrupt(error) from error
    return data


def image_bytes(image: Mapping[str, Any] | bytes | str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded bytes of an image. Raises ImageError if the file is missing or too large. Never downloads."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path") or ""
    if isinstance(image, bytes):
        if (error := refused(image)) is not None:
            raise error
        if len(image) > max_bytes:
            raise ImageError("image_too_large", f"an image of {len(image):,} bytes", f"at most {max_bytes:,} bytes")
        return image
    if not image:
        raise ImageError("image_missing", "neither bytes nor a path", "an image")
    if is_url(image):
        raise ImageError("image_missing", f"the URL {image[:80]}", "a local file: photos are never downloaded here")
    try:
        return _file_bytes(image, max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("image_missing", f"no file at {image[:200]}", "an image file") from error
    except (OSError, ValueError) as error:  # a path with a NUL byte or of a megabyte, or a file that may not be read
        raise ImageError("image_missing", f"the path {image[:80]!r}", "the path of an image file") from error


def is_url(path: str) -> bool:
    return "://" in path[:16]


def refusal(error: ImageError) -> bytes:
    """Stands in the place of a photo's bytes that may not be read; opening them raises the error again."""
    said = {"reason": error.reason, "found": error.found, "expected": error.expected}
    return _REFUSED + json.dumps(said).encode()


def refused(data: bytes) -> ImageError | None:
    """The error of `refusal`. None for other bytes."""
    if not data.startswith(_REFUSED):
        return None
    try:
        said = json.loads(data[len(_REFUSED) :][:MAX_REFUSAL_BYTES])
        reason, found, expected = (str(said[name]) for name in ("reason", "found", "expected"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ImageError("image_corrupt", "bytes that are no image", "an image")
    return ImageError(reason if reason in REASONS else "image_corrupt", found, expected)


def _file_bytes(path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file. Never waits: opening a pipe would, as does reading some files of the system, whose size is 0."""
    _need_photo_file(path, os.stat(path), max_bytes)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _need_photo_file(path, os.fstat(file.fileno()), max_bytes)  # it may have been replaced since
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageError("image_too_large", f"a file of over {max_bytes:,} bytes", f"at most {max_bytes:,} bytes")
    return data


def _need_photo_file(path: str, state: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(state.st_mode):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, socket or device"
        raise ImageError("image_missing", f"no file but {what} at {path[:200]}", "an image file")
    if not state.st_size:
        raise ImageError("image_corrupt", f"an empty file at {path[:200]}", "an image file")
    if state.st_size > max_bytes:
        raise ImageError("image_too_large", f"a file of {state.st_size:,} bytes", f"at most {max_bytes:,} bytes")


def decode_base64(text: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Decodes a base64 image, with or without a `data:image/png;base64,` prefix. Raises ImageError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) * 3 // 4 > max_bytes + 3:
        raise ImageError("image_too_large", f"base64 of {len(text) * 3 // 4:,} bytes", f"at most {max_bytes:,} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("image_corrupt", f"text that is not base64 ({error})", "a base64 image") from error


def _open(data: bytes, max_pixels: int) -> Any:
    from PIL import Image  # a dry run of an importer loads this module

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below against our own limit
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error).rstrip("."), f"at most {max_pixels:,} pixels") from error
    except Exception as error:  # as in load_image
        raise _corrupt(error) from error
    if opened.width * opened.height > max_pixels:
        found = f"{opened.width} x {opened.height} = {opened.width * opened.height:,} pixels"
        raise ImageError("image_too_large", found, f"at most {max_pixels:,} pixels")
    return opened


def _corrupt(error: Exception) -> ImageError:
    said = re.sub(r"<_io\.\w+ object at \w+>", "it", str(error))  # the memory address would differ between runs
    return ImageError(
        "image_corrupt",
        f"an image that cannot be decoded ({type(error).__name__}: {said[:120]})",
        f"a complete {', '.join(FORMATS)} file",
    )
