"""The probability of a token that is given and not drawn, beside the likeliest in its place."""

from __future__ import annotations

import math
from array import array

from rillm.core.sampling import SamplingRequest
from rillm.engine.outputs import TokenProbs
from rillm.sampling import SamplingParams

# The rarest token's logarithm must not be lost to a probability that rounds to zero, so it is
# reckoned from the likeliest one's: at least that is always asked for.
_MIN_TOP = 1


class TokenScore:
    """A draw that can only give `token`; `draw` is for core.sample."""

    def __init__(
        self, token: int, num_top: int, vocab_size: int, logits_address: int, history: array[int]
    ) -> None:
        """vocab_size: tokens that have a row in the logits and in the vocabulary."""
        params = SamplingParams(temperature=0.0, samplers=(), n_probs=max(_MIN_TOP, num_top))
        self.token = token
        self.draw = SamplingRequest(params, vocab_size, seed=0)
        self._num_top = num_top
        self._mask = array("I", bytes(4 * ((vocab_size + 31) // 32)))
        self._is_known = token < vocab_size
        # A token of the padding has no probability, but its place has the likeliest ones.
        index = token if self._is_known else 0
        self._mask[index // 32] = 1 << (index % 32)
        self.draw.prepare(logits_address, history, 0, self._mask.buffer_info()[0])

    def result(self) -> TokenProbs:
        """What the draw found out."""
        (_, top_logit, top_prob), *_ = top = self.draw.top
        logprob = -math.inf
        if self._is_known:
            logprob = min(0.0, self.draw.logit - top_logit + math.log(top_prob))
        return TokenProbs(self.token, logprob, top[: self._num_top])
