"""Stage distill on a tiny shop with tiny students: what it trains, writes and resumes."""

import json
import math
from dataclasses import replace

import pytest
from distill_for_tests import distill_body, shop_pairs, write_labels_of, write_pairs
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from lore.data.parquet import read_pairs
from lore.distill import training
from lore.judge.scorer import Scorer
from lore.rubric.rubric import load_rubric
from lore.run.runner import run_recipe
from lore.student.card import read_student
from lore.student.model import WEIGHTS, load_student, train_tokenizer
from lore.student.scorer import open_student
from lore.student.section import ScratchSection
from lore.support.errors import LoreError

RUBRIC = load_rubric("shop")
PAIRS = shop_pairs()


@pytest.fixture
def distill(runs, tmp_path):
    """distill(human pairs, labelled pairs or None, ...) -> the finished run folder."""

    def start(human, labelled=None, *, overrides=(), rationale="", **sections):
        data = write_pairs(tmp_path / "human.parquet", human)
        if labelled is not None and not (tmp_path / "labels").exists():
            write_labels_of(tmp_path / "labels", labelled, rationale=rationale)
        labels = {} if labelled is None else {"labels": {"path": str(tmp_path / "labels")} | sections.pop("labels", {})}
        path = tmp_path / "distill.yaml"
        path.write_text(json.dumps(distill_body(data, **labels, **sections)))
        return run_recipe(path, overrides)

    return start


def everything():
    return [pair for pairs in PAIRS.values() for pair in pairs]


def test_human_labels_alone_make_a_student_that_answers(distill):
    """The embedded default: an encoder from scratch."""
    folder = distill(everything())
    scorer: Scorer = open_student(folder.path)
    assert scorer.tier_ids == RUBRIC.tier_ids
    pairs = PAIRS["test"][:5]
    verdicts = scorer.score(pairs)
    assert [verdict.pair_id for verdict in verdicts] == [pair.pair_id for pair in pairs]
    assert all(sum(verdict.probabilities) == pytest.approx(1) and verdict.source == "student" for verdict in verdicts)
    card, table = read_student(folder.path), json.loads((folder / "table.json").read_text())
    assert card.calibration.kind != "none" and set(card.thresholds) == {"filter", "page_quality"}
    row = table["rows"]["student"]
    assert row["pairs"] == len(PAIRS["test"]) and 0 <= row["metrics"]["macro_f1"]["value"] <= 1
    parameters = sum(weight.numel() for weight in load_student(folder / "model").parameters())
    assert row["parameters"] == parameters and 4 * parameters / 1e6 < row["megabytes"] < 5 * parameters / 1e6
    assert row["milliseconds per pair"] > 0 and row["milliseconds for 50 candidates"] > 0
    assert table["targets"]["human labels"] == len(PAIRS["train"]) and table["curve"] is None
    html = (folder / "report.html").read_text()
    assert "The student reaches Macro-F1" in html and "<script" not in html
    assert [record["step"] for record in folder.metrics()] == [1, 2, 3, 4]


def test_labels_of_one_tier_calibrate_nothing(distill, capsys):
    folder = distill([replace(pair, label="L4") for pair in everything()], baselines=["hard"], train={"steps": 1})
    said = capsys.readouterr().out
    assert "student: not calibrated, since all labels of dev are L4" in said
    assert f"plain cross-encoder: {len(PAIRS['train'])} pairs with one tier each, 1 steps" in said
    card = read_student(folder.path)
    assert card.calibration.kind == "none" and card.thresholds == {}


