"""GGUF file -> weights in the core -> a compiled program."""

from __future__ import annotations

import importlib
import math
import pkgutil
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType

import rillm.models
from rillm.core import (
    Batch,
    CompiledProgram,
    Core,
    CoreCacheConfig,
    CoreError,
    KVCache,
    ThreadTeam,
    Weight,
    WeightKind,
    choose_blas,
)
from rillm.gguf import GGMLType, GGUFReader, TensorInfo
from rillm.models.base import DecoderModel
from rillm.models.config import ModelError, read_config
from rillm.nn import (
    Graph,
    ModelConfig,
    Parameter,
    Value,
    compile_graph,
    observe_inputs,
    record,
    rope_frequencies,
)

# progress(bytes loaded, bytes in total)
Progress = Callable[[int, int], None]

# Read here and not by a module: divisors of the rotary frequencies (Llama 3's long context).
_ROPE_FACTORS = "rope_freqs.weight"


@cache
def supported_architectures() -> Mapping[str, ModuleType]:
    """GGUF architecture name -> the module of this package that declares it."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(rillm.models.__path__):
        module = importlib.import_module(f"rillm.models.{info.name}")
        for architecture in getattr(module, "ARCHITECTURES", ()):
            found[architecture] = module
    return found


class LoadedModel:
    """A model that is ready to run: weights, KV cache and program.

    Closing it frees all of them; the thread team stays the caller's.
    """

    def __init__(
        self,
        config: ModelConfig,
        program: CompiledProgram,
        kv_cache: KVCache,
        weights: list[Weight],
        observed: Mapping[str, slice] | None = None,
        blas: str = "off",
    ) -> None:
        self.config = config
        self.kv_cache = kv_cache
        self.blas = blas  # whether OpenBLAS is used, and why
        self.observed = observed or {}
        self._program = program
        self._weights = weights

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights (the token embedding stays in the mapped file)."""
        return sum(weight.num_bytes for weight in self._weights)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the program's buffers."""
        return self._program.num_bytes

    @property
    def cache_block_bytes(self) -> int:
        """Memory of one KV cache block over all layers."""
        return self.kv_cache.block_bytes

    def run(self, batch: Batch) -> None:
        """One step. Fills the cache, and a row of logits for each of batch.logits_rows."""
        self._program.run(batch)

    def logits(self, row: int) -> memoryview[float]:
        """Logits of row `row` of the last run: float32 [vocab_size]; the next run overwrites it."""
        return self._program.output(row)

    def logits_address(self, row: int) -> int:
        """Where `logits(row)` lies in memory."""
        return self._program.output_address(row)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that can be read; 0 if the model was loaded without."""
        return self._program.hidden_width

    def add_hidden(self, first: int, count: int, total: array[float]) -> None:
        """Adds the last run's hidden states of `count` tokens, from row `first` on, to total."""
        self._program.add_hidden(first, count, total)

    def sums(self) -> memoryview[float]:
        """Of a model that observes: the last run's sums of squares, float32; `observed` says
        where those of a matrix are. The next run overwrites them."""
        return self._program.output(0)

    def close(self) -> None:
        """Frees program, cache and weights."""
        self._program.close()
        self.kv_cache.close()
        for weight in self._weights:
            weight.close()


