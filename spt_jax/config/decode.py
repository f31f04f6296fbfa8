"""How an answer is written: greedily, by sampling or by beam search.

Nothing here imports jax, so that options which contradict each other are told at once. The class is
hashable: under jit it is a static argument.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from spt_jax.config.fields import Config, Count, Finite, Rule
from spt_jax.errors import require

WINDOW = 1024
"""Lines that are read, sorted by length and answered together; a kill loses one window's work."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(Config):
    """Greedy where nothing is set, sampling with `sample`, beam search with `num_beams` above 1.

    Args:
        num_beams: Beams of each row; a beam search keeps so many answers. 1 is no search.
        num_results: Answers given for each row, best first; at most `num_beams`.
        length_penalty: Exponent of the length in the score of an answer, which is its
            log-probability / tokens**length_penalty, tokens counted with the end marker. A greater
            exponent prefers longer answers.
        sample: Draw each token at random instead of taking the likeliest.
        temperature: Divisor of the logits before a token is drawn; with `sample` only.
        top_k: Draw from the k likeliest tokens only; null for all tokens; with `sample` only.
        top_p: Draw from the fewest likeliest tokens that together have this probability, after
            `temperature` and `top_k`; with `sample` only.
    """

    num_beams: Count = 1
    num_results: Count = 1
    length_penalty: Finite = 1.0
    sample: bool = False
    temperature: Annotated[
        float,
        Rule(
            lambda x: 0 < x < math.inf,
            "more than 0; for the likeliest token set sample to false",
        ),
    ] = 1.0
    top_k: Count | None = None
    top_p: Annotated[float, Rule(lambda x: 0 < x <= 1, "more than 0 and at most 1")] = 1.0

    def check(self) -> None:
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
            not (self.sample and self.num_beams > 1),
            f"num_beams is {self.num_beams} with sampling, expected one or the other; "
            "set num_beams to 1 or sample to false",
        )
        for name, unset in (("temperature", 1), ("top_k", None), ("top_p", 1)):
            value = getattr(self, name)
            require(
                self.sample or value == unset,
                f"{name} is {value} without sampling, which alone draws tokens; set sample to true",
            )