@pytest.mark.slow
def test_the_whole_table_and_the_curve(distill, capsys):
    unrated = [replace(pair, label=None) for pair in PAIRS["train"][48:]]
    human = [*PAIRS["train"][:48], *unrated, *PAIRS["dev"], *PAIRS["test"]]
    folder = distill(
        human,
        everything(),
        baselines=["human", "hard", "lexical"],
        curve={"sizes": [20, 40, 60]},
        train={"steps": None, "epochs": 1.0, "log_every": 2},
        verdict="median",
    )
    table = json.loads((folder / "table.json").read_text())
    rows = table["rows"]
    assert list(rows) == ["judge", "student", "human labels alone", "plain cross-encoder", "lexical"]
    assert rows["judge"]["metrics"]["acc_k"]["value"] == 1 and rows["judge"]["parameters"] is None
    for name, row in rows.items():
        if name != "judge":  # this judge is always right, so agreement with it is accuracy
            assert row["agreement with the judge"]["value"] == pytest.approx(row["metrics"]["acc_k"]["value"])
            kept, (own, judges) = row["Macro-F1 as a share of the judge's"], (row["metrics"], rows["judge"]["metrics"])
            assert kept["value"] == pytest.approx(own["macro_f1"]["value"] / judges["macro_f1"]["value"])
            assert kept["low"] <= kept["value"] <= kept["high"]
    card = json.loads((folder / "model" / "lore.json").read_text())
    assert card["judge"] == table["targets"]["judge"] and card["data"] == folder.fingerprints["data_fingerprint"]
    assert card["labels"]["input labels.path"] == folder.fingerprints["input labels.path"]
    cards = {name: json.loads((folder / "baselines" / name / "model" / "lore.json").read_text()) for name in ("human", "hard")}
    assert cards["human"]["calibration"]["kind"] != "none" and cards["hard"]["calibration"]["kind"] == "none"
    assert card["verdict"] == cards["human"]["verdict"] == "median" and cards["hard"]["verdict"] == "most_probable"
    steps = [(folder / "baselines" / name / "metrics.jsonl").read_text().splitlines()[-1] for name in cards]
    assert {json.loads(line)["step"] for line in steps} == {folder.metrics()[-1]["step"]}
    points = table["curve"]["points"]
    assert points[0]["labels"] == 20 and points[0]["gain on dev"] is None and len(points) >= 2
    assert [point["labels"] for point in points] == sorted({point["labels"] for point in points})
    for before, point in zip(points, points[1:], strict=False):
        assert point["gain on dev"]["value"] == pytest.approx(point["dev"]["value"] - before["dev"]["value"], abs=1e-5)
    assert ("flat" in table["curve"]["stopped"]) == (points[-1]["gain on dev"]["low"] <= 0)
    assert not list(folder.path.glob("baselines/*/checkpoints")) and not list(folder.path.glob("curve/*/checkpoints"))
    assert {record["judge"] for record in _rows(folder / "predictions.parquet")} == set(rows)
    html = (folder / "report.html").read_text()
    assert "How many labels of the judge" in html and "of the judge&#39;s; it gives the judge" in html
    capsys.readouterr()
    assert run_recipe(folder.path.parent.parent / "distill.yaml").is_done and "already done" in capsys.readouterr().out


