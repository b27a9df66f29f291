import gc
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_scorer import StubScorer, label_once, label_recipe

from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair, make_pair_id
from lore.data.parquet import PairWriter
from lore.label.ledger import Ledger
from lore.label.schema import FAILURES, VERDICTS
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError


def make_pairs(queries: int = 10, items: int = 5) -> list[Pair]:
    return [
        Pair(
            pair_id=make_pair_id(f"query {q}", f"i{i}"),
            query=f"query {q}",
            title=f"item {i} of shop",
            item_id=f"i{i}",
            query_frequency=float(q + 1),
        )
        for q in range(queries)
        for i in range(items)
    ]


def write(path: Path, pairs: list[Pair]) -> Path:
    with PairWriter(path) as writer:
        for pair in pairs:
            writer.write(pair)
    return path


def rows_of(folder: Path, kind: str = VERDICTS) -> list[dict]:
    return [row for path in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def labels_of(folder: Path) -> dict[str, str]:
    rows = rows_of(folder)
    assert len({row["pair_id"] for row in rows}) == len(rows), "a pair has two labels"
    return {row["pair_id"]: row["tier"] for row in rows}


def test_labels_every_pair_once_in_shards_of_whole_batches(tmp_path):
    pairs = make_pairs()
    scorer = label_once(label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs)), tmp_path / "labels")
    expected = {pair.pair_id: f"L{1 + len(f'{pair.query} {pair.title}') % 4}" for pair in pairs}
    assert labels_of(tmp_path / "labels") == expected
    assert [len(shard) for shard in scorer.asked] == [8] * 6 + [2]
    row = next(row for row in rows_of(tmp_path / "labels") if row["pair_id"] == pairs[0].pair_id)
    assert (row["query"], row["item_id"], row["query_frequency"], row["attempts"]) == ("query 0", "i0", 1.0, 1)


def test_folds_repeated_rows_and_asks_once_about_equal_content(tmp_path):
    pairs = make_pairs(2, 3)
    other_id = Pair(pair_id="another", query="QUERY  0", title="Item 0 of shop", item_id="twin", query_frequency=99.0)
    repeated = Pair(pair_id=pairs[1].pair_id, query=pairs[1].query, title=pairs[1].title, item_id="i1", query_frequency=500.0)
    path = write(tmp_path / "pairs.parquet", [*pairs, *pairs, other_id, repeated])
    scorer = label_once(label_recipe(tmp_path, path), tmp_path / "labels")
    labels = labels_of(tmp_path / "labels")
    assert len(labels) == 7 and labels["another"] == labels[pairs[0].pair_id]
    assert sum(map(len, scorer.asked)) == 6
    rows = {row["pair_id"]: row for row in rows_of(tmp_path / "labels")}
    assert rows["another"]["item_id"] == "twin" and rows[pairs[1].pair_id]["query_frequency"] == 500.0


def test_an_error_of_the_judge_about_one_pair_fails_that_pair_alone(tmp_path):
    class Raises(StubScorer):
        def _verdict(self, pair):
            if pair.pair_id == bad:
                raise ValueError("cannot read this title")
            return super()._verdict(pair)

    pairs = make_pairs(4, 4)
    bad = pairs[5].pair_id
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs), max_attempts=2)
    for attempts in (1, 2, 2):
        label_once(recipe, tmp_path / "labels", Raises())
        assert labels_of(tmp_path / "labels").keys() == {pair.pair_id for pair in pairs} - {bad}
        (failed,) = rows_of(tmp_path / "labels", FAILURES)
        assert (failed["pair_id"], failed["attempts"], failed["failure"]) == (bad, attempts, "raised")
        assert failed["detail"] == "ValueError: cannot read this title"


def test_a_pair_id_of_two_pairs_keeps_one_and_rejects_the_other_whatever_the_order(tmp_path):
    pairs = make_pairs(4, 3)
    pairs[5].pair_id = pairs[0].pair_id  # another query: it lies in another partition
    found = []
    for name, order in (("one", pairs), ("two", pairs[::-1])):
        label_once(label_recipe(tmp_path, write(tmp_path / f"{name}.parquet", order)), tmp_path / name)
        found.append(labels_of(tmp_path / name))
        rejected = (tmp_path / name / "rejected.jsonl").read_text().splitlines()
        assert len(rejected) == 1 and "names another pair too" in rejected[0]
    assert found[0] == found[1] and len(found[0]) == 11


