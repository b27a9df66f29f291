"""Labels pairs with distribatch, as its README shows it: it generates only, so the judge is a server. Called by label_faults.py."""

import logging
from pathlib import Path

import distribatch as dib
import pandas as pd
from label_stub import read_job

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    job = read_job()
    task = dib.GenerateJob(
        model=dib.models.openai(Path(job.judge).stem, base_url=job.url),
        prompt="How relevant is the item to the query?\n{query}\n{title}",
        engine_options={"max_retries": 2, "backoff_base_s": 0.1},
    )
    pairs = pd.read_parquet(job.pairs)[["pair_id", "query", "title"]]
    labels = task.run(
        pairs,
        backend="multiprocessing",
        workers=2,
        batch_size=50,
        output_col="tier",
        dedupe=True,
        checkpoint=f"{job.out}.checkpoint",
        id_col="pair_id",
        checkpoint_every=250,
    )
    Path(job.out).mkdir(exist_ok=True)
    labels[["pair_id", "tier"]].to_parquet(f"{job.out}/labels.parquet")
    if failed := int(labels["tier_error"].notna().sum()):
        print(f"{failed} rows failed: {labels['tier_error'].dropna().iloc[0]}")
