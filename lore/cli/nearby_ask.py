"""`lore nearby ask`: what answers a need within a walk. Imports inside functions keep `lore --help` fast.

lore nearby ask town.db "somewhere quiet to work, open now" --at 41.88,-87.63 --time "Tue 15:00"
lore nearby ask town.db "安静的咖啡馆，走路十分钟" --at 41.88,-87.63 --json
"""

from __future__ import annotations

from pathlib import Path

import typer

from lore.support.terminal import print_json, print_lines, print_note


def ask(
    town: Path = typer.Argument(..., metavar="TOWN", help="Town that `lore nearby index` wrote."),
    question: str = typer.Argument(..., metavar="QUESTION", help="What you need, in English or Chinese."),
    at: str = typer.Option(..., "--at", metavar="LAT,LON", help="Your position in degrees, such as 41.88,-87.63."),
    time: str = typer.Option(None, metavar="TIME", help="When, such as 'Tue 15:00'. Default: the question's, or now."),
    minutes: float = typer.Option(None, min=1, max=120, help="Longest walk. Default: the question's, or 15."),
    around: str = typer.Option(None, metavar="NAME", help="Middle of the circle: a place or area of the town."),
    need: list[str] = typer.Option(None, metavar="NEED", help="Need, in place of those understood; repeatable."),
    k: int = typer.Option(4, "-k", min=1, max=100, help="Number of places to show."),
    judge: Path = typer.Option(None, metavar="FOLDER", help="Judge or student of rubric local_life that orders the places."),
    model: Path = typer.Option(None, metavar="FILE", help="YAML with a section model or endpoint: a language model."),
    relations: Path = typer.Option(None, metavar="FILE", help="Your own relations. Default: those of LORE."),
    encoder: str = typer.Option(None, metavar="FOLDER", help="Where the town's encoder lies now. Default: as at indexing."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object with the evidence of each layer."),
) -> None:
    """Find places within a walk that answer a need, with reasons.

    The line that begins with "understood" says how the question was read; options correct it.
    """
    from lore.nearby.answer import as_json as to_json
    from lore.nearby.ask import ask as answer_to
    from lore.nearby.ask import clock, open_layers
    from lore.nearby.intent import Corrections, read_position
    from lore.nearby.town import Town

    lat, lon = read_position(at)
    correction = Corrections(needs=need or None, time=time, minutes=minutes, around=around)
    with Town.open(town) as opened:
        layers = open_layers(opened, relations=relations, encoder=encoder, judge=judge, model=model)
        answer = answer_to(opened, question, lat, lon, now=clock(opened), k=k, corrections=[correction], **layers)
        if as_json:
            print_json(to_json(answer, opened.place_ids))
            return
    print_note(f"understood: {answer.understood}")
    for note in answer.notes:
        print_note(note)
    print_lines(answer.text)
    if answer.struck or answer.refused:
        print_note(f"struck: {answer.struck} sentences without evidence; refused: {answer.refused} grades against a computed rule")
