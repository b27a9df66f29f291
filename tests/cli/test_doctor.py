"""The doctor: what it says about versions, devices and missing packages."""

import tomllib
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from lore.cli import doctor
from lore.config.stages import STAGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gpu"]])
RANGES = {declared.name: str(declared) for declared in DECLARED}
"""Name -> requirement, such as torch<2.14,>=2.13, of what the project declares with a range."""
OPTIONS = ("launch zero2, zero3", "model.quantize: nf4 (QLoRA)", "Qwen-VL models", "vLLM engine", "lore export student")
OPTIONS += ("the HTTP service", "cache.store: redis://", "serve.traces", "codes.kind: vqvae")


def findings(gpus: int) -> dict[str, doctor.Finding]:
    """What the doctor finds, by stage and by the name of each other job."""
    found = doctor.examine(gpus)
    return {name: finding for finding in found for name in finding.job.stages or [finding.job.name]}


def test_it_runs_and_shows_every_stage_and_option_and_the_vllm_range(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status = doctor.main()
    out = capsys.readouterr().out
    jobs = out.partition("what can run here")[2].replace(",", " ").split()
    for stage in STAGES:
        assert jobs.count(stage) == 1
    for job in ("lore data", *OPTIONS):
        assert job in out
    assert RANGES["vllm"].removeprefix("vllm") in out
    assert "disk free" in out
    assert status == 0


def test_it_covers_the_table_of_stages(monkeypatch):
    assert sorted(findings(0)) == sorted(["lore data", *STAGES, *OPTIONS])
    monkeypatch.setitem(STAGES, "newest", ("somewhere.config:Recipe", "somewhere.new:run"))
    own = {r.name for r in map(Requirement, metadata.requires("lore-relevance")) if r.marker is None}
    assert findings(0)["newest"].ready and set(findings(0)["newest"].job.needs) == own


def test_it_names_every_package_that_a_stage_imports(monkeypatch):
    """The imports of the code are the truth, those inside functions included."""
    grimp = pytest.importorskip("grimp")
    monkeypatch.syspath_prepend(str(ROOT))
    graph = grimp.build_graph("lore", include_external_packages=True, cache_dir=None)
    own = {r.name for r in map(Requirement, metadata.requires("lore-relevance")) if r.marker is None}
    distributions = metadata.packages_distributions()
    for stage, (recipe, function) in STAGES.items():
        imported = {m for dotted in (recipe, function) for m in graph.find_upstream_modules(dotted.partition(":")[0])}
        needed = {name.lower() for module in imported for name in distributions.get(module, [])} & own
        assert {"pydantic", "numpy"} <= needed <= set(findings(0)[stage].job.needs), stage


def test_a_missing_package_comes_with_the_pip_command(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in ("trl", "vllm") else present(name))
    found = findings(gpus=0)
    for stage in ("pretrain", "sft"):
        assert found[stage].missing == ["trl is not installed"]
        assert found[stage].remedy == f"pip install '{RANGES['trl']}'"
        assert not found[stage].ready
    assert found["vLLM engine"].remedy == f"pip install '{RANGES['vllm']}'"
    assert found["evaluate"].ready
    monkeypatch.setattr(doctor, "devices", lambda: ([], 0))
    assert doctor.main() == 1


def test_a_missing_option_is_no_error(monkeypatch):
    present = doctor.installed
    options = ("deepspeed", "bitsandbytes", "torchvision", "vllm", "onnx", "onnxruntime", "onnxscript")
    options += ("fastapi", "redis", "opentelemetry-sdk")
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in options else present(name))
    assert not any(findings(gpus=1)[name].ready for name in OPTIONS)
    assert doctor.main() == 0


def test_a_version_outside_the_range_is_named_with_both(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "99.0.0" if name == "transformers" else present(name))
    finding = findings(gpus=0)["pretrain"]
    assert finding.missing == [f"transformers 99.0.0 is outside {RANGES['transformers']}"]


def test_qlora_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "1000" if name == "torchvision" else "0.50")
    monkeypatch.setattr(doctor, "import_error", lambda module: None)
    assert "a GPU" in findings(gpus=0)["model.quantize: nf4 (QLoRA)"].missing
    assert "a GPU" not in findings(gpus=1)["model.quantize: nf4 (QLoRA)"].missing


def test_deepspeed_on_a_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "a C++ compiler" in findings(gpus=0)["launch zero2, zero3"].missing[-1]
    assert findings(gpus=1)["launch zero2, zero3"].ready


def test_a_torchvision_that_does_not_fit_torch_is_found(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "0.28.0" if name == "torchvision" else present(name))
    monkeypatch.setattr(doctor, "import_error", lambda module: "RuntimeError: operator torchvision::nms does not exist")
    finding = findings(gpus=0)["Qwen-VL models"]
    assert "nms" in finding.missing[0]
    assert "uninstall" in finding.remedy


def test_import_errors_are_caught_in_a_process_of_their_own():
    assert doctor.import_error("json") is None
    assert "No module named 'no_such_module'" in doctor.import_error("no_such_module")


@pytest.mark.parametrize("name", ["torch", "vllm", "unknown"])
def test_ranges_come_from_the_package_itself(name):
    assert doctor.requirement(name) == RANGES.get(name, name)
