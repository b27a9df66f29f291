"""The base model's tokenizer and first weights: what makes words easy to match and to copy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lore.data_synth.shop.corpus import SCHEMA
from lore.support.errors import LoreError
from lore.train.pretrain.config import ArchitectureSection
from lore.train.pretrain.pretrain import TextAndPhotoCollator, build_model, build_processor, read_corpus

SIZE = ArchitectureSection(hidden=32, layers=1, heads=2, mlp=32, vision_hidden=16, vision_layers=1, loud_embeddings=True)
WORDS = "lamp lamps light lights glass dress bus gas toy toys"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    rows = [{"text": f"<query>{WORDS}</query>", "image": None, "trained": None}] * 20
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return str(path)


def test_singular_and_plural_share_a_token(corpus):
    tokenizer = build_processor([corpus], 500, SIZE, plural_s=True).tokenizer

    def tokens(word):
        return tokenizer(f"<query>{word}", add_special_tokens=False)["input_ids"][1:]

    plural = tokens("lamps")[-1:]
    for word in ("lamp", "light", "toy"):
        assert tokens(word + "s") == tokens(word) + plural
    for word in ("glass", "gas"):
        assert tokens(word)[-1:] != plural
    assert tokenizer.decode(tokenizer(f"<query>{WORDS}</query>")["input_ids"]) == f"<query>{WORDS}</query>"


def test_without_the_switch_a_plural_is_a_word_of_its_own(corpus):
    tokenizer = build_processor([corpus], 500, SIZE).tokenizer
    assert len(tokenizer("<query>lamps", add_special_tokens=False)["input_ids"]) == 2


def test_a_word_is_written_with_the_vector_it_is_read_with(corpus):
    processor = build_processor([corpus], 500, SIZE)
    torch.manual_seed(0)
    model = build_model(SIZE, processor)
    read, written = model.model.text_model.embed_tokens.weight, model.lm_head.weight
    assert torch.nn.functional.cosine_similarity(read, written).min() > 0.999
    assert written.std().item() == pytest.approx(SIZE.hidden**-0.5, rel=0.05)  # logits of a new model stay small


def test_a_damaged_corpus_names_the_file_and_the_fix(corpus, tmp_path):
    torn, other = tmp_path / "torn.parquet", tmp_path / "other.parquet"
    torn.write_bytes(Path(corpus).read_bytes()[:200])
    with pytest.raises(LoreError, match="torn.parquet is not a readable Parquet file .*run the recipe that creates the file"):
        list(read_corpus([str(torn)]))
    pq.write_table(pa.table({"text": ["a"]}), other)
    with pytest.raises(LoreError, match="other.parquet: column 'image' is missing.* Found: text.*columns text and image"):
        list(read_corpus([str(other)]))
    with pytest.raises(LoreError, match="none.parquet does not exist"):
        list(read_corpus([str(tmp_path / "none.parquet")]))


def test_a_corpus_without_spans_is_trained_on_whole(corpus, tmp_path):
    pq.write_table(pq.read_table(corpus).select(["image", "text"]), tmp_path / "plain.parquet")
    rows, plain = list(read_corpus([corpus])), list(read_corpus([str(tmp_path / "plain.parquet")]))
    assert plain == [row | {"trained": None} for row in rows]


def test_photos_of_a_corpus_come_from_below_its_folder(corpus, tmp_path):
    photos = {"near": tmp_path / "corpus" / "near.png", "far": tmp_path / "far.png"}
    (tmp_path / "corpus").mkdir()
    for path in photos.values():
        Image.new("RGB", (9, 9)).save(path)
    for kind in (lambda path: {"bytes": None, "path": path}, str):
        for name, path in photos.items():
            pq.write_table(pa.Table.from_pylist([{"text": "t", "image": kind(str(path))}]), tmp_path / "corpus" / "a.parquet")
            if name == "near":
                (row,) = read_corpus([str(tmp_path / "corpus" / "a.parquet")])
                assert row["image"] == {"bytes": path.read_bytes(), "path": None}
            else:
                with pytest.raises(LoreError, match="far.png, which lies outside.*below the folder of the corpus"):
                    list(read_corpus([str(tmp_path / "corpus" / "a.parquet")]))


def test_photos_of_a_corpus_are_read_as_in_every_stage(corpus, tmp_path):
    """16-bit gray, which the processor would cut off at white, and transparent parts; a broken photo is named before training."""
    gray = Image.fromarray(np.full((9, 9), 0x7FFF, np.uint16))
    photos = {"gray": (gray, 127), "clear": (Image.new("RGBA", (9, 9)), 255), "black": (Image.new("L", (9, 9)), 1)}
    stored = []
    for name, (image, _) in photos.items():
        image.save(tmp_path / f"{name}.png")
        stored.append({"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None})
    processor = build_processor([corpus], 500, SIZE)
    rows = [{"text": "<image>lamp", "images": [image], "mask": [True]} for image in stored]
    pixels = TextAndPhotoCollator(processor=processor)(rows)["pixel_values"]
    for found, (_, value) in zip(pixels, photos.values(), strict=True):
        assert found.numpy() == pytest.approx(value / 127.5 - 1, abs=0.01)
    broken = [{"text": "t", "image": {"bytes": stored[0]["bytes"][:45], "path": None}}]
    pq.write_table(pa.Table.from_pylist(broken), tmp_path / "a.parquet")
    with pytest.raises(LoreError, match="cannot be decoded.*Replace this photo by a complete PNG"):
        list(read_corpus([str(tmp_path / "a.parquet")]))
    assert len(list(read_corpus([str(tmp_path / "a.parquet")], photos=False))) == 1
