"""Token probabilities as llama-server reports them."""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from typing import Any

from rillm.engine.outputs import TokenProbs
from rillm.tokenizer import Tokenizer

_LOWEST = -3.4028234663852886e38  # of float32: JSON has no infinity


def probability_list(
    tokenizer: Tokenizer, probs: Iterable[TokenProbs], *, after_sampling: bool = False
) -> list[dict[str, Any]]:
    """`completion_probabilities`, or the `content` of OpenAI's logprobs."""
    value_name, top_name = ("prob", "top_probs") if after_sampling else ("logprob", "top_logprobs")
    result = []
    for item in probs:
        own = math.exp(item.logprob) if after_sampling else max(item.logprob, _LOWEST)
        top = []
        for token, _, prob in item.top:
            value = prob if after_sampling else math.log(prob) if prob > 0 else _LOWEST
            top.append({**_token(tokenizer, token), value_name: value})
        result.append({**_token(tokenizer, item.token), value_name: own, top_name: top})
    return result


def _token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    if token >= tokenizer.vocab_size:  # padding of the model's vocabulary
        return {"id": token, "token": "", "bytes": []}
    data = tokenizer.token_bytes(token)
    return {"id": token, "token": data.decode("utf-8", "replace"), "bytes": list(data)}


class LogprobLists:
    """The logprobs of OpenAI's /v1/completions: four lists with an entry for each token.

    A token's own probability stands among the likeliest ones too, whether it is one or not.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int, text_offset: int) -> None:
        """text_offset: where the first token's text begins, in characters."""
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = text_offset
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._tops: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, token_ids: Sequence[int], probs: Sequence[TokenProbs]) -> None:
        """A prompt's tokens; nothing comes before the first, so it has no probability."""
        if token_ids:
            self._add(token_ids[0], None, None)
            self.add(probs)

    def add(self, probs: Iterable[TokenProbs]) -> None:
        """Tokens with their probabilities."""
        for item in probs:
            top: dict[str, float] = {}
            own = max(item.logprob, _LOWEST)
            for token, _, prob in item.top[: self._num_top]:
                value = math.log(prob) if prob > 0 else _LOWEST
                value = own if token == item.token else value  # equal, and not almost
                top.setdefault(_token(self._tokenizer, token)["token"], value)
            top.setdefault(_token(self._tokenizer, item.token)["token"], own)
            self._add(item.token, own, top)

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last time."""
        taken: dict[str, list[Any]] = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._tops,
            "text_offset": self._offsets,
        }
        self._clear()
        return taken

    def _add(self, token: int, logprob: float | None, top: dict[str, float] | None) -> None:
        described = _token(self._tokenizer, token)
        self._tokens.append(described["token"])
        self._logprobs.append(logprob)
        self._tops.append(top)
        self._offsets.append(self._offset)
        self._offset += len(self._decoder.decode(bytes(described["bytes"])))
