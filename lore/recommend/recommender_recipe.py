"""Recipe of stage recommender: pre-training and fine-tuning of the sequence model. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lore.config.sections import Conflict, Seed, Share, StrictModel, Weight
from lore.recommend.section import HistoriesSection, codes_file, model_folder
from lore.support.input_files import InputFiles, input_files, model_files
from lore.train.common.config import TrackedRecipe, TrainSection, padded_rows, whole_rows


class NetworkSection(StrictModel):
    """The sequence model, see lore.recommend.model."""

    kind: Literal["bert4rec", "sasrec"] = "bert4rec"
    """bert4rec: a bidirectional encoder that predicts hidden places. sasrec: a causal one that predicts every next item."""
    ids: bool = True
    """Every item has a vector of its own, beside those of its codes. false: codes alone, for a catalogue that changes daily."""
    parts: Literal["prefixes", "levels"] = "prefixes"
    """prefixes: a vector for every prefix of codes (a, ab, abc); levels: one for every code of a level, whatever is before it."""
    evidence: float = Field(0.0, ge=0, le=1e6)
    """Training events of an item after which its own vector counts for one half beside those of its codes. 0: always in full."""
    prefix_evidence: float = Field(0.0, ge=0, le=1e6)
    """The same for a prefix, by the training events of all items that have it. A prefix that only a cold item has is
    never taken, so training only pushes it away; above 0 it counts for nothing. 0: prefixes count in full."""
    popularity: bool = True
    """Scores begin at the log of an item's training events, and the vectors learn what shoppers differ in."""
    id_dropout: Share = 0.0
    """Share of the items that are read and scored without their id in a step, so that the codes learn to stand for them."""
    hidden: int = Field(64, ge=8, le=65_536)
    """Dimensions of vectors and encoder."""
    layers: int = Field(2, ge=1, le=1000)
    """Layers of the encoder."""
    heads: int = Field(2, ge=1, le=1024)
    """Attention heads."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout probability in the encoder."""
    history: int = Field(50, ge=2, le=100_000)
    """The last places of a history that are read; for bert4rec with the one that is predicted."""
    spread: float = Field(0.05, gt=0, le=10)
    """Standard deviation of the items' vectors at the beginning."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.hidden % self.heads:
            yield Conflict(("hidden", "heads"), f"{self.hidden} and {self.heads}", "a hidden size that is a multiple of heads")

    def title(self, codes: bool) -> str:
        """How a table names a model of this kind."""
        base = "BERT4Rec" if self.kind == "bert4rec" else "SASRec"
        return base if not codes else f"Q-{base}" if self.ids else f"Q-{base}, codes alone"


class SemanticIdsSection(StrictModel):
    """The semantic ids that the model reads."""

    paths: list[str] = Field([], max_length=8)
    """Runs of stage semantic_ids, or JSON files of published codes; each adds its prefixes to an item's vector. []: ids alone."""
    shuffled: Seed | None = None
    """Control: deal the codes to other items, by this seed. null: the items keep their own."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        there = {number: path for number, path in enumerate(self.paths) if Path(path).exists()}
        return {f"paths.{number}": input_files(lambda path=path: [codes_file(path)]) for number, path in there.items()}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        for number, path in enumerate(self.paths):
            if not Path(path).exists():
                yield f"paths.{number}", f"{path} does not exist. Stage semantic_ids writes codes."


class MasksSection(StrictModel):
    """Which places of a history are hidden and predicted: a mixture, by weight. See lore.recommend.masks."""

    random: Weight = 1.0
    """Each place by chance (BERT4Rec)."""
    last: Weight = 0.0
    """The last place, which is the task of the service."""
    span: Weight = 0.0
    """One run of places."""
    tail: Weight = 0.0
    """A run of places that ends at the last one."""
    regions: Weight = 0.0
    """Two or three runs."""
    share: float = Field(0.3, gt=0, le=1)
    """Of a history that is hidden: on average by random, at most by span, tail and regions."""
    cut: Share = 0.0
    """Share of the visits with the mask last in which the history ends earlier, at a random place: otherwise it always
    predicts the same event."""
    rows: Literal["histories", "events"] = "histories"
    """What an epoch visits once. histories: every history; events: every training event but the first of a history, which then ends
    with it: with the mask `last` that is the task of the service, on all events."""

    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("random", "last", "span", "tail", "regions")}

    def conflicts(self) -> Iterator[Conflict]:
        if not any(self.weights().values()):
            yield Conflict(("random", "last"), "no mask", "a weight above 0 for at least one of them")


class StartSection(StrictModel):
    """Where the weights come from."""

    name: str | None = Field(None, min_length=1)
    """An earlier run of this stage, which is fine-tuned: its network, codes and weights are taken. null: random weights."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        folder = None if self.name is None else model_folder(self.name)
        return {} if folder is None else {"name": model_files(str(folder))}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        if self.name is not None and model_folder(self.name) is None:
            yield "name", f"{self.name} is no finished run of stage recommender."


class RecommenderRecipe(TrackedRecipe):
    """Trains a sequence model on histories, or fine-tunes an earlier run."""

    stage: Literal["recommender"] = "recommender"
    data: HistoriesSection
    """The histories. Only training events are learned from."""
    model: StartSection = StartSection()
    network: NetworkSection = NetworkSection()
    codes: SemanticIdsSection = SemanticIdsSection()
    masks: MasksSection = MasksSection()
    train: TrainSection = TrainSection(epochs=20, batch_size=128, lr=1e-3, schedule="linear", warmup=0.05)

    def conflicts(self) -> Iterator[Conflict]:
        yield from padded_rows(self.train, "packed or flattened rows in stage recommender, which pads its rows")
        yield from whole_rows(self.train, "recommender")
        if self.model.name is None and not self.network.ids and not self.codes.paths:
            yield Conflict(("network.ids", "codes.paths"), "neither ids nor codes", "network.ids: true, or codes")
        if self.model.name is not None:
            for key, section in (("network", NetworkSection()), ("codes", SemanticIdsSection())):
                if getattr(self, key) != section:
                    yield Conflict((key, "model.name"), f"{key} beside an earlier run", f"no {key}: the earlier run has its own")
        if self.network.kind == "sasrec" and self.masks != MasksSection():
            yield Conflict(("masks", "network.kind"), "masks for sasrec", "no masks: a causal model predicts every next item")

    def derived(self) -> dict[str, Any]:
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs:g} epochs"
        return {"histories per step": self.train.batch_size, "run length": length}
