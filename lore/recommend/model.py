"""The sequence model: a history of items in, a score for every item of the catalogue out.

A bidirectional encoder (BERT4Rec, arXiv 1904.06690; with semantic ids Q-BERT4Rec, arXiv 2512.02474) or a causal one (SASRec,
arXiv 1808.09781, here with cross-entropy over the whole catalogue instead of sampled negatives). Both are transformers' BertModel.
An item has one vector, at the input and at the output (tied):

    vector = g(n) * id vector + sum over its code prefixes p of g(n_p) * vector of p,    g(n) = n / (n + evidence)

with n training events of the item and n_p of the items that share the prefix: an item that was seen rarely leans on what it shares
with others. Without ids the vector comes from the codes alone. A hidden place of the bidirectional encoder also reads the vector of
the last visible item before it, which a causal model has at that place anyway; without it the encoder needs far more steps.

The score of an item is the product of the state with its vector, plus two parts that vectors would have to spend their dimensions
on: the log of its training events times a learned weight, so that items which share a prefix may differ in popularity; and, for an
item that the history holds, one learned number, since items come again in some shops and never in others. An item without training
events was not for sale, as far as the events tell: training does not count it among the items that were passed over, which would
only teach that new items are never taken, and it begins at the mean popularity.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel

from lore.recommend.codes import Codes, make_codes
from lore.recommend.recommender_recipe import NetworkSection
from lore.recommend.section import MODEL_CARD, model_folder
from lore.support.atomic_files import folder_written_whole
from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import read_object

WEIGHTS = "model.safetensors"
IGNORE = -100
SCALE = 10.0
"""Steps of the two learned numbers of the score are this much larger than those of other weights: they have to move by units."""
MASK, PAD = 0, 1
"""Tokens before the items: item i is token i + ITEMS."""
ITEMS = 2


class ItemVectors(nn.Module):
    """Vectors of all items from their ids and code prefixes, see the module docstring. counts [V]: training events per item."""

    def __init__(self, network: NetworkSection, codes: Sequence[Codes], counts: np.ndarray):
        super().__init__()
        self.network, size = network, network.hidden
        self.ids = nn.Parameter(torch.randn(len(counts), size) * network.spread) if network.ids else None
        self.parts = nn.ParameterList()
        groups, shares = [], []
        for one in codes:
            for level in range(1, one.levels + 1):
                columns = one.values[:, 0 if network.parts == "prefixes" else level - 1 : level]
                groups.append(np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1))
                shares.append(_share(np.bincount(groups[-1], weights=counts), network.prefix_evidence)[groups[-1]])
                self.parts.append(nn.Parameter(torch.randn(int(groups[-1].max()) + 1, size) * network.spread))
        table = np.asarray(groups, dtype=np.int64).reshape(-1, len(counts))
        of_parts = np.asarray(shares, dtype=np.float32).reshape(table.shape)
        self.register_buffer("groups", torch.from_numpy(table), persistent=False)
        self.register_buffer("shares", torch.from_numpy(of_parts), persistent=False)
        self.register_buffer("id_share", torch.from_numpy(_share(counts, network.evidence)).float(), persistent=False)

    def forward(self) -> torch.Tensor:
        """[V, d]"""
        several = zip(self.groups, self.shares, self.parts, strict=True)
        parts = [F.embedding(group, part) * share[:, None] for group, share, part in several]
        if self.ids is not None:
            share = self.id_share
            if self.training and self.network.id_dropout:
                share = share * (torch.rand_like(share) >= self.network.id_dropout)
            parts.append(self.ids * share[:, None])
        return torch.stack(parts).sum(dim=0)

    def of_new(self, known: Sequence[Codes], new: Sequence[Codes]) -> torch.Tensor:
        """Vectors [N, d] of items that were not there at the training, from the prefixes that known items have."""
        vectors = torch.zeros(len(new[0].values), self.network.hidden)
        number = 0
        for old, one in zip(known, new, strict=True):
            for level in range(1, old.levels + 1):
                columns = slice(0 if self.network.parts == "prefixes" else level - 1, level)
                rows = {key.tobytes(): row for row, key in enumerate(old.values[:, columns])}
                for at, key in enumerate(one.values[:, columns]):
                    if (row := rows.get(key.tobytes())) is not None:
                        vectors[at] += self.parts[number][self.groups[number, row]] * self.shares[number, row]
                number += 1
        return vectors


def _share(counts: np.ndarray, evidence: float) -> np.ndarray:
    return counts / (counts + evidence) if evidence else np.ones(len(counts))


class SequenceModel(nn.Module):
    """See the module docstring. codes: sets of semantic ids of the catalogue; counts [V]: training events per item."""

    accepts_loss_kwargs = True
    """The trainer then gives the number of predictions in the whole batch, of all processes, which divides the loss."""

    def __init__(self, network: NetworkSection, codes: Sequence[Codes], counts: np.ndarray):
        super().__init__()
        self.network = network
        self.items = ItemVectors(network, codes, counts)
        self.mask = nn.Parameter(torch.randn(1, network.hidden) * network.spread)
        self.seen = nn.Parameter(torch.zeros(()))
        self.popularity = nn.Parameter(torch.tensor(1 / SCALE)) if network.popularity else None
        known = counts > 0
        logs = np.where(known, np.log1p(counts) - np.log1p(counts)[known].mean() if known.any() else 0, 0)
        self.register_buffer("log_counts", torch.as_tensor(logs, dtype=torch.float32), persistent=False)
        self.register_buffer("absent", torch.as_tensor(np.where(known, 0, -np.inf), dtype=torch.float32), persistent=False)
        causal = network.kind == "sasrec"
        config = BertConfig(
            vocab_size=1,  # items are read as vectors
            hidden_size=network.hidden,
            num_hidden_layers=network.layers,
            num_attention_heads=network.heads,
            intermediate_size=4 * network.hidden,
            hidden_dropout_prob=network.dropout,
            attention_probs_dropout_prob=network.dropout,
            max_position_embeddings=network.history + 1,
            type_vocab_size=1,
            is_decoder=causal,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        width = network.hidden
        self.head = nn.Identity() if causal else nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None) -> dict[str, Any]:
        """tokens [B, L]: MASK, PAD at the end, or ITEMS + item. labels [B, L]: the item to predict at a place, or IGNORE.

        Gives vectors [V, d], states [B, L, d] and, with labels, the mean cross-entropy over the catalogue as loss. A causal model
        reads the places up to the one it predicts for, a bidirectional one all that are not hidden.
        """
        vectors = self.items()
        states = self.states(tokens, vectors)
        if labels is None:
            return {"vectors": vectors, "states": states}
        rows, at = (labels != IGNORE).nonzero(as_tuple=True)
        wanted = labels[rows, at]
        prior = self.prior() + self.absent.index_fill(0, wanted, 0)  # fine-tuning may know more events than the counts
        scores = self.scores(states[rows, at], vectors, prior, self._taken(tokens, rows, at))
        total = F.cross_entropy(scores, wanted, reduction="sum")
        return {"loss": total / (len(rows) if num_items_in_batch is None else num_items_in_batch)}

    def states(self, tokens: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """What the encoder has at every place [B, L, d]. vectors [V, d]: of the items."""
        present = tokens != PAD
        table = torch.cat([self.mask, torch.zeros_like(self.mask), vectors])
        read = F.embedding(tokens, table)
        if self.network.kind == "bert4rec":
            read = read + F.embedding(_before_hidden(tokens), table)
        places = (present.cumsum(1) - 1).clamp(min=0)
        if self.network.kind == "bert4rec":  # counted from the end, where the next item is predicted
            places = (present.sum(1, keepdim=True) - 1 - places).clamp(min=0)
        encoded = self.encoder(inputs_embeds=read, attention_mask=present.long(), position_ids=places)
        return self.head(encoded.last_hidden_state)

    def _taken(self, tokens: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Tokens [N, L] that a prediction at (row, place) reads; PAD for the others."""
        taken = tokens[rows]
        if self.network.kind == "sasrec":
            taken = taken.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) > at[:, None], PAD)
        return taken

    def prior(self) -> torch.Tensor:
        """Scores [V] of the items before anything is known of the user."""
        return torch.zeros_like(self.log_counts) if self.popularity is None else SCALE * self.popularity * self.log_counts

    def scores(self, states: torch.Tensor, vectors: torch.Tensor, prior: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """Scores [N, V] of all items at states [N, d]. taken [N, L]: tokens of the history."""
        scores = torch.addmm(prior.to(states.dtype), states, vectors.T)
        rows, places = (taken >= ITEMS).nonzero(as_tuple=True)
        seen = (SCALE * self.seen).to(scores.dtype).expand(len(rows))
        return scores.index_put_((rows, taken[rows, places] - ITEMS), seen, accumulate=True)


def save_model(model: SequenceModel, folder: Path, item_ids: Sequence[str], codes: Sequence[Codes], counts: np.ndarray) -> None:
    """Writes weights, codes and counts as safetensors, and the card with the network and the catalogue's item ids."""
    tensors = {f"model.{name}": weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    tensors |= {f"codes.{number}": torch.from_numpy(one.values) for number, one in enumerate(codes)}
    card = {
        "kind": "recommender",
        "network": model.network.model_dump(mode="json"),
        "code_sizes": [one.size for one in codes],
        "codes": [one.fingerprint for one in codes],
        "item_ids": list(item_ids),
    }
    with folder_written_whole(folder) as part:
        part.mkdir()
        save_file(tensors | {"counts": torch.from_numpy(counts)}, part / WEIGHTS)
        (part / MODEL_CARD).write_text(json.dumps(card, ensure_ascii=False) + "\n", encoding="utf-8")


def load_model(path: str | Path) -> tuple[SequenceModel, list[str], list[Codes], np.ndarray]:
    """(model in evaluation mode, item ids, codes, counts). Raises LoreError for a damaged or missing one."""
    folder = model_folder(path)
    lost, advice = "it is unknown what the model recommends", "Copy the model's folder again, or run its recipe again."
    if folder is None:
        raise LoreError(
            f"{path} holds no model of stage recommender ({MODEL_CARD}), so {lost}.\nName a finished run of stage recommender."
        )
    card = read_object(folder / MODEL_CARD, lost, advice)
    try:
        network = NetworkSection.model_validate(card["network"])
        tensors = load_file(folder / WEIGHTS)
        counts = tensors.pop("counts").numpy()
        item_ids, sizes = card["item_ids"], card["code_sizes"]
        if len(item_ids) != len(counts) or not all(isinstance(item, str) for item in item_ids):
            raise ValueError(f"{len(item_ids):,} item ids for {len(counts):,} items")
        codes = [make_codes(tensors.pop(f"codes.{number}").numpy(), size) for number, size in enumerate(sizes)]
        model = SequenceModel(network, codes, counts)
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in tensors.items()})
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise LoreError(f"{folder} is damaged ({reason(error)}), so {lost}.\n{advice}") from error
    return model.eval(), item_ids, codes, counts


