"""student.json: the shape of a student, beside its weights. Nothing here imports torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from lore.config.sections import Conflict, StrictModel
from lore.student.section import Head, Kind, Photo, TowerSize
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
    tower: TowerSize | None = None
    """The vision tower, for photo: tower."""
    embedding_size: int | None = Field(None, ge=1, le=1_000_000)
    """Length of a photo's vector, for photo: embedding."""
    photo_embeddings: str | None = None
    """Table of the vectors at the training, for photo: embedding."""
    match_embedding: bool = False
    plain_ids: list[int] = Field([], max_length=1000)
    """Special tokens, which match nothing. For match_embedding."""
    interaction: int = Field(256, ge=1, le=1_000_000)
    """Hidden size of the head, for kind: bi_encoder."""

    def conflicts(self) -> Iterator[Conflict]:
        if (self.photo == "tower") != (self.tower is not None) or (self.photo == "embedding") != (self.embedding_size is not None):
            yield Conflict(("photo",), self.photo, "the size of what it names, and of nothing else")

    @property
    def photo_tokens(self) -> int:
        """Tokens that every item has for its photo, whether it has one or not."""
        return {"none": 0, "embedding": 1}.get(self.photo) or (self.tower.tokens if self.tower else 0)

    @property
    def is_plain(self) -> bool:
        """Whether the encoder's weights, or for a cross-encoder all weights, are those of a model of transformers."""
        return self.photo == "none" and not self.match_embedding


def read_config(folder: str | Path) -> StudentConfig:
    """The config in a student's folder. Raises LoreError for a damaged or missing one."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise LoreError(f"{folder} has no {CONFIG}, so {LOST}.\n{ADVICE}")
    content: dict[str, Any] = read_object(path, LOST, ADVICE)
    try:
        config = StudentConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LoreError(f"{path} is damaged ({where}: {first['msg']}), so {LOST}.\n{ADVICE}") from error
    for conflict in (*config.conflicts(), *(config.tower.conflicts() if config.tower else ())):
        raise LoreError(f"{path} is damaged ({', '.join(conflict.keys)}: {conflict.found}), so {LOST}.\n{ADVICE}")
    return config
