"""Keeps the libraries' own progress bars and notes out of the output of a stage; LORE_DEBUG=1 shows everything.

Importing it is cheap and comes before the libraries; `silence` imports them.
"""

import logging
import os
import warnings

# Loggers whose warnings are about what the stages set on purpose.
NOISY = ("accelerate.utils.other", "torch.distributed.elastic.multiprocessing.redirects")


class _NoAcceleratorNote(logging.Filter):
    """Takes out DeepSpeed's note that it found no GPU, which it prints while it is imported, whether used or not."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Setting accelerator to CPU" not in record.getMessage()


if not os.environ.get("LORE_DEBUG"):
    logging.getLogger("DeepSpeed").addFilter(_NoAcceleratorNote())


def silence() -> None:
    """Call before models and data are loaded; calling it again changes nothing."""
    if os.environ.get("LORE_DEBUG"):
        return
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|torch)\b.*")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.utils.logging.set_verbosity_error()
