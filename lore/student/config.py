"""student.json: the shape of a student, beside its weights. Nothing here imports torch."""

from pathlib import Path

from pydantic import Field, ValidationError

from lore.config.sections import StrictModel
from lore.student.section import Head, Kind, Photo
from lore.support.errors import LoreError
from lore.support.untrusted_json import read_object

CONFIG = "student.json"
LOST, ADVICE = "it is unknown how to load the student", "Copy the student's folder again, or train it again."


class StudentConfig(StrictModel):
    """What is needed to load a student's weights."""

    kind: Kind = "cross_encoder"
    head: Head = "softmax"
    photo: Photo = "none"
    tiers: list[str] = Field(min_length=2, max_length=1000)


def read_config(folder: str | Path) -> StudentConfig:
    """The config in a student's folder. Raises LoreError for a damaged or missing one."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise LoreError(f"{folder} has no {CONFIG}, so {LOST}.\n{ADVICE}")
    content = read_object(path, LOST, ADVICE)
    try:
        return StudentConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LoreError(f"{path} is damaged ({where}: {first['msg']}), so {LOST}.\n{ADVICE}") from error
