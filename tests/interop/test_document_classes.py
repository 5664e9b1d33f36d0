"""Each class that the document shows, beside ppdiffusers' own: the same weights, outputs and gradients."""

import functools

import numpy as np
import paddle
import pytest
from paddle import nn

from ppsd3 import SD3Transformer2DModel
from ppsd3.models import attention, attention_processor, embeddings, normalization

pytestmark = pytest.mark.interop

B, N, L, D, P, HEADS = 2, 6, 5, 32, 12, 4
EXACT = 1e-6  # of the largest number


def normal(*shape, scale=1.0):
    return paddle.to_tensor((scale * np.random.randn(*shape)).astype("float32"))


IMAGE, TEXT, VECTOR = (
    functools.partial(normal, B, N, D),
    functools.partial(normal, B, L, D),
    functools.partial(normal, B, D),
)


# Below a few hundred, the angles of the timesteps agree to 1e-6; see test_timesteps_are_nearer_to_the_truth.
def timesteps():
    return paddle.to_tensor([0.75, 7.5])


def labels():
    return paddle.to_tensor([3, 0])


PATCHES = {"height": 16, "width": 16, "patch_size": 2, "in_channels": 4, "embed_dim": D}
BLOCK = {"dim": D, "num_attention_heads": HEADS, "attention_head_dim": D}
ATTENTION = {"query_dim": D, "cross_attention_dim": None, "added_kv_proj_dim": D, "dim_head": D // HEADS}
ATTENTION.update(heads=HEADS, out_dim=D)
TRANSFORMER = {"sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": HEADS}
TRANSFORMER.update(joint_attention_dim=20, caption_projection_dim=D, pooled_projection_dim=P, pos_embed_max_size=12)

# (class of ours, where ppdiffusers.models has it, constructor's arguments, inputs: name -> how to make it)
CASES = [
    (embeddings.PatchEmbed, "embeddings", PATCHES, {"latent": lambda: normal(B, 4, 16, 16)}),
    (embeddings.PatchEmbed, "embeddings", PATCHES, {"latent": lambda: normal(B, 4, 12, 20)}),
    (
        embeddings.PatchEmbed,
        "embeddings",
        {**PATCHES, "interpolation_scale": 2},
        {"latent": lambda: normal(B, 4, 8, 8)},
    ),
    (
        embeddings.PatchEmbed,
        "embeddings",
        {**PATCHES, "pos_embed_max_size": 12},
        {"latent": lambda: normal(B, 4, 14, 22)},
    ),
    (
        embeddings.PatchEmbed,
        "embeddings",
        {**PATCHES, "flatten": False, "add_pos_embed": False, "bias": False},
        {"latent": lambda: normal(B, 4, 8, 8)},
    ),
    (
        embeddings.PatchEmbed,
        "embeddings",
        {**PATCHES, "data_format": "NHWC"},
        {"latent": lambda: normal(B, 16, 12, 4)},
    ),
    (
        embeddings.Timesteps,
        "embeddings",
        {"num_channels": 256, "flip_sin_to_cos": True, "downscale_freq_shift": 0},
        {"timesteps": timesteps},
    ),
    (
        embeddings.Timesteps,
        "embeddings",
        {"num_channels": 32, "flip_sin_to_cos": False, "downscale_freq_shift": 1},
        {"timesteps": timesteps},
    ),
    (
        embeddings.TimestepEmbedding,
        "embeddings",
        {"in_channels": P, "time_embed_dim": D},
        {"sample": lambda: normal(B, P)},
    ),
    (
        embeddings.TimestepEmbedding,
        "embeddings",
        {
            "in_channels": P,
            "time_embed_dim": D,
            "act_fn": "mish",
            "out_dim": 7,
            "post_act_fn": "gelu",
            "cond_proj_dim": 5,
        },
        {"sample": lambda: normal(B, P), "condition": lambda: normal(B, 5)},
    ),
    *(
        (
            embeddings.PixArtAlphaTextProjection,
            "embeddings",
            {"in_features": P, "hidden_size": D, **more},
            {"caption": lambda: normal(B, P)},
        )
        for more in ({}, {"act_fn": "silu"}, {"act_fn": "silu_fp32", "out_features": 9})
    ),
    (
        embeddings.CombinedTimestepTextProjEmbeddings,
        "embeddings",
        {"embedding_dim": D, "pooled_projection_dim": P},
        {"timestep": timesteps, "pooled_projection": lambda: normal(B, P)},
    ),
    (
        embeddings.CombinedTimestepLabelEmbeddings,
        "embeddings",
        {"num_classes": 5, "embedding_dim": D},
        {"timestep": timesteps, "class_labels": labels, "hidden_dtype": lambda: "float32"},
    ),
    (normalization.AdaLayerNormZero, "normalization", {"embedding_dim": D}, {"x": IMAGE, "emb": VECTOR}),
    (
        normalization.AdaLayerNormZero,
        "normalization",
        {"embedding_dim": D, "num_embeddings": 5},
        {"x": IMAGE, "timestep": timesteps, "class_labels": labels, "hidden_dtype": lambda: "float32"},
    ),
    *(
        (
            normalization.AdaLayerNormContinuous,
            "normalization",
            {"embedding_dim": D, "conditioning_embedding_dim": P, **more},
            {"x": IMAGE, "conditioning_embedding": lambda: normal(B, P)},
        )
        for more in ({}, {"elementwise_affine": False, "eps": 1e-6}, {"elementwise_affine": False, "bias": False})
    ),
    *(
        (attention.FeedForward, "attention", {"dim": D, "activation_fn": name, **more}, {"hidden_states": IMAGE})
        for name, more in {
            "gelu-approximate": {"dim_out": D},
            "gelu": {"dim_out": 9, "mult": 2},
            "geglu": {"final_dropout": True},
            "geglu-approximate": {},
        }.items()
    ),
    *(
        (
            attention_processor.Attention,
            "attention_processor",
            {**ATTENTION, **more},
            {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
        )
        for more in (
            {"bias": True, "context_pre_only": False},
            {"bias": True, "context_pre_only": True},
            {"context_pre_only": False, "out_bias": False},
        )
    ),
    *(
        (
            attention.JointTransformerBlock,
            "attention",
            {**BLOCK, "context_pre_only": last},
            {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "temb": VECTOR},
        )
        for last in (False, True)
    ),
    (
        SD3Transformer2DModel,
        "transformer_sd3",
        TRANSFORMER,
        {
            "hidden_states": lambda: normal(B, 16, 8, 12),
            "encoder_hidden_states": lambda: normal(B, L, 20),
            "pooled_projections": lambda: normal(B, P),
            "timestep": timesteps,
        },
    ),
]


def identity(case):
    return f"{case[0].__name__}-{'-'.join(f'{k}={v}' for k, v in case[2].items() if v is not None)}"[:80]


def theirs_of(ppdiffusers, ours, module, arguments):
    """ppdiffusers' class of the same name; the processor of its attention is the one that the document shows."""
    made = getattr(getattr(ppdiffusers.models, module), ours.__name__)(**arguments)
    if ours is attention_processor.Attention:
        made.set_processor(ppdiffusers.models.attention_processor.JointAttnProcessor2_5())
    return made.eval()


def transposed(theirs):
    """Names of the parameters that ppdiffusers holds as [in, out] and we as [out, in]."""
    layers = theirs.named_sublayers(include_self=True)
    return {f"{name}.weight".lstrip(".") for name, layer in layers if isinstance(layer, nn.Linear)}


def copy_weights(ours, theirs):
    """Random numbers, the same for both. Biases of norms that only ppdiffusers has stay zero; returns the names."""
    turned, own, only_theirs = transposed(theirs), dict(ours.named_parameters()), []
    for name, parameter in theirs.named_parameters():
        if name not in own:
            assert name.endswith("norm.bias"), f"we have no {name}"
            only_theirs.append(name)
            continue
        value = np.random.randn(*parameter.shape).astype("float32") / parameter.shape[0] ** 0.5
        parameter.set_value(value)
        own.pop(name).set_value(value.T if name in turned else value)
    assert not own, f"only we have {sorted(own)}"
    return only_theirs


def tensors_in(outputs):
    if isinstance(outputs, paddle.Tensor):
        return [outputs]
    if isinstance(outputs, (tuple, list)):
        return [x for x in outputs if x is not None]
    return [outputs.sample]


def run(layer, inputs):
    """Outputs, and the gradients of inputs and parameters for a fixed functional of the outputs, by name."""
    inputs = {name: x.clone() if isinstance(x, paddle.Tensor) else x for name, x in inputs.items()}
    followed = {name: x for name, x in inputs.items() if isinstance(x, paddle.Tensor) and x.dtype == paddle.float32}
    for x in followed.values():
        x.stop_gradient = False
    outputs = tensors_in(layer(**inputs))
    weights = np.random.RandomState(7)
    loss = sum((y * paddle.to_tensor(weights.randn(*y.shape).astype("float32"))).mean() for y in outputs)
    loss.backward()
    parameters = dict(layer.named_parameters())
    gradients = {name: x.grad for name, x in {**followed, **parameters}.items()}
    return [y.numpy() for y in outputs], {k: None if g is None else g.numpy() for k, g in gradients.items()}


def close(ours, theirs, what):
    assert ours.shape == theirs.shape, what
    error = np.abs(ours.astype("float64") - theirs).max() / max(1.0, np.abs(theirs).max())
    assert error <= EXACT, f"{what} differs by {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=identity)
def test_outputs_and_gradients(ppdiffusers, case):
    kind, module, arguments, makers = case
    theirs, ours = theirs_of(ppdiffusers, kind, module, arguments), kind(**arguments).eval()
    only_theirs, turned = copy_weights(ours, theirs), transposed(theirs)
    inputs = {name: make() for name, make in makers.items()}
    their_outputs, their_gradients = run(theirs, inputs)
    outputs, gradients = run(ours, inputs)
    assert len(outputs) == len(their_outputs)
    for i, (mine, other) in enumerate(zip(outputs, their_outputs)):
        close(mine, other, f"output {i}")
    for name, other in their_gradients.items():
        if name in only_theirs:
            continue
        mine = gradients[name]
        if mine is None or other is None:  # e.g. text queries of a block that drops their answers
            left = other if mine is None else mine
            assert left is None or np.abs(left).max() == 0, name
            continue
        close(mine, other.T if name in turned else other, f"gradient of {name}")


def test_positions(ppdiffusers):
    theirs = ppdiffusers.models.embeddings.get_2d_sincos_pos_embed
    for options in ({"grid_size": 5}, {"grid_size": (3, 7), "base_size": 4, "interpolation_scale": 2.0}):
        close(embeddings.get_2d_sincos_pos_embed(16, **options), theirs(16, **options), str(options))
    close(
        embeddings.get_2d_sincos_pos_embed(16, 2, cls_token=True, extra_tokens=3),
        theirs(16, 2, cls_token=True, extra_tokens=3),
        "extra tokens",
    )


def test_cropped_positions(ppdiffusers):
    arguments = {**PATCHES, "pos_embed_max_size": 12}
    theirs = ppdiffusers.models.embeddings.PatchEmbed(**arguments)
    ours = embeddings.PatchEmbed(**arguments)
    for height, width in ((24, 24), (6, 20), (2, 2)):
        mine, other = (embed.cropped_pos_embed(height, width).numpy() for embed in (ours, theirs))
        close(mine, other, f"{height} x {width}")


def test_timesteps_are_nearer_to_the_truth(ppdiffusers):
    """Times 1000 the last bit of a frequency is 6e-5 of an angle: here ppdiffusers is the less exact one."""
    t = np.array([251.0, 500.5, 987.3806, 1000.0], dtype="float32")
    angles = t.astype("float64")[:, None] * 10000.0 ** (-np.arange(128) / 128)
    truth = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    arguments = (256, True, 0)
    mine, other = (
        np.abs(kind(*arguments)(paddle.to_tensor(t)).numpy() - truth).max()
        for kind in (embeddings.Timesteps, ppdiffusers.models.embeddings.Timesteps)
    )
    assert mine <= other <= 2e-4


def test_both_meanings_of_attention_head_dim(ppdiffusers):
    """ppdiffusers' is the width of all heads; diffusers' that of one makes the same block here."""
    theirs = theirs_of(ppdiffusers, attention.JointTransformerBlock, "attention", BLOCK)
    inputs = {"hidden_states": IMAGE(), "encoder_hidden_states": TEXT(), "temb": VECTOR()}
    for width in (D, D // HEADS):
        ours = attention.JointTransformerBlock(D, HEADS, width).eval()
        copy_weights(ours, theirs)
        for mine, other in zip(run(ours, inputs)[0], run(theirs, inputs)[0]):
            close(mine, other, f"attention_head_dim={width}")


def test_their_processor_over_our_projections(ppdiffusers):
    """What the document's processor reads of an attention is there: heads, context_pre_only and the projections."""
    ours = attention_processor.Attention(**ATTENTION, bias=True, context_pre_only=False).eval()
    image, text = IMAGE(), TEXT()
    theirs = ppdiffusers.models.attention_processor.JointAttnProcessor2_5()
    for mine, other in zip(ours(image, text), theirs(ours, image, text)):
        close(mine.numpy(), other.numpy(), "their processor")
    blocks = SD3Transformer2DModel(**TRANSFORMER).eval()
    inputs = (normal(B, 16, 8, 8), normal(B, L, 20), normal(B, P), timesteps())
    expected = blocks(*inputs).sample.numpy()
    blocks.set_attn_processor(theirs)
    close(blocks(*inputs).sample.numpy(), expected, "the transformer by their processor")


def test_our_layers_in_their_block(ppdiffusers):
    """ppdiffusers' block unpacks what our norm returns, and its attention runs by our processor."""
    theirs = theirs_of(ppdiffusers, attention.JointTransformerBlock, "attention", BLOCK)
    ours = attention.JointTransformerBlock(**BLOCK).eval()
    copy_weights(ours, theirs)
    inputs = IMAGE(), TEXT(), VECTOR()
    expected = [x.numpy() for x in theirs(*inputs)]
    for name in ("norm1", "norm1_context", "norm2", "ff", "attn"):
        setattr(theirs, name, getattr(ours, name))
    for mine, other in zip(theirs(*inputs), expected):
        close(mine.numpy(), other, "their block of our layers")
