"""The keys and values of tokens that many prompts begin with: computed once, kept, and the start of every batch behind them.

A judge's prompts begin with the same instructions and rubric. They are compared by token ids. Exact for decoders whose every layer
is full attention over all earlier tokens; the engine says for which models it asks, and compares the first rows of each kind with
the plain way (`moves`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from lore.engines.row_independence import LOW_PRECISION_TOLERANCE, TOLERANCE

MIN_TOKENS = 32  # shorter prefixes are not worth a batch of their own
HELD = 4  # prefixes in memory
BATCH_COST = 64  # tokens that a batch of its own has to save
PADS = 16  # columns of padding in a comparison


class _OnePass(DynamicLayer):
    """A layer of the cache for one forward pass: what the pass adds is not kept."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass(frozen=True)
class Prefix:
    """Token ids and, for each layer, their keys and values, each [1, heads, tokens, size]."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def first(self, tokens: int) -> "Prefix":
        """The first tokens of it. Their keys and values do not depend on later ones."""
        return Prefix(self.ids[:tokens], [(keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in self.layers])

    def cache(self, rows: int, *, grows: bool) -> Cache:
        """A cache that holds the prefix in each of `rows` rows, without a copy for each row. grows: for generation, which adds
        tokens; otherwise for one forward pass."""
        layers = []
        for keys, values in self.layers:
            layer = DynamicLayer() if grows else _OnePass()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
            layers.append(layer)
        return Cache(layers=layers)


class Prefixes:
    """The latest prefixes of a model: at most HELD, with at most `max_tokens` tokens together."""

    def __init__(self, model: Any, max_tokens: int):
        self.model, self.max_tokens = model, max_tokens
        self._held: list[Prefix] = []  # the latest first

    def known(self, ids: Sequence[int]) -> int:
        """How many of the first tokens of `ids` are held."""
        return max((shared_tokens(ids, prefix.ids) for prefix in self._held), default=0)

    def of(self, ids: list[int], *, hold: bool = True) -> tuple[Prefix, int] | None:
        """(prefix of these ids, number of tokens that had to be processed). hold: keep it for later calls. None if the model does
        not keep the keys and values of every token. Only the first `max_tokens` ids count."""
        ids = ids[: self.max_tokens]
        start = self.known(ids)
        near = next((prefix for prefix in self._held if shared_tokens(ids, prefix.ids) == start), None)
        if near is not None and start == len(ids):
            if hold:
                self._hold(near)
            return near.first(start), 0
        device = self.model.device
        more = {"past_key_values": near.first(start).cache(1, grows=True)} if near is not None and start else {}
        cache = self.model(
            input_ids=torch.tensor([ids[start:]], device=device),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=device),
            use_cache=True,
            logits_to_keep=1,
            **more,
        ).past_key_values
        layers = getattr(cache, "layers", [])
        if not layers or any(type(layer) is not DynamicLayer or layer.get_seq_length() != len(ids) for layer in layers):
            return None
        prefix = Prefix(ids, [(layer.keys, layer.values) for layer in layers])
        if hold:
            self._hold(prefix)
        return prefix, len(ids) - start

    def _hold(self, prefix: Prefix) -> None:
        held, tokens = [prefix], len(prefix.ids)
        for other in self._held:
            tokens += len(other.ids)
            if other is prefix or len(held) == HELD or tokens > self.max_tokens:
                continue
            held.append(other)
        self._held = held


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)


def runs(rows: Sequence[Sequence[int]], room: Sequence[int], prefix: int) -> list[tuple[list[int], int]]:
    """Neighbors among rows of token ids that share more than the first `prefix` tokens, such as the items of one query.

    room: how many tokens of each row a prefix may have. Returns (indices, number of tokens that they share) for each run that saves
    more than BATCH_COST tokens; all runs share at least the number of tokens with which they save most together.
    """
    near = [min(shared_tokens(rows[at], rows[at + 1]), room[at], room[at + 1]) for at in range(len(rows) - 1)]
    best: tuple[int, list[tuple[list[int], int]]] = (0, [])
    for least in {size for size in near if size > prefix}:
        found, saved, first = [], 0, 0
        for at, size in enumerate([*near, 0]):
            if size >= least:
                continue
            shared = min(near[first:at], default=0)
            gain = (at - first) * (shared - prefix) - BATCH_COST
            if gain > 0:
                found.append((list(range(first, at + 1)), shared))
                saved += gain
            first = at + 1
        best = max(best, (saved, found), key=lambda one: one[0])
    return best[1]


def behind(inputs: dict[str, torch.Tensor], prefix: Prefix, *, grows: bool) -> dict[str, Any] | None:
    """`inputs`, padded on the left, as a batch behind the prefix; None if a row does not begin with its ids and go on.

    For one forward pass the token inputs are those behind the prefix; for generation (`grows`) they are whole, with the padding
    between the prefix and the rest of a row.
    """
    mask, size = inputs["attention_mask"], len(prefix.ids)
    pads = (mask == 0).sum(dim=1, keepdim=True)
    if mask.shape[1] - int(pads.max()) <= size:
        return None
    places = pads + torch.arange(size, device=mask.device)
    first = torch.tensor(prefix.ids, device=mask.device)
    if (inputs["input_ids"].gather(1, places) != first).any():
        return None
    out: dict[str, Any] = dict(inputs)
    # The last columns of a row with pads begin with as many tokens of the prefix as it has pads.
    rest = torch.arange(mask.shape[1] - size, device=mask.device) >= pads
    full = torch.cat([torch.ones_like(places), rest.to(mask.dtype)], dim=1).to(mask.dtype)
    positions = (full.cumsum(dim=1) - 1).masked_fill(full == 0, 0)
    for key, value in inputs.items():
        if value.shape == mask.shape and key != "attention_mask":
            out[key] = torch.cat([value.gather(1, places), value[:, size:]], dim=1) if grows else value[:, size:]
    out |= {"attention_mask": full, "past_key_values": prefix.cache(len(mask), grows=grows)}
    return out if grows else out | {"position_ids": positions[:, size:]}


def padded(inputs: dict[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """`inputs` with PADS more columns of padding on the left. Behind a prefix the padding stands between the prefix and the rest of
    a row, and a model may count it there; rows of one length would not show that."""
    size = inputs["attention_mask"].shape

    def filled(key: str, value: torch.Tensor) -> torch.Tensor:
        if value.shape != size:
            return value
        return torch.cat([value.new_full((size[0], PADS), pad_id if key == "input_ids" else 0), value], dim=1)

    return {key: filled(key, value) for key, value in inputs.items()}


def moves(model: Any, inputs: dict[str, torch.Tensor], shared: dict[str, Any]) -> bool:
    """Whether the last logits of a batch change with the prefix (`shared`, see `behind`), or the model refuses to start from it."""
    try:
        plain = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        found = model(**shared, use_cache=True, logits_to_keep=1).logits[:, -1].float()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):  # each model refuses in its own way
        return True
    precise = model.dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type)
    moved = ((plain - found).norm(dim=-1) / plain.norm(dim=-1).clamp(min=1e-9)).max().item()
    return not moved < (TOLERANCE if precise else LOW_PRECISION_TOLERANCE)
