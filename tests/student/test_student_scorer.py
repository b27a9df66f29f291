"""A student in a folder answers like a judge."""

import numpy as np
import pytest
import torch
from students_for_tests import some_pairs, write_student

from lore.codec.pair_text import pair_text_hash
from lore.data.pair import Pair
from lore.rubric.rubric import load_rubric
from lore.student.card import is_student, read_student
from lore.student.scorer import open_student
from lore.support.errors import LoreError


@pytest.mark.parametrize("head", ["softmax", "ordinal"])
def test_the_answer_of_a_pair_does_not_depend_on_its_batch(tmp_path, head):
    scorer = open_student(write_student(tmp_path / "student", head=head))
    pairs = some_pairs()
    together = scorer.score(pairs)
    scorer.batch_tokens = 1
    apart = scorer.score(pairs[::-1])[::-1]
    for one, other in zip(together, apart, strict=True):
        assert one.pair_id == other.pair_id and one.tier == other.tier
        assert np.abs(np.subtract(one.probabilities, other.probabilities)).max() < 1e-5
        assert sum(one.probabilities) == pytest.approx(1) and one.source == "student" and one.failure is None
    assert np.std([one.probabilities for one in together], axis=0).max() > 0.01


def test_the_threads_of_a_student_are_its_own(tmp_path):
    scorer = open_student(write_student(tmp_path / "student"), threads=3)
    seen, model = [], scorer.session.model
    scorer.session.model = lambda **batch: seen.append(torch.get_num_threads()) or model(**batch)
    before = torch.get_num_threads()
    scorer.score(some_pairs())
    assert set(seen) == {3} and torch.get_num_threads() == before != 3


def test_transformers_loads_a_text_cross_encoder_as_it_is(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = write_student(tmp_path / "student")
    pair = some_pairs()[0]
    expected = open_student(folder).score([pair])[0].probabilities
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = ("red mug", "Lumo red mug | price 7.50 | color: red")
    with torch.inference_mode():
        logits = model(**AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")).logits
    assert logits.softmax(-1)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert list(model.config.id2label.values()) == load_rubric("shop").tier_ids


@pytest.mark.slow  # sentence-transformers takes two seconds to load
def test_sentence_transformers_loads_both_kinds_as_they_are(tmp_path):
    from sentence_transformers import CrossEncoder, SentenceTransformer

    folder = write_student(tmp_path / "student")
    expected = open_student(folder).score(some_pairs()[:1])[0].probabilities
    scores = CrossEncoder(str(folder)).predict([("red mug", "Lumo red mug | price 7.50 | color: red")], apply_softmax=True)
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)
    folder = write_student(tmp_path / "bi", kind="bi_encoder")
    scorer = open_student(folder)
    batch = scorer.encoder.batch(scorer.encoder.rows(some_pairs()[:1]))
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.inference_mode():
        ours = scorer.session.model.encode(**{name: torch.from_numpy(batch[f"query_{name}"]) for name in names})
    theirs = SentenceTransformer(str(folder)).encode(["red mug"], normalize_embeddings=True)
    assert ours.numpy() == pytest.approx(theirs, abs=1e-5)


def test_a_query_without_room_for_an_item_fails_alone(tmp_path):
    scorer = open_student(write_student(tmp_path / "student"))
    pairs = some_pairs()
    pairs.insert(2, Pair(pair_id="long", query="red " * 60, title="mug"))
    verdicts = scorer.score(pairs)
    assert [verdict.failure for verdict in verdicts] == [None, None, "prompt_too_long", None, None, None]
    assert "60 tokens" in verdicts[2].detail and verdicts[2].tier is None
    assert scorer.score([]) == []


def test_the_card_says_which_tier_is_the_verdict(tmp_path):
    """The median is below and above one half of the probability; the most probable tier may lie to one side of it."""
    seeds = range(3)  # random weights: some answers have two peaks
    differ = 0
    for seed in seeds:
        plain = open_student(write_student(tmp_path / f"plain{seed}", seed=seed))
        median = open_student(write_student(tmp_path / f"median{seed}", seed=seed, card={"verdict": "median"}))
        assert plain.judge_id != median.judge_id
        for one, other in zip(plain.score(some_pairs()), median.score(some_pairs()), strict=True):
            assert one.probabilities == other.probabilities
            assert one.tier == plain.tier_ids[int(np.argmax(one.probabilities))]
            at = plain.tier_ids.index(other.tier)
            assert sum(other.probabilities[at:]) >= 0.5 - 1e-9 and sum(other.probabilities[: at + 1]) >= 0.5 - 1e-9
            differ += one.tier != other.tier
    assert differ > 0


def test_a_card_with_an_unknown_verdict_is_damaged(tmp_path):
    with pytest.raises(LoreError, match="verdict 'mean'"):
        open_student(write_student(tmp_path / "student", card={"verdict": "mean"}))


def test_the_judge_id_names_weights_rubric_and_renderer(tmp_path):
    seeds = {"first": 0, "again": 0, "other": 1}
    first, again, other = (open_student(write_student(tmp_path / name, seed=seed)) for name, seed in seeds.items())
    rubric = load_rubric("shop")
    assert first.judge_id == again.judge_id != other.judge_id
    assert first.judge_id.split(":")[1:] == [rubric.hash, pair_text_hash(rubric, first.card.fmt)]
    assert first.score(some_pairs())[0].judge_id == first.judge_id


def test_only_a_folder_with_the_card_of_a_student_is_one(tmp_path):
    run = tmp_path / "distill"
    write_student(run / "model")
    assert is_student(run) and is_student(run / "model") and not is_student(tmp_path)
    with pytest.raises(LoreError, match="is not the folder of a student"):
        open_student(tmp_path)


def test_a_run_that_is_not_finished_has_no_student_yet(tmp_path):
    run = tmp_path / "distill"
    write_student(run / "model")
    (run / "recipe.yaml").write_text("stage: distill\n")
    with pytest.raises(LoreError, match=r"not a finished run(?s:.*)or name \S+/distill/model to take the student as it"):
        read_student(run)
    assert read_student(run / "model").tiers == load_rubric("shop").tier_ids
    (run / "done").write_text("{}")
    assert read_student(run).folder == run / "model"


def test_an_exported_student_without_its_onnx_files_is_not_run_by_torch(tmp_path):
    folder = write_student(tmp_path / "student")
    (folder / "export.json").write_text("{}")
    with pytest.raises(LoreError, match="its ONNX files are gone"):
        open_student(folder)
