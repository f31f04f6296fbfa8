"""How an answer is written: greedily, by sampling or by beam search.

Nothing here imports jax, so that options which contradict each other are told at once. The class is
hashable: under jit it is a static argument.
"""

import math
from dataclasses import dataclass

from spt_jax.errors import require


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Greedy where nothing is set, sampling with `sample`, beam search with `num_beams` above 1.

    Args:
        num_beams: Beams of each row. The answers that it keeps are as many.
        num_results: Answers to give for each row, best first; at most `num_beams`.
        length_penalty: The score of an answer is its log-probability divided by its tokens, EOS
            included, to this power. More than 0 is kinder to long answers, less to short ones.
        sample: Draw each token instead of taking the likeliest.
        temperature: Logits are divided by it before they are drawn from.
        top_k: Draw from the k likeliest tokens only; from all where None.
        top_p: Draw from the fewest likeliest tokens that together have this probability, after
            `temperature` and `top_k`.
    """

    num_beams: int = 1
    num_results: int = 1
    length_penalty: float = 1.0
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        for name in ("num_beams", "num_results", "top_k"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected 1 or more")
        require(
            self.num_results == 1 or not self.sample,
            f"num_results is {self.num_results} with sampling, which draws one answer for a row; "
            "give the row again for another, or set sample to false and num_beams to "
            f"{self.num_results} or more",
        )
        require(
            self.num_results <= self.num_beams,
            f"num_results is {self.num_results} but num_beams is {self.num_beams}; a search gives "
            f"at most one answer a beam, so set num_beams to {self.num_results} or more",
        )
        require(
            math.isfinite(self.length_penalty),
            f"length_penalty is {self.length_penalty}, expected a finite number",
        )
        require(
            not (self.sample and self.num_beams > 1),
            f"num_beams is {self.num_beams} with sampling, expected one or the other; "
            "set num_beams to 1 or sample to false",
        )
        require(
            0 < self.temperature < math.inf,
            f"temperature is {self.temperature}, expected more than 0; "
            "for the likeliest token set sample to false",
        )
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}, expected more than 0 and at most 1")
        for name, unset in (("temperature", 1), ("top_k", None), ("top_p", 1)):
            value = getattr(self, name)
            require(
                self.sample or value == unset,
                f"{name} is {value} without sampling, which alone draws tokens; set sample to true",
            )