def test_a_sorted_or_grown_input_labels_only_what_is_new(tmp_path):
    pairs, path = make_pairs(), tmp_path / "pairs.parquet"
    recipe = label_recipe(tmp_path, write(path, pairs))
    label_once(recipe, tmp_path / "labels")
    before = {row["pair_id"]: row for row in rows_of(tmp_path / "labels")}

    shuffled = random.Random(0).sample(pairs, len(pairs))
    write(path, shuffled)
    assert label_once(recipe, tmp_path / "labels").asked == []

    grown = [*shuffled, Pair(pair_id="new", query="query 3", title="new item")]
    write(path, grown)
    assert label_once(recipe, tmp_path / "labels").asked == [["new"]]
    after = {row["pair_id"]: row for row in rows_of(tmp_path / "labels")}
    assert after.pop("new")["tier"] and after == before
    assert label_once(recipe, tmp_path / "labels").asked == []


def test_a_changed_title_replaces_the_label_and_keeps_the_others(tmp_path):
    pairs, path = make_pairs(), tmp_path / "pairs.parquet"
    recipe = label_recipe(tmp_path, write(path, pairs))
    label_once(recipe, tmp_path / "labels")
    before = labels_of(tmp_path / "labels")
    pairs[7].title += "!"
    write(path, pairs)
    assert label_once(recipe, tmp_path / "labels").asked == [[pairs[7].pair_id]]
    after = labels_of(tmp_path / "labels")
    assert {key for key in after if after[key] != before[key]} == {pairs[7].pair_id} and len(after) == len(before)


class Killed(BaseException):
    pass


def test_a_restart_asks_the_same_batches_also_of_a_sorted_input(tmp_path):
    pairs, path = make_pairs(), tmp_path / "pairs.parquet"
    recipe = label_recipe(tmp_path, write(path, pairs))
    whole = label_once(recipe, tmp_path / "whole").asked

    def killed_after(shards: int) -> StubScorer:
        class Dying(StubScorer):
            def score(self, asked):
                if len(self.asked) == shards:
                    raise Killed
                return super().score(asked)

        return Dying()

    for shards in (2, 1):
        with pytest.raises(Killed):
            label_once(recipe, tmp_path / "killed", killed_after(shards))
        write(path, random.Random(shards).sample(pairs, len(pairs)))
    rest = label_once(recipe, tmp_path / "killed").asked
    assert rest == whole[3:]
    assert labels_of(tmp_path / "killed") == labels_of(tmp_path / "whole")


def test_pairs_without_an_answer_are_asked_again_at_each_start_until_they_are_final(tmp_path):
    pairs = make_pairs()
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs), max_attempts=3)
    bad = {pairs[3].pair_id, pairs[20].pair_id}
    folder = tmp_path / "labels"

    def fails(pair):
        return "refused" if pair.pair_id in bad else None

    for attempt in (1, 2, 3):
        asked = {one for shard in label_once(recipe, folder, StubScorer(fails)).asked for one in shard}
        assert bad <= asked and (attempt == 1 or asked == bad)
        failures = rows_of(folder, FAILURES)
        assert {(row["pair_id"], row["attempts"], row["failure"]) for row in failures} == {(one, attempt, "refused") for one in bad}
        assert len(labels_of(folder)) == 48
    assert label_once(recipe, folder, StubScorer(fails)).asked == []

    more = label_recipe(tmp_path, tmp_path / "pairs.parquet", max_attempts=4)
    (folder / "done").unlink()  # a larger max_attempts may be given later
    label_once(more, folder)
    assert len(labels_of(folder)) == 50 and rows_of(folder, FAILURES) == []


def test_a_prompt_that_is_too_long_is_not_asked_again(tmp_path):
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs()))
    fails = StubScorer(lambda pair: "prompt_too_long" if pair.title.startswith("item 1") else None)
    label_once(recipe, tmp_path / "labels", fails)
    assert label_once(recipe, tmp_path / "labels").asked == []
    assert len(rows_of(tmp_path / "labels", FAILURES)) == 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rubric": "rair"}, "rubric"),
        ({"prompt": {"order": "answer_first", "detail": "name"}}, "order"),
        ({"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "another"}}, "model"),
    ],
)
def test_another_judge_is_refused_with_the_name_of_what_differs(tmp_path, change, named):
    path = write(tmp_path / "pairs.parquet", make_pairs())
    recipe = label_recipe(tmp_path, path)
    label_once(recipe, tmp_path / "labels")
    other = label_recipe(tmp_path, path, judge=recipe.judge.model_dump(exclude_none=True, exclude={"vllm"}) | change)
    with pytest.raises(LoreError, match=named):
        label_once(other, tmp_path / "labels")


