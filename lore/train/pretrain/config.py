"""Recipe of stage pretrain. Nothing here imports torch."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lore.config.recipe import BaseRecipe
from lore.config.sections import Conflict, StrictModel
from lore.train.common.config import MAY_CHANGE, TrainSection, padded_rows


class ArchitectureSection(StrictModel):
    """Size of an Idefics3 (vision tower and Llama text model) built from scratch."""

    hidden: int = Field(128, ge=16)
    """Width of the text model."""
    layers: int = Field(4, ge=1)
    """Layers of the text model."""
    heads: int = Field(4, ge=1)
    """Attention heads of the text model."""
    mlp: int = Field(384, ge=16)
    """Inner width of the text model's feed-forward blocks."""
    max_positions: int = Field(2048, ge=64)
    """Longest sequence."""
    rope_theta: float = Field(1e6, gt=1)
    """Base of the rotary positions; a large one leaves most of a head free of position, so that equal words look equal at any
    distance."""
    loud_embeddings: bool = False
    """Embeddings that begin louder than what the layers add to them, so that the words of a large vocabulary are told
    apart from the first step."""
    vision_hidden: int = Field(64, ge=16)
    """Width of the vision tower."""
    vision_layers: int = Field(2, ge=1)
    """Layers of the vision tower."""
    vision_heads: int = Field(4, ge=1)
    """Attention heads of the vision tower."""
    image_size: int = Field(56, ge=14)
    """Pixels a side of the photo that the model sees."""
    patch_size: int = Field(14, ge=2)
    """Pixels a side of a patch."""
    scale_factor: int = Field(2, ge=1)
    """Patches a side that are folded into one image token."""

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size // self.scale_factor) ** 2

    def conflicts(self) -> Iterator[Conflict]:
        for width, heads in (("hidden", "heads"), ("vision_hidden", "vision_heads")):
            if getattr(self, width) % getattr(self, heads):
                yield Conflict(
                    (width, heads),
                    f"{getattr(self, width)} and {getattr(self, heads)}",
                    "a width that the heads divide",
                )
        if self.image_size % (self.patch_size * self.scale_factor):
            yield Conflict(
                ("image_size", "patch_size", "scale_factor"),
                str(self.image_size),
                f"a multiple of patch_size * scale_factor = {self.patch_size * self.scale_factor}",
            )


class PretrainRecipe(BaseRecipe):
    """A small base model from nothing: tokenizer and Idefics3, trained as a language model on a corpus of texts and captions."""

    irrelevant_keys = MAY_CHANGE

    stage: Literal["pretrain"] = "pretrain"
    corpus: list[str] = Field(min_length=1)
    """Parquet files with columns `text` and `image` (null or {bytes, path}); <image> in the text is the photo's place. An
    optional column `trained` lists the spans {start, end} of characters that carry loss: what nothing before it foretells is
    noise that a small model drowns in."""
    shuffle: bool = True
    """false visits the corpus in its own order, for one that begins with what the rest stands on."""
    vocabulary: int = Field(2000, ge=300)
    """Entries of the byte-level BPE tokenizer, trained on the corpus."""
    lowercase: bool = False
    """Tokenizer that folds case. Answers come out in lower case too: only for rubrics whose tier ids have no capitals."""
    plural_s: bool = False
    """An English plural s is a token of its own, so that lamp and lamps share one."""
    architecture: ArchitectureSection = ArchitectureSection()
    train: TrainSection

    def input_files(self) -> dict[str, list[str]]:
        return {"corpus": self.corpus}

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "flattened rows in stage pretrain, which pads them")
        if self.train.freeze:
            yield Conflict(("train.freeze",), "weights to leave alone in a model that begins with random ones", "nothing")

    def derived(self) -> dict[str, Any]:
        return {"image tokens per photo": self.architecture.image_tokens, "texts per step": self.train.batch_size}
