"""From a prompt to an image, piece by piece as in docs/document.md, with the shape of each tensor that the page names.

    python examples/document_walk.py                      # the bundled model draws a circle
    python examples/document_walk.py --full --steps 2     # SD3-medium's widths: [2, 77, 768], [2, 2048], [2, 333, 4096]

With --full the networks have two layers each and random weights: that takes 5 GB of memory and about a minute, and the
image is noise. B is 2 everywhere: the negative prompt, then the prompt.
"""

import argparse

import paddle
import paddle.nn.functional as F

import ppsd3

PROMPT = "a red circle to the left of a blue square"


def show(name, tensor):
    """Prints a line of the table; returns the tensor."""
    print(f"{name:<26}{[int(n) for n in tensor.shape]}")
    return tensor


def quiet(name, tensor):
    """In the place of :func:`show` after the first step and the first block."""
    return tensor


def encode(pipe, prompts, max_sequence_length):
    """Text embeddings [B, 77 + length, 4096] and pooled ones [B, 2048] of three encoders."""
    clip_l, pooled_l = pipe._get_clip_prompt_embeds(prompt=prompts, clip_skip=None, clip_model_index=0)
    clip_g, pooled_g = pipe._get_clip_prompt_embeds(prompt=prompts, clip_skip=None, clip_model_index=1)
    t5 = pipe._get_t5_prompt_embeds(prompt=prompts, max_sequence_length=max_sequence_length)
    show("prompt_embed", clip_l), show("pooled_prompt_embed", pooled_l)
    show("prompt_2_embed", clip_g), show("pooled_prompt_2_embed", pooled_g)
    show("t5_prompt_embed", t5)

    pooled = show("pooled_prompt_embeds", paddle.concat([pooled_l, pooled_g], axis=-1))
    clip = show("clip_prompt_embeds", paddle.concat([clip_l, clip_g], axis=-1))
    clip = show("  padded", F.pad(clip, [0, t5.shape[-1] - clip.shape[-1]], data_format="NCL"))
    return show("prompt_embeds", paddle.concat([clip, t5], axis=-2)), pooled


def joint_attention(attn, image, text, show):
    """One softmax over the tokens of both streams, image first."""
    query = paddle.concat([attn.to_q(image), attn.add_q_proj(text)], axis=1)
    key = paddle.concat([attn.to_k(image), attn.add_k_proj(text)], axis=1)
    value = paddle.concat([attn.to_v(image), attn.add_v_proj(text)], axis=1)
    heads = [0, 0, attn.heads, query.shape[-1] // attn.heads]
    query, key, value = (x.reshape(heads) for x in (query, key, value))
    show("  query", query)
    joint = F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False).flatten(2)
    show("  attention", joint)
    image, text = joint[:, : image.shape[1]], joint[:, image.shape[1] :]
    return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


def feed_forward(norm, layer, tokens, shift, scale, gate):
    """What a feed-forward adds, between the two halves of adaLN-Zero."""
    return tokens + gate.unsqueeze(1) * layer(norm(tokens) * (1 + scale[:, None]) + shift[:, None])


def joint_block(block, image, text, temb, show):
    """One JointTransformerBlock: (text, image) -> (text, image)."""
    image_in, gate_msa, shift_mlp, scale_mlp, gate_mlp = block.norm1(image, emb=temb)
    show("  norm1", image_in), show("  gate_msa", gate_msa)
    if block.context_pre_only:
        text_in = block.norm1_context(text, temb)
    else:
        text_in, c_gate_msa, c_shift_mlp, c_scale_mlp, c_gate_mlp = block.norm1_context(text, emb=temb)
    show("  norm1_context", text_in)
    image_out, text_out = joint_attention(block.attn, image_in, text_in, show)
    image = image + gate_msa.unsqueeze(1) * image_out
    image = show("  hidden_states", feed_forward(block.norm2, block.ff, image, shift_mlp, scale_mlp, gate_mlp))
    if block.context_pre_only:
        return None, image
    text = text + c_gate_msa.unsqueeze(1) * text_out
    text = feed_forward(block.norm2_context, block.ff_context, text, c_shift_mlp, c_scale_mlp, c_gate_mlp)
    return show("  encoder_hidden_states", text), image


