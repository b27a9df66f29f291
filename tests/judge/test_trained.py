"""Opening a trained judge by its folder."""

import os
import shutil

import pytest
from tiny import adapter_judge

from lore.judge.trained import trained_judge
from lore.support.errors import LoreError


def test_an_adapter_is_the_same_judge_from_every_working_directory(tiny, tmp_path, monkeypatch):
    """Its card names the base model relative to where the training ran."""
    shutil.copytree(tiny.text, tmp_path / "runs" / "pretrain")
    monkeypatch.chdir(tmp_path)
    folder = adapter_judge("runs/pretrain", tmp_path / "runs" / "sft" / "model")
    here = trained_judge("runs/sft")
    monkeypatch.chdir(os.sep)
    assert trained_judge(tmp_path / "runs" / "sft").weights == here.weights
    moved = shutil.copytree(folder, tmp_path.parent / f"{tmp_path.name}-moved")
    with pytest.raises(LoreError, match="neither here nor in a folder above the adapter.*\n.*--base"):
        trained_judge(moved)
    assert trained_judge(moved, base=str(tiny.text)).weights == here.weights
