"""Recipe of stage pretrain. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.config.sections import Conflict, StrictModel
from lore.support.bounds import MAX_COUNT
from lore.train.common.config import TrackedRecipe, TrainSection, padded_rows, whole_rows


class ArchitectureSection(StrictModel):
    """Size of an Idefics3 model (vision tower and Llama text model) that is trained from scratch."""

    hidden: int = Field(128, ge=16, le=1_000_000)
    """Hidden size of the text model."""
    layers: int = Field(4, ge=1, le=10_000)
    """Number of layers of the text model."""
    heads: int = Field(4, ge=1, le=65_536)
    """Number of attention heads of the text model."""
    mlp: int = Field(384, ge=16, le=1_000_000)
    """Hidden size of the text model's feed-forward blocks."""
    max_positions: int = Field(2048, ge=64, le=MAX_COUNT)
    """Longest sequence in tokens."""
    rope_theta: float = Field(1e6, gt=1, le=1e12)
    """Base of the rotary position embeddings. With a large base most dimensions of a head hardly depend on position, so equal
    words match at any distance."""
    loud_embeddings: bool = False
    """Initialize embeddings with standard deviation 1 and scale down the output projections of the layers. Helps to distinguish
    the words of a large vocabulary early in training."""
    vision_hidden: int = Field(64, ge=16, le=1_000_000)
    """Hidden size of the vision tower."""
    vision_layers: int = Field(2, ge=1, le=10_000)
    """Number of layers of the vision tower."""
    vision_heads: int = Field(4, ge=1, le=65_536)
    """Number of attention heads of the vision tower."""
    image_size: int = Field(56, ge=14, le=16_384)
    """Side of the input photo in pixels."""
    patch_size: int = Field(14, ge=2, le=16_384)
    """Side of a patch in pixels."""
    scale_factor: int = Field(2, ge=1, le=16_384)
    """scale_factor x scale_factor patches are merged into one image token (pixel shuffle)."""

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size // self.scale_factor) ** 2

    def conflicts(self) -> Iterator[Conflict]:
        for width, heads in (("hidden", "heads"), ("vision_hidden", "vision_heads")):
            if getattr(self, width) % getattr(self, heads):
                yield Conflict(
                    (width, heads),
                    f"{getattr(self, width)} and {getattr(self, heads)}",
                    "a width that is a multiple of the number of heads",
                )
        if self.image_size % (self.patch_size * self.scale_factor):
            yield Conflict(
                ("image_size", "patch_size", "scale_factor"),
                str(self.image_size),
                f"a multiple of patch_size * scale_factor = {self.patch_size * self.scale_factor}",
            )


class PretrainRecipe(TrackedRecipe):
    """Trains a small base model from scratch: tokenizer and Idefics3, as a language model on a corpus of texts and captions."""

    stage: Literal["pretrain"] = "pretrain"
    corpus: list[str] = Field(min_length=1)
    """Parquet files with columns `text` and `image` (null or {bytes, path}); <image> in the text marks the position of the photo.
    An optional column `trained` lists the character spans {start, end} that carry loss. Use it to mask text that the context
    cannot predict; it only adds noise. null trains on the full text."""
    shuffle: bool = True
    """Shuffle the corpus every epoch. false keeps the order of the files, for a corpus that is a curriculum."""
    vocabulary: int = Field(2000, ge=300, le=10_000_000)
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    lowercase: bool = False
    """Tokenizer lowercases text. Generated answers are lowercase too, so use it only for rubrics with lowercase tier ids."""
    plural_s: bool = False
    """Tokenizer splits off an English plural s, so that lamp and lamps share a token."""
    architecture: ArchitectureSection = ArchitectureSection()
    train: TrainSection

    def input_files(self) -> dict[str, list[str]]:
        return {"corpus": self.corpus}

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "packed or flattened rows in stage pretrain, which pads its rows")
        yield from whole_rows(self.train, "pretrain")
        if self.train.freeze:
            yield Conflict(("train.freeze",), "weights to freeze in a model with random weights", "no train.freeze")

    def derived(self) -> dict[str, Any]:
        return {"image tokens per photo": self.architecture.image_tokens, "texts per step": self.train.batch_size}
