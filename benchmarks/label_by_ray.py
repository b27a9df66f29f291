"""Labels pairs with plain ray.data and its CheckpointConfig, as its documentation shows it. Called by label_faults.py."""

import ray
from label_stub import ask, read_job
from ray.data.checkpoint import CheckpointConfig

job = read_job()


def judge(batch: dict) -> dict:
    return {"pair_id": batch["pair_id"], "tier": ask(list(batch["title"]), job)}


# Two workers, and cores for reading and for the filter of the checkpoint: with two in all the pipeline waits for itself.
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
    id_column="pair_id", checkpoint_path=f"{job.out}.checkpoint", delete_checkpoint_on_success=not job.keep
)
pairs = ray.data.read_parquet(job.pairs).repartition(target_num_rows_per_block=250)  # else this small input is one block
pairs.map_batches(judge, batch_size=50, concurrency=2).write_parquet(job.out)
