"""Parts of an export: the tokens and weights of its graphs, what it compares, and whole exports of every kind of student."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from distill_for_tests import distill_body, shop_pairs, write_pairs
from onnx import TensorProto, helper, numpy_helper
from students_for_tests import embeddings_file, photo_pairs, write_student
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.distill.export import canaries_of, compare, export_student, moved_tiers, refuse_changes, sample_of_file
from lore.distill.first_token import keep_first_token
from lore.distill.int8 import PRODUCT, WEIGHT_STEPS, quantized
from lore.run.runner import run_recipe
from lore.student.canary import check_canaries
from lore.student.card import read_student
from lore.student.exported import Check
from lore.student.scorer import open_student
from lore.support.errors import LoreError

TOWER = {"image_size": 28, "hidden": 16, "heads": 2, "layers": 1, "mlp": 24}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def graph(nodes: list, weights: dict[str, np.ndarray], output: list) -> onnx.ModelProto:
    """A graph of x [batch, tokens, 6] with the shapes of its tensors."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def block(reads: str, rng: np.random.Generator) -> onnx.ModelProto:
    """A mixing of tokens, then a block of linear layers with a residual, read at the first token or as a mean."""
    weights = {
        "w": rng.normal(size=(6, 8)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "v": rng.normal(size=(8, 6)).astype(np.float32),
        "gain": np.ones(6, np.float32),
        "zero": np.asarray(0, np.int64),
        "axis": np.asarray([1], np.int64),
    }
    read = {
        "first": helper.make_node("Gather", ["normal", "zero"], ["y"], axis=1),
        "mean": helper.make_node("ReduceMean", ["normal", "axis"], ["y"], keepdims=0),
    }
    nodes = [
        helper.make_node("CumSum", ["x", "axis_0"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["inner"]),
        helper.make_node("Gelu", ["inner"], ["active"]),
        helper.make_node("MatMul", ["active", "v"], ["outer"]),
        helper.make_node("Add", ["outer", "mixed"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gain"], ["normal"], axis=-1),
        read[reads],
    ]
    weights["axis_0"] = np.asarray(1, np.int64)
    return graph(nodes, weights, ["batch", 6])


def test_what_only_the_first_token_needs_runs_over_the_first_token(rng):
    x, model = rng.normal(size=(3, 5, 6)).astype(np.float32), block("first", rng)
    expected = answer(model, x)
    assert keep_first_token(model) == 6
    assert np.array_equal(answer(model, x), expected)
    model.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(["normal"], {"x": x})[0].shape == (3, 1, 6)


def test_a_graph_that_reads_all_tokens_stays_as_it_is(rng):
    model = block("mean", rng)
    before = model.SerializeToString()
    assert keep_first_token(model) == 0 and model.SerializeToString() == before


def test_a_tensor_that_is_also_read_whole_is_not_cut(rng):
    model = block("first", rng)
    model.graph.node.insert(7, helper.make_node("ReduceSum", ["active", "axis"], ["all"], keepdims=0))
    model.graph.node.insert(8, helper.make_node("ReduceSum", ["all", "axis"], ["one"], keepdims=1))
    model.graph.node[-1].output[0] = "read"
    model.graph.node.append(helper.make_node("Add", ["read", "one"], ["y"]))
    x = rng.normal(size=(2, 4, 6)).astype(np.float32)
    expected = answer(model, x)
    assert keep_first_token(model) == 3  # the second product, the residual and the normalization
    assert np.array_equal(answer(model, x), expected)


def test_int8_is_close_does_not_depend_on_the_batch_and_spares_a_bit(rng):
    x, model = rng.normal(size=(16, 5, 6)).astype(np.float32), block("mean", rng)
    x[:, :, 2] *= 30  # the outlier that smoothing is for
    small = quantized(model, [{"x": x[:8]}, {"x": x[8:]}])
    onnx.checker.check_model(small)
    assert [node.op_type for node in small.graph.node].count(PRODUCT) == 2
    expected, found = answer(model, x), answer(small, x)
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * expected.std()  # 0.045 without smoothing
    assert all(np.array_equal(found[at : at + 1], answer(small, x[at : at + 1])) for at in range(len(x)))
    weights = [numpy_helper.to_array(one) for one in small.graph.initializer if one.name.endswith("_weights")]
    assert len(weights) == 2 and all(one.dtype == np.int8 and np.abs(one).max() == WEIGHT_STEPS for one in weights)
    assert answer(small, 1e3 * x).shape == expected.shape  # beyond the ranges: clipped


def test_large_tables_are_stored_in_half_and_read_in_full_precision(rng):
    table = rng.normal(size=(1200, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"]),
    ]
    model = graph(nodes, {"table": table}, ["batch", "tokens", 6, 6])
    small = quantized(model, [])
    x = rng.integers(0, 1200, size=(2, 3, 6)).astype(np.float32)
    assert np.array_equal(answer(small, x), table.astype(np.float16).astype(np.float32)[x.astype(int)])
    assert small.ByteSize() < 0.6 * model.ByteSize()


def test_the_check_counts_moves_between_tiers_and_measures_labels(tmp_path):
    card = read_student(write_student(tmp_path / "student", card={"verdict": "most_probable"}))
    before = np.asarray([[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6], [0.1, 0.2, 0.3, 0.4]])
    after = np.asarray([[0.65, 0.15, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1], [0.1, 0.1, 0.2, 0.6], [0.1, 0.2, 0.3, 0.4]])
    labels = enumerate(["L1", "L2", "L4", None])
    pairs = [Pair(pair_id=str(at), query=f"q{at}", title="t", label=label) for at, label in labels]
    check = compare(card, pairs, before, after)
    assert check.largest_difference == pytest.approx(0.2) and check.moves == {"L2 > L3": 1} and check.labeled == 3
    assert (check.macro_f1_before, check.macro_f1) == (1.0, pytest.approx(2 / 4))
    assert check.macro_f1_loss[0] == 0 and check.macro_f1_loss[1] == 1
    assert moved_tiers(check) == "L2 > L3: 1 pairs" and moved_tiers(compare(card, pairs, before, before)) == "none"


@pytest.mark.parametrize(
    ("precision", "values", "message"),
    [
        ("fp32", {"largest_difference": 2e-4}, "fp32 is not the same student: a tier's probability changes by 0.0002"),
        ("fp16", {"largest_difference": 6e-3}, "--no-fp16"),
        ("int8", {"changed_tiers": 60, "moves": {"2 > 3": 40, "3 > 2": 20}}, "6.0% of 1,000 .* moved: 2 > 3: 40 pairs; 3 > 2: 20"),
        ("int8", {"macro_f1_before": 0.5, "macro_f1": 0.49, "macro_f1_loss": [0.002, 0.02]}, "falls from 0.5000 to 0.4900"),
    ],
)
def test_changes_beyond_the_limits_are_refused(precision, values, message):
    with pytest.raises(LoreError, match=message):
        refuse_changes(Check(pairs=1000, **{"largest_difference": 0.3, "changed_tiers": 0} | values), precision, 0.005, 0.05)


def test_changes_within_the_limits_are_not():
    for after, loss in ((0.48, [-0.001, 0.04]), (0.496, [0.001, 0.006]), (0.52, [-0.03, 0.01]), (0.3, None)):
        values = {"macro_f1_before": 0.5, "macro_f1": after, "macro_f1_loss": loss, "labeled": 900}
        refuse_changes(Check(pairs=1000, largest_difference=0.3, changed_tiers=49, **values), "int8", 0.005, 0.05)


def test_canaries_are_spread_over_tiers_photos_and_lengths(rng):
    scores = np.eye(4)[rng.choice(4, size=1000, p=[0.7, 0.2, 0.05, 0.05])]
    lengths, photos = rng.integers(10, 100, size=1000).tolist(), (rng.random(1000) < 0.5).tolist()
    chosen = canaries_of(scores, lengths, photos)
    assert len(chosen) == len(set(chosen)) == 64 and {int(scores[at].argmax()) for at in chosen} == {0, 1, 2, 3}
    assert {photos[at] for at in chosen} == {True, False}
    assert min(lengths[at] for at in chosen) < 20 and max(lengths[at] for at in chosen) > 90
    assert canaries_of(scores[:3], lengths[:3], photos[:3]) and len(canaries_of(scores[:3], lengths[:3], photos[:3])) == 3


def test_pairs_to_compare_on_and_pairs_for_the_ranges_are_apart(tmp_path):
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for at in range(100):
            writer.write(Pair(pair_id=f"{at}", query="q", title="t", label="L1" if at % 2 else None))
    asked, to_fix = sample_of_file(tmp_path / "pairs.parquet", 10)
    assert len(asked) == len(to_fix) == 10 and not {pair.pair_id for pair in asked} & {pair.pair_id for pair in to_fix}
    assert all(pair.label for pair in (*asked, *to_fix))
    assert len(sample_of_file(tmp_path / "pairs.parquet", 512)[0]) == 50


def test_a_student_with_photos_is_not_exported_on_pairs_whose_photos_are_gone(tmp_path):
    folder = write_student(tmp_path / "model", photo="tower", tower=TOWER)
    pairs = [replace(pair, image=pair.image and {"bytes": None, "path": "gone.png"}) for pair in photo_pairs()]
    write_pairs(tmp_path / "pairs.parquet", pairs)
    with pytest.raises(LoreError, match="none of the pairs of .*pairs.parquet has one that can be read"):
        export_student(folder, tmp_path / "out", pairs=tmp_path / "pairs.parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [
        {"scratch": {"hidden": 16, "layers": 2, "heads": 2, "mlp": 24}},
        {"kind": "bi_encoder", "head": "ordinal", "photo": "tower", "tower": TOWER},
        {"match_embedding": True, "photo": "embedding"},
    ],
    ids=["modernbert", "bi_encoder with a tower", "matches and photo embeddings"],
)
def test_students_of_every_kind_are_exported(section, tmp_path):
    if section.get("photo") == "embedding":
        section = section | {"photo_embeddings": str(embeddings_file(tmp_path))}
    folder = write_student(tmp_path / "model", **section)
    pairs = photo_pairs()
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    out = tmp_path / "out"
    export_student(folder, out, pairs=tmp_path / "pairs.parquet", changed=1)
    expected = open_student(folder).score(pairs)
    for precision, largest in (("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.4)):
        scorer = open_student(out, precision=precision)
        for one, other in zip(expected, scorer.score(pairs), strict=True):
            assert np.abs(np.subtract(one.probabilities, other.probabilities)).max() < largest and one.photo == other.photo
        assert check_canaries(scorer, out).largest < 1e-6


@pytest.mark.slow
def test_a_run_is_exported_by_the_command_and_labels_as_a_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    pairs = write_pairs(tmp_path / "pairs.parquet", [pair for part in shop_pairs().values() for pair in part])
    (tmp_path / "distill.yaml").write_text(json.dumps(distill_body(pairs, labels=None)))
    run = run_recipe(tmp_path / "distill.yaml").path
    out = tmp_path / "student"

    def lore(*arguments: object):
        return CliRunner().invoke(app, list(map(str, arguments)))

    done = lore("export", "student", run, "-o", out, "--no-fp16", "--changed", 1, "--f1-loss", 1)
    assert done.exit_code == 0, done.output
    assert "compared with the student on 64 pairs" in " ".join(done.output.split())
    assert not (out / "model_fp16.onnx").exists()
    assert all(verdict.source == "student" for verdict in open_student(out).score(shop_pairs()["test"][:3]))
    again = lore("export", "student", run, "-o", out)
    assert isinstance(again.exception, LoreError) and "--force" in str(again.exception)
    for wrong, message in ((out, "is an exported student already"), (run / "model", "has no recipe.yaml")):
        refused = lore("export", "student", wrong, "-o", tmp_path / "other")
        assert isinstance(refused.exception, LoreError) and message in str(refused.exception)
    assert lore("export", "student", run, "-o", out, "--force", "--no-fp16", "--changed", 1, "--f1-loss", 1).exit_code == 0
