"""The program teacher of the embedded shop: exact, from texts and pixels alone."""

import pytest

from lore.data_synth.shop.oracle_teacher import ShopProgram, read_photo
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.program import ProgramTeacher
from lore.data_synth.synthesis.trace import Unreadable


def facts_about(world, text):
    return [Fact("", **fact) for fact in world.lexicon.facts() if fact["phrase"] in text]


def worked_out(program, world, pair):
    wishes = program.knowledge(pair, facts_about(world, pair.query))
    evidence = program.multimodal(pair, wishes, facts_about(world, " ".join([pair.title, *pair.attributes.values()])))
    rulings = program.rules(pair, wishes, evidence)
    return [(w.dimension, w.wanted, e.found, e.source, r.rule, r.tier) for w, e, r in zip(wishes, evidence, rulings, strict=False)]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_traces_are_the_shops_own_truth(language, split):
    world = World(5, language)
    program = ShopProgram(world.rubric, language)
    for pair in world.pairs(split, 600):
        bare = type(pair)(
            pair_id=pair.pair_id,
            query=pair.query,
            title=pair.title,
            attributes=pair.attributes,
            brand=pair.brand,
            price=pair.price,
            image=pair.image,
        )
        truth = [(d.dimension, d.wanted, d.found, d.source, d.rule, d.tier) for d in pair.demands]
        assert worked_out(program, world, bare) == truth


def test_a_changed_rule_changes_the_verdict(tmp_path):
    text = (World(0).rubric.model_dump_json()).replace('"within":0.1', '"within":0.0')
    from lore.rubric.rubric import Rubric

    strict = Rubric.model_validate_json(text, strict=False)
    world = World(5)
    program, changed = ShopProgram(world.rubric), ShopProgram(strict)
    near = [pair for pair in world.pairs("train", 2000) if any(d.rule == "size-near" for d in pair.demands)]
    assert near
    for pair in near:
        assert [row[4] for row in worked_out(program, world, pair)] != [row[4] for row in worked_out(changed, world, pair)]


def test_without_facts_jargon_is_not_resolved():
    world = World(5)
    program = ShopProgram(world.rubric)
    jargon = [pair for pair in world.pairs("train", 2000) if "hard:jargon" in pair.slices]
    assert jargon
    for pair in jargon:
        with pytest.raises(Unreadable, match="no word that lexicon or facts know"):
            program.knowledge(pair, [])


def test_photos_are_read_from_their_pixels():
    world = World(8)
    for number in range(400):
        pair, offered = world.catalogue_item(number)
        if pair.image is None:
            continue
        seen = read_photo(pair.image["bytes"], world.lexicon)
        for dimension in ("colour", "pattern"):
            if offered[dimension].source == "photo":
                assert seen[dimension].value == offered[dimension].value
                assert seen[dimension].accent == offered[dimension].accent


def test_errors_come_in_the_share_asked_for_and_with_every_draw_anew():
    world = World(5)
    exact, wrong = (ProgramTeacher(ShopProgram(world.rubric), world.rubric, errors) for errors in (0.0, 0.3))
    pairs = list(world.pairs("train", 1200))
    slips = [[], []]
    for pair in pairs:
        facts = facts_about(world, pair.query)
        right = exact.knowledge(pair, facts, 0)
        for draw in (0, 1):
            slips[draw].append(wrong.knowledge(pair, facts, draw) != right)
        assert wrong.knowledge(pair, facts, 0) == wrong.knowledge(pair, facts, 0)
    assert 0.25 < sum(slips[0]) / len(pairs) < 0.35
    assert slips[0] != slips[1]
