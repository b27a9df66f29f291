"""Recipe of stage semantic_ids. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from lore.config.sections import Conflict, Share, StrictModel, Weight
from lore.engines.config import looks_local
from lore.recommend.section import CODES, CODES_CARD, HistoriesSection
from lore.student.section import PairTextSection
from lore.support.environment import version_of
from lore.support.errors import LoreError
from lore.support.input_files import InputFiles, input_files, model_files
from lore.train.common.config import TRAINED_FILES, TrackedRecipe, TrainSection, padded_rows, whole_rows

Modality = Literal["text", "photo", "structure"]
VQ_PACKAGE = "vector-quantize-pytorch"


class EncoderSection(StrictModel):
    """A section that may name a checkpoint."""

    encoder: str | None = Field(None, min_length=1)

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        named = {} if not self.encoder or not Path(self.encoder).is_dir() else {"encoder": model_files(self.encoder)}
        return super().input_fingerprints() | named

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        yield from super().missing_inputs()
        if self.encoder and looks_local(self.encoder) and not Path(self.encoder).is_dir():
            yield "encoder", f"{self.encoder} is not a folder."


class CatalogueSection(HistoriesSection):
    """The catalogue, and its events as far as there are any."""

    events: str | None = Field(None, min_length=1)
    """events.parquet, written by `lore data import events`. Only training events are read. null: codes of content alone."""
    items: str = Field(min_length=1)
    """items.parquet, written by `lore data import items`."""


class TextSection(EncoderSection, PairTextSection):
    """The text of an item, and what makes its vector."""

    fields: list[Literal["title", "brand", "category", "shop", "price", "attributes", "description"]] = [
        "title",
        "brand",
        "category",
        "attributes",
        "description",
    ]
    """Fields of the item, in the order in which they are read. A long text loses the end."""
    encoder: str | None = Field(None, min_length=1)
    """Folder or hub id of a text encoder, such as all-MiniLM-L6-v2: the mean over its tokens. null: hashed words and word pairs,
    reduced by SVD (latent semantic analysis) on this catalogue."""
    size: int = Field(128, ge=2, le=4096)
    """Dimensions of the SVD, for encoder: null."""


class PhotoSection(EncoderSection):
    """What makes the vector of a photo."""

    encoder: str | None = Field(None, min_length=1)
    """Folder or hub id of a checkpoint whose vision tower is taken: SigLIP, Idefics2, Idefics3 or SmolVLM. null: the photo scaled
    to a few colored cells."""
    embeddings: str | None = Field(None, min_length=1)
    """Vectors from any other model: Parquet with the columns item_id and embedding, or npz with two arrays of these names."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.encoder and self.embeddings:
            yield Conflict(("encoder", "embeddings"), "two sources of photo vectors", "one of them")

    def input_files(self) -> dict[str, list[str]]:
        return {} if self.embeddings is None else {"embeddings": [self.embeddings]}