def velocity(transformer, latents, embeds, pooled, timestep, show):
    """The vector field v(z_t, t) at ``latents [B, C, H, W]``."""
    temb = show("time_text_embed", transformer.time_text_embed(timestep, pooled))
    text = show("context_embedder", transformer.context_embedder(embeds))
    image = show("pos_embed", transformer.pos_embed(latents))
    for i, block in enumerate(transformer.transformer_blocks):
        text, image = joint_block(block, image, text, temb, show if i == 0 else quiet)
    image = show("proj_out", transformer.proj_out(transformer.norm_out(image, temb)))
    p = transformer.config.patch_size
    rows, columns = (size // p for size in latents.shape[2:])
    patches = image.reshape([0, rows, columns, p, p, transformer.out_channels])
    return show("velocity", patches.transpose([0, 5, 1, 3, 2, 4]).flatten(4).flatten(2, 3))


@paddle.no_grad()
def walk(pipe, prompt=PROMPT, steps=28, guidance_scale=7.0, side=64, max_sequence_length=256, seed=0):
    """The image of ``prompt``, ``side`` pixels wide and high."""
    embeds, pooled = encode(pipe, ["", prompt], max_sequence_length)
    channels = pipe.transformer.config.in_channels
    generator = ppsd3.TorchGenerator(seed)
    latents = show("noise", pipe.prepare_latents(1, channels, side, side, "float32", generator=generator))
    pipe.scheduler.set_timesteps(steps)
    sigmas = pipe.scheduler.sigmas
    for i, timestep in enumerate(pipe.scheduler.timesteps):
        both, times = paddle.concat([latents, latents]), timestep.reshape([1]).expand([2])
        v = velocity(pipe.transformer, both, embeds, pooled, times, show if i == 0 else quiet)
        negative, positive = v.chunk(2)
        v = negative + guidance_scale * (positive - negative)
        latents = latents + (sigmas[i + 1] - sigmas[i]) * v  # Euler's method on dz = v dt
    config = pipe.vae.config
    pixels = show("decoded", pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample)
    return pipe.image_processor.postprocess(pixels)[0]


def full_widths(layers=2):
    """A pipeline of SD3-medium's widths, ``layers`` deep, with random weights."""
    clip = {"num_hidden_layers": layers}
    bundled = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
    components = {
        "transformer": ppsd3.SD3Transformer2DModel(
            num_layers=layers, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        ),
        "scheduler": ppsd3.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": ppsd3.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": ppsd3.CLIPTextModelWithProjection(
            hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12, **clip
        ),
        "tokenizer": ppsd3.CLIPTokenizer.published(),
        "text_encoder_2": ppsd3.CLIPTextModelWithProjection(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1280,
            num_attention_heads=20,
            hidden_act="gelu",
            **clip,
        ),
        "tokenizer_2": ppsd3.CLIPTokenizer.published(pad_token="!"),
        "text_encoder_3": ppsd3.T5EncoderModel(
            d_model=4096, d_ff=10240, num_layers=layers, num_heads=64, feed_forward_proj="gated-gelu"
        ),
        "tokenizer_3": bundled.tokenizer_3,  # that of T5-XXL is in its checkpoint alone
    }
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        components[name].eval()
    return ppsd3.StableDiffusion3Pipeline(**components)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SD3-medium's widths, two layers deep, random weights")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, help="pixels; by default 64, or 256 with --full")
    parser.add_argument("--output", default="document_walk.png")
    options = parser.parse_args(arguments)
    pipe = full_widths() if options.full else ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
    walk(pipe, options.prompt, options.steps, side=options.side or (256 if options.full else 64)).save(options.output)


if __name__ == "__main__":
    main()
