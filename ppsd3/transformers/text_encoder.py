"""What both text towers share: their inputs are token ids."""

import paddle

from ..utils.errors import InputError
from .encoder import Encoder


class TextEncoder(Encoder):
    """Base of the text towers."""

    def _token_ids(self, input_ids):
        """``input_ids`` (Tensor or array-like, [B, L]) as an int64 Tensor; checks that it can be encoded here."""
        self._check_dtype()
        ids = (input_ids if isinstance(input_ids, paddle.Tensor) else paddle.to_tensor(input_ids)).astype("int64")
        if len(ids.shape) != 2:
            raise InputError(f"input_ids has shape {list(ids.shape)}; it should be [batch, tokens].")
        if paddle.in_dynamic_mode() and ids.shape[0] * ids.shape[1] > 0:
            low, high = paddle.stack([ids.min(), ids.max()]).numpy()  # one read of the device
            if low < 0 or high >= self.config.vocab_size:
                raise InputError(
                    f"input_ids reach from {low} to {high}, but {type(self).__name__} knows ids 0 to "
                    f"{self.config.vocab_size - 1}: this tokenizer does not belong to this text encoder."
                )
        return ids
