"""The calls of docs/document.md in its order: names, arguments, defaults, order of results and shapes."""

import importlib.util
import inspect
import pathlib
import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from helpers import markdown, tiny
from paddle import nn

import ppsd3
from ppsd3.models.activations import get_activation
from ppsd3.models.attention import FeedForward, JointTransformerBlock
from ppsd3.models.attention_processor import Attention, JointAttnProcessor2_5, PAGJointAttnProcessor2_5
from ppsd3.models.embeddings import (
    CombinedTimestepLabelEmbeddings,
    CombinedTimestepTextProjEmbeddings,
    LabelEmbedding,
    PatchEmbed,
    PixArtAlphaTextProjection,
    TimestepEmbedding,
    Timesteps,
    get_2d_sincos_pos_embed,
)
from ppsd3.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, RMSNorm
from ppsd3.training.flow_matching import RectifiedFlow
from ppsd3.utils.errors import ConfigError, InputError

B, N, L, D, P, HEADS = 2, 6, 5, 32, 12, 4
ROUNDING = 2e-6
ROOT = pathlib.Path(__file__).parent.parent
WALK, PAGE = ROOT / "examples" / "document_walk.py", ROOT / "docs" / "document.md"
REQUIRED = inspect.Parameter.empty


def close(a, b, tolerance=ROUNDING):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(np.asarray(b)).max())))


