"""The files of a checkpoint: damage is named, and what a trainer writes on a bad day is no damage."""

import pytest

from lore.support.errors import LoreError
from lore.train.common.checkpoint import check_files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", '{"log_history": [{"grad_norm": NaN, "loss": Infinity}], "global_step": 2}'),
        ("merges.json", "[]"),
        ("vocab.json", '{"\\ud83d": 1}'),
    ],
)
def test_numbers_that_are_none_and_half_characters_are_no_damage(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    check_files(tmp_path, [])


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null", '{"a": ', "[" * 100_000], ids=lambda text: text[:8])
def test_a_damaged_state_of_the_trainer_is_named(content, tmp_path):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(LoreError, match=r"trainer_state\.json is damaged .*so training cannot resume"):
        check_files(tmp_path, [])
