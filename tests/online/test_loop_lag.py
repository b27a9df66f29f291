"""How late the event loop is."""

import asyncio
import time

import pytest
from students_for_tests import write_student

from lore.online.answer import Overloaded
from lore.online.config import OnlineRecipe
from lore.online.loop_lag import INTERVAL_SECONDS, LoopLag
from lore.online.service import Service
from lore.student.scorer import open_student


def test_a_burst_is_no_lag_and_an_interval_without_rest_is():
    lag = LoopLag()
    for at, delay in enumerate((0.5, 0.001, 0.4, 0.3, 0.2), 1):
        lag.note(delay, at * INTERVAL_SECONDS / 4)
    assert lag.seconds == 0.001
    for at in range(5, 9):
        lag.note(0.3, at * INTERVAL_SECONDS / 4)
    assert lag.seconds == 0.2
    lag.note(0.0, 3 * INTERVAL_SECONDS)
    assert lag.seconds == 0.0


def test_requests_are_refused_while_the_loop_is_late(tmp_path):
    recipe = {"lore": 1, "stage": "online", "run": "online", "student": {"path": str(write_student(tmp_path))}}
    recipe = OnlineRecipe.model_validate(recipe | {"serve": {"deadline_ms": 200.0}})
    service = Service(recipe, open_student(tmp_path))

    async def inside():
        service.lag.start()
        for _ in range(6):
            time.sleep(0.05)
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="behind"):
            service.refuse_if_behind()
        async with asyncio.timeout(20):
            while service.lag.seconds > 0.02:
                await asyncio.sleep(0.01)
        service.refuse_if_behind()
        service.lag.close()

    asyncio.run(inside())