def vary(layer):
    """Random weights and biases, so that each parameter shows."""
    for parameter in layer.parameters():
        parameter.set_value(paddle.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    layer.eval()
    return layer


def streams():
    return paddle.randn([B, N, D]), paddle.randn([B, L, D]), paddle.randn([B, D])


SIGNATURES = {
    PatchEmbed: dict(
        height=224,
        width=224,
        patch_size=16,
        in_channels=3,
        embed_dim=768,
        layer_norm=False,
        flatten=True,
        bias=True,
        interpolation_scale=1,
        add_pos_embed=True,
        data_format="NCHW",
        pos_embed_max_size=None,
    ),
    CombinedTimestepTextProjEmbeddings: dict(embedding_dim=REQUIRED, pooled_projection_dim=REQUIRED),
    AdaLayerNormZero: dict(embedding_dim=REQUIRED, num_embeddings=None),
    JointTransformerBlock: dict(
        dim=REQUIRED, num_attention_heads=REQUIRED, attention_head_dim=REQUIRED, context_pre_only=False
    ),
    FeedForward: dict(dim=REQUIRED, dim_out=None, mult=4, dropout=0.0, activation_fn="gelu-approximate"),
}


def test_the_code_of_the_page_runs():
    names = {}
    for block in markdown.blocks(PAGE.read_text(encoding="utf-8")):
        exec(compile("\n" * (block.line - 1) + block.code, PAGE, "exec"), names)
    shapes = {name: list(names[name].shape) for name in ("prompt_embeds", "hidden_states", "encoder_hidden_states")}
    assert shapes == {
        "prompt_embeds": [2, 288, 192],
        "hidden_states": [2, 16, 192],
        "encoder_hidden_states": [2, 288, 192],
    }


def test_the_page_names_what_is_there():
    text = PAGE.read_text(encoding="utf-8")
    modules = re.findall(r"`((?:models|ops|pipelines|training|transformers)/[\w/]+\.py)`", text)
    assert len(modules) > 8
    assert [name for name in modules if not (ROOT / "ppsd3" / name).is_file()] == []


@pytest.mark.parametrize("kind", SIGNATURES, ids=lambda kind: kind.__name__)
def test_signatures(kind):
    parameters = list(inspect.signature(kind).parameters.values())[: len(SIGNATURES[kind])]
    assert {p.name: p.default for p in parameters} == SIGNATURES[kind]


# 2 and 3, flows.


def test_objective_is_weighted_noise_prediction():
    """The formulas of section 2 at the rectified flow's a_t and b_t, with derivatives by autograd."""
    flow, t = RectifiedFlow(), paddle.to_tensor([0.1, 0.5, 0.8], stop_gradient=False)
    x0, eps, v = (paddle.randn([3, 4]) for _ in range(3))
    a, b = 1 - t, t
    log_snr = paddle.log(a**2 / b**2)
    da, dlambda = (paddle.grad(y.sum(), t, retain_graph=True)[0].unsqueeze(1) for y in (a, log_snr))
    a, b, t = (x.unsqueeze(1).detach() for x in (a, b, t))
    z = flow.interpolate(x0, eps, t.numpy()[:, 0])
    close(z, a * x0 + b * eps)
    field = da / a * z - b / 2 * dlambda * eps
    close(field, flow.velocity(x0, eps, t.numpy()[:, 0]))
    predicted = -2 / (dlambda * b) * (v - da / a * z)
    weight = -0.5 * dlambda * b**2
    close(-0.5 * weight * dlambda * (predicted - eps) ** 2, (v - field) ** 2, 1e-5)
    close(weight, t / (1 - t))


def test_a_step_is_eulers():
    scheduler = ppsd3.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    z, v = paddle.randn([1, 16, 4, 4]), paddle.randn([1, 16, 4, 4])
    for i, timestep in enumerate(scheduler.timesteps):
        step = scheduler.sigmas[i + 1] - scheduler.sigmas[i]
        close(scheduler.step(v, timestep, z).prev_sample, z + step * v)
    assert float(scheduler.sigmas[0]) == 1 and float(scheduler.sigmas[-1]) == 0


# 4, text encoders.


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def test_text_encoders(pipe):
    prompt, prompt_2, prompt_3 = ["a red circle", "cle"], ["blue", "two"], ["the square of", "a red"]
    options = {"num_images_per_prompt": 2, "clip_skip": None}
    prompt_embed, pooled_prompt_embed = pipe._get_clip_prompt_embeds(prompt=prompt, clip_model_index=0, **options)
    prompt_2_embed, pooled_prompt_2_embed = pipe._get_clip_prompt_embeds(prompt=prompt_2, clip_model_index=1, **options)
    t5_prompt_embed = pipe._get_t5_prompt_embeds(prompt=prompt_3, num_images_per_prompt=2, max_sequence_length=64)
    assert prompt_embed.shape == [4, 77, 16] and pooled_prompt_embed.shape == [4, 16]
    assert prompt_2_embed.shape == [4, 77, 12] and pooled_prompt_2_embed.shape == [4, 12]
    assert t5_prompt_embed.shape == [4, 64, 40]

    pooled_prompt_embeds = paddle.concat([pooled_prompt_embed, pooled_prompt_2_embed], axis=-1)
    clip_prompt_embeds = paddle.concat([prompt_embed, prompt_2_embed], axis=-1)
    missing = t5_prompt_embed.shape[-1] - clip_prompt_embeds.shape[-1]
    clip_prompt_embeds = F.pad(clip_prompt_embeds, (0, missing), data_format="NCL")
    assert clip_prompt_embeds.shape == [4, 77, 40]
    prompt_embeds = paddle.concat([clip_prompt_embeds, t5_prompt_embed], axis=-2)
    assert prompt_embeds.shape == [4, 77 + 64, 40]

    expected = pipe.encode_prompt(
        prompt, prompt_2, prompt_3, num_images_per_prompt=2, max_sequence_length=64, do_classifier_free_guidance=False
    )
    close(prompt_embeds, expected[0])
    close(pooled_prompt_embeds, expected[2])


def test_text_encoders_by_default(pipe):
    features, pooled = pipe._get_clip_prompt_embeds("a red circle")
    assert features.shape == [1, 77, 16] and pooled.shape == [1, 16]
    assert pipe._get_t5_prompt_embeds("a red circle").shape == [1, 256, 40]
    skipped, same = pipe._get_clip_prompt_embeds("a red circle", clip_skip=1)
    close(same, pooled)
    with pytest.raises(AssertionError):
        close(skipped, features)


def test_text_encoders_that_are_absent(pipe):
    parts = {**pipe.components, "text_encoder_2": None, "text_encoder_3": None}
    without = ppsd3.StableDiffusion3Pipeline(**parts)
    zeros = without._get_t5_prompt_embeds(["a", "b"], num_images_per_prompt=3, max_sequence_length=9)
    assert zeros.shape == [6, 9, 40] and float(zeros.abs().max()) == 0
    with pytest.raises(InputError, match=r"no `text_encoder_2`.*encode_prompt"):
        without._get_clip_prompt_embeds("a", clip_model_index=1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda pipe: pipe._get_clip_prompt_embeds("a", clip_model_index=2), "`clip_model_index` is 2.*0 or 1"),
        (lambda pipe: pipe._get_clip_prompt_embeds("a", clip_skip=9), "`clip_skip` is 9"),
        (lambda pipe: pipe._get_clip_prompt_embeds("a", num_images_per_prompt=0), "`num_images_per_prompt` is 0"),
        (lambda pipe: pipe._get_clip_prompt_embeds(None), "Neither `prompt`"),
        (lambda pipe: pipe._get_t5_prompt_embeds("a", max_sequence_length=513), "`max_sequence_length` is 513"),
        (lambda pipe: pipe._get_t5_prompt_embeds(7), "`prompt` is 7"),
    ],
)
def test_text_encoders_refuse(pipe, call, message):
    with pytest.raises(InputError, match=message):
        call(pipe)


