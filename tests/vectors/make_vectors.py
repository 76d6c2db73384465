"""Write the vectors of draw, thresholds and rank codes from the oracles: `python -m tests.vectors.make_vectors`.

They are written once and read by the tests of every backend; a change in them changes the masks of every run.
Hexadecimal strings are 32-bit words or float32 bit patterns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.oracles import philox, ranks

FOLDER = Path(__file__).parent
LARGEST = float(np.finfo(np.float32).max)


def draw_vectors() -> list[dict[str, Any]]:
    """Random words of 16 neighbouring elements; far elements need the upper word of the block number."""
    cases = []
    for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**63, 0x0123456789ABCDEF, 2**64 - 1):
        for parameter_id, draw_number in ((0, 0), (0, 1), (3, 7), (199, 4_000_000), (2**31 - 1, 2**31 - 1)):
            for first in (0, 5, 2**18 - 6, 2**31 - 3, 2**34 - 8, 2**36 + 3):
                words = philox.random_words(seed, parameter_id, draw_number, np.arange(first, first + 16))
                cases.append(
                    {
                        "seed": seed,
                        "parameter_id": parameter_id,
                        "draw_number": draw_number,
                        "first_element": first,
                        "words": [f"{word:08x}" for word in words.tolist()],
                    }
                )
    return cases


def threshold_vectors() -> list[dict[str, Any]]:
    """The 256 thresholds and rescaling factors of ordinary and extreme (alpha, beta)."""
    pairs = [(0.9, 10.0), (0.6, 1.0), (0.6, 5.0), (0.8, 5.0), (0.8, 10.0), (0.95, 1.0), (0.95, 10.0), (0.3, 2.5)]
    pairs += [(0.0, 10.0), (1.0, 10.0), (0.5, 1e-9), (1.0, 50.0), (0.5, 1e6), (1 / 3, 0.7)]
    return [
        {
            "alpha": alpha,
            "beta": beta,
            "thresholds": [f"{t:08x}" for t in philox.thresholds(alpha, beta).tolist()],
            "rescaling_factors": float32_bits(philox.rescaling_factors(alpha, beta)),
        }
        for alpha, beta in pairs
    ]


def rank_code_vectors() -> list[dict[str, Any]]:
    """Occupied bins with their counts, and the rank code of each."""
    random = np.random.default_rng(1)
    spread = np.unique(random.integers(0, 65536, 600)).tolist()

    def counted(largest: int) -> dict[int, int]:
        return dict(zip(spread, random.integers(1, largest, len(spread)).tolist(), strict=True))

    histograms = {
        "one bin": {30000: 17},
        "one element": {0: 1},
        "all zero": {0: 12345},
        "half zero": {0: 500, 32512: 500},
        "lowest and highest bin": {0: 1, 65535: 1},
        "256 bins of one": {1000 + i: 1 for i in range(256)},
        "257 bins of one": {1000 + i: 1 for i in range(257)},
        "one large bin among small ones": {10: 3, 20000: 10**9, 30000: 3},
        "70 billion elements": counted(2**28),
        "a few elements in many bins": counted(5),
    }
    return [
        {
            "name": name,
            "bins": sorted(histogram),
            "counts": [histogram[occupied] for occupied in sorted(histogram)],
            "rank_codes": list(ranks.rank_codes_of_histogram(histogram).values()),
        }
        for name, histogram in histograms.items()
    ]


def score_vectors() -> list[dict[str, Any]]:
    """Float32 scores of several tensors, and their rank codes over all tensors together."""
    random = np.random.default_rng(2)
    lognormal = np.exp(3 * random.standard_normal(200)).astype(np.float32)
    denormal = random.integers(0, 2**23, 100).astype(np.uint32).view(np.float32)
    edges = np.array([0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x007FFFFF, 0x00800000, 0x7F7FFFFF], np.uint32).view(np.float32)
    around_one = np.array([0.0, np.nextafter(np.float32(1), 0), 1.0], np.float32)
    cases = {
        "log-normal in two tensors": [lognormal[:70], lognormal[70:]],
        "denormal": [denormal],
        "zeros and log-normal": [np.zeros(100, np.float32), lognormal],
        "edges of bins, smallest normal and largest float": [edges, around_one],
        "constant": [np.full(10, 0.25, np.float32)],
    }
    return [
        {
            "name": name,
            "scores": [float32_bits(array) for array in arrays],
            "rank_codes": [codes.tolist() for codes in ranks.percentile_rank_codes(arrays)],
        }
        for name, arrays in cases.items()
    ]


def importance_vectors() -> dict[str, list[str]]:
    """Importance before, gradient, importance after: pairs whose two roundings differ from one, and limits."""
    random = np.random.default_rng(3)
    before = np.exp(4 * random.standard_normal(500)).astype(np.float32)
    gradient = (np.sqrt(before) * random.standard_normal(500)).astype(np.float32)
    limits = [
        (0.0, 1e-23), (0.0, 1e-22), (1e-42, 1e-21), (0.0, 0.0), (2.0, -0.0), (1.0, 2.0**-12), (1.0, 2.0**-13),
        (1e38, 2e19), (LARGEST, 1.0), (0.0, 1e30), (0.0, -LARGEST), (LARGEST, LARGEST),
        (3.0, np.nan), (3.0, np.inf), (3.0, -np.inf),
    ]  # fmt: skip
    before = np.concatenate([before, np.array([b for b, _ in limits], np.float32)])
    gradient = np.concatenate([gradient, np.array([g for _, g in limits], np.float32)])
    after = ranks.accumulated(before, gradient)
    return {"before": float32_bits(before), "gradient": float32_bits(gradient), "after": float32_bits(after)}


def float32_bits(values: npt.NDArray[np.float32]) -> list[str]:
    """Bit patterns in hexadecimal."""
    return [f"{bits:08x}" for bits in np.ascontiguousarray(values).view(np.uint32).tolist()]


def all_vectors() -> dict[str, Any]:
    """The content of every file that this program writes."""
    return {
        "draw.json": draw_vectors(),
        "thresholds.json": threshold_vectors(),
        "rank_codes.json": rank_code_vectors(),
        "scores.json": score_vectors(),
        "importance.json": importance_vectors(),
    }


def main() -> None:
    """Write all files."""
    for name, content in all_vectors().items():
        rows = [json.dumps(row) for row in content] if isinstance(content, list) else None
        text = "[\n" + ",\n".join(rows) + "\n]\n" if rows is not None else json.dumps(content) + "\n"
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
