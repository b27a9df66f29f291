"""The item encoder: an item's id asks its text, photo and structure, through gated layers (Q-BERT4Rec's dynamic transformer).

The learnable id vector is the query of cross-attention over one token per source. A gate between 0 and 1 decides, per item and
layer, how much of the layer's result replaces what was there: at 0 nothing is fused, at 1 everything. An item without an id, such
as a new one, asks with one shared vector, and items are often read so in training.

The loss brings together what belongs together, against the other items of the batch (InfoNCE): two views of an item, its text alone
and its photo alone, and two items that were taken together in training. Linear maps back to the sources keep what one source alone
says. Left out: the paper's own sizes and schedule, which were not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from torch.utils.data import Dataset

from lore.recommend.config import FusionSection
from lore.recommend.features import SOURCES, Features
from lore.recommend.quantize import load_arrays, save_arrays
from lore.support.errors import LoreError, reason

NO_ID = 0
OPEN = 2.0
"""Bias of a gate at the beginning: about 0.88, because a layer that is hardly read hardly learns."""
ROWS = 4096


class GatedLayer(nn.Module):
    """Cross-attention of one query per item over its tokens, a feed-forward block, and the gate."""

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Linear(2 * size, 1)
        nn.init.constant_(self.gate.bias, OPEN)

    def forward(
        self, query: torch.Tensor, tokens: torch.Tensor, absent: torch.Tensor, gate: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(query [B, H], gate [B]) of query [B, H] and tokens [B, M, H]. absent [B, M]: tokens that are not there."""
        asked = self.before(query)
        read, _ = self.attention(asked[:, None], tokens, tokens, key_padding_mask=absent, need_weights=False)
        fused = query + self.dropout(read[:, 0])
        fused = fused + self.dropout(self.feed_forward(self.between(fused)))
        present = (~absent)[:, :, None].to(tokens.dtype)
        mean = (tokens * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        opened = torch.sigmoid(self.gate(torch.cat([asked, mean], dim=1)))
        opened = opened if gate is None else torch.full_like(opened, gate)
        return (1 - opened) * query + opened * fused, opened[:, 0]


class ItemEncoder(nn.Module):
    """widths: of the sources, in the order of their tokens. items: number of ids, from 1 on; NO_ID: an item without one."""

    def __init__(self, widths: dict[str, int], items: int, section: FusionSection):
        super().__init__()
        self.widths, self.section = widths, section
        self.ids = nn.Embedding(items + 1, section.size)
        nn.init.normal_(self.ids.weight, std=0.02)
        self.sources = nn.ModuleDict({name: nn.Linear(width, section.size, bias=False) for name, width in widths.items()})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(section.size) for name in widths})
        self.layers = nn.ModuleList(GatedLayer(section.size, section.heads, section.dropout) for _ in range(section.layers))
        self.out = nn.Linear(section.size, section.size)
        self.back = nn.ModuleDict({name: nn.Linear(section.size, width) for name, width in widths.items()})

    def encode(
        self, features: dict[str, torch.Tensor], present: torch.Tensor, ids: torch.Tensor, gate: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(unit vectors [B, H], gates [B, layers]) of features [B, width] per source, present [B, M] and ids [B].

        gate: the same for all items and layers, in place of the learned ones; by default that of the section.
        """
        gate = 1.0 if gate is None and self.section.gate == "open" else gate
        tokens = torch.stack([self.norms[name](self.sources[name](features[name])) for name in self.widths], dim=1)
        # Attention over nothing is not a number: an item without any source reads zeros.
        nothing = ~present.any(dim=1, keepdim=True)
        tokens, absent = tokens * (present[:, :, None]).to(tokens.dtype), ~(present | nothing)
        query, gates = self.ids(ids), []
        for layer in self.layers:
            query, opened = layer(query, tokens, absent, gate)
            gates.append(opened)
        return normalize(self.out(query), dim=1), torch.stack(gates, dim=1)

    def forward(
        self,
        features: dict[str, torch.Tensor],
        present: torch.Tensor,
        ids: torch.Tensor,
        items: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        neighbor: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """{"loss"} of B items and their B neighbors: features [2 B, width], items [2 B] (rows of the catalogue).

        present [2 B, M]: sources of the items, and those of the neighbors that are read. ids [B]: NO_ID where the item is read
        without one. first, second [B, M]: sources of the items' two views. neighbor [B]: whether there is one.
        """
        section, count = self.section, len(ids)
        own = {name: array[:count] for name, array in features.items()}
        nobody = torch.zeros_like(ids)
        one, _ = self.encode(own, first, ids)
        terms = []
        if section.views:
            other, _ = self.encode(own, second, nobody)
            terms.append(section.views * contrast(one, other, items[:count], items[:count], section.temperature))
        if section.neighbors and neighbor.any():
            beside, _ = self.encode({name: array[count:] for name, array in features.items()}, present[count:], nobody)
            loss = contrast(one[neighbor], beside[neighbor], items[:count][neighbor], items[count:][neighbor], section.temperature)
            terms.append(section.neighbors * loss)
        if section.photo and {"text", "photo"} <= self.widths.keys():
            places = [list(self.widths).index(name) for name in ("text", "photo")]
            both = present[:count, places].all(dim=1)
            if both.any():
                alone = []
                for place in places:
                    only = torch.zeros_like(present[:count])
                    only[:, place] = True
                    alone.append(self.encode(own, only, nobody)[0][both])
                known = items[:count][both]
                terms.append(section.photo * contrast(*alone, known, known, section.temperature))
        if section.rebuild:
            for at, name in enumerate(self.widths):
                weight = present[:count, at].to(one.dtype)
                missed = 1 - cosine_similarity(self.back[name](one), own[name], dim=1)
                terms.append(section.rebuild / len(self.widths) * (missed * weight).sum() / weight.sum().clamp(min=1))
        return {"loss": torch.stack(terms).sum() if terms else one.sum() * 0}


def contrast(one: torch.Tensor, other: torch.Tensor, items: torch.Tensor, others: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of unit vectors [B, H], both ways: row b of one belongs to row b of other (arXiv 1807.03748). items, others [B]: rows
    of the catalogue; the same item elsewhere in the batch is no negative."""
    logits = one @ other.T / temperature
    places = torch.arange(len(one), device=one.device)
    same = (others[:, None] == others[None, :]) | (items[:, None] == items[None, :]) | (items[:, None] == others[None, :])
    logits = logits.masked_fill(same & (places[:, None] != places[None, :]), float("-inf"))
    return (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2


class ItemOrder(Dataset):
    """(place in the training, row of the catalogue), in the order of training. The place seeds what the collator draws, so a
    resumed run draws the same."""

    def __init__(self, order: np.ndarray):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> tuple[int, int]:
        return at, int(self.order[at])


@dataclass
class Collator:
    """Rows to a batch of `ItemEncoder.forward`. neighbors [V, V]: how often items were taken together in training. seen [V]: items
    that have an id of their own."""

    features: Features
    neighbors: csr_matrix | None
    seen: np.ndarray
    section: FusionSection
    seed: int

    def __call__(self, places: list[tuple[int, int]]) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, places[0][0]])
        rows = np.asarray([row for _, row in places])
        beside = np.asarray([self._neighbor(row, rng) for row in rows])
        both = np.concatenate([rows, np.where(beside < 0, rows, beside)])
        present = np.stack([array[both] for array in self.features.present.values()], axis=1)
        ids = np.where(self.seen[rows] & (rng.random(len(rows)) >= self.section.id_dropout), rows + 1, NO_ID)
        # What is read without its id is read as if it were new: without co-occurrence.
        new = present & np.asarray([name != "behavior" for name in self.features.present])
        own, count = np.where(ids[:, None] == NO_ID, new[: len(rows)], present[: len(rows)]), len(rows)
        first, second, beside_view = (self._view(there, rng) for there in (own, new[:count], new[count:]))
        arrays = {"present": np.concatenate([present[:count], beside_view]), "ids": ids, "items": both, "neighbor": beside >= 0}
        arrays |= {"first": first, "second": second}
        features = {name: torch.from_numpy(array[both]) for name, array in self.features.arrays.items()}
        return {"features": features} | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _neighbor(self, row: int, rng: np.random.Generator) -> int:
        """Another item, as often as it was taken with this one; -1 without any."""
        if self.neighbors is None:
            return -1
        start, end = self.neighbors.indptr[row : row + 2]
        if start == end:
            return -1
        counts = np.cumsum(self.neighbors.data[start:end])
        return int(self.neighbors.indices[start + np.searchsorted(counts, rng.random() * counts[-1], side="right")])

    def _view(self, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Some of the sources that are there, at least one where one is."""
        draw = np.where(present, rng.random(present.shape), -1.0)
        kept = (draw >= self.section.modality_dropout) | (draw == draw.max(axis=1, keepdims=True))
        return kept & present


@torch.inference_mode()
def encode_items(encoder: ItemEncoder, features: Features, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(vectors [V, H], gates [V, layers]) of items. ids [V]: NO_ID for an item that training has not seen."""
    encoder.eval()
    device = encoder.ids.weight.device
    present = np.stack([features.present[name] for name in encoder.widths], axis=1)
    found = []
    for at in range(0, len(ids), ROWS):
        rows = slice(at, at + ROWS)
        inputs = {name: torch.from_numpy(features.arrays[name][rows]).to(device) for name in encoder.widths}
        pair = encoder.encode(inputs, torch.from_numpy(present[rows]).to(device), torch.from_numpy(ids[rows]).to(device))
        found.append([part.float().cpu().numpy() for part in pair])
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def side_by_side(features: Features) -> np.ndarray:
    """[V, sum of widths] unit vectors: the sources weigh the same. The baseline without training."""
    joined = np.concatenate(list(features.arrays.values()), axis=1)
    return joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-9)


def save_encoder(encoder: ItemEncoder, path: Path) -> None:
    """Writes the weights to a safetensors file."""
    save_arrays(path, {name: weight.detach().float().cpu().numpy() for name, weight in encoder.state_dict().items()})


def load_encoder(path: Path, section: FusionSection) -> ItemEncoder:
    """Reads what `save_encoder` wrote. section: of its recipe. Raises LoreError for another file."""
    state = {name: torch.from_numpy(array) for name, array in load_arrays(path, "item encoder").items()}
    try:
        widths = {name: state[f"sources.{name}.weight"].shape[1] for name in SOURCES if f"sources.{name}.weight" in state}
        encoder = ItemEncoder(widths, len(state["ids.weight"]) - 1, section)
        encoder.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as error:
        raise LoreError(f"{path} is no item encoder of this recipe ({reason(error)}).\nRun stage semantic_ids again.") from error
    return encoder.eval()
