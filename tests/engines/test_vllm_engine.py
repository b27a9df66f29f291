"""One judge, three engines: transformers, vLLM in process and an endpoint (vLLM's own server) give the same answers.

Two servers and two engines are started on models of a few hundred kilobytes: about 20 s each on a core.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from openai_server import wait_for
from test_transformers_engine import RUBRIC, prompts
from tiny import make
from vllm_answers import many_tiers

from lore.engines.chat import at_verdict, prompt_tokens
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.engines.engine import EndpointStopped, RequestRefused, Sampling, ScoresRefused
from lore.engines.open_engine import open_engine
from lore.support.errors import LoreError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]
VLLM = VllmSection(eager=True, kv_cache_gib=0.1, max_model_tokens=1024)
KEY = "key-of-the-test-server"
BLOCK = 32  # tokens of a block of the prefix cache on a CPU


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny64"), hidden=64)


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    """A LoRA on the text model whose weights are not zero, so that it changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny.text), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transformers_answers(tiny, adapter):
    """kind -> (prompts, scores, greedy answers); text with its adapter."""
    found = {}
    for kind, lora in (("vision", None), ("text", str(adapter))):
        engine = open_engine(ModelSection(name=str(getattr(tiny, kind)), adapter=lora), RUBRIC, device="cpu")
        asked = prompts(tiny, engine.processor)
        found[kind] = asked, engine.score(asked), engine.generate(asked, Sampling(max_tokens=16, n=2))
    return found


@pytest.fixture(scope="module")
def vllm_answers(tiny, adapter, tmp_path_factory):
    """kind -> what tests/engines/vllm_answers.py has found."""
    found = {}
    for kind, lora in (("vision", []), ("text", [str(adapter)])):
        out = tmp_path_factory.mktemp("answers") / f"{kind}.json"
        script = ROOT / "tests" / "engines" / "vllm_answers.py"
        command = [sys.executable, str(script), str(tiny.pairs.parent), kind, str(out), *lora]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}  # the script needs tests/tiny.py
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        found[kind] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def vllm_scores(tiny, adapter, tmp_path_factory):
    """kind -> what tests/engines/vllm_scores.py has found with the pooling runner."""
    found = {}
    for kind, lora in (("vision", []), ("text", [str(adapter)])):
        out = tmp_path_factory.mktemp("scores") / f"{kind}.json"
        script = ROOT / "tests" / "engines" / "vllm_scores.py"
        command = [sys.executable, str(script), str(tiny.pairs.parent), kind, "pooling", str(out), *lora]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(script.parent)])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        found[kind] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def servers(tiny, adapter, tmp_path_factory):
    """kind -> url of `lore teacher serve`'s server, which asks for a key."""
    from lore.engines.serve import serve_command_line, serve_environment

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("servers")
        patch.setenv("LORE_RUNS", str(folder))
        patch.setenv("TEACHER_KEY", KEY)
        started = {}
        try:
            for kind, lora in (("vision", None), ("text", str(adapter))):
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                model = ModelSection(name=str(getattr(tiny, kind)), adapter=lora, dtype="float32")
                command = serve_command_line(model, VLLM, "127.0.0.1", port, "teacher")
                assert KEY not in " ".join(command)
                log = folder / f"{kind}.log"
                with log.open("w") as stream:
                    process = subprocess.Popen(
                        command, env=serve_environment("TEACHER_KEY"), stdout=stream, stderr=stream, start_new_session=True
                    )
                started[kind] = process, f"http://127.0.0.1:{port}/v1", log
            for process, url, log in started.values():
                wait_for(process, url.removesuffix("/v1") + "/health", log)
            yield {kind: url for kind, (_, url, _) in started.items()}
        finally:
            for process, _, _ in started.values():
                process.terminate()
            for process, _, _ in started.values():
                process.wait(60)


def endpoint(servers, kind: str, **options):
    section = EndpointSection(url=servers[kind], model="teacher", key_variable="TEACHER_KEY", **options)
    return open_engine(section, RUBRIC)