# 4, global semantics: timestep and pooled text.


def test_conditioning_vector():
    embed = vary(CombinedTimestepTextProjEmbeddings(embedding_dim=D, pooled_projection_dim=P))
    timestep, pooled = paddle.to_tensor([3.0, 700.0]), paddle.randn([B, P])
    features = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)(timestep)
    assert features.shape == [B, 256]
    embedder, projection = embed.timestep_embedder, embed.text_embedder
    assert isinstance(embedder, TimestepEmbedding) and isinstance(projection, PixArtAlphaTextProjection)
    expected = embedder(features.cast(dtype=pooled.dtype)) + projection(pooled)
    close(embed(timestep, pooled), expected)
    hidden = F.silu(F.linear(pooled, projection.linear_1.weight.t(), projection.linear_1.bias))
    close(projection(pooled), F.linear(hidden, projection.linear_2.weight.t(), projection.linear_2.bias))


def test_pieces_of_the_conditioning_vector():
    embedder = vary(TimestepEmbedding(in_channels=8, time_embed_dim=D, act_fn="silu"))
    assert embedder(paddle.randn([B, 8])).shape == [B, D]
    with pytest.raises(InputError, match="cond_proj_dim"):
        embedder(paddle.randn([B, 8]), paddle.randn([B, 3]))
    assert vary(PixArtAlphaTextProjection(P, D, act_fn="silu"))(paddle.randn([B, P])).shape == [B, D]
    x = paddle.randn([9])
    named = {"silu": F.silu, "swish": F.silu, "silu_fp32": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}
    named["gelu_tanh"] = lambda x: F.gelu(x, approximate=True)
    for name, function in named.items():
        close(get_activation(name)(x), function(x))
    assert get_activation("SiLU_FP32")(x.astype("float64")).dtype == paddle.float64
    with pytest.raises(ConfigError, match="act_fn is 'tanh'; it can be 'gelu'"):
        PixArtAlphaTextProjection(P, D, act_fn="tanh")
    with pytest.raises(ConfigError, match="num_channels is 7"):
        Timesteps(7)


def test_labels_in_the_place_of_text():
    embed = vary(CombinedTimestepLabelEmbeddings(num_classes=5, embedding_dim=D))
    timestep, labels = paddle.to_tensor([3.0, 700.0]), paddle.to_tensor([4, 0])
    features = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=1)(timestep)
    expected = embed.timestep_embedder(features) + embed.class_embedder.embedding_table(labels)
    close(embed(timestep, labels), expected)
    close(embed(timestep, labels, hidden_dtype="float32"), expected)


def test_training_drops_labels():
    table = LabelEmbedding(num_classes=5, hidden_size=4, dropout_prob=0.25)
    labels = paddle.arange(400) % 5
    nobody = table.embedding_table(paddle.to_tensor([5]))
    table.train()
    dropped = (table(labels) == nobody).all(axis=-1).numpy()
    assert 60 < dropped.sum() < 140
    table.eval()
    close(table(labels), table.embedding_table(labels))
    forced = table.token_drop(labels[:4], force_drop_ids=paddle.to_tensor([1, 0, 0, 1]))
    assert forced.tolist() == [5, 1, 2, 5]
    with pytest.raises(InputError, match="dropout_prob above 0"):
        LabelEmbedding(5, 4, dropout_prob=0.0)(labels, force_drop_ids=labels)


def test_text_tokens_reach_the_width_of_the_model(pipe):
    transformer = pipe.transformer
    config = transformer.config
    assert transformer.inner_dim == config.caption_projection_dim
    tokens = transformer.context_embedder(paddle.randn([B, L, config.joint_attention_dim]))
    assert tokens.shape == [B, L, config.caption_projection_dim]


# 4, patches.

PATCHES = {"height": 16, "width": 16, "patch_size": 2, "in_channels": 4, "embed_dim": D}


