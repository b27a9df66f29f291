"""The students, and how they are built, saved and loaded.

A text cross-encoder is a sequence classification model of transformers, and its folder is one that transformers and
sentence-transformers load as it is. Only safetensors are read, and no code from a checkpoint runs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from lore.engines.config import ModelSection
from lore.engines.weight_files import REPORTED, refuse_misfits
from lore.student.config import CONFIG, StudentConfig, read_config
from lore.student.section import StudentSection
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.library_logging import silence


class CrossEncoder(nn.Module):
    """One encoder that reads query and item together, with a head on its first token."""

    def __init__(self, config: StudentConfig, encoder: Any):
        super().__init__()
        self.config, self.encoder = config, encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> Any:
        """Logits [N, outputs] of token ids [N, T]."""
        typed = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **typed).logits


def build_student(section: StudentSection, tiers: list[str], seed: int, tokenizer: Any, max_tokens: int = 128) -> nn.Module:
    """A student to train, with a new head, on the CPU in float32. The same seed gives the same weights.

    tokenizer: the checkpoint's, or for an encoder from scratch its own. max_tokens: longest input.
    """
    config = StudentConfig(kind=section.kind, head=section.head, tiers=tiers)
    silence()
    torch.manual_seed(seed)
    if section.encoder is None:
        scratch = section.scratch
        shape = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=scratch.hidden,
            num_hidden_layers=scratch.layers,
            num_attention_heads=scratch.heads,
            intermediate_size=scratch.mlp,
            max_position_embeddings=max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **_labels(config),
        )
        encoder = AutoModelForSequenceClassification.from_config(shape)
    else:
        shape = AutoConfig.from_pretrained(section.encoder, trust_remote_code=False, **_labels(config))
        encoder = AutoModelForSequenceClassification.from_pretrained(
            section.encoder, config=shape, use_safetensors=True, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    return CrossEncoder(config, encoder)


def save_student(model: Any, folder: str | Path, tokenizer: Any) -> None:
    """Writes weights, config and tokenizer. Raises LoreError if they cannot be written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_atomic(folder / CONFIG, model.config.model_dump_json(indent=2) + "\n")


def load_student(folder: str | Path) -> nn.Module:
    """The student in a folder, on the CPU in float32, ready to answer."""
    config = read_config(folder)
    silence()
    encoder, found = AutoModelForSequenceClassification.from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, trust_remote_code=False, **REPORTED
    )
    refuse_misfits(ModelSection(name=str(folder)), found)
    return CrossEncoder(config, encoder).eval()


def load_tokenizer(folder: str | Path) -> Any:
    silence()
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a damaged tokenizer.json
        raise LoreError(f"{folder}: its tokenizer cannot be loaded ({error}).\nCopy the student's folder again.") from error


def _labels(config: StudentConfig) -> dict[str, Any]:
    names = config.tiers if config.head == "softmax" else [f"above {tier}" for tier in config.tiers[:-1]]
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