def test_a_shard_is_committed_once_whoever_labels_it(tmp_path):
    path = write(tmp_path / "pairs.parquet", make_pairs())
    recipe = label_recipe(tmp_path, path)
    label_once(recipe, tmp_path / "labels")
    file = next((tmp_path / "labels" / VERDICTS).iterdir())
    table = pq.read_table(file)
    ledger = Ledger(tmp_path / "labels", ["L1", "L2", "L3", "L4"], table.schema.metadata[b"lore.stamp"].decode())
    assert not ledger.commit(file.name, table, table.slice(0, 0))
    file.unlink()
    assert ledger.commit(file.name, table.replace_schema_metadata(None), table.slice(0, 0))
    assert pq.read_table(file).equals(table)


def test_a_damaged_label_file_is_named(tmp_path):
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs()))
    label_once(recipe, tmp_path / "labels")
    file = next((tmp_path / "labels" / VERDICTS).iterdir())
    file.write_bytes(file.read_bytes()[:100])
    write(tmp_path / "pairs.parquet", make_pairs(11))
    with pytest.raises(LoreError, match=file.name):
        label_once(recipe, tmp_path / "labels")


def test_many_partitions_give_the_same_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("lore.label.plan.PARTITION_ROWS", 10)
    monkeypatch.setattr("lore.label.plan.PARTITION_BYTES", 3000)
    monkeypatch.setattr("lore.label.plan.BUFFER_ROWS", 16)
    pairs = make_pairs(60, 5)
    scorer = label_once(label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs)), tmp_path / "labels")
    assert labels_of(tmp_path / "labels").keys() == {pair.pair_id for pair in pairs}
    assert sum(map(len, scorer.asked)) == 300
    assert len({path.name[:7] for path in (tmp_path / "labels" / VERDICTS).iterdir()}) > 20


def test_the_store_answers_what_was_labelled_in_another_folder(tmp_path):
    pairs, path = make_pairs(), tmp_path / "pairs.parquet"
    values = {"store": str(tmp_path / "store.sqlite")}
    label_once(label_recipe(tmp_path, write(path, pairs), **values), tmp_path / "monday")
    pairs[0].title = "a new title"
    new = [*pairs, Pair(pair_id="new", query="query 3", title="new item")]
    scorer = label_once(label_recipe(tmp_path, write(path, new), **values), tmp_path / "tuesday")
    assert sorted(one for shard in scorer.asked for one in shard) == sorted(["new", pairs[0].pair_id])
    rows = {row["pair_id"]: row for row in rows_of(tmp_path / "tuesday")}
    assert len(rows) == 51 and sum(row["source"] == "cache" for row in rows.values()) == 49
    monday = {row["pair_id"]: row for row in rows_of(tmp_path / "monday")}
    same = [name for name in monday[pairs[1].pair_id] if name != "source"]
    assert all(rows[pairs[1].pair_id][name] == monday[pairs[1].pair_id][name] for name in same)


def test_long_items_come_last_within_a_partition(tmp_path):
    pairs = make_pairs()
    pairs[0].description = "x" * 5000
    scorer = label_once(label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs)), tmp_path / "labels")
    assert scorer.asked[-1][-1] == pairs[0].pair_id


def test_pairs_of_one_query_are_neighbors(tmp_path):
    pairs = make_pairs(20, 4)
    random.Random(1).shuffle(pairs)
    scorer = label_once(label_recipe(tmp_path, write(tmp_path / "pairs.parquet", pairs)), tmp_path / "labels")
    query = {pair.pair_id: pair.query for pair in pairs}
    order = [query[one] for shard in scorer.asked for one in shard]
    assert len([1 for one, other in zip(order, order[1:], strict=False) if one != other]) == 19


def test_keys_do_not_depend_on_the_batch(tmp_path):
    from lore.label.inputs import open_input
    from lore.label.keys import Keys
    from lore.label.unfinished import Nothing

    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs()))
    batch = next(open_input(recipe.input, tmp_path, Nothing()).batches())
    whole = Keys().of(batch)
    parts = [Keys().of(batch.slice(start, 7)) for start in range(0, 50, 7)]
    for name in whole:
        assert np.array_equal(whole[name], np.concatenate([part[name] for part in parts]))
    assert isinstance(batch, pa.RecordBatch)


