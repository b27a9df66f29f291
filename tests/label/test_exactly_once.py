"""Each pair of the last input has one label, whatever happened before: kills, damage, changed inputs, a second run."""

import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stub_scorer import StubScorer, label_once, label_recipe
from test_label import Killed, labels_of, make_pairs, rows_of, write

from lore.data.pair import Pair
from lore.engines.engine import EngineDied
from lore.label.judge import asked_judge
from lore.label.label import opened_ledger, planned
from lore.label.plan import Plan
from lore.label.schema import FAILURES, VERDICTS
from lore.label.worker import ShardWorker, questions_of, shard_result
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import publish_once
from lore.support.errors import LoreError


class Dying(StubScorer):
    """Is killed after so many shards."""

    shards = 2

    def score(self, pairs):
        if len(self.asked) == self.shards:
            raise Killed
        return super().score(pairs)


class NoEngine(StubScorer):
    """Its engine dies on every shard with a pair of `bad`; of every shard if it is empty."""

    bad: frozenset = frozenset()

    def score(self, pairs):
        if not self.bad or self.bad & {pair.pair_id for pair in pairs}:
            raise EngineDied("out of memory")
        return super().score(pairs)


def refusing(*ids: str) -> StubScorer:
    return StubScorer(lambda pair: "refused" if pair.pair_id in ids else None)


def asked(scorer: StubScorer) -> list[str]:
    return sorted(one for shard in scorer.asked for one in shard)


def done(folder: Path) -> dict:
    return json.loads((folder / "done").read_text())


def test_a_deleted_label_file_is_asked_again_also_in_a_finished_folder(tmp_path):
    folder, recipe = tmp_path / "labels", label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs(4, 5)))
    label_once(recipe, folder)
    for finished in (True, False):  # False: killed before it was marked as done
        file = sorted((folder / VERDICTS).iterdir())[0]
        gone = sorted(pq.read_table(file).column("pair_id").to_pylist())
        file.unlink()
        if not finished:
            (folder / "done").unlink()
        assert asked(label_once(recipe, folder)) == gone
        assert len(labels_of(folder)) == 20
    assert asked(label_once(recipe, folder)) == []


def test_a_pair_without_an_answer_that_changes_or_leaves_is_no_longer_waited_for(tmp_path):
    folder, pairs = tmp_path / "labels", make_pairs(4, 5)
    path = write(tmp_path / "pairs.parquet", pairs)
    recipe = label_recipe(tmp_path, path, max_attempts=3)
    changes, leaves = pairs[3].pair_id, pairs[7].pair_id
    label_once(recipe, folder, refusing(changes, leaves))
    assert done(folder)["pending"] == 2

    pairs[3].title = "another title"
    write(path, [pair for pair in pairs if pair.pair_id != leaves])
    assert asked(label_once(recipe, folder)) == [changes]
    assert [(row["pair_id"], row["attempts"]) for row in rows_of(folder, FAILURES)] == [(leaves, 1)]
    assert (done(folder)["failures"], done(folder)["pending"]) == (1, 0)

    write(path, pairs)  # it comes back with the attempt that it had
    assert asked(label_once(recipe, folder, refusing(leaves))) == [leaves]
    assert [(row["pair_id"], row["attempts"]) for row in rows_of(folder, FAILURES)] == [(leaves, 2)]
    assert done(folder)["pending"] == 1


@pytest.fixture
def stubs_stay_open(monkeypatch):
    """A worker that closes its judge opens the same stub again."""
    monkeypatch.setattr(ShardWorker, "close", lambda worker: None)


def test_an_engine_that_dies_on_all_shards_costs_no_attempt_and_one_that_dies_on_one_costs_that_one(tmp_path, stubs_stay_open):
    folder, pairs = tmp_path / "labels", make_pairs(5, 8)
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs), max_attempts=2)
    for _ in range(3):
        with pytest.raises(LoreError, match="died on 3 shards in a row"):
            label_once(recipe, folder, NoEngine())
        assert rows_of(folder, FAILURES) == []
    once = NoEngine()
    once.bad = frozenset({pairs[9].pair_id})
    label_once(recipe, folder, once)
    lost = rows_of(folder, FAILURES)
    assert len(lost) == 8 and {row["attempts"] for row in lost} == {1} and len(labels_of(folder)) == 32
    assert len(asked(label_once(recipe, folder))) == 8 and len(labels_of(folder)) == 40


