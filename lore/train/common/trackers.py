"""Experiment trackers: sends the lines of metrics.jsonl to TensorBoard, Weights & Biases, MLflow or Trackio while a run trains.

    lore run recipes/sft.yaml track=[tensorboard,wandb]

metrics.jsonl is the source: it holds the trainer's values, the periodic evaluation, the reward parts and the KL divergence. For
each tracker, a thread of the main process follows it, so training never waits for a server. The run there gets the recipe as its
configuration and the step of each line. W&B counts steps by itself, so there the step is the metric `step`, its x-axis.

A resumed run writes the lines after its checkpoint again. <run>/tracking/NAME.json holds the id of the tracker's run and the number
of lines sent to it, so the same run continues and gets no line twice. A tracker that is added later gets all lines from the start.
A killed process can lose what the tracker's package had not yet written: about a second.

The callbacks of transformers (report_to) are not used. They see only what the trainer logs, send TrainingArguments and paths
instead of the recipe, repeat steps when a run resumes, upload checkpoints if HF_MLFLOW_LOG_ARTIFACTS or WANDB_LOG_MODEL is set, and
end the run when a server cannot be reached. Nothing here uploads code, weights, texts or photos.
"""

import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any, Protocol

from lore.config.secrets import is_secret_name, mask
from lore.config.yaml_text import to_yaml
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import reason
from lore.support.plain import flatten
from lore.support.processes import is_main_process, say
from lore.support.terminal import print_note
from lore.support.untrusted_json import parse_object
from lore.train.common.config import TRACKING, TrackedRecipe, turned_off

POLL_SECONDS = 1.0
END_SECONDS, PATIENCE_SECONDS = 60.0, 5.0  # how long the end of training waits for a tracker; when it says so
MLFLOW_PARAMETER_CHARACTERS, MLFLOW_PARAMETERS = 500, 100  # limits of the oldest servers
MLFLOW_METRICS = 1000
URL_SECRET = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s]*$")


@dataclass
class Run:
    """The run as a tracker sees it. folder: for the tracker's own files; id: of the run that a resumed run continues, or None."""

    name: str
    folder: Path
    config: dict[str, Any]
    id: str | None

    @property
    def project(self) -> str:
        """The folders of a nested run, such as shop-noise for shop/noise/sft."""
        return "-".join(self.name.split("/")[:-1]) or "lore"


class Tracker(Protocol):
    """One open run of a tracker. id: with which a resumed run continues it; place: where people find it."""

    id: str
    place: str

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files below <run>/tracking/tensorboard (or $TENSORBOARD_LOGGING_DIR/<run>). The recipe is a text."""

    def __init__(self, run: Run):
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        base = os.environ.get("TENSORBOARD_LOGGING_DIR")
        self.place = str(Path(base).expanduser() / run.name if base else run.folder / "tensorboard")
        self.id = run.id or run.name
        # A new run in a folder with events, such as one whose state was lost: the events that are sent again replace the old ones.
        self.writer = SummaryWriter(self.place, purge_step=0 if run.id is None and Path(self.place).is_dir() else None)
        if run.id is None:
            self.writer.add_text("recipe", f"```yaml\n{to_yaml(run.config)}```")

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb:
    """A W&B run. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and W&B's other variables apply. Console output and code stay here."""

    def __init__(self, run: Run):
        import wandb  # an optional package

        settings = {"silent": True, "console": "off", "disable_code": True, "disable_git": True, "login_timeout": END_SECONDS}
        if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # 15 s by default, which a killed run would lose
            settings["x_transaction_log_flush_interval"] = POLL_SECONDS
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run.id or uuid.uuid4().hex[:12],
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            config=run.config if run.id is None else None,
            save_code=False,
            settings=wandb.Settings(**settings),
        )
        self.id = self.run.id
        self.place = f"offline; wandb sync {Path(self.run.dir).parent}" if self.run.offline else self.run.url or "off (WANDB_MODE)"
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """A run in MLflow at MLFLOW_TRACKING_URI, or in <run>/tracking/mlflow.db. No artifacts."""

    def __init__(self, run: Run):
        import mlflow  # an optional package

        place = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else f"sqlite:///{run.folder.resolve()}/mlflow.db"
        self.metric = mlflow.entities.Metric
        self.client = mlflow.MlflowClient(place)
        if run.id is not None:
            self.id = run.id
            self.client.update_run(self.id, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
            known = self.client.get_experiment_by_name(experiment)
            number = known.experiment_id if known else self.client.create_experiment(experiment)
            self.id = self.client.create_run(number, run_name=run.name).info.run_id
            parameters = [
                mlflow.entities.Param(_mlflow_name(key), str(value)[:MLFLOW_PARAMETER_CHARACTERS])
                for key, value in flatten(run.config).items()
            ]
            for start in range(0, len(parameters), MLFLOW_PARAMETERS):
                self.client.log_batch(self.id, params=parameters[start : start + MLFLOW_PARAMETERS])
        self.place = f"{place}, run {self.id}"

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time())
        metrics = [self.metric(_mlflow_name(name), float(value), now, step) for name, value in values.items()]
        for start in range(0, len(metrics), MLFLOW_METRICS):
            self.client.log_batch(self.id, metrics=metrics[start : start + MLFLOW_METRICS])

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters of any script, digits and _ - . / : and space."""
    return re.sub(r"[^\w\-. /:]", lambda found: f"u{ord(found[0]):04x}", name)


class Trackio:
    """A run in Trackio's own folder (TRACKIO_DIR), or in a Space or server that its variables name."""

    def __init__(self, run: Run):
        import trackio  # an optional package

        new = run.id is None
        self.run = trackio.init(
            os.environ.get("TRACKIO_PROJECT") or run.project,
            name=run.name,
            config=run.config if new else None,
            resume="never" if new else "allow",
            embed=False,
        )
        self.id = run.id or run.name
        self.place = f"trackio show --project {self.run.project}"

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish()


