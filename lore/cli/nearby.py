"""`lore nearby`: a town of places, posts and events, and what in it answers a need within a walk (lore/nearby).

    lore nearby index places.csv -o town.db
    lore nearby ask town.db "somewhere quiet to work, open now" --at 41.88,-87.63
    lore nearby recommend town.db --user visits.csv

Imports inside functions keep `lore --help` fast.
"""

from __future__ import annotations

import typer

from lore.cli.data import JSON, show_report
from lore.cli.nearby_ask import ask
from lore.cli.nearby_recommend import recommend
from lore.cli.options import FORCE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find places within a walk.",
)
app.command()(ask)


@app.callback()
def _nearby() -> None:
    """Find places within a walk."""


@app.command()
def index(
    places: list[str] = typer.Argument(..., help="Tables (csv, tsv, parquet, jsonl), GeoJSON, Overpass JSON, .osm.pbf."),
    out: str = typer.Option(..., "-o", "--out", metavar="FILE", help="Town to write; rejected rows go to <name>.rejected.jsonl."),
    map: list[str] = typer.Option(None, "--map", help="Columns of tables: field=column,... ; tags.<key>=column. Repeatable."),
    country: str = typer.Option(None, help="Two letters of the country whose public holidays count, such as US."),
    timezone: str = typer.Option(None, help="The town's wall clock, such as America/Chicago."),
    streets: str = typer.Option(None, metavar="FILE", help="Street graph (GraphML of osmnx): walks by the streets."),
    encoder: str = typer.Option(None, metavar="FOLDER", help="Sentence encoder (folder or hub id) of the vector layer."),
    encoding: str = typer.Option(None, help="Text encoding of tables, such as latin-1; default: detected."),
    delimiter: str = typer.Option(None, help="Column delimiter of csv files, such as ';'; default: told by the header."),
    force: bool = FORCE,
    as_json: bool = JSON,
) -> None:
    """Write a town from files of places, posts and events."""
    from lore.nearby.sources import index_town
    from lore.nearby.streets import read_streets
    from lore.places.hours import check_country
    from lore.support.outputs import output_path

    target = output_path(out)
    if country is not None:
        country = country.upper()
        check_country(country)
    arrays = None if streets is None else read_streets(streets)
    encode = None
    if encoder is not None:
        from lore.nearby.graph import load_relations
        from lore.nearby.vectors import place_text, sentence_encoder  # loads torch: only with an encoder

        relations, vectors_of = load_relations(), sentence_encoder(encoder)

        def encode(places):
            return vectors_of([place_text(place, relations) for place in places])

    report = index_town(
        places,
        target,
        map=",".join(map or []) or None,
        encoding=encoding,
        delimiter=delimiter,
        country=country,
        timezone=timezone,
        encoder=encoder,
        encode=encode,
        arrays=arrays,
        force=force,
    )
    show_report(report, as_json)


app.command()(recommend)