def test_a_plan_without_its_shards_is_made_again(tmp_path):
    folder, recipe = tmp_path / "labels", label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs(5, 8)))
    plan = folder / "work" / "plan.json"
    with pytest.raises(Killed):
        label_once(recipe, folder, Dying())
    values = json.loads(plan.read_text())
    plan.write_text(json.dumps(values | {"shards": values["shards"][:3]}))
    scorer = Dying()
    scorer.shards = 1
    with pytest.raises(Killed):
        label_once(recipe, folder, scorer)
    shutil.rmtree(folder / "work" / "shards")
    assert len(asked(label_once(recipe, folder))) == 16
    assert len(labels_of(folder)) == 40


@pytest.mark.parametrize("damage", ["truncated", "other rows", "other bytes", "gone"])
def test_damaged_shards_of_a_plan_are_named_and_not_labelled(tmp_path, damage):
    folder, recipe = tmp_path / "labels", label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs(4, 8)))
    with pytest.raises(Killed):
        label_once(recipe, folder, Dying())
    (file,) = (folder / "work" / "shards").iterdir()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    elif damage == "other bytes":
        whole = bytearray(file.read_bytes())
        whole[2000:-1000:7] = bytes(len(whole[2000:-1000:7]))
        file.write_bytes(whole)
    elif damage == "gone":
        values = json.loads((folder / "work" / "plan.json").read_text())
        shards = [[*shard[:2], shard[2] + 9, shard[3]] for shard in values["shards"]]
        (folder / "work" / "plan.json").write_text(json.dumps(values | {"shards": shards}))
    else:
        rows = pa.ipc.open_file(file.read_bytes()).read_all()[::-1].combine_chunks()
        with pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=8)
    with pytest.raises(LoreError, match=r"(?s)00-0000.*Delete .*work and run"):
        label_once(recipe, folder)
    shutil.rmtree(folder / "work")
    assert len(asked(label_once(recipe, folder))) == 16 and len(labels_of(folder)) == 32


def test_a_kill_while_an_old_plan_is_cleared_leaves_none(tmp_path, monkeypatch):
    folder, pairs = tmp_path / "labels", make_pairs(4, 8)
    path = write(tmp_path / "pairs.parquet", pairs)
    recipe = label_recipe(tmp_path, path)
    with pytest.raises(Killed):
        label_once(recipe, folder, Dying())
    write(path, pairs[:-1])
    real = shutil.rmtree

    def killed(place, *args, **kwargs):
        real(place, *args, **kwargs)
        if Path(place).name == "shards":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("lore.label.plan.shutil.rmtree", killed)
        label_once(recipe, folder)
    assert not (folder / "work" / "plan.json").exists()
    write(path, pairs)
    label_once(recipe, folder)
    assert len(labels_of(folder)) == 32


def test_a_dry_run_removes_no_label_of_a_changed_pair(tmp_path):
    folder, pairs = tmp_path / "labels", make_pairs(2, 8)
    path = write(tmp_path / "pairs.parquet", pairs)
    recipe = label_recipe(tmp_path, path)
    label_once(recipe, folder)
    pairs[0].title = "another title"
    write(path, pairs)
    run_folder = RunFolder(folder, recipe)
    ledger, known = opened_ledger(recipe, run_folder, asked_judge(recipe.judge, recipe.mode))
    counts = planned(recipe, run_folder, ledger, known, dry_run=True).counts
    assert (counts.changed, counts.to_label, len(labels_of(folder))) == (1, 1, 16)
    assert asked(label_once(recipe, folder)) == [pairs[0].pair_id] and len(labels_of(folder)) == 16


def test_the_order_of_equal_rows_does_not_decide_which_one_is_asked(tmp_path):
    spellings = [("Red  Boots", "boot", "i2"), ("red boots", "Boot", "i1"), ("RED boots", "boot", None), ("red boots", "Boot", "")]
    rows = [Pair(pair_id="a", query=query, title=title, item_id=item) for query, title, item in spellings]
    rows += [Pair(pair_id=f"b{n}", query="blue", title=f"shoe {n}") for n in (0, 0, 1)]
    found = []
    for seed in range(4):
        path = write(tmp_path / f"{seed}.parquet", random.Random(seed).sample(rows, len(rows)))
        label_once(label_recipe(tmp_path, path), tmp_path / str(seed))
        found.append({(row["pair_id"], row["query"], row["item_id"]) for row in rows_of(tmp_path / str(seed))})
    assert found[0] == {("a", "RED boots", None), ("b0", "blue", None), ("b1", "blue", None)} and found.count(found[0]) == 4