def whole(text: str) -> str:
    """vLLM's server decodes token by token behind the prompt: a first space stays, which decoding an answer by itself drops,
    and bytes at the end that are no character (random weights write them) are left out.
    """
    return text.rstrip("\ufffd").removeprefix(" ")


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_vllm_in_process_scores_and_writes_what_transformers_does(kind, transformers_answers, vllm_answers):
    asked, scores, greedy = transformers_answers[kind]
    found = vllm_answers[kind]
    difference = np.abs(np.array(found["scores"]) - scores).max()
    print(f"{kind}, vLLM in process: largest difference of a tier probability {difference:.1e}")
    assert difference < 1e-3
    assert found["greedy"] == [[vars(c) for c in row] for row in greedy]
    assert found["none"] == [[], [0, 4]]


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_40_pairs_get_the_same_probabilities_from_the_pooling_runner_and_an_endpoint(kind, vllm_scores, servers, tiny, adapter):
    """Also behind a long reason, whose full blocks a second call takes from the prefix cache."""
    from test_transformers_engine import FORMAT
    from vllm_scores import REASON

    from lore.codec.verdict_tokens import with_verdict_prefix

    model = ModelSection(name=str(getattr(tiny, kind)), adapter=str(adapter) if kind == "text" else None)
    engine, served, found = (
        open_engine(model, RUBRIC, device="cpu"),
        endpoint(servers, kind, tokenizer=model.name),
        vllm_scores[kind],
    )
    asked = prompts(tiny, engine.processor, 40)
    reasoned = [with_verdict_prefix(p, FORMAT, engine.verdict, rationale=REASON) for p in asked[:8]]
    scores, after_reason = engine.score(asked), engine.score(reasoned)
    differences = {
        "pooling": np.abs(np.array(found["scores"]) - scores).max(),
        "pooling, reasoned": np.abs(np.array(found["reasoned"]) - after_reason).max(),
        "endpoint": np.abs(served.score(asked) - scores).max(),
        "endpoint, reasoned": np.abs(served.score(reasoned) - after_reason).max(),
    }
    print(kind, {name: f"{value:.1e}" for name, value in differences.items()})
    assert max(differences.values()) < 1e-3 and differences["pooling"] < 1e-5
    assert found["generate"].startswith("This vLLM engine only scores") and found["none"] == [0, 4]
    assert found["processes"] == [1, 0]  # a closed engine leaves none
    begun = [at_verdict(p, engine.verdict.prefix_text) for p in asked]
    tokens = [prompt_tokens(engine.processor, p) for p in (*begun, *reasoned)]
    assert found["usage"]["prompt_tokens"] == sum(tokens[:40]) and found["usage"]["generated_tokens"] == 0
    # The block with the last token is not taken from the cache, because its last hidden state is needed.
    assert found["cached"][1] == sum((count - 1) // BLOCK * BLOCK for count in tokens[40:]) > 0


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_vllm_draws_by_the_seed_and_refuses_prompts_that_are_too_long(kind, vllm_answers):
    found = vllm_answers[kind]
    first, again = found["drawn"]
    assert first == again
    assert len({text for row in first for text in row}) > 6  # the same prompt twice draws other answers
    assert "max_model_tokens (1024)" in found["too_long"] and found["too_long"].startswith("LoreError")


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_rubric_with_more_tiers_than_vllms_twenty_logprobs_is_scored_exactly(
    kind, tiny, adapter, transformers_answers, vllm_answers, servers
):
    asked, found = transformers_answers[kind][0][:4], vllm_answers[kind]
    section = ModelSection(name=str(getattr(tiny, kind)), adapter=str(adapter) if kind == "text" else None)
    rubric = many_tiers(open_engine(section, RUBRIC, device="cpu").tokenizer, 25)
    scores = open_engine(section, rubric, device="cpu").score(asked)
    np.testing.assert_allclose(found["many"], scores, atol=1e-3)
    served = EndpointSection(url=servers[kind], model="teacher", key_variable="TEACHER_KEY", tokenizer=str(getattr(tiny, kind)))
    np.testing.assert_allclose(open_engine(served, rubric).score(asked), scores, atol=1e-3)
    assert found["too_many"].startswith("LoreError: Rubric tiers25 has 129 tiers") and "at most 128" in found["too_many"]


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_an_endpoint_scores_and_writes_what_transformers_does(kind, transformers_answers, servers, tiny):
    asked, scores, greedy = transformers_answers[kind]
    engine = endpoint(servers, kind, tokenizer=str(getattr(tiny, kind)))
    difference = np.abs(engine.score(asked) - scores).max()
    print(f"{kind}, endpoint: largest difference of a tier probability {difference:.1e}")
    assert difference < 1e-3
    found = engine.generate(asked, Sampling(max_tokens=16, n=2))
    for row, expected in zip(found, greedy, strict=True):
        for one, other in zip(row, expected, strict=True):
            assert whole(one.text) == whole(other.text)
            assert (one.tokens, one.finish_reason, one.prompt_tokens) == (other.tokens, other.finish_reason, other.prompt_tokens)


def test_a_begun_answer_is_gone_on_with_over_an_endpoint(transformers_answers, servers, tiny):
    from lore.codec.verdict_tokens import with_verdict_prefix

    asked, _, _ = transformers_answers["vision"]
    engine = endpoint(servers, "vision", tokenizer=str(tiny.vision))
    local = open_engine(ModelSection(name=str(tiny.vision)), RUBRIC, device="cpu")
    from test_transformers_engine import FORMAT

    begun = [with_verdict_prefix(p, FORMAT, local.verdict, rationale="colour: red") for p in asked[:8]]
    np.testing.assert_allclose(engine.score(begun), local.score(begun), atol=1e-3)
    texts = [[whole(c.text) for (c,) in e.generate(begun, Sampling(max_tokens=8))] for e in (engine, local)]
    assert texts[0] == texts[1]


def test_without_the_tokenizer_an_endpoint_scores_by_the_text_of_its_most_likely_tokens_and_refuses_prompts_without_a_tier(
    transformers_answers, servers
):
    """Random weights: for most prompts no tier is among the server's 20 most likely tokens."""
    asked, scores, _ = transformers_answers["vision"]
    with pytest.raises(ScoresRefused, match="lists no tier among the tokens") as caught:
        endpoint(servers, "vision").score(asked)
    found, refused = caught.value.probabilities, sorted(caught.value.refused)
    answered = [row for row in range(len(asked)) if row not in refused]
    assert found.shape == scores.shape and answered and not found[refused].any()
    np.testing.assert_allclose(found[answered].sum(axis=1), 1)


def test_the_server_asks_for_the_key_names_its_models_and_refuses_only_what_is_too_long(servers, monkeypatch):
    section = EndpointSection(url=servers["vision"], model="techer", key_variable="TEACHER_KEY")
    with pytest.raises(EndpointStopped, match="one that it serves: teacher"):
        open_engine(section, RUBRIC).generate([[{"role": "user", "content": "hi"}]], Sampling())
    engine = endpoint(servers, "vision")
    long_ = [{"role": "user", "content": "a " * 2000}]
    short, refused = engine.generate([[{"role": "user", "content": "hi"}], long_], Sampling(max_tokens=4))
    assert short[0].tokens == 4 and refused[0].finish_reason == "refused"
    with pytest.raises(RequestRefused, match="1024"):
        engine.score([long_])
    monkeypatch.setenv("TEACHER_KEY", "another-key")
    with pytest.raises(EndpointStopped, match="TEACHER_KEY"):
        endpoint(servers, "vision").generate([[{"role": "user", "content": "hi"}]], Sampling())
    assert os.environ["TEACHER_KEY"] == "another-key"


def test_an_adapter_that_vllm_would_run_wrongly_is_refused_with_the_way_out(tiny, adapter, tmp_path):
    from lore.engines.vllm import VllmEngine

    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, named in (({"modules_to_save": ["lm_head"]}, "lm_head"), ({"use_dora": True}, "DoRA")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(LoreError, match=f"(?s){named}.*lore export RUN --out FOLDER --merge"):
            VllmEngine.load(ModelSection(name=str(tiny.text), adapter=str(tmp_path)), RUBRIC, VLLM)


@pytest.mark.parametrize("kind", ["endpoint", "vllm"])
def test_the_stage_synthesize_asks_vllm(kind, tiny, servers, tmp_path, monkeypatch):
    """Random weights write nothing that can be read: what counts is that every pair was asked and is accounted for."""
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TEACHER_KEY", KEY)
    teacher = {"kind": kind, "max_tokens": 16, "temperature": 0.0}
    if kind == "vllm":
        long = shutil.copytree(tiny.vision, tmp_path / "long")  # a teacher's prompts are longer than the tiny model's positions
        config = json.loads((long / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = 4096
        (long / "config.json").write_text(json.dumps(config))
        model = {"name": str(long), "dtype": "float32"}
        teacher |= {"model": model, "vllm": {"eager": True, "kv_cache_gib": 0.1, "max_model_tokens": 4096}}
    else:
        teacher |= {"endpoint": {"url": servers["vision"], "model": "teacher", "key_variable": "TEACHER_KEY"}}
    body = {
        "stage": "synthesize",
        "run": kind,
        "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "train", "limit": 10},
        "teacher": teacher,
        "captioner": teacher,
        "photos": "caption",
        "attempts": {"hint": "never"},
        "unexplained": "keep",
        "unanswered": {"max_in_a_row": None, "max_share": None},
    }
    recipe = tmp_path / f"{kind}.yaml"
    recipe.write_text(json.dumps(body))
    done = subprocess.run([sys.executable, "-m", "lore", "run", str(recipe)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / kind / "done").read_text())
    assert summary["pairs"] == 10 and summary["accepted"] == 0 and summary["tokens"] > 0
    assert KEY not in done.stdout + done.stderr


def test_the_evaluation_gives_one_judge_the_same_row_in_every_engine(tiny, adapter, servers, tmp_path, monkeypatch):
    """Checkpoint with adapter, merged, in vLLM, behind a server, and its own predictions read back from a file."""
    import pyarrow.parquet as pq
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TEACHER_KEY", KEY)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.text), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny.text).save_pretrained(tmp_path / "merged")
    model = {"name": str(tiny.text), "adapter": str(adapter), "dtype": "float32"}
    server = {"url": servers["text"], "model": "teacher", "key_variable": "TEACHER_KEY", "tokenizer": str(tiny.text)}
    judges = {
        "adapter": {"model": model},
        "merged": {"model": {"name": str(tmp_path / "merged"), "dtype": "float32"}},
        "vllm": {"model": model, "vllm": {"eager": True, "kv_cache_gib": 0.1, "max_model_tokens": 1024}},
        "server": {"kind": "endpoint", "endpoint": server},
    }
    body = {
        "stage": "evaluate",
        "data": {"path": str(tiny.pairs), "rubric": "shop", "split": "test"},
        "prompt": {"order": "answer_only", "detail": "name", "photo": False, "max_prompt_tokens": 512},
        "metrics": {"bootstrap_samples": 50, "calibrate_on": None},
        "baselines": [],
    }

    def evaluate(run: str, judges: dict) -> dict[str, dict]:
        recipe = tmp_path / f"{run}.yaml"
        recipe.write_text(json.dumps(body | {"run": run, "judges": judges}))
        done = subprocess.run([sys.executable, "-m", "lore", "run", str(recipe)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, dict] = {}
        for row in pq.read_table(tmp_path / "runs" / run / "predictions.parquet").to_pylist():
            found.setdefault(row["judge"], {})[row["pair_id"]] = [row[f"p_{tier}"] for tier in RUBRIC.tier_ids]
        return found

    rows = evaluate("engines", judges)
    ids = list(rows["adapter"])
    first = np.array([rows["adapter"][pair_id] for pair_id in ids])
    assert len(ids) == 64 and first.std(axis=0).min() > 1e-4
    for name in ("merged", "vllm", "server"):
        difference = np.abs(np.array([rows[name][pair_id] for pair_id in ids]) - first).max()
        print(f"{name}: largest difference of a tier probability {difference:.1e}")
        assert difference < 1e-3
    path = tmp_path / "runs" / "engines" / "predictions.parquet"
    again = evaluate("read_back", {"file": {"kind": "predictions", "predictions": str(path), "predictions_judge": "vllm"}})
    assert again["file"] == rows["vllm"]
