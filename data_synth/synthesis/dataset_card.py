"""The card of a synthesized data set: README.md beside its Parquet files, with inputs, results and reasons for rejection.

    counts = Counts()
    for trace in read_traces(store, number): counts.add(trace)
    write_atomic(folder / "README.md", card_text(counts, title="my-set", rubric=rubric, ...))

The file's YAML header lets `datasets.load_dataset(folder)` find every split. Queries, titles and teachers' texts are untrusted:
every text becomes one line without markup before it enters the card.
"""

import re
from typing import Any

import yaml

from lore.codec.markdown import markdown_text
from lore.codec.sanitize import neutralize
from lore.data_synth.synthesis.summary import Counts, percent, tables
from lore.rubric.rubric import Rubric


def card_text(
    counts: Counts,
    *,
    title: str,
    rubric: Rubric,
    teachers: list[str],
    recipe: str,
    seconds: float,
    budget: list[str],
    complete: bool,
    splits: list[str],
    language: str = "en",
) -> str:
    """The text of README.md. teachers, budget: one line per entry; recipe: YAML; splits: those with a `<split>.parquet`."""
    accepted = sum(counts.accepted.values())
    lines = [_head(title, splits, language, accepted), f"# {markdown_text(title)}", ""]
    if not complete:
        lines += ["**Incomplete: the run stopped before every pair had a trace. Run the same recipe again to resume.**", ""]
    named = f"{markdown_text(rubric.name)} (version {markdown_text(rubric.version)}, hash {rubric.hash})"
    lines += [
        f"Query-item pairs with a relevance tier of rubric {named} and the reasoning that leads to it.",
        f"Of {counts.pairs:,} rated pairs {accepted:,} ({percent(accepted, counts.pairs)}) have reasoning that passed every check.",
        "The reasoning is synthetic; queries, items and human labels come from the source.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'pairs = load_dataset("path/of/this/folder")',
        "```",
        "",
        "`rationale` holds the reasoning, `demands` the same as a list, `label` the tier. A row without a rationale has only its",
        "human label. Facts and captions that the teacher saw are in the run's traces, not in this data set.",
        "",
    ]
    for table in tables(counts, rubric.tier_ids):
        lines += [f"## {table.title}", "", *_markdown(table.columns, table.rows), *([table.note, ""] if table.note else [])]
    lines += ["## Teachers", "", *(f"- {markdown_text(line)}" for line in teachers), "", "## Cost", ""]
    lines += [f"- {seconds:,.0f} seconds", *(f"- {markdown_text(line)}" for line in budget), ""]
    lines += [f"## {len(counts.samples)} random traces", ""]
    lines += _markdown(["query", "item", "reasoning", "verdict", "label", "outcome"], [_sample_row(s) for s in counts.samples])
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", recipe)), default=0))
    lines += ["## Recipe", "", f"{fence}yaml", recipe.rstrip("\n"), fence]
    return "\n".join(lines) + "\n"


def _head(title: str, splits: list[str], language: str, rows: int) -> str:
    files: dict[str, list[str]] = {}
    for split in splits:  # datasets allows only word characters in split names
        files.setdefault(re.sub(r"\W", "_", split) or "train", []).append(f"{split}.parquet")
    size = next(
        (name for name, most in (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6)) if rows < most), "n>1M"
    )
    head: dict[str, Any] = {
        "pretty_name": neutralize(title),
        "language": [language],
        "task_categories": ["text-classification"],
        "tags": ["search-relevance", "chain-of-thought", "synthetic"],
        "size_categories": [size],
    }
    if files:
        data_files = [{"split": name, "path": paths if len(paths) > 1 else paths[0]} for name, paths in files.items()]
        head["configs"] = [{"config_name": "default", "data_files": data_files}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _markdown(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table. Cells are made plain text here."""
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)] if columns[0] != "query" else ["---"] * len(columns)]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _sample_row(sample: dict[str, Any]) -> list[str]:
    outcome = "accepted" + (" with hint" if sample["hinted"] else "")
    if not sample["accepted"]:
        outcome = "; ".join(f"{name}: {why}" for name, why in sample["why"]) or "rejected"
    return [sample["query"], sample["title"], sample["rationale"], sample["tier"] or "none", sample["label"], outcome]