def test_pairs_that_two_runs_have_labelled_at_once_keep_one_label(tmp_path):
    folder, pairs = tmp_path / "labels", make_pairs(4, 8)
    path = write(tmp_path / "pairs.parquet", pairs)
    recipe = label_recipe(tmp_path, path)
    label_once(recipe, folder)
    first, second = sorted((folder / VERDICTS).iterdir())[:2]
    both = pa.concat_tables([pq.read_table(first).slice(2, 3), pq.read_table(second).slice(1, 2)])
    pq.write_table(both, folder / VERDICTS / "00-0000-00000000000000000000.parquet")
    write(path, [*pairs, Pair(pair_id="new", query="query 3", title="new item")])
    assert asked(label_once(recipe, folder)) == ["new"]
    assert len(labels_of(folder)) == 33
    assert pq.read_table(first).num_rows + pq.read_table(second).num_rows == 11


def test_a_shard_that_another_run_has_committed_makes_the_next_start_check_the_folder(tmp_path):
    folder, pairs = tmp_path / "labels", make_pairs(2, 8)
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs))

    class Overtaken(StubScorer):
        """Another run commits the shard under way with one pair less: that pair got no answer there."""

        def score(self, asked):
            name = json.loads((folder / "work" / "plan.json").read_text())["shards"][0][0]
            judge = asked_judge(recipe.judge, recipe.mode)
            ledger = opened_ledger(recipe, RunFolder(folder), judge)[0]
            rows = Plan.load(folder / "work").shards[0].read(folder / "work")
            verdicts = super().score(asked)
            if len(self.asked) == 1:
                table = shard_result(rows, questions_of(rows), verdicts, self.tier_ids, self.usage, 0.0).verdicts
                assert ledger.commit(name, table.slice(1), table.slice(0, 0))
            return verdicts

    label_once(recipe, folder, Overtaken())
    assert len(labels_of(folder)) == 15
    assert len(asked(label_once(recipe, folder))) == 1 and len(labels_of(folder)) == 16
    assert label_once(recipe, folder).asked == []


def test_a_name_that_a_repeated_request_has_made_is_ones_own(tmp_path, monkeypatch):
    """On NFS, a request whose reply was lost is sent again, and finds the name that it has made."""
    real = os.link

    def twice(part, path):
        real(part, path)
        real(part, path)

    (tmp_path / "part").write_text("x")
    (tmp_path / "other").write_text("y")
    monkeypatch.setattr("lore.support.atomic_files.os.link", twice)
    assert publish_once(tmp_path / "part", tmp_path / "name")
    assert not publish_once(tmp_path / "other", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "x"


@pytest.mark.slow
@given(st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_edits_kills_and_failures_in_any_order_end_with_one_label_per_pair(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("any")
    texts: dict[str, str] = {}
    labelled: dict[str, str] = {}
    stored = data.draw(st.sampled_from(["none", str(tmp_path / "store.sqlite")]))
    for _ in range(data.draw(st.integers(2, 5))):
        chosen = data.draw(st.dictionaries(st.sampled_from([f"p{n}" for n in range(30)]), st.sampled_from(["a", "bb"]), min_size=1))
        order = data.draw(st.permutations(sorted(chosen)))
        pairs = [Pair(pair_id=one, query=f"query {int(one[1:]) % 4}", title=f"{one} {chosen[one]}") for one in order]
        size = data.draw(st.sampled_from([2, 8]))
        values = {"shard_pairs": size, "store": stored, "max_attempts": 50}
        unanswered = {"max_share": None, "max_in_a_row": None}
        recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs), **values, unanswered=unanswered)
        scorer = Dying(refusing(*data.draw(st.sets(st.sampled_from(order)))).fails)
        scorer.shards = data.draw(st.integers(0, 6))
        with suppress(Killed):
            label_once(recipe, tmp_path / "labels", scorer)
        texts = chosen
        for row in rows_of(tmp_path / "labels"):
            labelled.setdefault(row["pair_id"], "")
    label_once(recipe, tmp_path / "labels")
    rows = {row["pair_id"]: row for row in rows_of(tmp_path / "labels")}
    assert len(labels_of(tmp_path / "labels")) == len(rows)
    assert texts.keys() <= rows.keys() <= texts.keys() | labelled.keys()
    expected = {one: f"L{1 + len(f'query {int(one[1:]) % 4} {one} {text}') % 4}" for one, text in texts.items()}
    assert {one: rows[one]["tier"] for one in texts} == expected
    assert done(tmp_path / "labels")["pending"] == 0
    assert label_once(recipe, tmp_path / "labels").asked == []
