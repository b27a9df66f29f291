"""Step 3, rules: the rule and its tier for each demand, then the verdict."""

from lore.codec.prompt import Message
from lore.data.pair import Pair
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import MAX_TEXT, Evidence, Ruling, Unreadable, Wish, json_objects, one_object, rows_of
from lore.support.text import encodable


def prompt(prompts: Prompts, pair: Pair, wishes: list[Wish], evidence: list[Evidence], hint: str | None) -> list[Message]:
    """hint: the human label, for a teacher that must explain it."""
    values = {"query": pair.query, "wishes": wishes[: len(evidence)], "evidence": evidence, "hint": hint}
    return prompts.messages("rules", **values)


def read(text: str, wishes: list[Wish]) -> tuple[list[Ruling], list[str]]:
    """Parses the rulings and every verdict in the answer; a valid one has one verdict. Raises Unreadable for any other form."""
    answer = one_object(text, "verdict")
    if not isinstance(answer["verdict"], str | int):
        raise Unreadable(f"verdict is {str(answer['verdict'])[:60]!r}, not a tier")
    if "rulings" not in answer:
        raise Unreadable("a verdict without rulings")
    rows = rows_of(answer, "rulings", ("rule", "tier"))
    if not rows or len(rows) > len(wishes):
        raise Unreadable(f"{len(rows)} rulings for {len(wishes)} demands")
    verdicts = [encodable(str(value["verdict"]))[:MAX_TEXT] for value in json_objects(text) if "verdict" in value]
    return [Ruling(**row) for row in rows], verdicts
