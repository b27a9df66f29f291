"""launch/ for Ray, SLURM and Kubernetes: schemas, linters, the commands inside the files, and the SLURM scripts with stand-ins for
SLURM's own programs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from lore import __version__
from lore.cli.main import app

LAUNCH = ROOT / "launch"
IMAGE = f"registry.example.com/lore:{__version__}"
KUBERNETES = ("1.31", "1.37")
"""The oldest with everything that the manifests use, and the newest that the package knows."""
MANIFESTS = {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted((LAUNCH / "kubernetes").glob("*.yaml"))}
RAY_JOB = MANIFESTS["label.yaml"][0]
SCRIPTS = [*sorted((LAUNCH / "slurm").glob("*.sbatch")), LAUNCH / "ray" / "label.sh"]
BIN = Path(sys.executable).parent


def pods() -> dict[str, dict]:
    """name -> pod template of every manifest that starts pods."""
    cluster = RAY_JOB["spec"]["rayClusterSpec"]
    found = {"label.yaml head": cluster["headGroupSpec"]["template"]}
    found |= {f"label.yaml {group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    for name in ("train.yaml", "serve.yaml"):
        found[name] = MANIFESTS[name][0]["spec"]["template"]
    return found


def values(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key at any depth."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inner:
        if name == key:
            yield value
        yield from values(value, key)


each_pod = pytest.mark.parametrize("pod", pods().values(), ids=pods().keys())


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_follow_the_schema_of_kubernetes(version):
    plain = [one for documents in MANIFESTS.values() for one in documents if one["apiVersion"] != "ray.io/v1"]
    assert {one["kind"] for one in plain} == {"PersistentVolumeClaim", "Job", "Deployment", "Service"}
    for template in pods().values():
        plain.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": template["spec"]})
    for one in plain:
        kubernetes_validate.validate(one, version, strict=True)
    wrong = json.loads(json.dumps(plain[-1]))
    wrong["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_ray_job_follows_kuberays_schema():
    schema = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())
    jsonschema.validate(RAY_JOB, schema)
    assert RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"] == pins()["ray"]
    wrong = json.loads(json.dumps(RAY_JOB))
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def test_the_cluster_of_machines_follows_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((LAUNCH / "ray" / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["docker"]["image"] == IMAGE
    ready = prepare_config(cluster)
    validate_config(ready)
    assert ready["max_workers"] == len(cluster["provider"]["worker_ips"])


@each_pod
def test_pods_run_without_root_with_bounds_and_shared_memory(pod):
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory" and volumes["shm"]["emptyDir"]["sizeLimit"]
    assert volumes["work"]["persistentVolumeClaim"]["claimName"] == MANIFESTS["storage.yaml"][0]["metadata"]["name"]
    for container in spec["containers"]:
        assert container["image"] == IMAGE
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"work": "/work", "shm": "/dev/shm"}
        for one in container["env"]:
            is_key = re.search("KEY|TOKEN|SECRET|PASSWORD", one["name"])
            assert not is_key or ("value" not in one and one["valueFrom"]["secretKeyRef"]["name"]), one["name"]


def test_the_served_judge_is_probed_and_found():
    deployment, service = MANIFESTS["serve.yaml"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": container["ports"][0]["name"]}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 600
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert str(container["ports"][0]["containerPort"]) in container["command"]


def pins() -> dict[str, str]:
    lines = [line for line in (LAUNCH / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+", line) for line in lines)
    return dict(line.split("==") for line in lines)


def test_the_image_is_pinned_linted_and_not_root():
    text = (LAUNCH / "Dockerfile").read_text()
    done = subprocess.run([BIN / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2 and all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    assert re.findall(r"^USER (.*)", text, re.MULTILINE)[-1] == "1000"
    assert f"lore_relevance-{__version__}-py3" in text and "--no-cache-dir" in text
    files = [path for path in LAUNCH.rglob("*") if path.suffix != ".md" and path.is_file()]
    assert not [path for path in files if ":latest" in path.read_text()]


def test_the_image_holds_the_versions_that_were_tested():
    project, found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], pins()
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["cpu"], *extras["gpu"], *extras["ray"]):
        requirement = Requirement(line)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    done = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    shell = script.read_text().splitlines()[0].rpartition("/")[2]
    subprocess.run([shell, "-n", script], check=True)


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """(file, words) of every `lore` command in launch/: manifests, comments, and arguments of the scripts."""
    yield "label.yaml", shlex.split(RAY_JOB["spec"]["entrypoint"])
    for name, pod in pods().items():
        for command in values(pod, "command"):
            if command[0] == "lore":
                yield name, command
    given = {"launch/ray/label.sh": ["--ray", "auto"], "launch/slurm/label.sbatch": ["--ray", "a:1"]}
    for path in (*SCRIPTS, *(LAUNCH / "kubernetes").glob("*.yaml"), LAUNCH / "ray" / "cluster.yaml"):
        for line in path.read_text().splitlines():
            words = shlex.split(re.split(r" {2,}\S", line.lstrip("# "))[0]) if line.startswith("#  ") else []
            words = [word for word in words if not re.fullmatch(r"[A-Z]+=\w+|sbatch|--nodes=\d", word)]
            if words and words[0] in given:
                yield path.name, ["lore", "label", *words[1:], *given[words[0]]]
            elif words and words[0] == "lore":
                yield path.name, words


def test_commands_of_lore_in_the_files_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen: list[str] = []

    def record(command: Any, name: str) -> None:
        for word, inner in getattr(command, "commands", {}).items():
            record(inner, f"{name} {word}")
        if not hasattr(command, "commands"):
            command.callback = lambda **values: seen.append(name.strip())

    root = typer.main.get_command(app)
    record(root, "")
    found = list(written_commands())
    for _, words in found:
        root.main(words[1:], standalone_mode=False)
    assert len(found) >= 8
    assert set(seen) == {"label run", "launch", "serve judge"} and len(seen) == len(found)
    recipes = re.findall(r"recipes/\S+\.yaml", "".join(path.read_text() for path in (*SCRIPTS, LAUNCH / "kubernetes/train.yaml")))
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """The environment of a job of two nodes, with programs in PATH that note their arguments in `calls`.

    srun starts its command once per node, as SLURM does, and passes signals on.
    """
    programs = {
        "scontrol": '[ "$1" != show ] || printf "node1\\nnode2\\n"',
        "srun": 'while case "$1" in --*) true;; *) false;; esac; do shift; done; exec env SLURM_NODEID=1 "$@"',
        **programs,
    }
    for name, body in programs.items():
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        note = f'printf "%s\\n" "{name} $*" >> {shlex.quote(str(folder / "calls"))}'
        file.write_text(f"#!/bin/bash\n{note}\n{body}\n")
        file.chmod(0o755)
    job = {"SLURM_JOB_ID": "41234", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "8"}
    return {**os.environ, **job, "SLURM_CPUS_PER_TASK": "16", "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def calls(folder: Path, program: str) -> list[list[str]]:
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


def test_training_starts_one_launcher_a_node_and_ends_with_its_status(tmp_path):
    environment = stand_ins(tmp_path, accelerate="exit 3") | {"CONFIG": "zero3"}
    script = [LAUNCH / "slurm" / "train.sbatch", "recipes/sft_full.yaml", "train.lr=2e-4"]
    done = subprocess.run(["bash", *script], env=environment, capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    ((_, *words),) = calls(tmp_path, "accelerate")
    given = launch_command_parser().parse_args(words)
    assert (given.num_machines, given.num_processes, given.machine_rank) == (2, 16, 1)
    assert (given.main_process_ip, given.main_process_port, given.rdzv_backend) == ("node1", 21234, "c10d")
    assert (ROOT / given.config_file).is_file() and given.deepspeed_multinode_launcher == "standard"
    assert (given.training_script, given.training_script_args) == ("recipes/sft_full.yaml", ["train.lr=2e-4"])
    done = subprocess.run(["bash", script[0]], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr


def test_a_job_whose_time_is_nearly_up_is_queued_again(tmp_path):
    environment = stand_ins(tmp_path, accelerate="exec sleep 30", scontrol='[ "$1" = show ] && echo node1 || pkill -P $PPID sleep')
    process = subprocess.Popen(["bash", LAUNCH / "slurm" / "train.sbatch", "recipes/sft.yaml"], env=environment, cwd=ROOT)
    wait_until(lambda: calls(tmp_path, "accelerate"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) != 0
    assert calls(tmp_path, "scontrol")[-1] == ["requeue", "41234"]


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


RAY = 'case "$*" in *--block*) echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> tokens; echo $$ >> pids; exec sleep 60;; esac'
BOTH_STARTED = "until [ -f pids ] && [ $(wc -l < pids) = 2 ]; do sleep 0.05; done"


@pytest.mark.parametrize("status", [0, 5])
def test_labelling_starts_a_head_and_workers_and_stops_them(tmp_path, status):
    environment = stand_ins(tmp_path, ray=RAY, lore=f"{BOTH_STARTED}; exit {status}")
    command = ["bash", LAUNCH / "slurm" / "label.sbatch", "pairs/", "--judge", "runs/grpo", "-o", "labels/"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    head, worker, health = sorted(calls(tmp_path, "ray"), key=lambda words: (words[0] != "start", words[1] != "--head"))
    assert head[:3] == ["start", "--head", "--port=21234"] and health == ["health-check", "--address", "node1:21234"]
    assert worker[:2] == ["start", "--address=node1:21234"]
    assert {"--num-cpus=16", "--num-gpus=8", "--block"} <= set(head) & set(worker)
    on_head, on_workers = calls(tmp_path, "srun")
    assert "--nodelist=node1" in on_head and {"--exclude=node1", "--nodes=1", "--kill-on-bad-exit=0"} <= set(on_workers)
    assert calls(tmp_path, "lore") == [["label", *map(str, command[2:]), "--ray", "node1:21234"]]
    tokens = (tmp_path / "tokens").read_text().split("\n")
    assert tokens[0] == tokens[1] and re.fullmatch("token [0-9a-f]{64}", tokens[0])
    assert not [pid for pid in (tmp_path / "pids").read_text().split() if Path("/proc", pid).exists()]


def test_a_job_on_a_cluster_takes_its_arguments_as_they_are(tmp_path):
    environment = stand_ins(tmp_path, ray="shift 3; printf '%s\\n' \"$@\" > job")
    command = [LAUNCH / "ray" / "label.sh", "my pairs/", "--judge", "runs/grpo", "-o", "labels/"]
    subprocess.run(command, env=environment, check=True, timeout=30, cwd=tmp_path)
    words = (tmp_path / "job").read_text().splitlines()
    assert words[:3] == ["sh", "-c", 'cd /work && exec lore label --ray auto "$@"'] and words[4:] == command[1:]


def test_each_file_has_its_line_in_the_readme():
    text = (LAUNCH / "README.md").read_text()
    for path in (*SCRIPTS, *(LAUNCH / "kubernetes").iterdir(), LAUNCH / "ray" / "cluster.yaml", LAUNCH / "Dockerfile"):
        assert f"`{path.relative_to(LAUNCH).as_posix()}`" in text, path