class FusionSection(StrictModel):
    """How the vectors of an item become one."""

    kind: Literal["dynamic", "concat"] = "dynamic"
    """dynamic: gated cross-attention, trained with a contrastive loss. concat: the vectors side by side, without training."""
    gate: Literal["learned", "open"] = "learned"
    """learned: each layer decides per item, between 0 and 1, how much to fuse; open: every layer fuses in full (a control)."""
    size: int = Field(128, ge=8, le=65_536)
    """Dimensions of the fused vector."""
    layers: int = Field(2, ge=1, le=100)
    """Layers of cross-attention."""
    heads: int = Field(4, ge=1, le=1024)
    """Attention heads."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability inside the layers."""
    id_dropout: Share = 0.2
    """Share of the visits in which an item is read without its id, so that an item without one gets a vector that fits."""
    modality_dropout: Share = 0.1
    """Probability that a view of an item lacks one of its vectors. At least one stays."""
    temperature: float = Field(0.1, ge=0.001, le=10)
    """Divides the similarities in the contrastive loss."""
    views: Weight = 1.0
    """Weight of the contrastive loss between two views of an item, the second without its id."""
    photo: Weight = 0.5
    """Weight of the contrastive loss between an item's text alone and its photo alone."""
    neighbors: Weight = 1.0
    """Weight of the contrastive loss between an item and one that was taken with it in training events, without its id."""
    rebuild: Weight = 10.0
    """Weight of a loss (1 - cosine) of linear maps from the fused vector back to each of its sources. It keeps what one source
    alone says, which the contrastive losses have no use for."""
    window: int = Field(3, ge=1, le=1000)
    """Items of a history that are at most this many places apart were taken together."""
    factors: int = Field(64, ge=2, le=4096)
    """Dimensions of the co-occurrence factors, part of the structure."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.size % self.heads:
            yield Conflict(("size", "heads"), f"{self.size} and {self.heads}", "a size that is a multiple of heads")
        if not (self.views or self.photo or self.neighbors or self.rebuild):
            yield Conflict(("views", "neighbors"), "no term of the loss", "a weight above 0 for at least one of them")


class CodesSection(StrictModel):
    """The residual quantizer."""

    kind: Literal["kmeans", "vqvae"] = "kmeans"
    """kmeans: residual k-means; vqvae: an autoencoder whose middle is quantized (RQ-VAE). It needs the extra `recommend`."""
    levels: int = Field(3, ge=2, le=8)
    """Codes per item."""
    size: int = Field(256, ge=2, le=65_536)
    """Codes per level at most: a small catalogue gets fewer, see lore.recommend.quantize.codes_per_level."""
    epochs: int = Field(200, ge=1, le=100_000)
    """Passes over the items, for vqvae."""


class SemanticIdsRecipe(TrackedRecipe):
    """Codes for every item of a catalogue: vectors of its text, photo and structure, fused and quantized."""

    # The contrastive loss compares the items of a forward pass, so the micro-batch is part of the loss.
    irrelevant_keys = TrackedRecipe.irrelevant_keys - {"train.micro_batch_size"} | {"batch_tokens"}
    prepared_files: ClassVar[frozenset[str]] = TrackedRecipe.prepared_files | {"features"}
    result_files: ClassVar[frozenset[str]] = TRAINED_FILES | {
        CODES,
        CODES_CARD,
        "codebooks.safetensors",
        "vectors.safetensors",
        "report.html",
        "report.json",
    }

    stage: Literal["semantic_ids"] = "semantic_ids"
    data: CatalogueSection
    """Items, and the training events behind co-occurrence."""
    base: str | None = Field(None, min_length=1)
    """An earlier run of this stage: its items keep their codes, and new items get free ones from its encoder and codebooks. Nothing
    is trained, and use, text, photo, fusion and codes are those of that run; only photo.embeddings may be another file. null:
    train."""
    use: list[Modality] = ["text", "photo", "structure"]
    """What of an item is read. structure: category, brand, price bucket and co-occurrence."""
    text: TextSection = TextSection()
    photo: PhotoSection = PhotoSection()
    fusion: FusionSection = FusionSection()
    train: TrainSection = TrainSection(epochs=40, batch_size=256, lr=1e-3, weight_decay=0.01)
    codes: CodesSection = CodesSection()
    batch_tokens: int = Field(8192, ge=64, le=2**31 - 1)
    """Tokens per forward pass of the text encoder, padding included."""

    @field_validator("use")
    @classmethod
    def _each_once(cls, value: list[Modality]) -> list[Modality]:
        if not value or len(set(value)) < len(value):
            raise ValueError("one or more of text, photo, structure, each once")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "packed or flattened rows in stage semantic_ids, whose rows are items")
        yield from whole_rows(self.train, "semantic_ids")

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        if not self.base or not (card := Path(self.base) / CODES_CARD).is_file():
            return {}
        return {"base": input_files(lambda: [card])}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.base and not (Path(self.base) / CODES_CARD).is_file():
            yield "base", f"{self.base} is no finished run of stage semantic_ids."

    def check_packages(self) -> None:
        if self.codes.kind == "vqvae" and not version_of(VQ_PACKAGE):
            raise LoreError(
                f"codes.kind is vqvae, and {VQ_PACKAGE} is not installed, so nothing would be quantized.\npip install "
                "'lore-relevance[recommend]', or set codes.kind to kmeans.",
                same_on_every_rank=True,
            )
        super().check_packages()

    def derived(self) -> dict[str, Any]:
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs"
        trained = {"items per step": self.train.batch_size, "run length": length} if self.fusion.kind == "dynamic" else {}
        return {"codes per item": self.codes.levels, "codes per level at most": self.codes.size} | ({} if self.base else trained)
