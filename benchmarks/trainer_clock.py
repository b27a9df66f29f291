"""Runs a training program of any framework and measures its training: CPU seconds of transformers' `Trainer.train`, which has no
imports, loading or saving; tokens and labels that reach `Trainer.training_step`; and the logged losses.

    python benchmarks/trainer_clock.py FILE MODULE [ARGUMENT ...]     runs `python -m MODULE ARGUMENT ...` and writes FILE (JSON)

It needs nothing but torch and transformers, because each framework has a virtual environment of its own.
"""

import json
import runpy
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import Trainer

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llamafactory", "ms-swift")
IGNORE = -100


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    train, training_step = Trainer.train, Trainer.training_step
    seen = {"tokens": 0, "padded_tokens": 0, "labels": 0}

    def counted_step(self, model, inputs, *more, **options):
        seen["tokens"] += int(inputs["attention_mask"].sum())
        seen["padded_tokens"] += inputs["input_ids"].numel()
        seen["labels"] += int((inputs["labels"] != IGNORE).sum())
        return training_step(self, model, inputs, *more, **options)

    def timed_train(self, *given, **options):
        began = time.process_time()
        done = train(self, *given, **options)
        seconds = time.process_time() - began
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        report = {"cpu_seconds": seconds, **seen, "steps": self.state.global_step, "losses": losses, "trained_parameters": trained}
        Path(path).write_text(json.dumps(report | {"versions": installed()}))
        return done

    Trainer.train, Trainer.training_step = timed_train, counted_step
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
