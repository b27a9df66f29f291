"""Students with photos, matches, apart or together: saved, loaded, and independent of their batch."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from students_for_tests import embeddings_file, photo, photo_pairs, some_pairs, word_tokenizer, write_student
from transformers import AutoModel, ElectraConfig, RobertaConfig

from lore.codec.pair_text import PairTextFormat
from lore.student.config import read_config
from lore.student.encode import PairEncoder
from lore.student.head import tier_log_probabilities, tier_probabilities, verdict_tiers
from lore.student.model import build_student, load_student, load_tower, open_tokenizer, save_student, train_tokenizer
from lore.student.photo_embeddings import read_photo_embeddings
from lore.student.scorer import open_student
from lore.student.section import ScratchSection, StudentSection
from lore.support.errors import LoreError

TOWER = {"image_size": 16, "patch_size": 4, "hidden": 16, "layers": 1, "heads": 2, "mlp": 16, "merge": 2}
SMALL = {"hidden": 16, "layers": 2, "heads": 2, "mlp": 16}
KINDS = {
    "modernbert": {"scratch": SMALL},
    "modernbert, tower and matches": {"scratch": SMALL, "photo": "tower", "tower": TOWER, "match_embedding": True},
    "matches": {"match_embedding": True},
    "tower": {"photo": "tower", "tower": TOWER},
    "tower and matches": {"photo": "tower", "tower": TOWER, "match_embedding": True, "head": "ordinal"},
    "embedding": {"photo": "embedding"},
    "bi": {"kind": "bi_encoder", "interaction": 8},
    "bi with tower": {"kind": "bi_encoder", "photo": "tower", "tower": TOWER, "head": "ordinal"},
}


def student(tmp_path, name: str):
    section = KINDS[name] | ({"photo_embeddings": str(embeddings_file(tmp_path))} if name == "embedding" else {})
    return write_student(tmp_path / "student", seed=2, **section)


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_of_a_pair_does_not_depend_on_its_batch(tmp_path, name):
    scorer = open_student(student(tmp_path, name))
    pairs = photo_pairs()
    together = scorer.score(pairs)
    scorer.batch_tokens = 1
    apart = scorer.score(pairs[::-1])[::-1]
    for one, other in zip(together, apart, strict=True):
        assert (one.pair_id, one.photo, one.failure) == (other.pair_id, other.photo, None)
        assert np.abs(np.subtract(one.probabilities, other.probabilities)).max() < 1e-5
    assert np.std([one.probabilities for one in together], axis=0).max() > 0.01


@pytest.mark.parametrize("name", ["tower", "modernbert, tower and matches", "embedding", "bi with tower"])
def test_a_photo_changes_the_answer_and_a_broken_one_is_none(tmp_path, name):
    scorer = open_student(student(tmp_path, name))
    with_photos, without = scorer.score(photo_pairs()), scorer.score([*some_pairs()])
    third = "failed"  # broken bytes, and an item without a vector
    assert [verdict.photo for verdict in with_photos] == ["seen", "seen", third, "none", "none"]
    changed = [
        np.abs(np.subtract(one.probabilities, other.probabilities)).max() > 1e-3
        for one, other in zip(with_photos, without, strict=True)
    ]
    # A vector belongs to the item, whether or not the pair brings its photo.
    assert changed == ([True, True, False, False, False] if name != "embedding" else [False] * 5)
    if name == "tower":
        pairs = photo_pairs()[:1]
        red = scorer.score(pairs)[0].probabilities
        pairs[0].image = photo("green")
        assert np.abs(np.subtract(red, scorer.score(pairs)[0].probabilities)).max() > 1e-3


def test_a_student_without_photos_says_that_it_hides_them(tmp_path):
    verdicts = open_student(write_student(tmp_path / "student")).score(photo_pairs())
    assert [verdict.photo for verdict in verdicts] == ["hidden", "hidden", "hidden", "none", "none"]


@pytest.mark.parametrize("name", ["tower and matches", "embedding", "bi", "bi with tower"])
def test_a_saved_student_is_the_same_and_a_damaged_one_is_refused(tmp_path, name):
    folder = student(tmp_path, name)
    model, again = load_student(folder), tmp_path / "again"
    save_student(model, again, word_tokenizer())
    loaded = load_student(again)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert not loaded.training
    weights = again / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(LoreError, match="cannot be loaded"):
        load_student(again)
    config = json.loads((again / "student.json").read_text())
    for change in ({"head": "linear"}, {"tiers": config["tiers"][:-1]}, {"photo": "tower", "tower": None}, {"interaction": 10**9}):
        (again / "student.json").write_text(json.dumps(config | change))
        with pytest.raises(LoreError):
            load_student(again)


def test_transformers_cannot_take_a_student_with_photos_for_a_text_model(tmp_path):
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(Exception, match=r"model_type|config\.json"):
        AutoModelForSequenceClassification.from_pretrained(student(tmp_path, "tower"))


def test_a_word_of_both_sides_is_a_match_and_a_special_token_is_none():
    tokenizer = word_tokenizer()
    section = StudentSection(scratch=SMALL, match_embedding=True)
    model = build_student(section, ["a", "b"], 0, tokenizer, max_tokens=32)
    texts = tokenizer(["red mug", "lamp"], ["a mug for children", "blue shoe"], padding=True, return_tensors="pt")
    found = model.matches(texts["input_ids"], texts["attention_mask"], texts["token_type_ids"])
    words = [tokenizer.convert_ids_to_tokens(row) for row in texts["input_ids"].tolist()]
    hits = [[word for word, hit in zip(*row, strict=True) if hit] for row in zip(words, found.tolist(), strict=True)]
    assert hits == [["mug", "mug"], []]


def test_the_vision_tower_of_a_judges_base_gives_what_it_gave_there(tiny):
    from transformers import AutoModelForImageTextToText

    tower = load_tower(str(tiny.vision), merge=2)
    whole = AutoModelForImageTextToText.from_pretrained(tiny.vision).eval()
    photos = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        ours = tower.eval()(pixel_values=photos).last_hidden_state
        theirs = whole.model.vision_model(
            pixel_values=photos, patch_attention_mask=torch.ones(2, 4, 4, dtype=torch.bool)
        ).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)
    section = StudentSection(photo="tower", tower={"name": str(tiny.vision), "merge": 2}, scratch=SMALL)
    model = build_student(section, ["a", "b"], 0, word_tokenizer(), max_tokens=32)
    assert model.config.photo_tokens == 4 and model.config.tower.image_size == 56
    assert torch.equal(model.photo.tower.post_layernorm.weight, tower.post_layernorm.weight)
    with pytest.raises(LoreError, match="llama"):
        load_tower(str(tiny.text), merge=1)


def test_a_tokenizer_from_scratch_knows_the_words_of_its_texts():
    texts = ["Red mugs and lamps", "a lamp, a mug", "glass bus"] * 3
    section = StudentSection(scratch=ScratchSection(vocabulary=400, plural_s=True))
    one, other = (open_tokenizer(section, texts) for _ in range(2))
    assert one.get_vocab() == other.get_vocab()
    assert one.tokenize("Lamps GLASS bus") == ["lamp", "s", "glass", "bus"]
    assert one.convert_ids_to_tokens(one("red", "mug")["input_ids"]) == ["[CLS]", "red", "[SEP]", "mug", "[SEP]"]
    assert train_tokenizer(texts, ScratchSection(vocabulary=400)).tokenize("lamps") == ["lamps"]


def test_half_of_the_heads_start_alike_where_that_is_asked_for():
    for architecture in ("bert", "modernbert"):
        for mimetic in (True, False):
            section = StudentSection(scratch=SMALL | {"architecture": architecture, "mimetic": mimetic})
            base = build_student(section, ["a", "b"], 0, word_tokenizer(), max_tokens=32).encoder.base_model
            if architecture == "bert":
                layers = [layer.attention.self for layer in base.encoder.layer]
                weights = [(layer.query.weight, layer.key.weight) for layer in layers]
            else:
                weights = [layer.attn.Wqkv.weight.chunk(3)[:2] for layer in base.layers]
            for query, key in weights:
                assert torch.equal(query[:8], key[:8]) is mimetic and not torch.equal(query[8:], key[8:])


def test_an_encoder_from_scratch_with_its_own_tokenizer_matches_words():
    section = StudentSection(scratch=SMALL | {"vocabulary": 300}, match_embedding=True)
    tokenizer = open_tokenizer(section, ["red mug", "blue shoe"])
    model = build_student(section, ["a", "b"], 0, tokenizer, max_tokens=32)
    encoder = PairEncoder(tokenizer, PairTextFormat(max_tokens=32), model.config)
    batch = encoder.batch(encoder.rows(some_pairs()[:2]))
    assert "token_type_ids" not in tokenizer.model_input_names and batch["token_type_ids"].any()
    assert model(**{name: torch.from_numpy(array) for name, array in batch.items()}).shape == (2, 2)


def test_an_encoder_without_token_types_is_told_which_side_a_token_is_on(tmp_path):
    folder = write_student(tmp_path / "student", scratch=SMALL, match_embedding=True)
    scorer = open_student(folder)
    scorer.encoder.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    encoder = PairEncoder(scorer.encoder.tokenizer, scorer.card.fmt, scorer.encoder.config)
    assert encoder.rows(some_pairs()) == scorer.encoder.rows(some_pairs())


def test_the_seed_decides_the_weights(tiny):
    section = StudentSection(scratch=SMALL)
    one, again, other = (build_student(section, ["a", "b"], seed, word_tokenizer(), max_tokens=32) for seed in (1, 1, 2))
    assert torch.equal(one.encoder.classifier.weight, again.encoder.classifier.weight)
    assert not torch.equal(one.encoder.classifier.weight, other.encoder.classifier.weight)


def test_an_encoder_that_cannot_be_a_student_is_refused(tmp_path, tiny):
    folder = write_student(tmp_path / "encoder")
    tokenizer = word_tokenizer()
    with pytest.raises(LoreError, match="reads 48 tokens"):
        build_student(StudentSection(encoder=str(folder)), ["a", "b"], 0, tokenizer, max_tokens=64)
    with pytest.raises(LoreError, match="word vectors"):
        larger = word_tokenizer(" ".join(f"word{number}" for number in range(200)))
        build_student(StudentSection(encoder=str(folder)), ["a", "b"], 0, larger, max_tokens=32)
    with pytest.raises(LoreError, match="cannot be loaded"):
        build_student(StudentSection(encoder=str(tmp_path / "nothing" / "there")), ["a", "b"], 0, tokenizer)
    # A causal model reads the last token of the padded sequence where it gets vectors in place of ids.
    causal = StudentSection(encoder=str(tiny.text), photo="tower", tower=TOWER)
    with pytest.raises(LoreError, match="padding changes the answer"):
        build_student(causal, ["a", "b"], 0, open_tokenizer(causal), max_tokens=32)


def test_encoders_with_one_token_type_or_shorter_word_vectors_are_students_too(tmp_path):
    tokenizer = word_tokenizer()
    shared = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    shared["vocab_size"] = len(tokenizer)
    one_type = RobertaConfig(**shared, type_vocab_size=1, pad_token_id=1, bos_token_id=2, eos_token_id=3)
    shorter = ElectraConfig(**shared, embedding_size=8, pad_token_id=0)
    for config, section in ((one_type, {"match_embedding": True}), (shorter, {"kind": "bi_encoder"})):
        folder = tmp_path / config.model_type
        AutoModel.from_config(config).save_pretrained(folder)
        build_student(StudentSection(encoder=str(folder), **section), ["a", "b"], 0, tokenizer, max_tokens=32)


def test_a_pretrained_encoder_keeps_its_weights_and_gets_a_new_head(tmp_path):
    folder = write_student(tmp_path / "encoder")
    before = load_student(folder)
    model = build_student(StudentSection(encoder=str(folder), head="ordinal"), ["a", "b", "c"], 0, word_tokenizer(), max_tokens=32)
    assert torch.equal(model.encoder.bert.embeddings.word_embeddings.weight, before.encoder.bert.embeddings.word_embeddings.weight)
    assert model.encoder.classifier.weight.shape == (2, 16)
    bi = build_student(StudentSection(encoder=str(folder), kind="bi_encoder"), ["a", "b"], 0, word_tokenizer(), max_tokens=32)
    assert torch.equal(bi.encoder.embeddings.word_embeddings.weight, before.encoder.bert.embeddings.word_embeddings.weight)
    assert bi.encoder.pooler is None


@settings(deadline=None, max_examples=60)
@given(arrays(np.float64, (3, 4), elements=st.floats(-40, 40)), st.sampled_from(["softmax", "ordinal"]))
def test_numpy_and_torch_agree_and_ordinal_borders_never_cross(logits, head):
    found = tier_probabilities(logits, head)
    assert np.allclose(found.sum(axis=1), 1) and (found >= 0).all()
    assert found.shape == ((3, 4) if head == "softmax" else (3, 5))
    theirs = tier_log_probabilities(torch.from_numpy(logits), head).exp().numpy()
    assert np.allclose(found, theirs, atol=1e-5)


def test_ordinal_probabilities_by_hand():
    # Above the first border with 3/4, and then above the second with 1/2.
    logits = np.log([[3.0, 1.0]])
    assert tier_probabilities(logits, "ordinal")[0] == pytest.approx([1 / 4, 3 / 8, 3 / 8])


def test_photo_embeddings_from_both_kinds_of_file(tmp_path, monkeypatch):
    rows = {"item_id": ["i0", "i1"], "embedding": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]}
    pq.write_table(pa.table(rows), tmp_path / "e.parquet")
    rows["embedding"] = pa.array(rows["embedding"], pa.list_(pa.float32(), 3))
    pq.write_table(pa.table(rows), tmp_path / "f.parquet")
    for path in (embeddings_file(tmp_path), tmp_path / "e.parquet", tmp_path / "f.parquet"):
        found = read_photo_embeddings(path)
        assert found.size == 3 and found.vectors[found.row("i1")].tolist() == [0, 1, 0]
        assert found.row("i9") is None and found.row(None) is None
    bad = {"a": [[1.0], [1.0, 2.0]], "b": [[1.0], None], "c": [[1.0], [float("nan")]]}
    for name, vectors in bad.items():
        rows["embedding"] = pa.array(vectors, pa.list_(pa.float32()))
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        with pytest.raises(LoreError):
            read_photo_embeddings(tmp_path / f"{name}.parquet")
    np.savez(tmp_path / "pickled.npz", item_id=np.asarray(["a", None], dtype=object), embedding=np.zeros((2, 1)))
    with pytest.raises(LoreError, match="cannot be read"):
        read_photo_embeddings(tmp_path / "pickled.npz")
    np.savez_compressed(tmp_path / "packed.npz", item_id=np.asarray(["a"]), embedding=np.zeros((1, 2**20), dtype=np.float32))
    monkeypatch.setattr("lore.support.bounds.FREELY_UNPACKED", 2**10)
    with pytest.raises(LoreError, match="unpacks to 4,194,"):
        read_photo_embeddings(tmp_path / "packed.npz")


def test_matches_are_for_a_cross_encoder_from_scratch_unless_the_recipe_says_otherwise():
    assert StudentSection().sees_matches and not StudentSection(match_embedding=False).sees_matches
    assert not StudentSection(kind="bi_encoder").sees_matches and not StudentSection(encoder="e").sees_matches
    assert StudentSection(encoder="e", match_embedding=True).sees_matches
    model = build_student(StudentSection(scratch=SMALL), ["a", "b"], 0, word_tokenizer(), max_tokens=32)
    assert model.match is not None and model.config.match_embedding and model.config.plain_ids


def test_a_section_names_what_does_not_fit_together():
    def keys(**values):
        return [key for conflict in StudentSection(**values).conflicts() for key in conflict.keys]

    assert keys() == []
    assert keys(photo="embedding") == ["photo", "photo_embeddings"] == keys(photo_embeddings="e.npz")
    assert keys(kind="bi_encoder", match_embedding=True) == ["match_embedding", "kind"]
    with pytest.raises(LoreError, match="title"):
        PairTextFormat(fields=("brand",))


def test_the_config_says_what_it_reads(tmp_path):
    assert read_config(student(tmp_path, "embedding")).photo_tokens == 1


def test_the_median_verdict_looks_at_the_borders_and_not_at_the_peaks():
    rows = np.asarray([[0.1, 0.3, 0.2, 0.4], [0.4, 0.15, 0.15, 0.3], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    assert verdict_tiers(rows, "most_probable").tolist() == [3, 0, 3, 0, 0]
    assert verdict_tiers(rows, "median").tolist() == [2, 1, 3, 0, 2]
