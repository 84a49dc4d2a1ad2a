"""A GGUF file -> an engine with everything it hangs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

from rillm.chat_template import ChatTemplate
from rillm.closing import Closing
from rillm.core import Batch, Core, ThreadTeam, load_core
from rillm.engine.config import CacheMemoryError, CachePlan, EngineConfig, plan_cache
from rillm.engine.engine import Engine
from rillm.engine.machine import available_memory, start_team
from rillm.gguf import GGMLType, GGUFReader
from rillm.models import LoadedModel, load_model, read_model_config
from rillm.nn import ModelConfig
from rillm.tokenizer import Tokenizer
from rillm.units import format_bytes

_CACHE_TYPES: Mapping[str, GGMLType] = {"f16": GGMLType.F16, "q8_0": GGMLType.Q8_0}


class LoadedEngine(Closing):
    """An engine, and what it was made of. `close` (or leaving the context) frees all of it."""

    def __init__(
        self,
        reader: GGUFReader,
        core: Core,
        team: ThreadTeam,
        model: LoadedModel,
        engine: Engine,
        cache_plan: CachePlan,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.reader = reader
        self.core = core
        self.team = team
        self.model = model
        self.engine = engine
        self.cache_plan = cache_plan
        self._chat_template = chat_template

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return self.engine.tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The one asked for, the file's, or the built-in that fits; ChatTemplateError if none."""
        return self._chat_template or ChatTemplate.from_gguf(
            self.reader.metadata, self.model.config.architecture
        )

    @property
    def num_bytes(self) -> int:
        """Memory of weights and KV cache, as it is reckoned against EngineConfig.memory."""
        return self.reader.file_size + self.cache_plan.num_bytes

    @property
    def path(self) -> Path:
        """The model file (the first, where it is split)."""
        return self.reader.files[0]

    def close(self) -> None:
        """Frees the model, its threads and the file. No step may be under way."""
        self.model.close()
        self.team.close()
        self.reader.close()


def load_engine(
    path: str | os.PathLike[str],
    config: EngineConfig | None = None,
    *,
    chat_template: str | None = None,
    warm_up: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LoadedEngine:
    """Opens a GGUF file and makes an engine of it.

    chat_template: name of a built-in template, or Jinja source; None for the file's own. warm_up:
    computes one token, so that the first answer does not wait for memory to be mapped. progress:
    called with the bytes of weights loaded so far, and in total. Errors: RillmError naming the file
    and what is wrong with it, or what does not fit into memory.
    """
    if config is None:
        config = EngineConfig()
    reader = GGUFReader(path)
    team: ThreadTeam | None = None
    try:
        model_config = read_model_config(reader)
        template = None
        if chat_template is not None:  # what is wrong with it is said now, not to the first user
            template = ChatTemplate.from_gguf(
                reader.metadata, model_config.architecture, override=chat_template
            )
        cache_type = _CACHE_TYPES[config.cache_type]
        available = available_memory()
        if config.memory is not None:
            available = min(available, config.memory)
        available -= reader.file_size
        if available <= 0 and (config.cache_memory is None or config.memory is not None):
            raise CacheMemoryError(
                f"{path}: its weights take {format_bytes(reader.file_size)} of memory, but only "
                f"{format_bytes(max(0, available + reader.file_size))} are available: use a smaller"
                " quantization, or set the KV cache's memory to try all the same"
            )
        if config.memory is not None and (config.cache_memory or 0) > available:
            raise CacheMemoryError(
                f"{path}: beside its weights {format_bytes(available)} are left of the memory set "
                f"aside, not the {format_bytes(config.cache_memory or 0)} of its KV cache"
            )
        plan = plan_cache(
            config,
            model_context=model_config.context_length,
            block_bytes=cache_block_bytes(model_config, cache_type, config.block_size),
            available=available,
        )
        tokenizer = Tokenizer.from_gguf(reader.metadata)
        core = load_core(config.isa)
        team = start_team(core, config.num_threads)
        model = load_model(
            reader,
            core,
            team,
            max_tokens=config.max_num_batched_tokens,
            max_logits=config.max_num_seqs + config.max_prompt_logits + config.draft_tokens,
            num_blocks=plan.num_blocks,
            block_size=plan.block_size,
            cache_type=cache_type,
            embeddings=config.embeddings,
            blas=config.blas,
            progress=progress,
        )
        if warm_up:
            model.run(one_token())
        engine = Engine(
            model,
            tokenizer,
            partial(core.sample, team),
            config,
            vocab_size=model_config.vocab_size,
            context_length=plan.context_length,
            num_blocks=plan.num_blocks,
            key_cost=key_cost(model_config),
        )
    except BaseException as error:
        if team is not None:
            team.close()
        reader.close()
        if isinstance(error, MemoryError):
            raise CacheMemoryError(f"{path}: not enough memory to load it ({error})") from None
        raise
    return LoadedEngine(reader, core, team, model, engine, plan, template)


def one_token() -> Batch:
    """Token 0 at the start of block 0, whose content nothing knows yet."""
    return Batch.alone([0], 0, 1, block_size=16, wants_logits=True)


def cache_block_bytes(config: ModelConfig, cache_type: GGMLType, block_size: int) -> int:
    """Bytes of `block_size` tokens in the KV cache: keys and values of every layer and KV head."""
    row = cache_type.row_bytes(config.head_dim)
    return 2 * config.num_layers * config.num_kv_heads * block_size * row


def key_cost(config: ModelConfig) -> float:
    """What a key that a token attends to costs, in times of what the token's weights cost.

    Counted in multiplications; those of attention are float32, which costs about twice as much as
    the integers of quantised weights.
    """
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    weights = config.hidden_size * (2 * (heads + kv_heads) * dim + 3 * config.ffn_size)
    return 2.0 * (2 * heads * dim) / weights
