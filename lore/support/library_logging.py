"""Hides progress bars and notes of the libraries from the output of a stage. LORE_DEBUG=1 shows everything.

Import this module before the libraries: its filter must be in place first. Importing it is cheap; `silence` loads the libraries.
"""

import logging
import os
import warnings

# Loggers that warn about settings that the stages choose deliberately.
NOISY = ("accelerate.utils.other", "torch.distributed.elastic.multiprocessing.redirects")


class _NoAcceleratorNote(logging.Filter):
    """Drops the note about a missing GPU that DeepSpeed logs at import, even if a run does not use DeepSpeed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Setting accelerator to CPU" not in record.getMessage()


if not os.environ.get("LORE_DEBUG"):
    logging.getLogger("DeepSpeed").addFilter(_NoAcceleratorNote())


def silence() -> None:
    """Call it before models and data are loaded. Further calls have no effect."""
    if os.environ.get("LORE_DEBUG"):
        return
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|torch)\b.*")
    # Loads torch: only where a stage runs.
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.utils.logging.set_verbosity_error()
