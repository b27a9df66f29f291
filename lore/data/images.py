"""Product photos from untrusted sources. All size limits are checked before pixels are decoded."""

import base64
import binascii
import io
import json
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

from lore.support.errors import LoreError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 36_000_000
"""6000 x 6000, larger than any shop photo. Pillow needs 4 bytes per pixel for at most four copies at a time: 0.6 GB."""
MAX_BYTES = 32 * 2**20
MAX_ASPECT = 200
"""The processors of Qwen-VL refuse photos from here on, and others scale the shorter side to nothing."""
MAX_SCANS = 200
"""Scans of a progressive JPEG; encoders write about ten. A file of a megabyte can hold enough to be decoded for hours."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's kinds of pixels that the formats above have, besides 16-bit gray."""
ORIENTATION = 0x0112  # EXIF
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, and the steps between them."""
REASONS = ("image_missing", "image_corrupt", "image_too_large", "image_too_narrow", "image_outside")
MAX_REFUSAL_BYTES = 2**16
REFUSED = b"lore: photo not read "
"""How the bytes of `refusal` begin."""


class ImageError(LoreError):
    """An image that cannot be used; `reason` is one of REASONS, or image_refused by a model's processor."""

    def __init__(self, reason: str, found: str, expected: str):
        super().__init__(f"{found}; expected {expected}")
        self.reason, self.found, self.expected = reason, found, expected


def load_image(image: Mapping[str, Any] | bytes | str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Any:
    """Decodes to a Pillow RGB image: the first frame, upright, with transparent parts on white. Raises ImageError.

    Color profiles are not applied: the processors of the models read the stored values, too. A broken EXIF block or profile
    costs nothing but the orientation.

    `image`: {"bytes", "path"} as datasets.Image stores it (bytes take precedence), or bytes, or a path.
    """
    return _decoded(image_bytes(image, max_bytes=max_bytes), max_pixels)


def bounded(image: Any, max_pixels: int | None) -> Any:
    """The photo, scaled down if it has more than `max_pixels`. Keeps the aspect ratio. None: no limit."""
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    from PIL import Image  # a dry run of an importer loads this module

    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def check_image(image: Mapping[str, Any] | bytes | str, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded bytes of an image that `load_image` can read, because it has just done so. Raises ImageError."""
    data = image_bytes(image, max_bytes=max_bytes)
    _decoded(data, max_pixels)
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
    return REFUSED + json.dumps(said).encode()


def refused(data: bytes) -> ImageError | None:
    """The error of `refusal`. None for other bytes."""
    if not data.startswith(REFUSED):
        return None
    try:
        said = json.loads(data[len(REFUSED) :][:MAX_REFUSAL_BYTES])
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


def _decoded(data: bytes, max_pixels: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata that is not used and about its own limit of pixels
        opened = _open(data, max_pixels)
        try:
            stored = opened.tile[0].args if opened.tile else ""
            stored = str(stored[0] if isinstance(stored, tuple) and stored else stored)  # such as L;4 or RGB;16B
            opened.load()
            if opened.format == "PNG":
                _need_every_row(opened, data)
            return _rgb(_upright(opened), stored)
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise _corrupt(error) from error


def _open(data: bytes, max_pixels: int) -> Any:
    """The image before its pixels are decoded. Raises ImageError for one that is too large or too narrow to be decoded."""
    from PIL import Image  # a dry run of an importer loads this module

    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error).rstrip("."), f"at most {max_pixels:,} pixels") from error
    except Exception as error:  # as in _decoded
        raise _corrupt(error) from error
    width, height = opened.size
    found = f"{width} x {height}"
    if width * height > max_pixels:
        raise ImageError("image_too_large", f"{found} = {width * height:,} pixels", f"at most {max_pixels:,} pixels")
    if min(width, height) < 1 or max(width, height) >= MAX_ASPECT * min(width, height):
        expected = f"an image whose longer side is less than {MAX_ASPECT} times the shorter one"
        raise ImageError("image_too_narrow", f"an image of {found}", expected)
    if opened.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        found = f"a JPEG of {scans:,} scans, each of which takes as long as decoding the image"
        raise ImageError("image_too_large", found, f"at most {MAX_SCANS} scans")
    return opened


def _need_every_row(image: Any, data: bytes) -> None:
    """Raises ImageError for a PNG whose compressed pixels end before its last row: Pillow leaves the missing rows black. They are
    counted only where the last row is black, or where later passes of an interlaced image may be missing."""
    depth, kind, interlaced = data[24], data[25], data[28]
    width, height = image.size
    if data[12:16] != b"IHDR" or not interlaced and image.crop((0, height - 1, width, height)).getbbox(alpha_only=False):
        return
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)  # sizes of the passes: a row has one byte more, the filter's
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    unpacked, found, at = zlib.decompressobj(), 0, 8
    while found < expected and at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        part = data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        while part and found < expected:
            found += len(unpacked.decompress(part, 2**20))
            part = unpacked.unconsumed_tail
        at += length + 12
    if found < expected:
        raise ImageError(
            "image_corrupt",
            f"a PNG whose pixels end early ({found:,} of {expected:,} bytes)",
            "a complete file: the missing part would be black",
        )


def _upright(image: Any) -> Any:
    """The image turned as its EXIF orientation says; as it is stored if that cannot be read."""
    from PIL import Image  # a dry run of an importer loads this module

    turns = Image.Transpose
    methods = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    try:
        method = methods.get(image.getexif().get(ORIENTATION))
    except Exception:  # a broken block: struct.error, SyntaxError, TypeError and more
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info, turned.format = image.info, image.format
    return turned


def _rgb(image: Any, stored: str) -> Any:
    """The loaded image as RGB on white. stored: Pillow's name of the file's samples, whose depth the transparent color has."""
    from PIL import Image  # a dry run of an importer loads this module

    mode, clear = image.mode, image.info.get("transparency")
    if mode.startswith("I;16"):
        import numpy as np  # rare: 16-bit gray, which Pillow would cut off at 255

        values = np.asarray(image).astype(np.uint32)
        gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(clear, int):
            gray[values == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if mode not in MODES:
        raise ImageError("image_corrupt", f"an image with pixels of the kind {mode}", "gray, palette, RGB or CMYK pixels")
    if isinstance(clear, int | tuple) and mode in ("1", "L", "RGB"):
        depth = re.search(r";(2|4|16)", stored)  # the pixels have 8 bits by now, the transparent color still has the file's
        scale = {"2": 85, "4": 17, "16": 1 / 257}.get(depth[1], 1) if depth else 1
        scaled = tuple(min(255, int(value * scale)) for value in (clear if isinstance(clear, tuple) else (clear,)))
        image.info["transparency"] = scaled if isinstance(clear, tuple) else scaled[0]
    unused = image.format == "BMP" and mode == "RGBA" and image.getextrema()[3] == (0, 0)  # alpha that the writer left out
    if not unused and (mode in ("RGBA", "LA", "PA") or clear is not None):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _corrupt(error: Exception) -> ImageError:
    said = re.sub(r"<_io\.\w+ object at \w+>", "it", str(error))  # the memory address would differ between runs
    return ImageError(
        "image_corrupt",
        f"an image that cannot be decoded ({type(error).__name__}: {said[:120]})",
        f"a complete {', '.join(FORMATS)} file",
    )
