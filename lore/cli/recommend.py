"""`lore recommend`: what a trained recommender would show next, and why. Imports inside functions keep `lore --help` fast.

lore recommend runs/recommend/finetune --history B00D3QFHN8,B002SQJL9U
lore recommend runs/recommend/eval --row item-kNN --users users.csv --json
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lore.support.errors import LoreError
from lore.support.terminal import print_json, print_line, print_note
from lore.support.text import counted, printable

if TYPE_CHECKING:  # loads numpy: only where something is recommended
    from lore.recommend.histories import Histories
    from lore.recommend.retriever import Candidate, Evidence

TITLE_CHARACTERS, NAMED_UNKNOWN, NAMED_SESSIONS = 60, 20, 3


def recommend(
    run: Path = typer.Argument(..., metavar="RUN", help="Run of stage recommender, or of recommend_eval."),
    history: str = typer.Option(
        None, metavar="ITEM,...", help='Item ids that a shopper took, the oldest first; one with a comma in "".'
    ),
    users: Path = typer.Option(None, metavar="FILE", help="Table with a column user_id (of a run by session, USER/SESSION)."),
    k: int = typer.Option(10, "-k", min=1, max=10_000, help="Number of items to show."),
    row: str = typer.Option(None, metavar="ROW", help="Row of a run of recommend_eval. Default: its reference."),
    repeats: bool = typer.Option(False, "--repeats", help="Also show items of the history."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per history instead of tables."),
) -> None:
    """Show what comes next for a shopper, and why.

    The reasons are past items that share a prefix of codes with it, or were taken together with it in training.
    """
    if (history is None) == (users is None):
        raise LoreError("Name one history with --history a,b,c, or a table of users with --users FILE.")
    from lore.recommend.retriever import Query, open_retriever
    from lore.recommend.tables import read_titles
    from lore.support.nearest import nearest
    from lore.support.text import shortened

    retriever, histories, section = open_retriever(run, row)
    wanted = _histories(users, histories, section.by) if users is not None else iter([(None, _items(history))])
    titles = {} if section.items is None else read_titles(section.items)
    for user, past in wanted:
        retrieved = retriever.retrieve(Query(history=past), k, repeats=repeats)
        unknown = {item: nearest(item, histories.item_ids) for item in retrieved.unknown[:NAMED_UNKNOWN]}
        if as_json:
            print_json(
                {
                    **({} if user is None else {"user_id": user}),
                    "history": past,
                    "unknown": [{"item_id": item, "nearest": near or None} for item, near in unknown.items()],
                    "items": [_as_json(one, titles) for one in retrieved.candidates],
                }
            )
            continue
        for item, near in unknown.items():
            hint = f" Nearest: {printable(near)}." if near else ""
            print_note(f"{printable(shortened(item, TITLE_CHARACTERS))} is not in the catalogue and is left out.{hint}")
        if retrieved.candidates:
            _print(user, past, retrieved.candidates, titles)
        elif user is not None:
            print_note(
                f"{printable(user)} took every item of the catalogue, so nothing is left to show. --repeats shows them again."
            )
        elif set(histories.item_ids) <= set(past):
            raise LoreError("The history has every item of the catalogue, so nothing is left to show. --repeats shows them again.")
        else:
            raise LoreError(
                "The history has no item of the catalogue, so nothing follows from it. Item ids are those of the events."
            )


def _items(text: str) -> list[str]:
    """Ids between commas, as a csv file has them: one with a comma stands in double quotes."""
    try:
        found = [part.strip() for row in csv.reader([text], skipinitialspace=True) for part in row if part.strip()]
    except csv.Error as error:
        raise LoreError(f'--history cannot be read as ids between commas ({error}). Write an id with a comma as "a,b".') from error
    if not found:
        raise LoreError("--history is empty. Name item ids, such as --history a,b,c, the oldest first.")
    return found


def _histories(path: Path, histories: Histories, by: str) -> Iterator[tuple[str, list[str]]]:
    """(user, item ids) of the users of a table; by session, of its sessions. One without events is told and left out."""
    from lore.data.rejected_rows import Rejection
    from lore.data.tables.any_table import table_records
    from lore.data.tables.ids import known_as

    row_of, spelled = {user: row for row, user in enumerate(histories.user_ids)}, known_as(histories.user_ids)
    for record in table_records(path, ["user_id"], [], what="--users: "):
        if isinstance(record, Rejection):
            print_note(f"--users: {record}")
            continue
        user = spelled(record[1]["user_id"])
        if user not in row_of:
            hint = ""
            if by == "session":
                named = [one for one in histories.user_ids if one.startswith(f"{user}/")][:NAMED_SESSIONS]
                such = f", such as {printable(', '.join(named))}" if named else ""
                hint = f" The run's histories are sessions (data.by), named USER/SESSION{such}."
            print_note(f"{printable(user)} has no history in the run's events and is left out.{hint}")
            continue
        start, end = histories.starts[row_of[user]], histories.starts[row_of[user] + 1]
        yield user, [histories.item_ids[item] for item in histories.items[start:end]]


def _as_json(one: Candidate, titles: dict[str, str]) -> dict[str, Any]:
    why = [{"item_id": past.item_id, "shared_codes": past.shared, "taken_together": past.together} for past in one.evidence]
    title = {"title": titles[one.item_id]} if one.item_id in titles else {}
    return {"item_id": one.item_id, **title, "score": one.score, "why": why}


def _print(user: str | None, past: list[str], candidates: list[Candidate], titles: dict[str, str]) -> None:
    from lore.run.summary import print_table
    from lore.support.text import shortened

    columns = ["", "item", *(["title"] if titles else []), "score", "why"]
    cells = []
    for number, one in enumerate(candidates, 1):
        title = [shortened(titles.get(one.item_id, ""), TITLE_CHARACTERS)] if titles else []
        cells.append([str(number), one.item_id, *title, f"{one.score:.4g}", "; ".join(map(_why, one.evidence))])
    shown = shortened(f"{f'{user}: ' if user else ''}after {', '.join(past[-10:])}", 200)
    print_table(shown, columns, cells)
    if not any(one.evidence for one in candidates):
        print_line("No candidate shares a code or a training history with the items of the history.")


def _why(past: Evidence) -> str:
    parts = [counted(past.shared, "common code")] if past.shared else []
    parts += [f"{past.together} took both"] if past.together else []
    return f"{past.item_id}: {', '.join(parts)}"
