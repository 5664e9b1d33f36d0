"""Adapters of linear layers (LoRA, DoRA, LoHa, LoKr) and of attention (IP-adapter), without pipelines."""

from .files import read_adapters, write_adapters
from .ip_adapter import IPAdapter
from .layers import Dense, Kronecker, LowRank
from .network import LoraConfig, add_adapter, train_adapter

__all__ = [
    "Dense",
    "IPAdapter",
    "Kronecker",
    "LoraConfig",
    "LowRank",
    "add_adapter",
    "read_adapters",
    "train_adapter",
    "write_adapters",
]
