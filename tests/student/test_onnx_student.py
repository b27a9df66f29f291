"""An exported student answers as the student does, and its canaries tell when it does not."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from conftest import run_python
from onnx import numpy_helper
from students_for_tests import photo, some_pairs, write_student

from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.distill.export import export_student
from lore.distill.graphs import OPSET
from lore.student.canary import CANARIES, TOLERANCES, check_canaries, raw_scores
from lore.student.encode import batches, shared_batches
from lore.student.exported import cpu_flags, read_export
from lore.student.scorer import open_student
from lore.support.errors import LoreError

SCRATCH = {"hidden": 16, "layers": 1, "heads": 2, "mlp": 24, "architecture": "bert"}
ITEMS = "red mug|blue shoe with a lamp|green tee for children of the kitchen|lamp|a blue mug and a red tee|shoe".split("|")


def pairs_of_words() -> list[Pair]:
    """Pairs of different lengths, half of them labeled, some with photos."""
    pairs = [replace(pair) for pair in some_pairs()]
    for at in range(40):
        item = f"{ITEMS[at % 6]} {ITEMS[at // 6 % 6]}"
        label = ["L1", "L4", None][at % 3]
        pairs.append(Pair(pair_id=f"w{at}", query=ITEMS[at * 5 % 6], title=item, item_id=f"w{at}", label=label))
    pairs[0].image, pairs[7].image = photo("red"), {"bytes": b"no photo", "path": None}
    return pairs


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("student") / "model", scratch=SCRATCH)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    with PairWriter(path) as writer:
        for pair in pairs_of_words():
            writer.write(pair)
    return path


@pytest.fixture(scope="module")
def exported(student, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "student"
    export_student(student, out, pairs=table, changed=1)
    return out


def scores(folder, **options) -> np.ndarray:
    scorer = open_student(folder, **options)
    found = np.asarray([verdict.probabilities for verdict in scorer.score(pairs_of_words())])
    scorer.close()
    return found


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.4)])
def test_an_exported_student_answers_like_the_student(student, exported, precision, largest):
    expected, found = scores(student), scores(exported, precision=precision)
    assert np.abs(found - expected).max() < largest
    assert np.sqrt(np.mean((found - expected) ** 2)) < largest / 4


def test_an_exported_student_is_opened_in_int8_and_a_pair_has_one_answer(exported):
    scorer = open_student(exported)
    pairs = pairs_of_words()
    assert scorer.session.precision == "int8"
    together, alone = (raw_scores(scorer, pairs, alone=alone) for alone in (False, True))
    assert np.array_equal(together, alone)
    assert np.array_equal(scores(exported, threads=1), scores(exported, threads=3))


def test_a_query_that_is_too_long_and_no_pairs_at_all(exported):
    scorer = open_student(exported, threads=2)
    assert scorer.score([]) == []
    verdicts = scorer.score([Pair(pair_id="long", query="mug " * 60, title="mug"), *some_pairs()])
    assert [verdict.failure for verdict in verdicts] == ["prompt_too_long", *[None] * 5]
    scorer.close()


def test_an_export_that_changes_the_student_is_refused_and_leaves_nothing(student, exported, table, tmp_path, monkeypatch):
    def write_others(model, folder, names, precisions, ask, changed):
        for path in exported.glob("*.onnx"):
            graph = onnx.load(path)
            last = next(one for one in graph.graph.initializer if list(one.dims) == [4, 16])  # a row per tier
            times, values = [[1], [1], [1], [3 if path.name == changed else 1]], numpy_helper.to_array(last)
            last.CopyFrom(numpy_helper.from_array((values * times).astype(values.dtype), last.name))
            onnx.save(graph, folder / path.name)
        return {path.name: [] for path in exported.glob("*.onnx")}

    for changed, message in {
        "model.onnx": r"fp32 is not the same student: a tier's probability changes by .*and 0.0001 is allowed",
        "model_fp16.onnx": r"fp16 is not the same student: .*0.005 is allowed.*\n.*Leave it out \(--no-fp16\)",
        "model_int8.onnx": r"int8 is not the same student: .*% of 23 pairs get another tier, .* Tiers that moved: L. > L4",
    }.items():
        monkeypatch.setattr("lore.distill.export.write_graphs", partial(write_others, changed=changed))
        with pytest.raises(LoreError, match=message):
            export_student(student, tmp_path / "out", pairs=table, changed=0.01)
        assert list(tmp_path.iterdir()) == []


def test_other_precisions_are_other_judges(student, exported):
    ids = {open_student(exported, precision=precision).judge_id for precision in ("fp32", "fp16", "int8")}
    assert len(ids | {open_student(student).judge_id}) == 4


def test_the_fp32_file_is_what_vespa_takes(exported):
    graph = onnx.load(exported / "model.onnx")
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {(one.type, len(one.shape)) for one in session.get_inputs()} == {("tensor(int64)", 2)}
    assert all(isinstance(size, str) for one in session.get_inputs() for size in one.shape)
    assert [(one.name, one.shape[1:]) for one in session.get_outputs()] == [("logits", [4])]
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", OPSET)] and not graph.functions
    foreign = {node.domain for node in onnx.load(exported / "model_int8.onnx").graph.node}
    assert foreign == {"", "com.microsoft"}
    assert (exported / "tokenizer.json").is_file()


def test_files_of_an_export_name_nothing_of_this_machine(exported):
    for path in exported.glob("*.onnx"):
        content = path.read_bytes()
        assert b"site-packages" not in content and b"modeling_bert" not in content and str(exported).encode() not in content


def test_the_last_block_runs_over_one_token(exported):
    graph = onnx.load(exported / "model.onnx").graph
    assert sum(node.op_type == "Slice" and "first_token" in node.name for node in graph.node) == 2


def test_the_record_says_what_was_compared_and_where(exported):
    record = read_export(exported)
    assert set(record.files) == {"model.onnx", "model_fp16.onnx", "model_int8.onnx"}
    assert all(note.bytes == (exported / name).stat().st_size for name, note in record.files.items())
    check = record.checks["int8"]
    assert (check.pairs, record.canaries) == (23, 23) and check.labeled == 14 and check.batch_difference == 0
    assert record.machine.flags == cpu_flags() and record.versions["onnxruntime"] == onnxruntime.__version__


def test_a_damaged_record_is_an_error(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "student")
    (folder / "export.json").write_text(json.dumps({"opset": "many"}))
    with pytest.raises(LoreError, match="export.json is damaged"):
        open_student(folder)
    (folder / "export.json").unlink()
    with pytest.raises(LoreError, match="has no export.json"):
        open_student(folder)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_canaries_have_their_scores(exported, precision):
    check = check_canaries(open_student(exported, precision=precision), exported)
    assert check.pairs == 23 and check.largest <= 1e-6 and check.changed_tiers == 0 and check.then == check.now


def test_canaries_check_the_student_in_torch_too(exported):
    assert check_canaries(open_student(exported, runtime="torch"), exported).largest < TOLERANCES["fp32"]


def test_a_changed_weight_is_found_by_the_canaries(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "student")
    graph = onnx.load(folder / "model_int8.onnx")
    weights = next(one for one in graph.graph.initializer if one.name.endswith("_weights"))
    changed = numpy_helper.to_array(weights).copy()
    changed[0] = -changed[0]
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(graph, folder / "model_int8.onnx")
    with pytest.raises(LoreError, match=r"gives canary .* the probability .* of tier .*\nThe files differ from those of"):
        check_canaries(open_student(folder), folder)
    check_canaries(open_student(folder, precision="fp32"), folder)


def test_another_cpu_is_named_where_canaries_differ(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "student")
    record = json.loads((folder / "export.json").read_text())
    other = "avx512f" if cpu_flags() == ["avx2"] else "avx2"
    record["machine"]["flags"] = [other]
    (folder / "export.json").write_text(json.dumps(record))
    assert check_canaries(open_student(folder), folder).then == [other]
    with pytest.raises(LoreError, match=rf"other instruction sets \({other}\) than this one"):
        check_canaries(open_student(folder), folder, tolerance=-1)


def test_canaries_carry_the_bytes_of_their_photos_and_open_no_file(exported, tmp_path):
    pairs = {pair.pair_id: pair for pair in read_pairs(exported / CANARIES)}
    assert pairs["p0"].image == photo("red") and any(pair.image is None for pair in pairs.values())
    folder = shutil.copytree(exported, tmp_path / "student")
    (folder / CANARIES).write_bytes(b"PAR1")
    with pytest.raises(LoreError, match="canary.parquet is damaged"):
        check_canaries(open_student(folder), folder)
    cut = pq.read_table(exported / CANARIES).drop_columns(["int8"])
    pq.write_table(cut, folder / CANARIES)
    with pytest.raises(LoreError, match="canary.parquet is damaged"):
        check_canaries(open_student(folder), folder)


def test_a_missing_or_foreign_onnx_file_is_an_error(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "student")
    (folder / "model_int8.onnx").write_bytes(b"no graph")
    with pytest.raises(LoreError, match="model_int8.onnx cannot be loaded"):
        open_student(folder)
    (folder / "model_int8.onnx").unlink()
    assert open_student(folder).session.precision == "fp32"
    with pytest.raises(LoreError, match="has fp16, fp32, and the precision int8 is asked for"):
        open_student(folder, precision="int8")


@pytest.mark.slow  # a second for a new process
def test_an_exported_student_needs_neither_torch_nor_transformers(exported):
    code = (
        "import sys; from lore.student.scorer import open_student; from lore.data.pair import Pair\n"
        "verdict, = open_student(sys.argv[1]).score([Pair(pair_id='1', query='red mug', title='mug')])\n"
        "assert verdict.tier and not {'torch', 'transformers'} & sys.modules.keys(), verdict"
    )
    done = run_python("-c", code, exported)
    assert done.returncode == 0, done.stderr


def test_batches_for_threads_are_even_and_hold_every_row():
    lengths = np.random.default_rng(0).integers(5, 60, size=50).tolist()
    for threads in (1, 2, 3, 8):
        found = shared_batches(lengths, 256, threads)
        assert sorted(index for batch in found for index in batch) == list(range(50))
        assert all(len(batch) * max(lengths[index] for index in batch) <= 256 for batch in found)
        sizes = [sum(lengths[index] for index in batch) for batch in found]
        assert threads == 1 or max(sum(sizes[at::threads]) for at in range(threads)) < 1.35 * sum(lengths) / threads
    assert shared_batches(lengths * 20, 256, 2) == list(batches(lengths * 20, 256))
    assert shared_batches([], 256, 2) == []