OPEN = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


@contextmanager
def tracked(recipe: TrackedRecipe | None, folder: RunFolder) -> Iterator[None]:
    """Sends metrics.jsonl to the trackers of the recipe while the block runs. Does nothing outside the main process. Truncate
    metrics.jsonl before, not inside."""
    followers = []
    for name in recipe.track if recipe and is_main_process() else ():
        if variable := turned_off(name):
            say(f"{name}: off, because {variable} is set")
        else:
            followers.append(Follower(name, recipe, folder))
    failed = True
    try:
        for follower in followers:
            follower.thread.start()
        yield
        failed = False
    finally:
        for follower in followers:
            follower.end(failed)
        deadline = monotonic() + END_SECONDS
        for follower in followers:
            follower.wait(deadline)


class Follower:
    """Follows metrics.jsonl for one tracker. A tracker that fails is given up with a warning; the next start of the run sends what
    it has missed."""

    def __init__(self, name: str, recipe: TrackedRecipe, folder: RunFolder):
        self.name, self.recipe, self.folder = name, recipe, folder
        self.state_path = folder / TRACKING / f"{name}.json"
        self.tracker: Tracker | None = None
        self.id: str | None = None  # of the tracker's run
        self.sent = 0  # lines
        self.read = self.lines = 0  # bytes and lines of metrics.jsonl that were read
        self.failed, self.warned, self.ending = False, False, threading.Event()
        self.thread = threading.Thread(target=self._follow, name=f"tracker {name}", daemon=True)

    def end(self, failed: bool) -> None:
        """Makes the thread send the last lines and close the tracker's run."""
        self.failed = failed
        self.ending.set()

    def wait(self, deadline: float) -> None:
        """Waits for the thread, at most until `deadline` (of `monotonic`)."""
        self.thread.join(max(0.0, min(PATIENCE_SECONDS, deadline - monotonic())))
        if self.thread.is_alive():
            say(f"waiting up to {max(0.0, deadline - monotonic()):.0f} s for {self.name}")
            self.thread.join(max(0.0, deadline - monotonic()))
        if self.thread.is_alive():
            self._warn(f"did not finish within {END_SECONDS:.0f} s")

    def _follow(self) -> None:
        try:
            self._read_state()
            ending = False
            while not ending:
                ending = self.ending.wait(POLL_SECONDS)  # before reading, so that the last round reads everything
                self._send_new_lines()
            if self.tracker is not None:
                self.tracker.close(self.failed)
        except (Exception, SystemExit) as error:  # whatever a package raises; training goes on
            self._warn(f"failed: {reason(error).rstrip('.')}")

    def _send_new_lines(self) -> None:
        if not self.folder.metrics_path.is_file():
            return
        with open(self.folder.metrics_path, "rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.split(b"\n")[:-1]:
            self.lines += 1
            if self.lines > self.sent:
                self._send(line)

    def _send(self, line: bytes) -> None:
        try:
            values = parse_object(line)
            step = values.get("step", 0)
            if type(step) is not int:
                raise ValueError("its step is no whole number")
        except ValueError as error:
            self._say(f"gets no values of line {self.lines} of metrics.jsonl, which is damaged ({reason(error)})")
            return
        if self.tracker is None:
            # With the first line, so that a run without one keeps no trace of a tracker.
            (self.folder / TRACKING).mkdir(exist_ok=True)
            run = Run(self.recipe.run, self.folder / TRACKING, published(self.recipe.resolved()), self.id)
            self.tracker = OPEN[self.name](run)
            say(f"{self.name}: {self.tracker.place}")
        # Counted before it is sent: a process that is killed in between loses a line, and does not send one twice.
        self._write_state(self.lines)
        try:
            self.tracker.log(scalars(values), step)
        except BaseException:
            self._write_state(self.lines - 1)
            raise

    def _read_state(self) -> None:
        if not self.state_path.is_file():
            return
        try:
            state = parse_object(self.state_path.read_bytes())
            if type(state.get("id")) is not str or type(state.get("lines")) is not int or state["lines"] < 0:
                raise ValueError("no id and number of lines")
        except (OSError, ValueError) as error:
            # What was sent is unknown, and so is the run that has it.
            self._say(f"gets all values again, as a new run: {self.state_path} is damaged ({reason(error)})")
        else:
            self.id, self.sent = state["id"], state["lines"]

    def _write_state(self, lines: int) -> None:
        self.sent = lines
        write_atomic(self.state_path, json.dumps({"id": self.tracker.id, "lines": lines}) + "\n")

    def _warn(self, what: str) -> None:
        if self.warned:
            return
        self.warned = True
        self._say(f"{what}. Training is not affected, and metrics.jsonl holds every value")

    def _say(self, what: str) -> None:
        print_note(f"warning: {self.name} {what}.")


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl under the names of the file, without the step: {"probe": {"kl": 0.1}} is probe/kl."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat.update({f"{key}/{name}": number for name, number in scalars(value).items()})
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            flat[key] = value
    return flat


def published(value: Any) -> Any:
    """A recipe's values without those whose name is that of a secret, without users, passwords and queries of URLs, and with what
    looks like a key masked."""
    if isinstance(value, dict):
        return {key: published(inner) for key, inner in value.items() if not is_secret_name(key)}
    if isinstance(value, list):
        return [published(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return mask(URL_SECRET.sub("", value) if "://" in value else value)
