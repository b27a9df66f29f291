"""`lore nearby recommend`: your places now, and new nearby. Imports inside functions keep `lore --help` fast.

lore nearby recommend town.db --user visits.csv --at 41.88,-87.63 --time "Tue 15:00"
lore nearby recommend town.db --user visits.csv --json
lore nearby recommend town.db --user visits.csv --profile me.json
lore nearby recommend --forget me.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lore.cli.options import FORCE
from lore.support.errors import LoreError
from lore.support.terminal import print_json, print_line, print_note
from lore.support.text import counted

if TYPE_CHECKING:  # loads scipy: only where something is recommended
    from lore.nearby.familiarity import Suggestion
    from lore.places.hours import Opening


def recommend(
    town: Path = typer.Argument(None, metavar="TOWN", help="Town that `lore nearby index` wrote."),
    user: Path = typer.Option(None, "--user", metavar="FILE", help="Your visits: place_id or lat and lon, time, optional user."),
    person: str = typer.Option(None, "--person", metavar="USER", help="Value of column user, if the file has several people."),
    map: str = typer.Option(None, "--map", help="Columns of the visits: time=COLUMN,place_id=COLUMN."),
    at: str = typer.Option(None, "--at", metavar="LAT,LON", help="Your position in degrees. Default: the place of the last visit."),
    time: str = typer.Option(None, "--time", metavar="TIME", help="When, such as 'Tue 15:00'. Default: now."),
    minutes: float = typer.Option(15, min=1, max=120, help="Longest walk to a new place."),
    k: int = typer.Option(5, "-k", min=1, max=100, help="Number of places in each list."),
    write_profile: str = typer.Option(None, "--profile", metavar="FILE", help="Also write what the visits tell about you."),
    forget: Path = typer.Option(None, "--forget", metavar="FILE", help="Delete a profile, and do nothing else."),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """List your places now and new places nearby, none in both.

    Three numbers explain each place: how familiar, how near, how popular; 1 is the most. Visits are read from your file and kept
    nowhere, unless you ask for a profile.
    """
    from lore.nearby import visits as own
    from lore.nearby.ask import clock
    from lore.nearby.familiarity import profile, recommendation_json
    from lore.nearby.familiarity import recommend as recommended
    from lore.nearby.intent import read_position
    from lore.nearby.times import read_time
    from lore.nearby.town import Town
    from lore.support.outputs import output_path

    if forget is not None:
        print_note(f"deleted {' and '.join(str(path) for path in own.forget_profile(forget))}")
        return
    if town is None or user is None:
        raise LoreError("Name the town and your visits: lore nearby recommend TOWN --user FILE.")
    position = None if at is None else read_position(at)
    with Town.open(town) as opened:
        now = clock(opened)
        when = now if time is None else read_time(time, now)
        read = own.read_visits(user, opened, map)
        number = read.visits.person(person)
        found = recommended(opened, read.visits, number, when, position, minutes=minutes, k=k)
        if write_profile is not None:
            target = output_path(write_profile, "--profile")
            own.write_profile(target, profile(opened, read.visits, number, when), read.rejected, [user, town], force=force)
    if as_json:
        print_json(recommendation_json(found, read, when))
        return
    if read.rejected:
        reasons = ", ".join(f"{count:,} {name}" for name, count in read.reasons.items())
        print_note(f"{counted(len(read.rejected), 'row')} rejected: {reasons}")
    for note in found.notes:
        print_note(note)
    _show("your places now", found.your_places, "No place that was visited.")
    _show("new nearby", found.new_nearby, f"No new place within {minutes:g} minutes on foot.")


def _show(title: str, places: list[Suggestion], nothing: str) -> None:
    from lore.support.console import Console, Table  # loads rich: not for --json

    if not places:
        print_line(f"{title}: {nothing}")
        return
    table = Table(title=title, title_justify="left")
    for column in ("place", "on foot", "familiar", "near", "popular", "opening"):
        table.add_column(column, overflow="fold")
    for one in places:
        numbers = ["–" if value is None else f"{value:.2f}" for value in (one.familiarity, one.distance, one.popularity)]
        walk = f"{max(1, round(one.minutes))} min, {round(one.metres, -1):.0f} m"
        table.add_row(f"{one.place.name[:60]} [{one.place.place_id[:30]}]", walk, *numbers, _told(one.opening))
    Console().print(table)


def _told(opening: Opening) -> str:
    return opening.state if opening.until is None else f"{opening.state} until {opening.until:%a %H:%M}"
