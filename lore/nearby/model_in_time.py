"""A language model whose failures cost a question some seconds at most, and tell its client nothing of the server behind it."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lore.engines.engine import Completion, Engine, Messages, Sampling
from lore.online.breaker import Breaker
from lore.online.exchange import log
from lore.support.errors import LoreError

SECONDS, FAILURES, OPEN_SECONDS = 10.0, 2, 30.0
LEFT_ALONE = "The language model does not answer in time, so grammar and template answer without it."


class ModelInTime:
    """Asks an engine one prompt at a time, and waits `seconds` for it. After FAILURES in a row it is left alone for OPEN_SECONDS.
    The server's log has the reasons."""

    def __init__(self, engine: Engine, seconds: float = SECONDS):
        self._engine, self._seconds = engine, seconds
        self._breaker, self._lock = Breaker(FAILURES, OPEN_SECONDS), threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="language-model")

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """Raises LoreError for a model that fails, is late, or is left alone."""
        with self._lock:
            ticket = self._breaker.admit()
        if ticket is None:
            raise LoreError(LEFT_ALONE)
        future = self._pool.submit(self._engine.generate, prompts, sampling)
        try:
            found: Any = future.result(self._seconds)
        except (LoreError, TimeoutError) as error:
            future.cancel()
            with self._lock:
                self._breaker.failure(ticket)
            why = str(error).partition("\n")[0] or f"no answer within {self._seconds:g} s"
            log.log(logging.WARNING, json.dumps({"level": "warning", "message": f"language model: {why}"}))
            raise LoreError(LEFT_ALONE) from error
        with self._lock:
            self._breaker.success(ticket)
        return found
