//! Which line of a log says why an engine ended.
//!
//! Purpose: one line for people out of the many that a failure carries. Owner: nobody; pure. Invariant: it is always one of the lines that
//! were given, as it was written; where none is known to say why, the last one.
//!
//! An engine that serves by several processes writes the cause first: vLLM's core its traceback, twice, then its front a longer one of its own
//! that ends in "See root cause above". llama-server says after the cause what it could therefore not do, in three or four lines. Some
//! exceptions only announce the reason: pydantic's and NCCL's have it some lines further.

/// Where a line only refers to another.
const REFERS: &str = "root cause";
/// What llama-server and its libraries begin a cause with, wherever in the line it stands.
const CAUSES: [&str; 6] = [
    "error loading model: ",
    "CUDA error: ",
    "GGML_ASSERT(",
    "failed to allocate",
    "unable to allocate",
    "error while handling argument",
];
/// How far behind its exception a reason stands that it announces.
const NEAR: usize = 4;
/// Levels of lines after which an engine goes on.
const HARMLESS: [&str; 4] = ["DEBUG", "INFO", "WARN", "WARNING"];

/// The line that says why: the last that names an exception, else the last that llama-server would give as a cause, else the last one.
/// `None` where there are no lines.
#[must_use]
pub fn last_words(lines: &[String]) -> Option<&str> {
    let last = |says: fn(&str) -> bool| lines.iter().rposition(|line| says(line));
    let exception = last(names_exception).map(|at| announced(&lines[at..]).unwrap_or(&lines[at]));
    let cause = || last(names_cause).map(|at| &lines[at]);
    exception.or_else(cause).or(lines.last()).map(String::as_str)
}

/// The reason that an exception, the first of these lines, announces: what is wrong with a value, behind their number; what NCCL calls its
/// last error.
fn announced(lines: &[String]) -> Option<&String> {
    let (exception, behind) = lines.split_first()?;
    let behind = &behind[..behind.len().min(NEAR)];
    if ["validation error for", "validation errors for"].iter().any(|of| exception.contains(of)) {
        let is_reason = |line: &&String| line.contains("Value error, ") || line.contains("[type=");
        return behind.iter().find(is_reason);
    }
    let at = behind.iter().position(|line| line.trim_end().ends_with("Last error:"))?;
    behind.get(at + 1)
}

/// `ValueError: …`, `torch.OutOfMemoryError: …`, `Error: …`, behind whatever a logger puts before it.
fn names_exception(line: &str) -> bool {
    if line.to_ascii_lowercase().contains(REFERS) || is_harmless(line) {
        return false;
    }
    let is_name = |word: &str| {
        let word = word.rsplit('.').next().unwrap_or(word);
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        plain && (word.ends_with("Error") || word.ends_with("Exception"))
    };
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if word.strip_suffix(':').is_some_and(is_name) && words.peek().is_some() {
            return true;
        }
    }
    false
}

fn names_cause(line: &str) -> bool {
    let line = line.trim_start();
    CAUSES.iter().any(|cause| line.contains(cause)) || line.starts_with("error: ")
}

