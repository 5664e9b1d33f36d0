"""The transformer's answers about the negative and the positive prompt, worked out by two processes.

It stands where the loop meets the transformer, so guidance, schedulers and tasks are as they are in one process.
"""

from __future__ import annotations

import copy
from typing import Any

import paddle

from ...models.transformer_sd3 import PreparedCondition
from ...utils.errors import InputError
from ...utils.logging import get_logger
from ...utils.ranks import Ranks, current_ranks
from .denoising import Velocity, VelocityModel
from .step_caching import StepCache

_logger = get_logger(__name__)


class CFGParallel:
    """Hands a pipeline's loop a velocity of which each of two processes works out half the rows.

    Args:
        cache: of the pipeline; it sees whole answers, so both processes decide alike.

    Raises:
        InputError: there are not two processes.
    """

    def __init__(self, cache: StepCache | None = None) -> None:
        self.cache: StepCache | None = cache
        self.ranks: Ranks = current_ranks()
        if self.ranks.world != 2:
            raise InputError(
                "CFG parallel (enable_cfg_parallel, --use-cfg-parallel) is for 2 processes; here are "
                f"{self.ranks.world}. Start 2 by `python -m paddle.distributed.launch --nproc_per_node 2`, or leave it "
                "out."
            )

    def start(self, velocity: VelocityModel) -> Velocity:
        """The callable that takes the place of ``velocity`` for one call of the pipeline."""
        divided = copy.copy(velocity)
        divided.transformer = _DividedTransformer(velocity.transformer, self.ranks)  # type: ignore[assignment]
        return divided if self.cache is None else self.cache.start(divided)


class _DividedTransformer:
    """A transformer that is asked about [negative, positive] and works out this process's half.

    What one process prepares of all rows is prepared of all rows here: products with few rows round in another way.
    """

    def __init__(self, transformer: Any, ranks: Ranks):
        self._transformer, self._ranks = transformer, ranks
        self._has_begun = False

    def __getattr__(self, name):
        return getattr(self._transformer, name)

    def __call__(self, hidden_states, prepared, block_controlnet_hidden_states, run_blocks, **arguments):
        if run_blocks is not None:
            raise InputError(
                "FirstBlockCache does not go with CFG parallel: it decides inside of the transformer, by half the "
                "rows. Use TaylorCache or EasyCache."
            )
        given = {"hidden_states": hidden_states, **arguments}
        out = prepared.out[0] if isinstance(prepared.out, list) else prepared.out
        is_whole = out.shape[0] == hidden_states.shape[0]
        if is_whole and not self._has_begun:
            _logger.warning(
                "CFG parallel has nothing to divide in steps without guidance (guidance_scale of at most 1, or outside "
                "of a GuidanceInterval): both processes work them out whole."
            )
        self._has_begun = True
        if is_whole:
            residuals = block_controlnet_hidden_states
            return self._transformer(prepared=prepared, block_controlnet_hidden_states=residuals, **given)
        half = self._ranks.rank
        answer = self._transformer(
            prepared=_half(prepared, half),
            block_controlnet_hidden_states=_half(block_controlnet_hidden_states, half),
            **given,
        )[0]
        return (paddle.concat(self._ranks.gather(answer)),)


def _half(value: Any, index: int) -> Any:
    """``value`` with the first (0) or second (1) half of the rows of each tensor in it."""
    if isinstance(value, paddle.Tensor):
        return value.chunk(2)[index]
    if isinstance(value, PreparedCondition):
        attention = _half(value.attention, index)
        fields = {name: _half(getattr(value, name), index) for name in ("context", "blocks", "out")}
        return PreparedCondition(**fields, picture=lambda: attention)
    if isinstance(value, dict):
        return {key: _half(item, index) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_half(item, index) for item in value)
    return value
