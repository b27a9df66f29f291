"""A tiny BERT with its tokenizer, and students on it with random weights, for tests."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lore.codec.pair_text import PairTextFormat
from lore.data.pair import Pair
from lore.rubric.rubric import load_rubric
from lore.student.card import student_card, write_student_card
from lore.student.model import build_student, save_student
from lore.student.photo_embeddings import read_photo_embeddings
from lore.student.section import StudentSection

WORDS = "red blue green mug shoe lamp tee for children price color size lumo vela kitchen a the with of and | : ; . 1 2 3 5 7 0 9"


def word_tokenizer(words: str = WORDS):
    """A lowercase WordPiece tokenizer with one token per word and per letter."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*words.split(), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)]
    ids = {token: at for at, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def write_student(folder: Path, *, fmt: PairTextFormat | None = None, seed: int = 0, card: dict | None = None, **section) -> Path:
    """A student with random weights in a folder, for rubric shop: a text cross-encoder that transformers loads, or what the section
    says. card: replaces keys of its card."""
    rubric, fmt = load_rubric("shop"), fmt or PairTextFormat(max_tokens=48)
    scratch = {"hidden": 16, "layers": 2, "heads": 2, "mlp": 24, "architecture": "bert"}
    section = StudentSection(**{"scratch": scratch, "match_embedding": False} | section)
    tokenizer = word_tokenizer()
    size = read_photo_embeddings(section.photo_embeddings).size if section.photo_embeddings else None
    model = build_student(section, rubric.tier_ids, seed, tokenizer, max_tokens=fmt.max_tokens, embedding_size=size)
    for name, parameter in model.named_parameters():  # answers that differ between pairs
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1 if "interaction" in name else 0.5)
    save_student(model, folder, tokenizer)
    write_student_card(folder, student_card(section, fmt, rubric, rubric_name="shop") | (card or {}))
    return folder


def some_pairs() -> list[Pair]:
    """Pairs of different lengths."""
    long = "the red lamp with a blue shoe and a green mug for children " * 12
    rows = [
        ("red mug", "Lumo red mug", {"attributes": {"color": "red"}, "price": 7.5}),
        ("blue shoe", "red mug", {}),
        ("lamp", "green lamp", {"description": long, "brand": "Vela"}),
        ("mug for children", "a tee", {"category": "kitchen"}),
        ("a red tee for children", "blue tee", {"price": 3.0, "shop": "lumo"}),
    ]
    return [
        Pair(pair_id=f"p{at}", query=query, title=title, item_id=f"i{at}", **values)
        for at, (query, title, values) in enumerate(rows)
    ]


def photo(color: str, side: int = 20) -> dict[str, Any]:
    """A photo of one color, as a pair stores it."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def photo_pairs() -> list[Pair]:
    """The same pairs; the first three have photos, of which the third is broken."""
    pairs = some_pairs()
    pairs[0].image, pairs[1].image, pairs[2].image = photo("red"), photo("blue"), {"bytes": b"no photo", "path": None}
    return pairs


def embeddings_file(folder: Path) -> Path:
    """Photo embeddings of the items of the first two pairs."""
    path = folder / "embeddings.npz"
    np.savez(path, item_id=np.asarray(["i0", "i1"]), embedding=np.asarray([[1.0, 0, 0], [0, 1, 0]]))
    return path
