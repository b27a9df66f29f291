"""Where the photos of a table may lie. Tables come from strangers, and a path such as `../../home/me/letter.png` in one would put a
private file into the output, a prompt or a report.

A photo lies below the folder of its table or below a folder that the user names (`--image-root`, in a recipe data.image_root),
after symbolic links. What a table says about itself, also in its metadata, allows nothing.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lore.data.images import ImageError, image_bytes, is_url, refusal, refused
from lore.support.errors import LoreError

MAX_PATH = 4096  # longer ones name no file, and resolving them takes quadratic time


class PhotoPlaces:
    """The folders in which the photos of one table may lie. A relative path starts at the first of them in which it names a file:
    the named folders, then that of the table.
    """

    def __init__(self, folder: str | Path, roots: Iterable[str | Path] = ()):
        self.starts = list(dict.fromkeys(os.path.abspath(start) for start in (*roots, folder)))
        self._inside = tuple(os.path.realpath(start).rstrip(os.sep) + os.sep for start in self.starts)

    def find(self, path: str) -> str:
        """The absolute path of a photo, whether or not it exists. Raises ImageError (image_outside) if it may not be read. URLs and
        texts that name no file stay as they are: opening them is an error too.
        """
        if is_url(path) or len(path) > MAX_PATH or "\0" in path:
            return path
        found = [os.path.abspath(os.path.join(start, path)) for start in self.starts]
        try:
            chosen = next((one for one in found if os.path.lexists(one)), found[0])
            real = _resolved(chosen)
        except (OSError, ValueError):  # ValueError: half a character
            return path
        if not real.startswith(self._inside):
            link = "" if real == chosen else f"leads to {real[:200]} and "  # the path itself may look as if it lay inside
            raise ImageError(
                "image_outside",
                f"the photo {path[:200]}, which {link}lies outside of {' and '.join(self.starts)}",
                "a photo below the table's folder; another folder is allowed by --image-root FOLDER (in a recipe: "
                "data.image_root: FOLDER)",
            )
        return chosen

    def placed(self, image: dict[str, Any] | bytes | str | None) -> dict[str, Any] | None:
        """A stored photo ({"bytes", "path"}, or one of them) with the path to open. One that may not be read gets bytes that raise
        its ImageError when it is opened, also in another process."""
        if isinstance(image, str | bytes):
            image = {"bytes": image, "path": None} if isinstance(image, bytes) else {"bytes": None, "path": image}
        if not image or not image.get("path") or (image.get("bytes") and refused(image["bytes"]) is None):
            return image
        try:
            return {"bytes": None, "path": self.find(image["path"])}
        except ImageError as error:
            return {"bytes": refusal(error), "path": os.path.abspath(os.path.join(self.starts[-1], image["path"]))}


def as_stored(image: dict[str, Any] | None) -> dict[str, Any] | None:
    """The photo without what `placed` put in place of its bytes, to be written to a file."""
    if image and image.get("bytes") and refused(image["bytes"]) is not None:
        return {"bytes": None, "path": image["path"]}
    return image


def embedded(image: dict[str, Any] | None) -> dict[str, Any] | None:
    """The photo with its bytes, for the files of a run: whoever reads them need not know where the photos lie. A photo that cannot
    be read stays a path."""
    if not image or image.get("bytes"):
        return as_stored(image)
    try:
        return {"bytes": image_bytes(image), "path": image["path"]}
    except ImageError:
        return image


def common_folder(image: dict[str, Any] | None, out: Path, so_far: str | None) -> str | None:
    """Common folder of the photos, this one included, that the file `out` (behind links) names by a path outside of its folder."""
    folder = real_folder(os.path.dirname(image["path"])) if image and image.get("path") and not image.get("bytes") else None
    if folder is None or f"{folder}{os.sep}".startswith(f"{out.parent}{os.sep}"):
        return so_far
    return os.path.commonpath([so_far or folder, folder])


def stay_elsewhere(folder: str, out: str | Path) -> str:
    """What readers of a pairs file need whose photos lie below `folder`."""
    return (
        f"The photos stay in {folder}, outside of the folder of {out}. Recipes that read this file need that folder as "
        "data.image_root, and `lore data check` as --image-root."
    )


def refuse_photo(out: Path, path: Any, folders: Iterable[str | Path], where: str) -> None:
    """Raises LoreError if the file to write is a photo of its table. path: as the table has it; relative ones start in a folder."""
    for folder in folders if isinstance(path, str) and path else ():
        with suppress(OSError, ValueError):  # no such file
            if os.path.samefile(os.path.join(folder, path), out):
                raise LoreError(f"{out} is a photo of this table ({where}). Choose another name with -o.")


def _resolved(path: str) -> str:
    folder, name = os.path.split(path)
    full = os.path.join(real_folder(folder), name)
    return os.path.realpath(full) if os.path.islink(full) else full


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """Photos of a table share few folders, and resolving one takes a call of the system for each of its parts."""
    return os.path.realpath(folder)
