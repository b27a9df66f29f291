"""A checkpoint that somebody else prepared runs no code when a run resumes from it."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as shards

from lore.support.errors import LoreError
from lore.train.common.checkpoint_pickles import check_pickles


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "global_step2/mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("form", ["new", "legacy"])
def test_a_pickle_that_imports_more_than_a_trainers_own_is_refused(tmp_path, name, form):
    ran, path = tmp_path / "ran", tmp_path / "checkpoint" / name
    path.parent.mkdir(parents=True)
    torch.save({"state": torch.ones(2)}, path)
    check_pickles(tmp_path / "checkpoint")
    torch.save({"state": Touch(ran)}, path, _use_new_zipfile_serialization=form == "new")
    with pytest.raises(LoreError, match=f"{path.name} is no file that this trainer writes"):
        check_pickles(tmp_path / "checkpoint")
    assert not ran.exists()


@pytest.mark.parametrize("where", ["metadata", "value"])
def test_shards_are_read_without_their_code(tmp_path, where):
    ran, folder = tmp_path / "ran", tmp_path / "checkpoint" / "optimizer_0"
    state = {"weight": torch.ones(2), "options": {"lr": 1e-3, "betas": (0.9, 0.99)}}
    if where == "value":
        state["options"]["lr"] = Touch(ran)
    shards.save(state, checkpoint_id=folder, no_dist=True)
    ran.unlink(missing_ok=True)  # saving may copy the value
    if where == "metadata":
        check_pickles(tmp_path / "checkpoint")
        (folder / ".metadata").write_bytes(pickle.dumps(Touch(ran)))
    with pytest.raises(LoreError, match="would import"):
        check_pickles(tmp_path / "checkpoint")
    assert not ran.exists()


def test_a_run_resumes_from_its_own_checkpoint_and_not_from_a_prepared_one(train, runs, tmp_path):
    run = train("sft", model="text", steps=2, save_every=2, log_every=2)
    checkpoint = run / "checkpoints" / "checkpoint-2"
    (run / "done").unlink()
    shutil.rmtree(run / "model")
    train("sft", model="text", steps=2, save_every=2, log_every=2)
    (run / "done").unlink()
    torch.save(Touch(tmp_path / "ran"), checkpoint / "rng_state.pth")
    with pytest.raises(LoreError, match="does not resume from it. Delete the folder"):
        train("sft", model="text", steps=2, save_every=2, log_every=2)
    assert not (tmp_path / "ran").exists()
