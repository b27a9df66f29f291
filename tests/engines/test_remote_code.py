"""Python code in somebody else's model folder runs only if the user's own recipe or command line allows it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lore.config.stages import load_recipe
from lore.engines.config import ModelSection
from lore.engines.loading import load_config, load_model, load_processor, meta_model
from lore.run.runner import run_recipe
from lore.support.errors import LoreError

CODE = """
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass


OwnConfig.register_for_auto_class()
OwnModel.register_for_auto_class("AutoModelForCausalLM")
"""
MODEL = {"model_type": "own", "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}}
TOKENIZER = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}}
IMAGES = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own_code.OwnConfig"}}
PROCESSOR = {"processor_class": "Own", "auto_map": {"AutoProcessor": "own_code.OwnConfig"}}
ADAPTER = {"peft_type": "LORA", "auto_mapping": {"base_model_class": "OwnModel", "parent_library": "own_code"}}
PLACES = {
    "config": ("text", "config.json", MODEL),
    "config that trusts itself": ("text", "config.json", MODEL | {"trust_remote_code": True}),
    "config of a known model": ("text", "config.json", {"auto_map": MODEL["auto_map"]}),
    "tokenizer": ("text", "tokenizer_config.json", TOKENIZER | {"trust_remote_code": True}),
    "processor": ("vision", "processor_config.json", PROCESSOR),
    "image processor": ("vision", "processor_config.json", {"image_processor": IMAGES | {"trust_remote_code": True}}),
    "preprocessor": ("vision", "preprocessor_config.json", IMAGES | {"auto_map": {"AutoProcessor": "own_code.OwnConfig"}}),
    "generation config": ("text", "generation_config.json", {"custom_generate": ".", "trust_remote_code": True}),
    "adapter config": ("text", "adapter_config.json", ADAPTER),
}


def with_code(base: Path, folder: Path, file: str = "config.json", changes: dict = MODEL) -> Path:
    """Copies a checkpoint and adds code that creates the file `ran` beside it; returns the path of `ran`."""
    shutil.copytree(base, folder)
    ran = folder.parent / f"{folder.name}-ran"
    (folder / "own_code.py").write_text(CODE.format(marker=str(ran)))
    if "custom_generate" in changes:
        (folder / "custom_generate").mkdir()
        shutil.copy(folder / "own_code.py", folder / "custom_generate" / "generate.py")
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | changes))
    return ran


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """transformers copies the code that it runs into a cache of the user."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.parametrize("place", PLACES)
def test_no_file_of_a_checkpoint_runs_code_by_itself(tiny, tmp_path, monkeypatch, place):
    kind, file, changes = PLACES[place]
    ran = with_code(getattr(tiny, kind), tmp_path / "model", file, changes)
    monkeypatch.chdir(tmp_path / "model")  # python -m looks for modules in the working directory
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks on a terminal where nothing is said
    section = ModelSection(name=str(tmp_path / "model"))
    load = (load_config, lambda s: load_processor(s, chat=True), meta_model, lambda s: load_model(s, device="cpu"))
    for one in load:
        try:
            one(section)
        except LoreError as error:
            assert "need Python code from the checkpoint" in str(error) or place == "adapter config"
    assert not ran.exists()