def test_a_damaged_store_does_not_end_the_run(tmp_path, capsys):
    (tmp_path / "store.sqlite").write_bytes(b"no database" * 1000)
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs()), store=str(tmp_path / "store.sqlite"))
    label_once(recipe, tmp_path / "labels")
    assert len(labels_of(tmp_path / "labels")) == 50
    assert "goes on without the verdict store" in capsys.readouterr().err


def test_rejected_rows_are_counted_in_plan_and_summary(tmp_path, capsys):
    rows = [{"query": "mug", "title": "red mug"}, {"query": "", "title": "blue mug"}, {"query": "mug", "title": " "}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = label_recipe(tmp_path, tmp_path / "pairs.jsonl")
    label_once(recipe, tmp_path / "labels")
    shown = capsys.readouterr()
    said = "input: 1 row, 1 pair, 2 rows rejected (rejected.jsonl says why); 1 to label, 1 different question\n"
    assert said in shown.out + shown.err
    assert json.loads((tmp_path / "labels" / "done").read_text())["rejected rows"] == 2
    assert len((tmp_path / "labels" / "rejected.jsonl").read_text().splitlines()) == 2


def test_missing_columns_name_the_option_that_maps_them(tmp_path):
    (tmp_path / "log.csv").write_text("query,sku\nmug,1\n")
    (tmp_path / "items.csv").write_text("id,name\n1,red mug\n")
    with pytest.raises(LoreError, match=r"column 'title' is missing.*\n.*--map .*--catalogue FILE"):
        label_once(label_recipe(tmp_path, tmp_path / "log.csv"), tmp_path / "labels")
    joined = {"path": str(tmp_path / "log.csv"), "map": {"item_id": "sku"}, "catalogue": str(tmp_path / "items.csv")}
    with pytest.raises(LoreError, match=r"column 'item_id' is missing.*\n.*input\.catalogue_map=\{item_id: COLUMN"):
        label_once(label_recipe(tmp_path, tmp_path / "log.csv", input=joined), tmp_path / "joined")


def test_the_folder_keeps_the_recipe_of_its_last_start(tmp_path):
    first, later = (write(tmp_path / f"{name}.parquet", make_pairs(count)) for name, count in (("first", 1), ("later", 2)))
    label_once(label_recipe(tmp_path, first, shard_pairs=4), tmp_path / "labels")
    recipe = label_recipe(tmp_path, later, shard_pairs=4)
    label_once(recipe, tmp_path / "labels")
    folder = RunFolder(tmp_path / "labels", recipe)
    assert folder.recipe_values["input"]["path"] == str(later) and folder.ignored(recipe) == []
    folder.check(recipe)
    folder.recipe_path.write_text(to_yaml(label_recipe(tmp_path, first, shard_pairs=4).resolved()))  # killed before it was renewed
    folder.check(recipe)
    folder.recipe_path.write_text(to_yaml(label_recipe(tmp_path, first, shard_pairs=5).resolved()))
    with pytest.raises(LoreError, match="cut or edited"):
        folder.check(recipe)


def test_a_commit_that_fails_ends_the_run_and_what_was_committed_stays(tmp_path, monkeypatch):
    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs(5, 8)))
    real, names = Ledger.commit, []

    def commit(ledger, name, *tables):
        names.append(name)
        if len(names) == 3:
            raise OSError(28, "No space left on device")
        return real(ledger, name, *tables)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Ledger, "commit", commit)
        label_once(recipe, tmp_path / "labels")
    assert len(labels_of(tmp_path / "labels")) == 16
    assert len(sum(label_once(recipe, tmp_path / "labels").asked, [])) == 24
    assert len(labels_of(tmp_path / "labels")) == 40


def test_the_last_answers_before_an_error_of_the_judge_are_committed(tmp_path):
    class Stops(StubScorer):
        def score(self, pairs):
            if len(self.asked) == 3:
                raise LoreError("the server is gone")
            return super().score(pairs)

    recipe = label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs(5, 8)))
    with pytest.raises(LoreError, match="the server is gone"):
        label_once(recipe, tmp_path / "labels", Stops())
    assert len(labels_of(tmp_path / "labels")) == 24


def test_garbage_is_collected_again_after_a_run(tmp_path):
    label_once(label_recipe(tmp_path, write(tmp_path / "pairs.parquet", make_pairs())), tmp_path / "labels")
    assert gc.get_freeze_count() == 0
