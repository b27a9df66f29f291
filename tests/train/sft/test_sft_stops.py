"""What stops a fine-tuning run, what it leaves out, and when a finished or interrupted one no longer fits its inputs."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from lore.config.stages import load_recipe
from lore.data.parquet import PairWriter, read_pairs
from lore.run.dependencies import plan
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError


def losses(folder) -> list[float]:
    return [line["loss"] for line in folder.metrics()]


def weights(folder) -> dict:
    return load_file(next((folder / "model").glob("*.safetensors")))


def test_a_row_that_would_lose_its_verdict_stops_the_run(train):
    with pytest.raises(LoreError, match=r"tokens, train.max_tokens is 64"):
        train("long", lora={}, max_tokens=64)


def test_going_on_from_a_judge_that_is_asked_otherwise_stops(train, tiny, runs, tmp_path):
    folder = train("first", lora={})
    body = json.loads(tiny.recipe("second", prompt={"order": "answer_only"}))
    body["model"]["adapter"] = str(folder / "model")
    path = tmp_path / "second.yaml"
    path.write_text(json.dumps(body))
    with pytest.raises(LoreError, match="was trained with renderer"):
        run_recipe(path)
    body = json.loads(tiny.recipe("third", steps=2))
    body["model"]["adapter"] = str(folder / "model")
    path.write_text(json.dumps(body))
    third = run_recipe(path)
    before, after = weights(folder), weights(third)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    assert losses(third)[0] < losses(folder)[0]  # it starts where the first one ended


def test_scoring_a_judge_that_was_asked_otherwise_stops(train, tiny, tmp_path):
    folder = train("first", model="text", lora={}, steps=2)
    judge = {"model": {"name": str(tiny.text), "adapter": str(folder / "model")}}
    body = {
        "stage": "evaluate",
        "run": "scored",
        "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "test"},
        "prompt": {"order": "answer_first", "detail": "name"},
        "judges": {"judge": judge},
        "metrics": {"bootstrap_samples": 100},
    }
    path = tmp_path / "eval.yaml"
    path.write_text(json.dumps(body))
    with pytest.raises(LoreError, match="judges.judge: .* was trained with renderer"):
        run_recipe(path)


def test_quantised_training_without_bitsandbytes_says_what_to_install(train, tiny, runs, tmp_path, monkeypatch):
    body = json.loads(tiny.recipe("qlora", model="text", lora={}))
    body["model"]["quantize"] = "nf4"
    (tmp_path / "q.yaml").write_text(json.dumps(body))
    found = __import__("importlib").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == "bitsandbytes" else found(n, *a))
    with pytest.raises(LoreError, match="bitsandbytes"):
        run_recipe(tmp_path / "q.yaml")


def test_a_run_that_has_saved_no_weights_is_not_done(train, runs, monkeypatch):
    monkeypatch.setattr("trl.SFTTrainer.save_model", lambda self, folder, _internal_call=False: None)
    with pytest.raises(LoreError, match="holds no .*safetensors"):
        train("none", model="text", steps=2, save_every=0)
    assert not (runs / "none" / "done").exists()


def test_a_loss_that_is_no_number_stops_the_run(train, runs):
    with pytest.raises(LoreError, match="is (nan|inf)"):
        train("nan", model="text", lr=1000.0, weight_decay=1.0, steps=30, save_every=0, warmup=0, schedule="constant")
    assert any(line["loss"] == "nan" or line["grad_norm"] == "nan" for line in RunFolder(runs / "nan").metrics())


def test_training_in_float16_is_refused(train):
    with pytest.raises(LoreError, match="float16"):
        train("half", "model.dtype=float16")


@pytest.mark.parametrize(
    "lora, message",
    [
        ({"targets": ["q_proy"]}, r"model.lora.targets: 'q_proy' matches no module.*Nearest: 'q_proj'"),
        ({"targets": "q_proj"}, r"model.lora.targets: 'q_proj' matches no module.*full name"),
        ({"targets": ["q_proj", "lm_head"]}, r"output layer.*modules_to_save: \[lm_head\]"),
        ({"targets": ["mlp"]}, r"matches model.layers.0.mlp, a LlamaMLP"),
        ({"modules_to_save": ["lm_hed"]}, r"model.lora.modules_to_save: 'lm_hed' matches no module.*Nearest: 'lm_head'"),
        ({"targets": []}, r"model.lora.targets.*no adapter"),
    ],
    ids=["typo", "pattern of a part", "output layer", "container", "saved typo", "none"],
)
def test_a_name_in_the_lora_section_that_stands_for_nothing_is_an_error(train, lora, message):
    with pytest.raises(LoreError, match=f"(?s){message}"):
        train("wrong", model="text", lora=lora)


def test_combinations_that_cannot_train_are_refused_before_anything_is_loaded(train, write_recipe):
    with pytest.raises(LoreError, match="nf4 weights and nothing to train on them"):
        train("q", "model.quantize=nf4", model="text")
    body = "stage: pretrain\nrun: b\ncorpus: [c.parquet]\ntrain: {steps: 1, packing: true, padding_free: true}"
    with pytest.raises(LoreError) as caught:
        load_recipe(write_recipe("base.yaml", body))
    assert "train.packing" in str(caught.value) and "train.padding_free" in str(caught.value)


def with_pairs(tiny, folder, change) -> str:
    """The first 24 training pairs, changed, in a file of their own."""
    pairs = list(read_pairs(tiny.pairs, split="train", limit=24))
    change(pairs)
    with PairWriter(folder / "pairs.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    return str(folder / "pairs.parquet")


def test_a_run_that_dies_once_its_rows_are_there_keeps_its_rejected_pairs(train, tiny, tmp_path, interrupt_after):
    path = with_pairs(tiny, tmp_path, lambda pairs: setattr(pairs[2], "label", "L9"))
    interrupt_after("rows.arrow")
    with pytest.raises(KeyboardInterrupt):
        train("dies", steps=2, data={"path": path})
    folder = train("dies", steps=2, data={"path": path})
    assert folder.summary["rejected"] == 1 and len((folder / "rejected.jsonl").read_text().splitlines()) == 1


def test_pairs_that_cannot_be_rendered_are_kept_with_their_reason_and_the_others_trained(train, tiny, tmp_path):
    def spoil(pairs):
        pairs[0].query = "lamp " * 3000
        pairs[1].image = {"bytes": None, "path": str(tmp_path / "gone.png")}
        pairs[2].label = "L9"

    folder = train("some", steps=2, data={"path": with_pairs(tiny, tmp_path, spoil)})
    assert folder.summary["rows"] == 21 and folder.summary["rejected"] == 3
    left_out = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    ids = [pair.pair_id for pair in read_pairs(tiny.pairs, split="train", limit=3)]
    assert [row["record"]["pair_id"] for row in left_out] == ids
    assert [row["reason"] for row in left_out] == ["cannot_be_rendered", "image_missing", "cannot_be_rendered"]
    assert "L9" in left_out[2]["found"]

    def spoil_all(pairs):
        for pair in pairs:
            pair.label = "L9"

    with pytest.raises(LoreError, match="None of the 24 pairs can be a training row.*L9"):
        train("none", steps=2, data={"path": with_pairs(tiny, tmp_path, spoil_all)})


def test_a_finished_run_whose_inputs_are_others_now_says_so(train, tiny, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny.text, base)
    data = {"path": with_pairs(tiny, tmp_path, lambda pairs: None)}
    options = {"model": "text", "lora": {}, "steps": 2, "data": data}
    train("done", f"model.name={base}", **options)
    train("done", f"model.name={base}", "train.workers=3", **options)
    out = capsys.readouterr().out
    assert "already done" in out and "train.workers=3 is ignored: the run finished with train.workers=0" in out

    with_pairs(tiny, tmp_path, lambda pairs: pairs.pop())
    with pytest.raises(LoreError, match=r"input data.path: was '[\w:]+', now '[\w:]+'.*\n.*delete the folder"):
        train("done", f"model.name={base}", **options)
    with_pairs(tiny, tmp_path, lambda pairs: None)
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoreError, match="input model.name"):
        train("done", f"model.name={base}", **options)
    shutil.rmtree(base)
    train("done", f"model.name={base}", **options)  # gone is not changed: the result stands


def test_an_interrupted_run_whose_base_or_tokenizer_has_changed_stops(train, tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny.text, base)
    options = {"model": "text", "lora": {}, "steps": 2}
    folder = train("broken", f"model.name={base}", **options)
    folder.close()
    folder.done_path.unlink()
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n")
    with pytest.raises(LoreError, match="was started with other inputs:\n  input model.name"):
        train("broken", f"model.name={base}", **options)


def test_a_model_that_cannot_be_loaded_is_an_error_for_people(train, tiny, tmp_path):
    with pytest.raises(LoreError, match="model.name nobody/nothing cannot be loaded"):
        train("hub", "model.name=nobody/nothing", model="text", lora={})
    with pytest.raises(LoreError, match="model.attn is flash_attention_9"):
        train("attn", "model.attn=flash_attention_9", model="text", lora={})
    with pytest.raises(LoreError, match="No pairs at"):  # before the hub is asked
        train("data", "model.name=nobody/nothing", model="text", lora={}, data={"path": str(tmp_path / "no.parquet")})


@pytest.mark.slow  # four trainings
def test_a_needed_run_that_is_done_passes_until_what_it_stands_on_is_made_anew(tiny, runs, write_recipe):
    size = "{hidden: 32, layers: 1, heads: 2, mlp: 32, vision_hidden: 16, vision_layers: 1, vision_heads: 2}"
    train_base = "vocabulary: 700\ntrain: {steps: 2, batch_size: 4, log_every: 1, save_every: 0}"
    base = f"stage: pretrain\nrun: base\ncorpus: [{tiny.pairs.parent}/corpus.parquet]\narchitecture: {size}\n{train_base}\n"
    write_recipe("base.yaml", base)
    body = json.loads(tiny.recipe("judge", lora={}, steps=2)) | {"needs": ["base.yaml"]}
    body["model"]["name"] = str(runs / "base" / "model")
    judge = write_recipe("judge.yaml", json.dumps(body), plain=True)
    more = write_recipe("more.yaml", json.dumps(body | {"run": "more", "needs": ["judge.yaml"]}), plain=True)
    run_recipe(judge).close()
    assert run_recipe(judge).is_done
    assert [folder.is_done for _, folder in plan(more, load_recipe(more))] == [True]
    shutil.rmtree(runs / "base")
    assert run_recipe(judge).is_done
    run_recipe(write_recipe("base.yaml", base + "seed: 1\n"))
    for recipe in (judge, more):
        with pytest.raises(LoreError, match=r"judge was made with other inputs:\n  input model.name"):
            run_recipe(recipe)
