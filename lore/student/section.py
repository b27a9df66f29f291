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
VerdictRule = Literal["most_probable", "median"]


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
    """An encoder that is trained from scratch, with its tokenizer. The defaults are those of a small one (docs/lab/student.md)."""

    architecture: Literal["modernbert", "bert"] = "modernbert"
    """modernbert: rotary positions with a large base, and the mean over the tokens; bert: the classic, with its first token."""
    vocabulary: int = Field(8000, ge=300, le=10_000_000)
    """Largest vocabulary of the tokenizer, which is trained on the training texts (BPE over bytes, lowercased)."""
    plural_s: bool = False
    """The tokenizer splits off an English plural s, so that lamp and lamps share a token."""
    hidden: int = Field(128, ge=8, le=1_000_000)
    """Hidden size."""
    layers: int = Field(3, ge=1, le=10_000)
    """Number of layers."""
    heads: int = Field(4, ge=1, le=65_536)
    """Number of attention heads."""
    mlp: int = Field(192, ge=8, le=1_000_000)
    """Hidden size of the feed-forward blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the encoder."""
    mimetic: bool = True
    """Half of the heads start with keys equal to queries (arXiv 2305.09828), so that they attend to equal tokens, which is what
    matching needs."""
    loud_embeddings: bool = True
    """Word vectors start with standard deviation 1, and the layers' output projections small, so that words are told apart from the
    first step. For modernbert, whose layers add to a sum that is not normalized."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.hidden % self.heads:
            found = f"{self.hidden} and {self.heads}"
            yield Conflict(("hidden", "heads"), found, "a width that is a multiple of the number of heads")


class TowerSize(StrictModel):
    """A vision tower (SigLIP)."""

    image_size: int = Field(56, ge=8, le=4096)
    """Side of the square that a photo is scaled to, in pixels."""
    patch_size: int = Field(14, ge=2, le=4096)
    """Side of a patch in pixels."""
    hidden: int = Field(64, ge=8, le=1_000_000)
    """Hidden size."""
    layers: int = Field(2, ge=1, le=10_000)
    """Number of layers."""
    heads: int = Field(4, ge=1, le=65_536)
    """Number of attention heads."""
    mlp: int = Field(256, ge=8, le=1_000_000)
    """Hidden size of the feed-forward blocks."""
    merge: int = Field(1, ge=1, le=4096)
    """merge x merge neighboring patches become one token of the encoder."""

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens per photo."""
        return (self.side // self.merge) ** 2

    def conflicts(self) -> Iterator[Conflict]:
        if self.image_size % (self.patch_size * self.merge):
            found, expected = str(self.image_size), f"a multiple of patch_size * merge = {self.patch_size * self.merge}"
            yield Conflict(("image_size", "patch_size", "merge"), found, expected)
        if self.hidden % self.heads:
            found = f"{self.hidden} and {self.heads}"
            yield Conflict(("hidden", "heads"), found, "a width that is a multiple of the number of heads")


class TowerSection(TowerSize):
    """The vision tower: one of a checkpoint, or one from scratch."""

    name: str | None = Field(None, min_length=1)
    """Folder or hub id of a checkpoint whose vision tower is taken, with its size: SigLIP, Idefics2, Idefics3 or SmolVLM. null: one
    from scratch."""


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
    match_embedding: bool | None = None
    """Add a learned vector to every token that the other side has, too. Needs kind: cross_encoder. An encoder from scratch learns
    to match in a fraction of the steps; the model is then no longer one that transformers loads by itself. null: for a
    cross-encoder from scratch."""
    photo: Photo = "none"
    """none: text alone; tower: a vision tower's patches are tokens of the item; embedding: one precomputed vector is one."""
    tower: TowerSection = TowerSection()
    """The vision tower, for photo: tower."""
    photo_embeddings: str | None = Field(None, min_length=1)
    """Vectors of the items' photos, for photo: embedding. Parquet with the columns item_id and embedding, or npz with two arrays of
    these names."""
    interaction: int = Field(256, ge=1, le=1_000_000)
    """Hidden size of the head over both vectors, for kind: bi_encoder."""

    @property
    def sees_matches(self) -> bool:
        """match_embedding, with what null means."""
        if self.match_embedding is None:
            return self.encoder is None and self.kind == "cross_encoder"
        return self.match_embedding

    def conflicts(self) -> Iterator[Conflict]:
        if self.kind == "bi_encoder" and self.match_embedding:
            found = "match_embedding in a bi_encoder, which never sees both sides"
            yield Conflict(("match_embedding", "kind"), found, "kind: cross_encoder, or no match_embedding")
        if (self.photo == "embedding") != (self.photo_embeddings is not None):
            found = f"photo {self.photo} with {self.photo_embeddings or 'no photo_embeddings'}"
            yield Conflict(("photo", "photo_embeddings"), found, "photo: embedding with photo_embeddings, or neither")

    def input_files(self) -> dict[str, list[str]]:
        return {"photo_embeddings": [self.photo_embeddings]} if self.photo_embeddings else {}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        folders = {key: name for key, name in self._checkpoints().items() if Path(name).is_dir()}
        return super().input_fingerprints() | {key: model_files(folder) for key, folder in folders.items()}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from super().missing_inputs()
        for key, name in self._checkpoints().items():
            if looks_local(name) and not Path(name).is_dir():
                yield key, f"{name} is not a folder."

    def _checkpoints(self) -> dict[str, str]:
        named = {"encoder": self.encoder, "tower.name": self.tower.name if self.photo == "tower" else None}
        return {key: name for key, name in named.items() if name}
