"""The doctor: what it says about versions, devices and missing packages."""

import pytest

from lore.cli import doctor


def test_it_runs_and_shows_every_job_and_the_vllm_range(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status = doctor.main()
    out = capsys.readouterr().out
    for job, _, _ in doctor.JOBS:
        assert job in out
    assert "<0.33,>=0.22" in out
    assert "disk free" in out
    assert status == 0


def test_a_missing_package_comes_with_the_pip_command(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in ("trl", "vllm") else present(name))
    findings = {f.job: f for f in doctor.examine(gpus=0)}
    assert findings["stages pretrain, sft"].missing == ["trl is not installed"]
    assert findings["stages pretrain, sft"].remedy == "pip install 'trl<1.17,>=1.16'"
    assert findings["vLLM engine"].remedy == "pip install 'vllm<0.33,>=0.22'"
    assert findings["stage evaluate"].ready
    assert not doctor.examine(gpus=0)[1].ready


def test_a_version_outside_the_range_is_named_with_both(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "5.30.0" if name == "transformers" else present(name))
    finding = doctor.examine(gpus=0)[1]
    assert finding.missing == ["transformers 5.30.0 is outside transformers<5.24,>=5.19"]


def test_qlora_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "1000" if name == "torchvision" else "0.50")
    monkeypatch.setattr(doctor, "import_error", lambda module: None)
    jobs = {f.job: f for f in doctor.examine(gpus=0)}
    assert "a GPU" in jobs["model.quantize: nf4 (QLoRA)"].missing
    assert "a GPU" not in {f.job: f for f in doctor.examine(gpus=1)}["model.quantize: nf4 (QLoRA)"].missing


def test_deepspeed_on_a_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "a C++ compiler" in doctor.examine(gpus=0)[3].missing[-1]
    assert doctor.examine(gpus=1)[3].ready


def test_a_torchvision_that_does_not_fit_torch_is_found(monkeypatch):
    present = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "0.28.0" if name == "torchvision" else present(name))
    monkeypatch.setattr(doctor, "import_error", lambda module: "RuntimeError: operator torchvision::nms does not exist")
    finding = {f.job: f for f in doctor.examine(gpus=0)}["Qwen-VL models"]
    assert "nms" in finding.missing[0]
    assert "uninstall" in finding.remedy


def test_import_errors_are_caught_in_a_process_of_their_own():
    assert doctor.import_error("json") is None
    assert "No module named 'no_such_module'" in doctor.import_error("no_such_module")


@pytest.mark.parametrize(("name", "range_"), [("torch", "torch<2.14,>=2.13"), ("vllm", "vllm<0.33,>=0.22"), ("unknown", "unknown")])
def test_ranges_come_from_the_package_itself(name, range_):
    assert doctor.requirement(name) == range_
