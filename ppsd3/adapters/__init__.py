"""Adapters of layers (LoRA, DoRA, LoHa, LoKr, OFT), without networks of a certain kind and without pipelines."""

from .files import read_adapters, write_adapters
from .layers import Dense, Kronecker, LowRank, Orthogonal, Sum
from .network import LoKrConfig, LoraConfig, add_adapter, train_adapter
from .peft import PeftAdapterMixin, get_peft_model_state_dict, set_peft_model_state_dict

__all__ = [
    "Dense",
    "Kronecker",
    "LoKrConfig",
    "LoraConfig",
    "LowRank",
    "Orthogonal",
    "PeftAdapterMixin",
    "Sum",
    "add_adapter",
    "get_peft_model_state_dict",
    "read_adapters",
    "set_peft_model_state_dict",
    "train_adapter",
    "write_adapters",
]