fn is_harmless(line: &str) -> bool {
    // A logger's level stands near the beginning: behind a process's name, a date, a time.
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(12)
        .any(|word| HARMLESS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine, what it writes, and the line of it that says why.
    const LOGS: [(&str, &[&str], &str); 14] = [
        (
            "vLLM, that its core does not start",
            &[
                "(EngineCore_DP0 pid=77) ERROR 10-12 09:11:01 [core.py:708]     raise ValueError(",
                "(EngineCore_DP0 pid=77) ERROR 10-12 09:11:01 [core.py:708] ValueError: To serve at least one request, 9.00 GiB KV cache is needed",
                "(EngineCore_DP0 pid=77) Process EngineCore_DP0:",
                "(APIServer pid=1) Traceback (most recent call last):",
                "(APIServer pid=1)     raise RuntimeError(\"Engine core initialization failed. \"",
                "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
                "/usr/lib/python3.12/multiprocessing/resource_tracker.py:279: UserWarning: resource_tracker: There appear to be 1 leaked objects",
            ],
            "ValueError: To serve at least one request, 9.00 GiB KV cache is needed",
        ),
        (
            "vLLM, whose core dies in service",
            &[
                "(EngineCore_DP0 pid=77) ERROR 10-12 09:11:01 [core.py:710] torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
                "(APIServer pid=1) ERROR 10-12 09:11:01 [async_llm.py:480] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
                "(APIServer pid=1) INFO:     Finished server process [1]",
            ],
            "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        ),
        (
            "vLLM, whose arguments are wrong",
            &[
                "WARNING 10-12 09:11:01 [x.py:1] ImportError: no flashinfer, using another",
                "api_server.py: error: unrecognized arguments: --no-such",
            ],
            "api_server.py: error: unrecognized arguments: --no-such",
        ),
        (
            "vLLM, whose configuration does not fit the model",
            &[
                "(APIServer pid=1)   File \"/usr/lib/pydantic/_internal/_dataclasses.py\", line 123, in __init__",
                "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
                "(APIServer pid=1)   Value error, Total number of attention heads (64) must be divisible by tensor parallel size (3). [type=value_error, input_value=ArgsKwargs((), {'model_co...), input_type=ArgsKwargs]",
                "(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.11/v/value_error",
            ],
            "must be divisible by tensor parallel size (3). [type=value_error, input_value=ArgsKwargs((), {'model_co...), input_type=ArgsKwargs]",
        ),
        (
            "vLLM, of whose settings one is of the wrong kind",
            &[
                "pydantic_core._pydantic_core.ValidationError: 2 validation errors for ModelConfig",
                "max_model_len",
                "  Input should be greater than 0 [type=greater_than, input_value=-5, input_type=int]",
                "    For further information visit https://errors.pydantic.dev/2.11/v/greater_than",
                "seed",
                "  Input should be a valid integer [type=int_type, input_value='x', input_type=str]",
            ],
            "  Input should be greater than 0 [type=greater_than, input_value=-5, input_type=int]",
        ),
        (
            "one whose wrong value is told without a reason",
            &["pydantic.ValidationError: 1 validation error for ModelConfig", "bye"],
            "pydantic.ValidationError: 1 validation error for ModelConfig",
        ),
        (
            "vLLM, on several devices with little shared memory",
            &[
                "(Worker_TP1 pid=80) ERROR 10-12 09:11:01 [multiproc_executor.py:597] torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled system error, NCCL version 2.27.3",
                "(Worker_TP1 pid=80) ERROR 10-12 09:11:01 [multiproc_executor.py:597] ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
                "(Worker_TP1 pid=80) ERROR 10-12 09:11:01 [multiproc_executor.py:597] Last error:",
                "(Worker_TP1 pid=80) ERROR 10-12 09:11:01 [multiproc_executor.py:597] Error while creating shared memory segment /dev/shm/nccl-a2b (size 33030528), error: No space left on device (28)",
                "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            ],
            "Error while creating shared memory segment /dev/shm/nccl-a2b (size 33030528), error: No space left on device (28)",
        ),
        (
            "SGLang",
            &[
                "[2025-10-12 09:11:01] Scheduler hit an exception: Traceback (most recent call last):",
                "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.5",
                "",
                "[2025-10-12 09:11:01] Received sigquit from a child process. It usually means the child failed.",
            ],
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.5",
        ),
        (
            "llama-server, without room for the weights",
            &[
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 15317.02 MiB on device 0: cudaMalloc failed: out of memory",
                "alloc_tensor_range: failed to allocate CUDA0 buffer of size 16061063168",
                "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
                "llama_model_load_from_file_impl: failed to load model",
                "srv    load_model: failed to load model, '/models/m.gguf'",
                "srv    operator(): operator(): cleaning up before exit...",
                "main: exiting due to model loading error",
            ],
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        ),
        (
            "llama-server, without room for the context",
            &[
                "graph_reserve: failed to allocate compute buffers",
                "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
                "common_init_from_params: failed to create context with model '/models/m.gguf'",
                "main: exiting due to model loading error",
            ],
            "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
        ),
        (
            "llama-server, whose device fails",
            &[
                "CUDA error: an illegal memory access was encountered",
                "  current device: 0, in function ggml_backend_cuda_synchronize at /app/ggml-cuda.cu:2501",
                "/app/ggml/src/ggml-cuda/ggml-cuda.cu:88: CUDA error",
            ],
            "CUDA error: an illegal memory access was encountered",
        ),
        (
            "llama-server, whose arguments are wrong",
            &["error: invalid argument: --no-such", "usage: llama-server [options]"],
            "error: invalid argument: --no-such",
        ),
        ("one that says nothing of a cause", &["loading", "Killed"], "Killed"),
        (
            "one of several processes of which all refer to another",
            &["RuntimeError: Failed. See root cause above.", "bye"],
            "bye",
        ),
    ];

    #[test]
    fn the_line_that_says_why_is_found() {
        for (engine, log, why) in LOGS {
            let log: Vec<String> = log.iter().map(|line| (*line).to_owned()).collect();
            let found = last_words(&log).unwrap_or_default();
            assert!(found.ends_with(why), "{engine}: {found}");
        }
        assert_eq!(last_words(&[]), None);
    }
}
