"""Step 1, knowledge: the demands of the query. Jargon, product lines, nicknames and needs are resolved, with facts if given."""

from lore.codec.prompt import Message
from lore.data.pair import Pair
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import Unreadable, Wish, one_object, rows_of
from lore.rubric.rubric import Rubric


def prompt(prompts: Prompts, pair: Pair, facts: list[str]) -> list[Message]:
    return prompts.messages("knowledge", query=pair.query, facts=facts)


def read(text: str, rubric: Rubric) -> list[Wish]:
    """Parses the demands of an answer. Raises Unreadable for any other form, or a dimension that the rubric does not have."""
    rows = rows_of(one_object(text, "demands"), "demands", ("dimension", "words", "wanted"))
    if not rows:
        raise Unreadable("no demand: every query asks for something")
    known = {dimension.id for dimension in rubric.dimensions}
    for row in rows:
        if known and row["dimension"] not in known:
            raise Unreadable(f"dimension {row['dimension'][:60]!r} is none of the rubric's")
        if not row["wanted"]:
            raise Unreadable(f"a demand of dimension {row['dimension']} that wants nothing")
    return [Wish(**row) for row in rows]
