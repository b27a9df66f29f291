"""Recipe sections of a student: what it reads, and how it is built. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from lore.codec.pair_text import ITEM_FIELDS, PairTextFormat
from lore.config.sections import Conflict, StrictModel
from lore.engines.config import looks_local
from lore.support.input_files import InputFiles, model_files

Kind = Literal["cross_encoder", "bi_encoder"]
Head = Literal["softmax", "ordinal"]
Photo = Literal["none", "tower", "embedding"]


class PairTextSection(StrictModel):
    """What a student reads of a pair, see lore.codec.pair_text."""

    fields: list[Literal["title", "brand", "category", "shop", "price", "attributes", "description"]] = list(ITEM_FIELDS)
    """Fields of the item, in the order in which they are read. A long pair loses the end."""
    max_field_characters: int = Field(512, ge=1, le=1_000_000)
    """Longer texts of a field are cut."""
    max_tokens: int = Field(128, ge=8, le=100_000)
    """Longest pair in tokens. A longer one loses the end of its item, never of its query."""

    def format(self) -> PairTextFormat:
        return PairTextFormat(**self.model_dump())

    def conflicts(self) -> Iterator[Conflict]:
        if "title" not in self.fields or len(set(self.fields)) < len(self.fields):
            yield Conflict(("fields",), ", ".join(self.fields) or "no field", "title and other fields, each once")


class ScratchSection(StrictModel):
    """Size of an encoder (BERT) that is trained from scratch, and of its tokenizer."""

    vocabulary: int = Field(8000, ge=300, le=10_000_000)
    """Largest vocabulary of the tokenizer, which is trained on the training texts (WordPiece, lowercased)."""
    hidden: int = Field(128, ge=8, le=1_000_000)
    """Hidden size."""
    layers: int = Field(4, ge=1, le=10_000)
    """Number of layers."""
    heads: int = Field(4, ge=1, le=65_536)
    """Number of attention heads."""
    mlp: int = Field(512, ge=8, le=1_000_000)
    """Hidden size of the feed-forward blocks."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.hidden % self.heads:
            found = f"{self.hidden} and {self.heads}"
            yield Conflict(("hidden", "heads"), found, "a width that is a multiple of the number of heads")


class StudentSection(StrictModel):
    """The student: an encoder with a head over the tiers."""

    kind: Kind = "cross_encoder"
    """cross_encoder: reads query and item together; bi_encoder: reads them apart, so that the vectors of items can be stored."""
    head: Head = "softmax"
    """softmax: one output per tier; ordinal: one output per border between two tiers."""
    encoder: str | None = Field(None, min_length=1)
    """Folder or hub id of an encoder checkpoint, such as a MiniLM. null: one from scratch."""
    scratch: ScratchSection = ScratchSection()
    """The encoder from scratch, for encoder: null."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        """Of the weights that lie in local folders."""
        return {"encoder": model_files(self.encoder)} if self.encoder and Path(self.encoder).is_dir() else {}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.encoder and looks_local(self.encoder) and not Path(self.encoder).is_dir():
            yield "encoder", f"{self.encoder} is not a folder."
