"""Serve a model over HTTP, as llama-server does.

The port opens at once and answers 503 until the model is loaded. Ctrl-C stops; SIGTERM lets running
requests finish. Flags are llama-server's (with - or _);
/docs describes the endpoints.

Several models: give -m again, or a folder. Each is loaded when a request names it as its "model".

\b
Examples:
  rillm serve -m glm-4-9b-chat.Q4_K_M.gguf -n 64 -t 8
  rillm serve -m glm.gguf --host 0.0.0.0 --port 8000 --api-key SECRET
  rillm serve -m glm.gguf -np 32 -c 8192 -ctk q8_0
  rillm serve --models-dir models --models-max 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rillm.cli import options, serve_options


def serve(
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "-m",
            "--model",
            help="GGUF file (the first part, if it is split) or folder; may be repeated.",
            envvar="LLAMA_ARG_MODEL",
        ),
    ] = None,
    models_dir: serve_options.ModelsDir = None,
    models_max: serve_options.ModelsMax = 4,
    models_memory: serve_options.ModelsMemory = None,
    models_autoload: serve_options.ModelsAutoload = True,
    alias: Annotated[
        str | None,
        typer.Option(
            "-a", "--alias", help="The model's name in replies.", envvar="LLAMA_ARG_ALIAS"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on.", envvar="LLAMA_ARG_HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Port; 0 = any free one.", envvar="LLAMA_ARG_PORT")
    ] = 8080,
    n_predict: Annotated[
        int,
        typer.Option(
            "-n",
            "--predict",
            "--n-predict",
            envvar="LLAMA_ARG_N_PREDICT",
            help="Most tokens of an answer unless the request says; -1 = no limit.",
        ),
    ] = -1,
    threads: Annotated[
        int | None,
        typer.Option(
            "-t",
            "--threads",
            min=1,
            envvar="LLAMA_ARG_THREADS",
            help="Threads [default: the CPUs allowed to us].",
        ),
    ] = None,
    cpu_list: options.CpuList = None,
    ctx_size: Annotated[
        int,
        typer.Option(
            "-c",
            "--ctx-size",
            min=0,
            envvar="LLAMA_ARG_CTX_SIZE",
            help="Tokens a sequence may have; 0 = the model's, as memory allows.",
        ),
    ] = 0,
    parallel: Annotated[
        int,
        typer.Option(
            "-np",
            "--parallel",
            min=1,
            envvar="LLAMA_ARG_N_PARALLEL",
            help="Sequences computed together; they do not divide the context.",
        ),
    ] = 16,
    batch_size: Annotated[
        int,
        typer.Option(
            "-b", "--batch-size", min=1, envvar="LLAMA_ARG_BATCH", help="Most tokens of one step."
        ),
    ] = 512,
    cache_type_k: Annotated[
        str,
        typer.Option(
            "-ctk",
            "--cache-type-k",
            envvar="LLAMA_ARG_CACHE_TYPE_K",
            help="KV cache: f16, or q8_0 at half the memory.",
        ),
    ] = "f16",
    cache_type_v: Annotated[
        str | None,
        typer.Option(
            "-ctv",
            "--cache-type-v",
            envvar="LLAMA_ARG_CACHE_TYPE_V",
            help="Must be the same as -ctk.",
        ),
    ] = None,
    cache_memory: serve_options.CacheMemory = None,
    blas: options.Blas = "off",
    cache_prompt: Annotated[
        bool, typer.Option("--cache-prompt/--no-cache-prompt", help="Reuse common prefixes.")
    ] = True,
    spec_type: options.SpecType = "none",
    draft_max: options.DraftMax = options.DEFAULT_DRAFT,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            envvar="LLAMA_ARG_CHAT_TEMPLATE",
            help="Name of a built-in template [default: the file's].",
        ),
    ] = None,
    chat_template_file: Annotated[
        Path | None,
        typer.Option(
            "--chat-template-file",
            envvar="LLAMA_ARG_CHAT_TEMPLATE_FILE",
            help="Jinja template.",
        ),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            "--embedding",
            envvar="LLAMA_ARG_EMBEDDINGS",
            help="/embedding and /v1/embeddings, beside all else.",
        ),
    ] = False,
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling",
            envvar="LLAMA_ARG_POOLING",
            help="Of embeddings: none, mean, cls or last [default: the file's, else none].",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs",
            envvar="LLAMA_CHAT_TEMPLATE_KWARGS",
            help="JSON object for the template, unless the request says.",
        ),
    ] = None,
    reasoning_budget: Annotated[
        int,
        typer.Option(
            "--reasoning-budget",
            min=-1,
            max=0,
            envvar="LLAMA_ARG_THINK_BUDGET",
            help="0 switches thinking off, unless the request says.",
        ),
    ] = -1,
    reasoning_format: Annotated[
        str,
        typer.Option(
            "--reasoning-format", envvar="LLAMA_ARG_THINK", help="none, deepseek or auto."
        ),
    ] = "auto",
    temperature: Annotated[
        float | None, typer.Option("--temp", help="Default temperature.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Default top_k.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Default top_p.")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Default min_p.")] = None,
    repeat_penalty: Annotated[
        float | None, typer.Option("--repeat-penalty", help="Default repeat_penalty.")
    ] = None,
    repeat_last_n: Annotated[
        int | None, typer.Option("--repeat-last-n", help="Default repeat_last_n.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option("--presence-penalty", help="Default presence_penalty.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option("--frequency-penalty", help="Default frequency_penalty.")
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option("--typical", "--typical-p", help="Default typical_p.")
    ] = None,
    mirostat: Annotated[int | None, typer.Option("--mirostat", help="Default mirostat.")] = None,
    samplers: Annotated[
        str | None, typer.Option("--samplers", help="Default samplers, with semicolons.")
    ] = None,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="Default seed.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="LLAMA_API_KEY", help="Key to ask for; may be repeated."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Keys, one a line."),
    ] = None,
    cors_origins: Annotated[
        str, typer.Option("--cors-origins", help="Allowed origins, with commas; * = all.")
    ] = "*",
    slots: Annotated[
        bool,
        typer.Option("--slots/--no-slots", envvar="LLAMA_ARG_ENDPOINT_SLOTS", help="GET /slots."),
    ] = True,
    metrics: Annotated[
        bool,
        typer.Option("--metrics", envvar="LLAMA_ARG_ENDPOINT_METRICS", help="GET /metrics."),
    ] = False,
    slot_save_path: Annotated[
        Path | None,
        typer.Option(
            "--slot-save-path", exists=True, file_okay=False, help="Folder for saved slots."
        ),
    ] = None,
    ssl_cert_file: Annotated[
        Path | None,
        typer.Option("--ssl-cert", "--ssl-cert-file", exists=True, help="TLS certificate."),
    ] = None,
    ssl_key_file: Annotated[
        Path | None, typer.Option("--ssl-key", "--ssl-key-file", exists=True, help="TLS key.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            "-to",
            min=1,
            envvar="LLAMA_ARG_TIMEOUT",
            help="Seconds for a body to arrive, and that a client may go without reading.",
        ),
    ] = 60.0,
    max_body: serve_options.MaxBody = 32 << 20,
    max_headers: serve_options.MaxHeaders = 64 << 10,
    max_schema: serve_options.MaxSchema = 256 << 10,
    max_predict: serve_options.MaxPredict = -1,
    max_choices: serve_options.MaxChoices = 64,
    max_inputs: serve_options.MaxInputs = 2048,
    max_stops: serve_options.MaxStops = 64,
    max_logit_bias: serve_options.MaxLogitBias = 4096,
    max_probs: serve_options.MaxProbs = 1024,
    max_waiting: serve_options.MaxWaiting = 1024,
    header_timeout: serve_options.HeaderTimeout = 20.0,
    drain_timeout: serve_options.DrainTimeout = 60.0,
    access_log: Annotated[
        bool,
        typer.Option("--access-log/--no-access-log", help="Log method, path, status and time."),
    ] = True,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", "--log-verbose", help="Log what is asked, too (private texts!)."
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", envvar="LLAMA_ARG_LOG_FILE", help="Write the log to a file."),
    ] = None,
    ui: Annotated[
        bool, typer.Option("--ui/--no-ui", "--webui/--no-webui", help="Page at /.")
    ] = True,
    hf_repo: Annotated[
        str | None, typer.Option("-hf", "-hfr", "--hf-repo", hidden=True, help="See rillm pull.")
    ] = None,
    reranking: Annotated[bool, typer.Option("--reranking", "--rerank", hidden=True)] = False,
    jinja: Annotated[bool, typer.Option("--jinja/--no-jinja", hidden=True)] = True,
    cont_batching: Annotated[
        bool, typer.Option("-cb/-nocb", "--cont-batching/--no-cont-batching", hidden=True)
    ] = True,
    ignored: Annotated[list[str] | None, typer.Option(*options.IGNORED_VALUES, hidden=True)] = None,
    ignored_flags: Annotated[bool, typer.Option(*options.IGNORED_FLAGS, hidden=True)] = False,
) -> None:
    """Loads and serves until a signal."""
    del ignored, ignored_flags, jinja, cont_batching
    from rillm.server import ServerConfig
    from rillm.server import serve as run_server

    if cache_type_v is not None and cache_type_v.lower() != cache_type_k.lower():
        raise typer.BadParameter("keys and values have one type: give -ctv the same as -ctk")
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "typical_p": typical_p,
        "mirostat": mirostat,
        "samplers": None if samplers is None else samplers.split(";"),
        "seed": seed,
    }
    template = chat_template
    if chat_template_file is not None:
        template = serve_options.text_of(chat_template_file)
    if hf_repo is not None:
        raise typer.BadParameter(f"models are files here: rillm pull {hf_repo}, then -m FILE")
    if reranking:
        raise typer.BadParameter("no model that rillm runs can rerank: leave --reranking out")
    template_options = (
        serve_options.json_object(chat_template_kwargs) if chat_template_kwargs else {}
    )
    if reasoning_budget == 0:
        template_options.setdefault("enable_thinking", False)
    paths = [*(model or []), *([models_dir] if models_dir is not None else [])]
    if not paths:
        raise typer.BadParameter("no model: give -m FILE, or --models-dir FOLDER")
    config = ServerConfig(
        model=paths,
        models_max=models_max,
        models_memory=models_memory,
        models_autoload=models_autoload,
        alias=alias,
        host=host,
        port=port,
        n_predict=n_predict,
        num_threads=threads,
        context_length=ctx_size,
        parallel=parallel,
        batch_size=batch_size,
        cache_type=cache_type_k.lower(),
        cache_memory=cache_memory,
        blas=blas,
        cache_prompt=cache_prompt,
        draft_tokens=options.draft_tokens(spec_type, draft_max),
        chat_template=template,
        template_options=template_options,
        embeddings=embeddings,
        pooling=pooling,  # type: ignore[arg-type]  # ServerConfig checks it
        reasoning_format=reasoning_format,
        sampling={name: value for name, value in sampling.items() if value is not None},
        api_keys=serve_options.api_keys(api_key or [], api_key_file),
        cors_origins=tuple(origin.strip() for origin in cors_origins.split(",")),
        slots=slots,
        metrics=metrics,
        slot_save_path=slot_save_path,
        ui=ui,
        ssl_cert=ssl_cert_file,
        ssl_key=ssl_key_file,
        max_body_bytes=max_body,
        max_header_bytes=max_headers,
        max_schema_bytes=max_schema,
        max_n_predict=max_predict,
        max_choices=max_choices,
        max_inputs=max_inputs,
        max_stops=max_stops,
        max_logit_bias=max_logit_bias,
        max_probs=max_probs,
        max_waiting=max_waiting,
        header_timeout=header_timeout,
        drain_seconds=drain_timeout,
        body_timeout=timeout,
        send_timeout=timeout,
        access_log=access_log or verbose,
        log_bodies=verbose,
        log_file=log_file,
    )
    raise typer.Exit(run_server(config))
