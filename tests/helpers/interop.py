"""ppdiffusers 0.29.0 on Paddle 3.3, and programs written for it.

As a program: ``python interop.py LIBRARY PROGRAM ARGUMENTS...`` runs PROGRAM, which imports ppdiffusers, with
LIBRARY in its place.
"""

import pathlib
import re
import sys

import paddle.nn.functional as F
from paddle import nn


def fill_gaps():
    """Makes what ppdiffusers calls and Paddle 3.3 does not have; ppdiffusers does so on other versions alone."""
    if not hasattr(F, "scaled_dot_product_attention_"):
        F.scaled_dot_product_attention_ = _attention
    for name in ("keys", "values", "items"):
        if not hasattr(nn.ParameterDict, name):
            setattr(nn.ParameterDict, name, lambda self, name=name: getattr(dict(self._parameters), name)())


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, training=True, **_):
    """[B, S, h, d], with a scale that Paddle's own has not."""
    if scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, training)


def with_imports_of(library, source):
    """``source`` with ``library`` in its import lines where they say ppdiffusers."""
    return re.sub(r"^(from|import) ppdiffusers\b", rf"\1 {library}", source, flags=re.MULTILINE)


if __name__ == "__main__":
    library, program = sys.argv[1:3]
    if library == "ppdiffusers":
        fill_gaps()
    sys.argv = sys.argv[2:]
    source = with_imports_of(library, pathlib.Path(program).read_text(encoding="utf-8"))
    exec(compile(source, program, "exec"), {"__name__": "__main__", "__file__": program})
