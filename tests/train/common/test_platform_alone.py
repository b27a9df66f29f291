"""Training on the platform alone: no pair, no rubric and no judge is known, and killed runs go on to the same end."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python
from safetensors.numpy import load_file

from lore.run.run_folder import RunFolder
from lore.train.common.checkpoint import COMPLETE, mark_complete

SCRIPT = Path(__file__).with_name("text_stages.py")
STEPS = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Both stages, each trained in one go and killed and started again, in a Python that has imported nothing else."""
    folder = tmp_path_factory.mktemp("texts")
    done = run_python(SCRIPT, folder, OMP_NUM_THREADS="1", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(("stage", "file"), [("language_model", "adapter_model"), ("classifier", "model")])
def test_texts_are_trained_on_without_the_domain_and_a_killed_run_ends_like_a_whole_one(trained, stage, file):
    root = trained / stage
    whole, killed = (RunFolder(root / "runs" / name) for name in ("whole", "killed"))
    before = [json.loads(line)["step"] for line in (root / "metrics_when_killed.jsonl").read_text().splitlines()]
    assert before == [1, 2, 3, 4, 5]
    assert (root / "whole_began.txt").read_text() == "0\n" and (root / "killed_began.txt").read_text() == "0\n4\n"
    assert [line["step"] for line in whole.metrics()] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in whole.metrics())
    assert whole.metrics_path.read_bytes() == killed.metrics_path.read_bytes()
    one, other = (load_file(folder / "model" / f"{file}.safetensors") for folder in (whole, killed))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert whole.summary == killed.summary
    kept = sorted((killed / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-6", "checkpoint-8"]
    assert all((path / COMPLETE).is_file() and (path / "note.txt").is_file() for path in kept)


def test_the_files_of_a_checkpoint_are_on_disk_before_its_marker(tmp_path, monkeypatch):
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "weights").touch()
    flushed, fsync = [], os.fsync

    def noting(handle):
        flushed.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, (tmp_path / COMPLETE).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    mark_complete(tmp_path)
    assert {("sharded", False), ("weights", False), (tmp_path.name, False), (tmp_path.name, True)} <= set(flushed)
    assert {path.name for path in tmp_path.iterdir()} == {"sharded", COMPLETE}
    assert any(name.startswith(f".{COMPLETE}.") and not there for name, there in flushed)


def test_a_model_is_opened_with_the_head_and_the_config_that_are_asked_for(tmp_path):
    import torch
    from text_stages import COLORS, make_base
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

    from lore.engines.config import LoraSection, ModelSection
    from lore.engines.loading import load_model, load_processor
    from lore.support.errors import LoreError
    from lore.train.common.lora import adapted_modules, peft_config

    make_base("classifier", tmp_path)
    section = ModelSection(name=str(tmp_path))
    model = load_model(section, device="cpu", auto_class=AutoModelForSequenceClassification, num_labels=len(COLORS))
    assert model.num_labels == len(COLORS) and not model.training
    assert model(input_ids=torch.tensor([[3, 6]])).logits.shape == (1, len(COLORS))
    encoder = load_model(section, device="cpu", auto_class=AutoModel)
    assert encoder(input_ids=torch.tensor([[3, 6]])).last_hidden_state.shape == (1, 2, encoder.config.hidden_size)
    masked = load_model(section, device="cpu", auto_class=AutoModelForMaskedLM)
    assert masked(input_ids=torch.tensor([[3, 6]])).logits.shape[-1] == masked.config.vocab_size
    # An adapter goes to the encoder's layers, and the new head is trained whole beside it.
    lora = peft_config(LoraSection(rank=2), model, task_type="SEQ_CLS")
    names = [name for name, _ in adapted_modules(lora, model)]
    assert names and "classifier" not in names and "bert.encoder.layer.0.attention.self.query" in names
    assert load_processor(section).pad_token == "<pad>"
    with pytest.raises(LoreError, match="has no chat template"):
        load_processor(section, chat=True)