def _rows(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(distill, runs, monkeypatch):
    sections = {"baselines": ["hard"], "train": {"steps": 8, "save_every": 2, "log_every": 1}}
    sections |= {"loss": {"rationale": 0.5, "cumulative": 0.5}, "student": {"scratch": {"dropout": 0.1}}}
    whole = distill(everything(), PAIRS["train"], run="whole", rationale="blue, not red", **sections)
    weights = load_file(whole / "model" / WEIGHTS)

    def killed(at, name):
        """A run that ends in step `at` of the training called `name`."""

        def end(trainer, *arguments, **options):
            if trainer.state.global_step == at and trainer.args.output_dir.endswith(f"{name}/checkpoints"):
                raise KeyboardInterrupt
            return compute(trainer, *arguments, **options)

        compute = training.StudentTrainer.compute_loss
        monkeypatch.setattr(training.StudentTrainer, "compute_loss", end)
        with pytest.raises(KeyboardInterrupt):
            distill(everything(), PAIRS["train"], run="killed", **sections)
        monkeypatch.setattr(training.StudentTrainer, "compute_loss", compute)

    killed(5, "killed")
    killed(3, "hard")
    again = distill(everything(), PAIRS["train"], run="killed", **sections)
    for name, expected in weights.items():
        assert (load_file(again / "model" / WEIGHTS)[name] == expected).all(), name
    assert again.metrics() == whole.metrics()
    assert load_file(again / "baselines" / "hard" / "model" / WEIGHTS).keys() == weights.keys()
    for name, found in load_file(again / "baselines" / "hard" / "model" / WEIGHTS).items():
        assert (found == load_file(whole / "baselines" / "hard" / "model" / WEIGHTS)[name]).all(), name
    assert {key for key in whole.metrics()[0] if "/" in key} == {
        f"loss_parts/{name}" for name in ("tiers", "margin", "cumulative", "rationale")
    }
    assert not [name for name in weights if "auxiliary" in name]


@pytest.mark.slow
def test_labels_of_the_judge_alone_make_a_student(distill, capsys):
    folder = distill(
        [*PAIRS["dev"], *PAIRS["test"]], PAIRS["train"], baselines=["human", "hard", "lexical"], student={"head": "ordinal"}
    )
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert list(rows) == ["student", "plain cross-encoder", "lexical"]
    said = capsys.readouterr().out
    assert "no human labels, so there is no student on them alone" in said and "it has no row" in said
    assert "labels of the judge" in rows["lexical"]["how"]
    assert all(math.isfinite(row["metrics"]["macro_f1"]["value"]) for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("section", [{"kind": "bi_encoder"}, {"photo": "tower", "match_embedding": True}])
def test_other_students_learn_from_the_same_rows(distill, section):
    pairs = [pair for part in shop_pairs(photos=True).values() for pair in part]
    folder = distill(pairs, baselines=["hard"], student=section, train={"steps": 2})
    config = json.loads((folder / "model" / "student.json").read_text())
    assert all(config[key] == value for key, value in section.items())
    hard = json.loads((folder / "baselines" / "hard" / "model" / "student.json").read_text())
    assert hard["kind"] == "cross_encoder" and hard["photo"] == section.get("photo", "none")
    photographed = [pair for pair in read_pairs(folder.path.parent.parent / "human.parquet", split="test") if pair.image]
    (verdict,) = open_student(folder.path).score(photographed[:1])
    assert verdict.photo == ("seen" if "photo" in section else "hidden")


def test_a_launch_that_shards_the_weights_is_refused(distill, monkeypatch):
    class Sharded(training.StudentTrainer):
        def __init__(self, **options):
            super().__init__(**options)
            self.is_fsdp_enabled = True

    monkeypatch.setattr(training, "StudentTrainer", Sharded)
    with pytest.raises(LoreError, match="Launch with launch/accelerate/ddp.yaml"):
        distill(everything())


def test_photos_that_cannot_be_read_are_found_before_step_0(distill, runs):
    pairs = [replace(pair, image={"bytes": None, "path": "gone.png"}) for pair in everything()]
    with pytest.raises(LoreError, match="none of 64 photos that were tried can be read(?s:.*)data.image_root"):
        distill(pairs, student={"photo": "tower"})
    assert not (runs / "distill" / "model").exists()


def test_an_encoder_with_too_few_positions_is_found_before_step_0(distill, runs, tmp_path):
    tokenizer = train_tokenizer(["a red mug"], ScratchSection(vocabulary=300))
    tokenizer.save_pretrained(tmp_path / "short")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **shape)
    BertModel(config).save_pretrained(tmp_path / "short")
    with pytest.raises(LoreError, match=r"dry pass of distill: one problem was found, .*\n.*reads 16 tokens at most"):
        distill(everything(), student={"encoder": str(tmp_path / "short")})
    assert not (runs / "distill" / "model").exists() and not list((runs / "distill").glob("*dry_pass*"))
