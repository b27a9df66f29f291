"""The students: a cross-encoder reads query and item together, a bi-encoder reads them apart.

Both take any encoder of transformers. A cross-encoder that reads text alone is a sequence classification model of transformers, and
its folder is one that transformers and sentence-transformers load as it is. Photos and matches are joined to the text as vectors
(`inputs_embeds`):

    [CLS] photo … photo query … [SEP] item … [SEP]

The photo's places come right behind the first token, so that the text has the same positions in every batch, and a pair without a
photo masks them. lore.student.model builds, saves and loads the models.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, normalize
from transformers import SiglipVisionConfig, SiglipVisionModel

from lore.student.config import StudentConfig
from lore.student.head import outputs_of
from lore.student.section import TowerSize

Inputs = dict[str, torch.Tensor]


class PhotoTokens(nn.Module):
    """A photo as vectors of the encoder's width: from pixels by a vision tower, or from one precomputed vector."""

    def __init__(self, config: StudentConfig, hidden: int):
        super().__init__()
        self.tower = build_tower(config.tower) if config.tower else None
        self.merge, self.side = (config.tower.merge, config.tower.side) if config.tower else (1, 1)
        width = config.tower.hidden * self.merge**2 if config.tower else config.embedding_size
        self.project = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        """[N, tokens, hidden] of pixels [N, 3, S, S] in [-1, 1], or of vectors [N, D]."""
        if self.tower is None:
            return self.norm(self.project(photo.to(self.project.weight.dtype)))[:, None]
        patches = self.tower(pixel_values=photo.to(self.project.weight.dtype)).last_hidden_state
        count, _, width = patches.shape
        rows = self.side // self.merge
        squares = patches.reshape(count, rows, self.merge, rows, self.merge, width).transpose(2, 3)
        return self.norm(self.project(squares.reshape(count, rows * rows, self.merge**2 * width)))