def _before_hidden(tokens: torch.Tensor) -> torch.Tensor:
    """For every hidden place the last visible token before it; PAD where there is none, and for visible places."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    at = torch.where(tokens >= ITEMS, places, -1).cummax(dim=1).values
    before = tokens.gather(1, at.clamp(min=0))
    return torch.where((tokens == MASK) & (at >= 0), before, PAD)


class TrainedRecommender:
    """A trained sequence model as a Recommender (lore.recommend.histories).

    item_ids [V]: of the catalogue that it scores: the one of the training, with new items behind it after `with_items`.
    """

    def __init__(
        self,
        model: SequenceModel,
        item_ids: list[str],
        codes: list[Codes],
        vectors: torch.Tensor,
        prior: torch.Tensor,
        name: str = "",
    ):
        self.model, self.item_ids, self.codes, self.vectors, self.prior = model, item_ids, codes, vectors, prior
        self.name = name or model.network.title(bool(codes))

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores [B, V], higher is better; see lore.recommend.histories.Recommender. Histories are cut to the last items that the
        network reads."""
        network = self.model.network
        rows = [np.asarray(history[-network.history :], dtype=np.int64) + ITEMS for history in histories]
        if network.kind == "bert4rec":
            rows = [np.append(row[-network.history + 1 :] if len(row) == network.history else row, MASK) for row in rows]
        tokens = padded(rows, PAD)
        with torch.inference_mode():
            states = self.model.states(tokens, self.vectors)[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
            return self.model.scores(states, self.vectors, self.prior, tokens).numpy()

    def shares(self, histories: list[np.ndarray]) -> np.ndarray:
        """The softmax of the scores: the probability of each item that training fits."""
        return torch.softmax(torch.from_numpy(self.scores(histories)), dim=1).numpy()

    def with_items(self, item_ids: Sequence[str], codes: Sequence[Codes]) -> TrainedRecommender:
        """The same model with new items behind its catalogue, read and scored by the code prefixes that they share with known ones.

        codes: of the new items, in the order of the model's code sets. Raises LoreError for other sets than the model's.
        """
        if not self.codes or [one.values.shape for one in codes] != [(len(item_ids), one.levels) for one in self.codes]:
            raise LoreError(
                f"The model reads {len(self.codes)} sets of codes, and the {len(item_ids)} new items come with {len(codes)}, so it "
                "cannot place them.\nGive every new item codes of the same runs of stage semantic_ids. A model on ids alone has to "
                "be trained again."
            )
        with torch.inference_mode():
            vectors = torch.cat([self.vectors, self.model.items.of_new(self.codes, codes)])
            prior = torch.cat([self.prior, self.prior.new_zeros(len(item_ids))])
        return TrainedRecommender(self.model, [*self.item_ids, *item_ids], self.codes, vectors, prior, self.name)


def open_recommender(path: str | Path) -> TrainedRecommender:
    """The model of a run of stage recommender. Raises LoreError for a damaged or missing one."""
    model, item_ids, codes, _ = load_model(path)
    with torch.inference_mode():
        return TrainedRecommender(model, item_ids, codes, model.items(), model.prior())


def padded(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    """[B, L] int64 with `fill` behind the shorter rows."""
    table = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table)
