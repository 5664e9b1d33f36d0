"""Drawing by two processes, of which each computes one half of the guidance."""

from __future__ import annotations

from typing import Any

from ..utils.errors import InputError
from ..utils.ranks import current_ranks
from .drawing import draw
from .options import load_pipeline

OPTION: dict[str, Any] = {
    "action": "store_true",
    "help": "of two processes (python -m paddle.distributed.launch --nproc_per_node 2 ppsd3 generate ...) one works "
    "out the negative prompt's half of each step, the other the prompt's",
}


def draw_in_halves(arguments: Any, call: dict[str, Any], pipeline_class: Any) -> None:
    """:func:`draw` with ``--use-cfg-parallel``; the first process saves the pictures.

    Raises:
        InputError: there are not two processes, or options leave nothing to divide.
    """
    if arguments.guidance_scale is not None:
        _check_guidance(arguments.guidance_scale)
    if arguments.cache == "first-block":
        raise InputError(
            "--cache first-block does not go with --use-cfg-parallel. Use --cache taylor or easy, or none."
        )
    ranks = current_ranks()

    def load(arguments, quiet, pipeline_class):
        pipe = load_pipeline(arguments, quiet or not ranks.is_first, pipeline_class)
        _check_guidance(pipe.with_call_defaults(call)["guidance_scale"])  # which may be the checkpoint's own
        pipe.enable_cfg_parallel()
        return pipe if ranks.is_first else _WithoutPictures(pipe)

    draw(arguments, call, pipeline_class, load=load, deal=range)
    ranks.wait()


def _check_guidance(scale):
    if scale <= 1:
        raise InputError(
            f"--use-cfg-parallel divides guidance, and with --guidance-scale {scale} there is none. Leave "
            "--use-cfg-parallel out, or guide."
        )


class _WithoutPictures:
    """A pipeline whose calls work and return no pictures."""

    def __init__(self, pipe):
        self._pipe = pipe

    def __getattr__(self, name):
        return getattr(self._pipe, name)

    def __call__(self, **call):
        output = self._pipe(**call)
        output.images = []
        return output