def load_model(
    reader: GGUFReader,
    core: Core,
    team: ThreadTeam,
    *,
    max_tokens: int,
    max_logits: int,
    num_blocks: int,
    block_size: int = 16,
    cache_type: GGMLType = GGMLType.F16,
    embeddings: bool = False,
    blas: str = "off",
    progress: Progress | None = None,
    observe: Callable[[str], bool] | None = None,
) -> LoadedModel:
    """Loads the model of a GGUF file.

    max_tokens, max_logits: most rows of one step. num_blocks: KV cache blocks of block_size
    tokens. embeddings: hidden states can be read after a step (costs memory for max_tokens rows).
    The reader must stay open as long as the model: token embeddings are read from the mapped file.
    observe: chooses matrices by tensor name; the model then gives the `sums` of the squares of
    what they are multiplied with, column by column, and no logits.
    blas: one of rillm.core.BLAS_CHOICES. Errors: ModelError naming the key or tensor.
    """
    config, module = _config_and_module(reader)
    check_packing(reader, core)
    blas_use = choose_blas(core, team, blas, _matrices(reader))
    try:
        model: DecoderModel = module.Model(config)
        weights = _load_weights(model, reader, core, team, progress)
        frequencies, magnitude = rope_frequencies(
            config.rope_theta,
            config.rotary_dims,
            config.rope_scaling,
            _rope_factors(reader, core, config.rotary_dims // 2),
        )
        table = Weight(core, WeightKind.VECTOR, GGMLType.F32, (1, len(frequencies)), frequencies)
        weights.append(table)
        cache = KVCache(
            core,
            CoreCacheConfig(
                config.num_layers, config.num_kv_heads, config.head_dim, block_size, num_blocks,
                cache_type,
            ),
        )  # fmt: skip
        with record() as graph:
            output, hidden = model(table, magnitude, embeddings=embeddings)
        observed: dict[str, slice] = {}
        if observe is not None:
            graph, output, observed = _observe(graph, model, observe)
        program = compile_graph(
            graph, output, team, cache, max_tokens=max_tokens, max_logits=max_logits, hidden=hidden,
            blas_min_rows=blas_use.min_rows,
        )  # fmt: skip
    except (ModelError, CoreError) as error:
        raise ModelError(f"{reader.path}: {error}") from None
    return LoadedModel(config, program, cache, weights, observed, blas_use.description)


def _observe(
    graph: Graph, model: DecoderModel, chosen: Callable[[str], bool]
) -> tuple[Graph, Value, dict[str, slice]]:
    matrices = {
        name: parameter.weight
        for name, parameter in model.named_parameters()
        if parameter.kind is WeightKind.MATRIX and parameter.loaded is not None and chosen(name)
    }
    return observe_inputs(graph, matrices)


def check_packing(reader: GGUFReader, core: Core) -> None:
    """ModelError for a file that is packed, and not in the way that this variant reads."""
    if reader.packing is None:
        return
    types = {int(tensor.type) for tensor in reader.tensors.values() if tensor.is_packed}
    variant, fix = core.variant, f"`rillm quantize SOURCE.gguf --pack {core.variant}`"
    if core.layout_id(variant, types) == reader.packing.layout:
        return
    if reader.packing.variant == variant:
        problem = f"is packed for {variant} by another version of rillm"
    else:
        problem = f"is packed for {reader.packing.variant}, and this is {variant}"
    raise ModelError(f"{reader.path}: {problem}: pack the GGUF file it was made from with {fix}")


def matrix_tensors(reader: GGUFReader) -> dict[str, TensorInfo]:
    """What linear ops read, by the name it has in the model: a tied head is the embedding.

    Errors: ModelError naming the file and what does not fit.
    """
    config, module = _config_and_module(reader)
    found = {}
    for name, parameter in module.Model(config).named_parameters():
        tensor = reader.tensors.get(name)
        if tensor is None and name == "output.weight":
            tensor = reader.tensors.get("token_embd.weight")
        if tensor is None or parameter.kind is not WeightKind.MATRIX:
            continue
        try:
            _check_shape(name, tensor, parameter)
        except ModelError as error:
            raise ModelError(f"{reader.path}: {error}") from None
        found[name] = tensor
    return found


def read_model_config(reader: GGUFReader) -> ModelConfig:
    """The shape of a file's model, without loading it. Errors: ModelError naming file and key."""
    return _config_and_module(reader)[0]


def _config_and_module(reader: GGUFReader) -> tuple[ModelConfig, ModuleType]:
    architecture = reader.metadata.get("general.architecture")
    module = supported_architectures().get(str(architecture))
    if module is None:
        names = ", ".join(sorted(supported_architectures()))
        raise ModelError(
            f"{reader.path}: architecture {architecture!r} is not one that rillm runs ({names})"
        )
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    try:
        config = read_config(reader.metadata, shapes, rope_interleaved=module.ROPE_INTERLEAVED)
    except ModelError as error:
        raise ModelError(f"{reader.path}: {error}") from None
    return config, module


def _matrices(reader: GGUFReader) -> Iterator[tuple[int, int, int]]:
    """(type, rows, columns) of what linear ops read: not of an embedding that is only looked up."""
    is_tied = "output.weight" not in reader.tensors
    for name, tensor in reader.tensors.items():
        if len(tensor.shape) == 2 and (is_tied or name != "token_embd.weight"):
            yield int(tensor.type), tensor.shape[0], tensor.shape[1]


def _rope_factors(reader: GGUFReader, core: Core, num_pairs: int) -> array[float] | None:
    tensor = reader.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (num_pairs,):
        raise ModelError(
            f"tensor {_ROPE_FACTORS} has shape {list(tensor.shape)}, the model wants [{num_pairs}]"
        )
    factors = array("f", bytes(4 * num_pairs))
    core.dequantize(tensor.type, tensor.data, factors)
    if not all(0 < factor < math.inf for factor in factors):
        raise ModelError(f"tensor {_ROPE_FACTORS} has a factor that is not a number above 0")
    return factors


def _load_weights(
    model: DecoderModel,
    reader: GGUFReader,
    core: Core,
    team: ThreadTeam,
    progress: Progress | None,
) -> list[Weight]:
    parameters = dict(model.named_parameters())
    unknown = sorted(set(reader.tensors) - set(parameters) - {_ROPE_FACTORS})
    if unknown:
        raise ModelError(
            f"tensor {unknown[0]} is not part of this architecture"
            + (f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else "")
        )
    if "output.weight" not in reader.tensors:  # tied: the head is the embedding
        parameters["output.weight"].optional = True
    weights: list[Weight] = []
    total = sum(tensor.nbytes for tensor in reader.tensors.values())
    done = 0
    for name, parameter in parameters.items():
        tensor = reader.tensors.get(name)
        if tensor is None and name == "output.weight":
            tensor = reader.tensors["token_embd.weight"]
        if tensor is None:
            if parameter.optional:
                continue
            raise ModelError(f"tensor {name} is missing")
        parameter.loaded = _load_weight(name, tensor, parameter, core, team)
        weights.append(parameter.loaded)
        done = min(done + tensor.nbytes, total)
        if progress is not None:
            progress(done, total)
    return weights


def _check_shape(name: str, tensor: TensorInfo, parameter: Parameter) -> None:
    shape = (1, *tensor.shape)[-2:]
    if shape != parameter.shape or len(tensor.shape) > 2:
        raise ModelError(
            f"tensor {name} has shape {list(tensor.shape)}, the model wants {list(parameter.shape)}"
        )


def _load_weight(
    name: str, tensor: TensorInfo, parameter: Parameter, core: Core, team: ThreadTeam
) -> Weight:
    _check_shape(name, tensor, parameter)
    kind = parameter.kind
    if tensor.is_packed:
        if kind is not WeightKind.MATRIX:
            raise ModelError(f"tensor {name} is packed, but the model wants it as it was")
        kind = WeightKind.PACKED
    try:
        weight = Weight(core, kind, tensor.type, parameter.shape, tensor.data, team)
    except CoreError as error:
        raise ModelError(f"tensor {name}: {error}") from None
    if kind in (WeightKind.MATRIX, WeightKind.VECTOR):
        tensor.release()  # it has been copied: keep one copy in memory, not two
    return weight
