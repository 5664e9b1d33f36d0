"""What the text towers and the image tower share: their files are transformers' files."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..configuration_utils import FrozenConfig
from ..modeling_utils import ModelMixin
from ..ops import AffineLayerNorm, exact_gelu, gelu, quick_gelu
from ..ops.gradients import recomputed
from ..ops.shapes import tracked
from ..utils.checking import shown
from ..utils.device import can_compute
from ..utils.errors import ConfigError, InputError

# Keys that transformers 4 or 5 writes into any config.json: they describe the file, or generation and
# classification heads that a tower does not have.
_TRANSFORMERS_KEYS = (
    *("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", "attn_implementation"),
    *("_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_experts_implementation"),
    *("chunk_size_feed_forward", "id2label", "label2id", "problem_type", "pruned_heads", "return_dict"),
    *("output_attentions", "output_hidden_states", "torchscript", "use_bfloat16", "use_cache", "output_past"),
    *("add_cross_attention", "cross_attention_hidden_size", "decoder_start_token_id", "is_decoder"),
    *("is_encoder_decoder", "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tie_word_embeddings"),
    *("finetuning_task", "prefix", "tf_legacy_loss", "tokenizer_class"),
)

_ACTIVATIONS = {
    "gelu": exact_gelu,
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def activation(name: str, key: str) -> Callable[[paddle.Tensor], paddle.Tensor]:
    """The function that transformers calls ``name``; ``key`` is the config key to blame if there is none.

    ``gelu`` is exact (erf), ``gelu_new`` and ``gelu_pytorch_tanh`` are the tanh approximation, ``quick_gelu`` is
    ``x * sigmoid(1.702 x)``.

    Raises:
        ConfigError
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"{key} asks for the activation {shown(name)}; known ones: {', '.join(sorted(_ACTIVATIONS))}."
        )
    return _ACTIVATIONS[name]


def init_normal(parameter: paddle.Tensor, std: float) -> None:
    """Draws ``parameter`` from N(0, std^2), now or, under ``paddle.LazyGuard``, when it is first needed."""
    nn.initializer.Normal(0.0, std)(parameter)


class Encoder(ModelMixin):
    """Base of the towers."""

    weights_name = "model"
    ignored_config_keys = _TRANSFORMERS_KEYS

    def to_json_dict(self) -> dict[str, Any]:
        """The configuration as it is saved, in the form that transformers reads."""
        return {**super().to_json_dict(), "torch_dtype": str(self.dtype).rsplit(".", maxsplit=1)[-1]}

    def _check_dtype(self):
        """Refuses weights that Paddle cannot multiply where they are.

        Raises:
            InputError
        """
        if not can_compute(self):
            raise InputError(
                f"{type(self).__name__} holds {self.dtype} weights on the CPU, where Paddle multiplies no 16-bit "
                "matrices; load it with paddle_dtype='float32' and storage_dtype='float16', or move it to a GPU."
            )

    def _run_blocks(self, blocks, hidden, *args):
        """Calls ``block(hidden, *args)`` in turn; returns the list ``[hidden, after block 0, after block 1, ...]``."""
        again = self.gradient_checkpointing and self.training and tracked(hidden, *self.parameters())
        run = recomputed if again else lambda block, *inputs: block(*inputs)
        return list(accumulate(blocks, lambda hidden, block: run(block, hidden, *args), initial=hidden))


class PreNormLayer(nn.Layer):
    """A layer of CLIP and of SigLIP: pre-norm attention and MLP, each with its residual.

    Args:
        config: of the tower.
        attention, mlp: made from ``config``.
    """

    def __init__(
        self,
        config: FrozenConfig,
        attention: Callable[[FrozenConfig], nn.Layer],
        mlp: Callable[[FrozenConfig], nn.Layer],
    ) -> None:
        super().__init__()
        self.layer_norm1 = AffineLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = attention(config)
        self.layer_norm2 = AffineLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = mlp(config)

    def forward(self, hidden: paddle.Tensor, *bias: paddle.Tensor) -> paddle.Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), *bias)
        return hidden + self.mlp(self.layer_norm2(hidden))
