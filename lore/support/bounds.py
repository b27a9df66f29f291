"""Bounds of numbers that users give, in recipes and on the command line. Larger ones overflow in a library long after the check."""

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy, scikit-learn and PyTorch all take."""
MAX_COUNT = 2**31 - 1
"""Of rows, tokens, steps and pixels: they become 32-bit integers in some of the libraries."""
MAX_WEIGHT = 1e6
"""Of weights and factors: their products stay finite in float32."""
MAX_SECONDS = 31_536_000
"""A year. Timers of the operating system refuse times that are much longer."""
MIN_TEMPERATURE = 1e-3
"""Of sampling: logits divided by a smaller temperature overflow in 16 bits. 0 is greedy decoding."""
MAX_MEASURE = 1e15
"""Of numbers that stand for things of a shop: tier values and rule parameters of a rubric, query frequencies. Sums and squares of
them stay finite."""
FREELY_UNPACKED, UNPACKED_TIMES = 2**28, 200


def most_unpacked(packed_bytes: int) -> int:
    """Bytes that a compressed file of this size may unpack to: any file to FREELY_UNPACKED, a larger one to UNPACKED_TIMES its
    size. A table packs to a tenth or a twentieth; a file that is made to fill a disk or the memory, to a thousandth."""
    return max(FREELY_UNPACKED, UNPACKED_TIMES * packed_bytes)
