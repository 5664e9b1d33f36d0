"""Which tests run on the test device: those in ``tests/device/``, and of the default ones those about drawing."""

import inspect
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parents[2]

# Directories of default tests, each of which runs on the device unless ELSEWHERE names it.
SUITES = ("pipelines", "models", "transformers", "loaders", "adapters")

NOT_DEFAULT = {"parity", "slow", "gpu", "machine", "lint", "docs", "interop"}

# What does not run there, with the reason; nothing else is left out. By the source of a test:
NO_GRADIENTS = re.compile(r"\.backward\(|\bgradients\(|optimizer")  # Paddle's clear_gradients writes from the host
NO_GRAPHS = re.compile(r"\.compile\(|to_static|jit\.")  # a graph has no way back to the CPU for each operation
# Of the concerns of every pipeline, those about GPUs run for each task, and the others for this one:
OF_ALL_CONCERNS = ("pipelines/test_every_pipeline.py", "TestTextToImage")
# By its "directory/file.py", or "directory/file.py::test":
_NO_TENSORS = "texts, names, files or refusals, which no device touches"
_MEMORY = "the computer's memory stands for the device; device/test_offloading.py is its like"
_LONG = "takes longest; device/test_host_reads.py or the concerns of every pipeline draw the same on the device"
_IN_16_BITS = "says what CPUs refuse in 16 bits"
# Paddle copies to and from a plug-in's device through a thread pool that it makes anew for each copy (phi's
# CallbackManager); once in many thousands of copies by several threads the process ends there. GPUs have no such pool.
_THREADS = "threads draw at once"
ELSEWHERE = {
    "pipelines/test_arguments.py": _NO_TENSORS,
    "pipelines/test_call_defaults.py": _NO_TENSORS,
    "pipelines/test_call_signature.py": _NO_TENSORS,
    "adapters/test_keys.py": _NO_TENSORS,
    "adapters/test_parts.py": _NO_TENSORS,
    "adapters/test_patterns.py": _NO_TENSORS,
    "transformers/test_paddlenlp.py": _NO_TENSORS,
    "transformers/test_tokenizer_files.py": _NO_TENSORS,
    "transformers/test_tokenizers.py": _NO_TENSORS,
    "loaders/test_conversion.py": _NO_TENSORS,
    "loaders/test_strange_files.py": _NO_TENSORS,
    "pipelines/test_controlnet.py": _LONG,
    "pipelines/test_guidance.py": _LONG,
    "pipelines/test_step_caching.py": _LONG,
    "pipelines/test_tasks.py": _LONG,
    "pipelines/test_threads.py": _THREADS,
    "pipelines/test_cfg_parallel.py": _THREADS,
    "pipelines/test_prompt_cache.py::test_threads_share_a_small_cache": _THREADS,
    "models/test_threads.py": _THREADS,
    "pipelines/test_stable_diffusion_3.py::test_sixteen_bits_need_a_gpu": _IN_16_BITS,
    "transformers/test_clip_modeling.py::test_16_bit_weights_on_the_cpu_give_a_clear_error": _IN_16_BITS,
    "transformers/test_t5_modeling.py::test_only_float16_keeps_islands": _IN_16_BITS,
    "pipelines/test_stable_diffusion_3.py::test_encode_prompt_refuses": "names the CPU as where the pipeline is",
    "pipelines/test_exporting.py": "graphs",
    "pipelines/test_sixteen_bits.py": "emulates on the CPU what GPUs compute",
    "pipelines/test_prefetching.py": _MEMORY,
    "pipelines/test_residency.py::test_parts_compute_with_what_they_have_on_loan": _MEMORY,
    "pipelines/test_residency.py::test_offloading_begins_and_ends": _MEMORY,
    "pipelines/test_residency.py::test_an_interruption_gives_the_loan_back": _MEMORY,
    "pipelines/test_residency.py::test_a_loan_that_cannot_begin_is_none": _MEMORY,
    "pipelines/test_residency.py::test_after_a_loan_tensors_have_their_own_memory_again": _MEMORY,
    "pipelines/test_every_pipeline.py::test_offloading_needs_a_gpu": "there is a device to offload from",
}


def has_tests(path):
    """Whether the directory or file has tests for the device."""
    parts = path.relative_to(TESTS).parts if TESTS in path.parents else ()
    return not parts or parts[0] in ("device", *SUITES)


def mark(items):
    """Gives the mark ``device`` to the default tests that run there."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in SUITES and _can_run(item):
            item.add_marker(pytest.mark.device)


def _can_run(item):
    file, source = item.path.relative_to(TESTS).as_posix(), inspect.getsource(item.function)
    default = not NOT_DEFAULT & {mark.name for mark in item.iter_markers()}
    other_task = item.cls is not None and file == OF_ALL_CONCERNS[0] and item.cls.__name__ != OF_ALL_CONCERNS[1]
    named = {file, f"{file}::{item.originalname}"} & ELSEWHERE.keys()
    return default and not named and not other_task and not NO_GRADIENTS.search(source) and not NO_GRAPHS.search(source)