class Student(nn.Module):
    """What both kinds share: an encoder, and how photos and matches come into its input."""

    def __init__(self, config: StudentConfig, encoder: Any):
        super().__init__()
        self.config, self.encoder = config, encoder
        words = encoder.get_input_embeddings()
        spread = float(words.weight.detach().std())
        self.photo = PhotoTokens(config, words.embedding_dim) if config.photo != "none" else None
        if self.photo is not None:
            self.photo.norm.weight.data.fill_(spread)  # a photo's vectors begin as large as those of words
            self.places = nn.Parameter(torch.randn(config.photo_tokens, words.embedding_dim) * spread)
        self.match = nn.Embedding(2, words.embedding_dim) if config.match_embedding else None
        # Encoders without token types, such as ModernBERT, are told which side a token is on, or that it is a photo's.
        takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.takes_types = takes_types and getattr(encoder.config, "type_vocab_size", 2) > 1  # RoBERTa has one type
        sided = config.match_embedding and not self.takes_types
        self.side = nn.Embedding(3, words.embedding_dim) if sided else None
        for table in (self.match, self.side):
            if table is not None:
                nn.init.normal_(table.weight, std=spread)
        self.register_buffer("plain_ids", torch.tensor(config.plain_ids, dtype=torch.int64), persistent=False)

    @property
    def reads_types(self) -> bool:
        """Whether token types change its answers."""
        return self.takes_types or self.config.match_embedding

    def inputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None, photo: Inputs
    ) -> Inputs:
        """The encoder's arguments. photo: {} or {"photo": [N, ...], "photo_mask": [N]}, see `forward`."""
        typed = {"token_type_ids": token_type_ids} if self.takes_types and token_type_ids is not None else {}
        if self.config.is_plain:
            return {"input_ids": input_ids, "attention_mask": attention_mask, **typed}
        words = self.encoder.get_input_embeddings()(input_ids)
        if self.match is not None:
            words = words + self.match(self.matches(input_ids, attention_mask, token_type_ids))
        if self.side is not None:
            words = words + self.side(token_type_ids)
        if self.photo is not None:
            words, attention_mask, typed = self._with_photo(words, attention_mask, typed, photo)
        return {"inputs_embeds": words, "attention_mask": attention_mask, **typed}

    def _with_photo(
        self, words: torch.Tensor, mask: torch.Tensor, typed: Inputs, photo: Inputs
    ) -> tuple[torch.Tensor, torch.Tensor, Inputs]:
        count, places = words.shape[0], self.config.photo_tokens  # len() would fix the number of pairs in an exported graph
        if photo:
            tokens, seen = self.photo(photo["photo"]).to(words.dtype) + self.places, photo["photo_mask"].to(mask.dtype)
            if self.side is not None:
                tokens = tokens + self.side.weight[2]
        else:
            tokens, seen = words.new_zeros(count, places, words.shape[-1]), mask.new_zeros(count)
        words = torch.cat([words[:, :1], tokens, words[:, 1:]], dim=1)
        mask = torch.cat([mask[:, :1], seen[:, None].expand(count, places), mask[:, 1:]], dim=1)
        # A photo belongs to the item, whose tokens have type 1 where both sides are read together.
        kind = 1 if self.config.kind == "cross_encoder" else 0
        typed = {
            name: torch.cat([types[:, :1], torch.full_like(types[:, :1], kind).expand(count, places), types[:, 1:]], dim=1)
            for name, types in typed.items()
        }
        return words, mask, typed

    def matches(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """[N, T] 1 where a token's id also occurs on the other side, 0 elsewhere and for special tokens."""
        text = attention_mask.bool() & ~(input_ids[:, :, None] == self.plain_ids).any(dim=2)
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & text[:, :, None] & text[:, None, :]
        return (same & (token_type_ids[:, :, None] != token_type_ids[:, None, :])).any(dim=2).long()


class CrossEncoder(Student):
    """One encoder that reads query and item together. encoder: a sequence classification model of transformers."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        photo: torch.Tensor | None = None,
        photo_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, outputs] of token ids [N, T]. photo: pixels [N, 3, S, S] or vectors [N, D]; photo_mask [N]: 1 where there is
        one. Both may be left out where no pair has a photo."""
        shown = {} if photo is None else {"photo": photo, "photo_mask": photo_mask}
        return self.encoder(**self.inputs(input_ids, attention_mask, token_type_ids, shown)).logits


class Interaction(nn.Module):
    """Tier outputs from the vectors of query and item: a small network over both, their distance and their product."""

    def __init__(self, hidden: int, interaction: int, outputs: int):
        super().__init__()
        self.scale = hidden**0.5
        self.inner, self.out = nn.Linear(4 * hidden, interaction), nn.Linear(interaction, outputs)

    def forward(self, query: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Logits [N, outputs] of unit vectors [N, hidden]."""
        query, item = query * self.scale, item * self.scale
        return self.out(gelu(self.inner(torch.cat([query, item, (query - item).abs(), query * item], dim=-1))))


class BiEncoder(Student):
    """One encoder that reads query and item apart, and an interaction head. encoder: a base model of transformers."""

    def __init__(self, config: StudentConfig, encoder: Any):
        super().__init__(config, encoder)
        hidden = encoder.config.hidden_size  # ELECTRA's and ALBERT's word vectors are shorter
        self.interaction = Interaction(hidden, config.interaction, outputs_of(config.head, len(config.tiers)))

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        photo: torch.Tensor | None = None,
        photo_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit vectors [N, hidden] of queries, or of items with their photos: the mean over the tokens."""
        shown = {} if photo is None else {"photo": photo, "photo_mask": photo_mask}
        inputs = self.inputs(input_ids, attention_mask, token_type_ids, shown)
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None].to(states.dtype)
        return normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)

    def forward(
        self,
        query_input_ids: torch.Tensor,
        query_attention_mask: torch.Tensor,
        query_index: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        query_token_type_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        photo: torch.Tensor | None = None,
        photo_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, outputs]. Queries [Q, T] are encoded once each; query_index [N] says which one an item [N, U] belongs to."""
        queries = self.encode(query_input_ids, query_attention_mask, query_token_type_ids)
        items = self.encode(input_ids, attention_mask, token_type_ids, photo, photo_mask)
        return self.interaction(queries[query_index], items)


def build_tower(size: TowerSize) -> SiglipVisionModel:
    """A vision tower with random weights."""
    return SiglipVisionModel(
        SiglipVisionConfig(
            image_size=size.image_size,
            patch_size=size.patch_size,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.mlp,
            initializer_range=size.hidden**-0.5,
            vision_use_head=False,
        )
    )