def patched(embed, latent):
    """The document's way through a PatchEmbed, by what it has."""
    channels_first = embed.data_format == "NCHW"
    size = latent.shape[2:] if channels_first else latent.shape[1:3]
    tokens = embed.proj(latent)
    tokens = tokens.flatten(2).transpose([0, 2, 1]) if channels_first else tokens.flatten(1, 2)
    if embed.layer_norm:
        tokens = F.layer_norm(tokens, [D], epsilon=1e-6)
    height, width = (n // embed.patch_size for n in size)
    if embed.add_pos_embed and embed.pos_embed_max_size:
        tokens = tokens + embed.cropped_pos_embed(*size)
    elif embed.add_pos_embed and (embed.height != height or embed.width != width):
        positions = get_2d_sincos_pos_embed(
            embed_dim=embed.pos_embed.shape[-1],
            grid_size=(height, width),
            base_size=embed.base_size,
            interpolation_scale=embed.interpolation_scale,
        )
        tokens = tokens + paddle.to_tensor(positions).astype(paddle.float32).unsqueeze(0)
    elif embed.add_pos_embed:
        tokens = tokens + embed.pos_embed
    if embed.flatten:
        return tokens
    grid = tokens.reshape([latent.shape[0], height, width, D])
    return grid.transpose([0, 3, 1, 2]) if channels_first else grid


OPTIONS = [
    {},
    {"layer_norm": True},
    {"flatten": False},
    {"flatten": False, "layer_norm": True, "add_pos_embed": False},
    {"bias": False},
    {"interpolation_scale": 2},
    {"add_pos_embed": False},
    {"pos_embed_max_size": 12},
    {"pos_embed_max_size": 12, "interpolation_scale": 0.5},
]


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
@pytest.mark.parametrize("height, width", [(16, 16), (12, 20)])
def test_patches(options, data_format, height, width):
    embed = vary(PatchEmbed(**PATCHES, **options, data_format=data_format))
    shape = [B, 4, height, width] if data_format == "NCHW" else [B, height, width, 4]
    latent = paddle.randn(shape)
    result = embed(latent)
    close(result, patched(embed, latent))
    if options.get("flatten", True):
        assert result.shape == [B, height * width // 4, D]
    assert ("proj.bias" in embed.state_dict()) == options.get("bias", True)
    assert ("pos_embed" in embed.state_dict()) == ("pos_embed_max_size" in options)


def test_patches_by_default():
    assert PatchEmbed()(paddle.zeros([1, 3, 224, 224])).shape == [1, 14 * 14, 768]


def test_larger_pictures_by_interpolation():
    """Twice the size by a scale of 2: the positions of the native grid, at half steps."""
    native = get_2d_sincos_pos_embed(D, (8, 8), base_size=8).reshape(8, 8, D)
    np.testing.assert_allclose(
        get_2d_sincos_pos_embed(D, (8, 8), base_size=16, interpolation_scale=2).reshape(8, 8, D), native, atol=1e-6
    )
    assert get_2d_sincos_pos_embed(D, 3, cls_token=True, extra_tokens=2).shape == (11, D)
    assert not get_2d_sincos_pos_embed(D, 3, cls_token=True, extra_tokens=2)[:2].any()


def test_patches_refuse():
    with pytest.raises(InputError, match=r"no table to crop.*pos_embed_max_size"):
        PatchEmbed(**PATCHES).cropped_pos_embed(8, 8)
    with pytest.raises(InputError, match="26 x 8 needs 13 x 4"):
        PatchEmbed(**PATCHES, pos_embed_max_size=12).cropped_pos_embed(26, 8)
    with pytest.raises(ConfigError, match="data_format is 'NLC'"):
        PatchEmbed(**PATCHES, data_format="NLC")
    with pytest.raises(ConfigError, match="embed_dim is 6"):
        get_2d_sincos_pos_embed(6, 2)


def test_a_picture_becomes_patches(pipe):
    """The document's figure: picture, VAE, latents, patches."""
    latents = pipe.vae.encode(paddle.rand([1, 3, 64, 64]) * 2 - 1).latent_dist.sample()
    assert latents.shape == [1, 4, 16, 16]
    assert pipe.transformer.pos_embed(latents).shape == [1, 64, pipe.transformer.inner_dim]


# 5, adaptive layer norms.


def normalized(x):
    return F.layer_norm(x, [D], epsilon=1e-6)


def test_zero_norm_returns_five():
    x, _, temb = streams()
    norm = vary(AdaLayerNormZero(D))
    emb = norm.linear(norm.silu(temb))
    assert emb.shape == [B, 6 * D]
    shift_msa, scale_msa, *rest = emb.chunk(6, axis=1)
    x_out, gate_msa, shift_mlp, scale_mlp, gate_mlp = norm(x, emb=temb)
    close(x_out, norm.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None])
    close(norm.norm(x), normalized(x))
    assert norm.norm.weight is None and norm.norm.bias is None and norm.emb is None
    for result, expected in zip((gate_msa, shift_mlp, scale_mlp, gate_mlp), rest):
        close(result, expected)


def test_zero_norm_of_labels():
    x, timestep, labels = paddle.randn([B, N, D]), paddle.to_tensor([3.0, 700.0]), paddle.to_tensor([4, 0])
    norm = vary(AdaLayerNormZero(D, num_embeddings=5))
    assert isinstance(norm.emb, CombinedTimestepLabelEmbeddings)
    results = norm(x, timestep, labels, hidden_dtype=paddle.float32)
    shift, scale, *rest = norm.linear(F.silu(norm.emb(timestep, labels))).chunk(6, axis=1)
    expected = [normalized(x) * (1 + scale[:, None]) + shift[:, None], *rest]
    assert len(results) == 5
    for result, wanted in zip(results, expected):
        close(result, wanted)
    with pytest.raises(InputError, match=r"with num_embeddings.*timestep and class_labels"):
        norm(x, timestep)
    with pytest.raises(InputError, match="with num_embeddings"):
        norm(x, timestep, labels, emb=paddle.randn([B, D]))
    for given in ({}, {"timestep": timestep}, {"emb": paddle.randn([B, D]), "class_labels": labels}):
        with pytest.raises(InputError, match=r"without num_embeddings.*emb"):
            AdaLayerNormZero(D)(x, **given)


@pytest.mark.parametrize("elementwise_affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm_type", ["layer_norm", "rms_norm"])
def test_continuous_norm(elementwise_affine, bias, norm_type):
    x, temb = paddle.randn([B, N, D]), paddle.randn([B, P])
    norm = vary(
        AdaLayerNormContinuous(D, P, elementwise_affine=elementwise_affine, eps=1e-3, bias=bias, norm_type=norm_type)
    )
    scale, shift = paddle.chunk(norm.linear(norm.silu(temb)), 2, axis=1)
    names = {"linear.weight"} | ({"linear.bias"} if bias else set())
    if elementwise_affine:
        names |= {"norm.weight"} | ({"norm.bias"} if bias and norm_type == "layer_norm" else set())
    assert set(norm.state_dict()) == names
    if norm_type == "layer_norm":
        inner = F.layer_norm(x, [D], norm.norm.weight, norm.norm.bias, epsilon=1e-3)
    else:
        inner = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.norm.weight
    close(norm(x, temb), inner * (1 + scale)[:, None, :] + shift[:, None, :])
    close(norm.norm(x), inner)


def test_continuous_norm_by_default():
    norm = AdaLayerNormContinuous(D, P)
    assert set(norm.state_dict()) == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    assert norm.norm.epsilon == 1e-5
    with pytest.raises(ConfigError, match="norm_type is 'batch_norm'; it can be 'layer_norm' or 'rms_norm'"):
        AdaLayerNormContinuous(D, P, norm_type="batch_norm")


def test_a_hook_on_a_norm_sees_its_output():
    """The fast way makes norm and modulation in one pass; it steps back where somebody looks between."""
    x, text, temb = streams()
    block = vary(JointTransformerBlock(D, HEADS, D))
    expected = block(x, text, temb)
    seen = []
    hooks = [
        layer.register_forward_post_hook(lambda *call: seen.append(call[2]))
        for layer in (block.norm1.norm, block.norm2)
    ]
    for result, wanted in zip(block(x, text, temb), expected):
        close(result, wanted)
    assert len(seen) == 2
    close(seen[0], normalized(x))
    for hook in hooks:
        hook.remove()
    block.norm2 = nn.LayerNorm(D)  # and another norm in its place acts
    block.norm2.weight.set_value(paddle.full([D], 3.0))
    assert float((block(x, text, temb)[1] - expected[1]).abs().max()) > 1e-2


# 5, joint attention.

ATTENTION = dict(
    query_dim=D, cross_attention_dim=None, added_kv_proj_dim=D, dim_head=D // HEADS, heads=HEADS, out_dim=D
)


def attention(context_pre_only=False, bias=True, **changes):
    arguments = {**ATTENTION, "context_pre_only": context_pre_only, "bias": bias, **changes}
    return vary(Attention(**arguments, processor=JointAttnProcessor2_5()))


def attended(attn, image, text, seen=None):
    """The document's way through joint attention; ``seen [B, h or 1, S, S]`` is what may be looked at."""
    query = paddle.concat([attn.to_q(image), attn.add_q_proj(text)], axis=1)
    key = paddle.concat([attn.to_k(image), attn.add_k_proj(text)], axis=1)
    value = paddle.concat([attn.to_v(image), attn.add_v_proj(text)], axis=1)
    batch, head_dim = query.shape[0], key.shape[-1] // attn.heads
    query, key, value = (
        x.reshape([batch, -1, attn.heads, head_dim]).transpose([0, 2, 1, 3]) for x in (query, key, value)
    )
    scores = paddle.matmul(query, key, transpose_y=True) / head_dim**0.5
    if seen is not None:
        scores = scores + paddle.where(seen, paddle.zeros_like(scores), paddle.full_like(scores, -1e9))
    joint = paddle.matmul(F.softmax(scores, axis=-1), value).transpose([0, 2, 1, 3])
    joint = joint.reshape([batch, -1, attn.heads * head_dim])
    image, text = joint[:, : image.shape[1]], joint[:, image.shape[1] :]
    image = attn.to_out[1](attn.to_out[0](image))
    return image, text if attn.context_pre_only else attn.to_add_out(text)


@pytest.mark.parametrize("context_pre_only", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_joint_attention(context_pre_only, bias, fused):
    attn = attention(context_pre_only, bias)
    assert (attn.to_q.bias is not None) == bias and attn.context_pre_only == context_pre_only
    if fused:
        attn.fuse_projections()
    image, text, _ = streams()
    with paddle.no_grad():
        for result, wanted in zip(attn(hidden_states=image, encoder_hidden_states=text), attended(attn, image, text)):
            close(result, wanted)


def as_picture(tokens, height, width):
    return tokens.transpose([0, 2, 1]).reshape([tokens.shape[0], -1, height, width])


@pytest.mark.parametrize("pictures", [(True, False), (False, True), (True, True)])
def test_pictures_in_attention(pictures):
    attn, (image, text, _) = attention(), streams()
    expected = attended(attn, image, text)
    sizes = [(2, 3), (1, L)]
    inputs = [as_picture(x, *size) if p else x for x, p, size in zip((image, text), pictures, sizes)]
    results = JointAttnProcessor2_5()(attn, *inputs)
    for given, result, wanted, picture, size in zip(inputs, results, expected, pictures, sizes):
        assert result.shape == given.shape
        close(result, as_picture(wanted, *size) if picture else wanted)


def test_a_picture_alone_in_attention():
    attn, image = vary(Attention(D, heads=HEADS, dim_head=D // HEADS)), streams()[0]
    result = attn(as_picture(image, 2, 3))
    assert result.shape == [B, D, 2, 3]
    close(result, as_picture(attn(image), 2, 3))


S = N + L


def masks():
    """Name -> (mask, which of [B, h, S, S] may be looked at)."""
    keys = paddle.ones([B, S], "bool")
    keys[0, N + 2 :] = False
    keys[1, 3] = False
    pairs = paddle.tril(paddle.ones([B, S, S])) > 0
    heads = paddle.rand([B, HEADS, S, S]) > 0.4
    heads[:, :, :, 0] = True
    wide = [B, HEADS, S, S]
    over_keys, over_pairs = keys.unsqueeze([1, 2]).expand(wide), pairs.unsqueeze(1).expand(wide)
    return {
        "keys": (keys, over_keys),
        "keys as numbers": (keys.astype("int64"), over_keys),
        "keys, one for all rows": (keys[:1], over_keys[:1].expand(wide)),
        "keys, 4-D": (keys.unsqueeze([1, 2]), over_keys),
        "pairs": (pairs, over_pairs),
        "heads": (heads, heads),
        "added": ((1 - heads.astype("float32")) * -1e9, heads),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("context_pre_only", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_masks_act(name, context_pre_only, gradients):
    attn, (image, text, _) = attention(context_pre_only), streams()
    mask, seen = masks()[name]
    with paddle.set_grad_enabled(gradients):
        results = attn(image, text, attention_mask=mask)
        for result, wanted in zip(results, attended(attn, image, text, seen)):
            close(result, wanted)
        assert float((results[0] - attn(image, text)[0]).abs().max()) > 1e-3
        attn.has_text_queries = False
        close(attn(image, text, attention_mask=mask)[0], results[0])
        assert attn(image, text, attention_mask=mask)[1] is None


def test_a_masked_token_might_as_well_be_absent():
    attn, (image, text, _) = attention(), streams()
    mask = paddle.concat([paddle.ones([B, N + 2]), paddle.zeros([B, L - 2])], axis=1) > 0
    close(attn(image, text, attention_mask=mask)[0], attn(image, text[:, :2])[0])


@pytest.mark.parametrize("dual", [(), (0, 1)])
def test_masks_reach_the_blocks(dual):
    """The same mask for both attentions of SD3.5-medium, of which the second has image tokens alone."""
    sizes = {**tiny.TRANSFORMER, "dual_attention_layers": dual}
    model = tiny.fill(ppsd3.SD3Transformer2DModel(**sizes))
    text, pooled = paddle.randn([B, L, 40]), paddle.randn([B, 28])
    inputs = [paddle.randn([B, 4, 8, 8]), text, pooled, paddle.to_tensor([3.0, 700.0])]
    mask = paddle.concat([paddle.ones([B, 16 + 2]), paddle.zeros([B, L - 2])], axis=1)
    with paddle.no_grad():
        masked = model(*inputs, joint_attention_kwargs={"attention_mask": mask > 0}).sample
        inputs[1] = text[:, :2]
        close(masked, model(*inputs).sample, 1e-5)


@pytest.mark.parametrize("shape", [[B, S + 1], [B + 1, S], [S], [B, S, S - 1], [B, 3, S, S], [B, 1, 1, 1, S]])
def test_masks_of_other_shapes(shape):
    attn, (image, text, _) = attention(), streams()
    with pytest.raises(InputError, match=rf"attention_mask has the shape {re.escape(str(shape))}.*Pass \[2, 11\]"):
        attn(image, text, attention_mask=paddle.ones(shape))


def test_processor_refuses():
    attn, (image, text, _) = attention(), streams()
    call = JointAttnProcessor2_5()
    with pytest.raises(InputError, match="was given 'scale'; it uses attention_mask alone"):
        call(attn, image, text, None, scale=0.5)
    with pytest.raises(InputError, match="was given 1 more arguments"):
        call(attn, image, text, None, 0.5)
    with pytest.raises(InputError, match=r"\[B, S, D\] or pictures"):
        call(attn, image[0], text)
    with pytest.raises(InputError, match=r"image tokens alone.*added_kv_proj_dim"):
        call(vary(Attention(D, heads=HEADS, dim_head=8)), image, text)
    with pytest.raises(InputError, match="Perturbed attention takes no attention_mask"):
        PAGJointAttnProcessor2_5()(attn, image, text, paddle.ones([B, S]))
    for wrong, message in {
        "cross_attention_dim": "cross_attention_dim is 7.*added_kv_proj_dim",
        "out_dim": r"out_dim is 7.*4 \* 8",
    }.items():
        with pytest.raises(ConfigError, match=message):
            attention(**{wrong: 7})


def test_dropout_of_attention_acts_in_training():
    attn, (image, text, _) = attention(dropout=0.5), streams()
    close(attn(image, text)[0], attended(attn, image, text)[0])
    attn.train()
    assert 0.3 < float((attn(image, text)[0] == 0).astype("float32").mean()) < 0.7


# 5, feed-forward and the whole block.


def test_feed_forward_activations():
    x = paddle.randn([B, N, D])
    gates = {
        "gelu-approximate": lambda h: F.gelu(h, approximate=True),
        "gelu": F.gelu,
        "geglu": lambda h: h[..., : 4 * D] * F.gelu(h[..., 4 * D :]),
        "geglu-approximate": lambda h: h * F.sigmoid(1.702 * h),
    }
    for name, gate in gates.items():
        layer = vary(FeedForward(dim=D, dim_out=7, activation_fn=name))
        assert layer(x).shape == [B, N, 7]
        close(layer(x), layer.net[2](gate(layer.net[0].proj(x))))
    with pytest.raises(ConfigError, match="activation_fn is 'swiglu'; it can be 'geglu'"):
        FeedForward(D, activation_fn="swiglu")


def test_feed_forward_dropout_acts_in_training():
    x = paddle.randn([B, N, D])
    layer = vary(FeedForward(D, mult=2, dropout=0.5, final_dropout=True))
    close(layer(x), layer.net[2](F.gelu(layer.net[0].proj(x), approximate=True)))
    layer.train()
    assert 0.3 < float((layer(x) == 0).astype("float32").mean()) < 0.7
    inner = vary(FeedForward(D, mult=2, dropout=0.5))
    inner.train()
    assert float((inner(x) - inner(x)).abs().max()) > 1e-3


@pytest.mark.parametrize("context_pre_only", [False, True])
def test_block_is_the_sum_of_its_pieces(context_pre_only):
    image, text, temb = streams()
    block = vary(
        JointTransformerBlock(dim=D, num_attention_heads=HEADS, attention_head_dim=D, context_pre_only=context_pre_only)
    )
    walk = walk_module()
    expected = walk.joint_block(block, image, text, temb, walk.quiet)
    for result, wanted in zip(block(image, text, temb), expected):
        assert (result is None) == (wanted is None) == (context_pre_only and wanted is None)
        if wanted is not None:
            close(result, wanted)
    context = AdaLayerNormContinuous if context_pre_only else AdaLayerNormZero
    assert isinstance(block.norm1, AdaLayerNormZero) and isinstance(block.norm1_context, context)
    assert (block.norm2_context is None) == (block.ff_context is None) == context_pre_only


def test_both_meanings_of_attention_head_dim():
    names = set(JointTransformerBlock(D, HEADS, D).state_dict())
    for width in (D, D // HEADS):
        block = JointTransformerBlock(D, HEADS, width)
        assert block.attn.heads == HEADS and block.attn.dim_head == D // HEADS
        assert set(block.state_dict()) == names
    assert JointTransformerBlock(D, 1, D).attn.heads == 1
    for heads, width in ((HEADS, 2 * D), (HEADS, 7), (5, D)):
        with pytest.raises(ConfigError, match=rf"attention_head_dim {width}.*width of {D} \(dim\)"):
            JointTransformerBlock(D, heads, width)


# 6, experiments.


def test_queries_and_keys_are_normalized():
    attn = vary(Attention(D, heads=HEADS, dim_head=D // HEADS, added_kv_proj_dim=D, qk_norm="rms_norm"))
    assert all(isinstance(getattr(attn, f"norm_{name}"), RMSNorm) for name in ("q", "k", "added_q", "added_k"))
    x = 1e3 * paddle.randn([B, N, HEADS, D // HEADS])
    norm = RMSNorm(D // HEADS)
    close(norm(x).square().mean(-1), np.ones([B, N, HEADS]), 1e-5)


# From a prompt to an image.


def walk_module():
    spec = importlib.util.spec_from_file_location("document_walk", WALK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(capsys):
    lines = [re.fullmatch(r"\s*(\w+)\s+\[([\d, ]+)\]", line) for line in capsys.readouterr().out.splitlines()]
    return {line[1]: [int(n) for n in line[2].split(",")] for line in lines if line}


def test_the_pieces_draw_what_the_pipeline_draws(capsys, tmp_path):
    walk = walk_module()
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    drawn = walk.walk(pipe, steps=4, seed=3)
    expected = pipe(walk.PROMPT, num_inference_steps=4, guidance_scale=7.0, generator=ppsd3.TorchGenerator(3)).images[0]
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected))
    assert difference.max() <= 1 and difference.mean() < 0.01
    shapes = printed(capsys)
    assert shapes["prompt_embeds"] == [2, 32 + 256, 192] and shapes["pooled_prompt_embeds"] == [2, 160]
    walk.main(["--steps", "1", "--output", str(tmp_path / "one.png")])
    assert (tmp_path / "one.png").stat().st_size > 0


@pytest.mark.slow
def test_the_shapes_of_the_document_at_full_width(capsys, tmp_path):
    """5 GB of memory."""
    walk_module().main(["--full", "--steps", "1", "--output", str(tmp_path / "noise.png")])
    shapes = printed(capsys)
    assert {name: shapes[name] for name in STATED} == STATED


STATED = {
    "prompt_embed": [2, 77, 768],
    "pooled_prompt_embed": [2, 768],
    "prompt_2_embed": [2, 77, 1280],
    "pooled_prompt_2_embed": [2, 1280],
    "t5_prompt_embed": [2, 256, 4096],
    "pooled_prompt_embeds": [2, 2048],
    "clip_prompt_embeds": [2, 77, 2048],
    "padded": [2, 77, 4096],
    "prompt_embeds": [2, 333, 4096],
}