@pytest.fixture(scope="module")
def foreign(tiny, tmp_path_factory):
    """A finished SFT run whose recipe names a base with its own code and allows it, and the file that the code creates."""
    folder = tmp_path_factory.mktemp("foreign")
    path = folder / "sft.yaml"
    path.write_text(tiny.recipe("judge", model="text", lora={}, steps=1, save_every=0, prompt={"order": "answer_only"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(folder / "runs"))
        run = run_recipe(path)
    ran = with_code(tiny.text, folder / "base")
    recipe = yaml.safe_load(run.recipe_path.read_text())
    recipe["model"] |= {"name": str(folder / "base"), "trust_remote_code": True}
    run.recipe_path.write_text(yaml.safe_dump(recipe))
    card = json.loads((run / "model" / "lore.json").read_text())
    (run / "model" / "lore.json").write_text(json.dumps(card | {"base_fingerprint": None}))
    return run, ran


def test_an_exported_run_cannot_allow_its_own_code(foreign, lore, tmp_path):
    run, ran = foreign
    refused = lore("export", run.path, "--merge", "-o", tmp_path / "judge")
    assert refused.returncode == 1 and not ran.exists() and not (tmp_path / "judge").exists()
    assert "need Python code from the checkpoint" in refused.stderr and "--trust-remote-code" in refused.stderr
    assert lore("export", run.path, "-o", tmp_path / "copied").returncode == 0  # a copy runs nothing
    (run / "model" / "notes.txt").symlink_to(tmp_path / "private.txt")
    (tmp_path / "private.txt").write_text("private")
    linked = lore("export", run.path, "-o", tmp_path / "linked")
    (run / "model" / "notes.txt").unlink()
    assert linked.returncode == 1 and "private.txt, outside of the run" in linked.stderr and not (tmp_path / "linked").exists()
    assert not ran.exists()
    allowed = lore("export", run.path, "--merge", "-o", tmp_path / "judge", "--trust-remote-code", "--dtype", "float32")
    assert allowed.returncode == 0, allowed.stderr
    assert ran.exists() and (tmp_path / "judge" / "model.safetensors").is_file()
    ran.unlink()


def test_the_record_of_a_run_allows_no_code_to_any_command(foreign, lore, tmp_path, write_recipe):
    run, ran = foreign
    record = run.recipe_path
    for command in (["run", record], ["run", record, "--dry-run"], ["check", record], ["run", record, "model.dtype=float32"]):
        done = lore(*command)
        assert done.returncode == 1 and "the record of a run folder" in done.stderr, command
    assert "model.trust_remote_code=true on the command line" in done.stderr
    grid = f"grid: g\nbase: {record}\nruns:\n  one: {{train.lr: 1e-3}}"
    needs = f"stage: sft\nrun: other\nneeds: [{record}]\nmodel: {{name: x}}\ndata: {{path: x, rubric: shop}}\n"
    needs += "prompt: {order: answer_only, detail: name}\ntrain: {steps: 1}"
    for name, body in (("grid.yaml", grid), ("needs.yaml", needs)):
        done = lore("run", write_recipe(name, body), "--dry-run")
        assert done.returncode == 1 and "the record of a run folder" in done.stderr, name
    own = write_recipe("own.yaml", grid.replace("1e-3", "1e-3, model.trust_remote_code: true"))
    assert load_recipe(f"{own}:one").model.trust_remote_code
    assert load_recipe(record, ["model.trust_remote_code=true"]).model.trust_remote_code
    assert not load_recipe(record, ["model.trust_remote_code=false"]).model.trust_remote_code
    (tmp_path / "link.yaml").symlink_to(record)
    shutil.copy(record, run / "again.yaml")
    shutil.copytree(run.path, tmp_path / "stripped", ignore=shutil.ignore_patterns("done", "*.json*", "data"))
    shutil.copy(run / "model" / "lore.json", tmp_path / "stripped" / "model")
    for path in (tmp_path / "link.yaml", run / "again.yaml", tmp_path / "stripped" / "recipe.yaml"):
        with pytest.raises(LoreError, match="the record of a run folder"):
            load_recipe(path)
    (run / "again.yaml").unlink()
    shutil.copy(record, tmp_path / "mine.yaml")  # a copy is the user's own recipe
    assert load_recipe(tmp_path / "mine.yaml").model.trust_remote_code
    assert not ran.exists()


def test_a_recipe_that_allows_code_runs_it(tiny, tmp_path):
    ran = with_code(tiny.text, tmp_path / "model")
    section = ModelSection(name=str(tmp_path / "model"), trust_remote_code=True)
    assert type(load_model(section, device="cpu")).__name__ == "OwnModel" and ran.exists()


@pytest.mark.parametrize("changes", [MODEL, {"auto_map": MODEL["auto_map"]}], ids=["its own model", "a known model"])
def test_no_code_runs_in_a_whole_evaluation_or_at_the_start_of_a_server(tiny, tmp_path, runs, lore, monkeypatch, changes):
    ran = with_code(tiny.text, tmp_path / "model", changes=changes | {"trust_remote_code": True})
    model = {"name": str(tmp_path / "model")}
    data = {"path": str(tiny.pairs), "rubric": "shop"}
    prompt = {"order": "answer_only", "detail": "name", "max_prompt_tokens": 512}
    recipe = {"stage": "evaluate", "run": "asked", "data": data, "prompt": prompt, "judges": {"mine": {"model": model}}}
    recipe |= {"baselines": [], "metrics": {"bootstrap_samples": 20, "calibrate_on": None}, "test_limit": 8}
    (tmp_path / "evaluate.yaml").write_text(json.dumps(recipe))
    (tmp_path / "teacher.yaml").write_text(
        json.dumps({"stage": "synthesize", "run": "s", "data": data, "teacher": {"kind": "vllm", "model": model}})
    )
    started = []
    monkeypatch.setattr("os.execvpe", lambda file, command, environment: started.append(command))
    monkeypatch.setattr("lore.engines.serve.check_vllm", lambda: None)  # neither the refusal nor the command line needs vLLM
    done = lore("run", tmp_path / "evaluate.yaml"), lore("teacher", "serve", tmp_path / "teacher.yaml")
    assert not ran.exists()
    if changes is MODEL:
        assert [one.returncode for one in done] == [1, 1] and not started
        assert all("need Python code from the checkpoint" in one.stderr for one in done)
    else:  # transformers has the model, so its own code is not needed
        assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
        assert (runs / "asked" / "done").is_file()
        assert "--no-trust-remote-code" in started[0] and "--trust-remote-code" not in started[0]
