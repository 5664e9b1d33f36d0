"""A word for both CLIP towers: made here from what they know of "red", saved, loaded, and used in a prompt.

python examples/textual_inversion.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")


def vectors(tower, tokenizer):
    """[n, width]: where a learnt word would have what training gave it."""
    return tower.get_input_embeddings().weight[[token for token, _, _ in tokenizer.spans("red")]]


embedding = {
    "clip_l": vectors(pipe.text_encoder, pipe.tokenizer),
    "clip_g": vectors(pipe.text_encoder_2, pipe.tokenizer_2),
}
pipe.load_textual_inversion(embedding, token="<my-red>")
pipe.save_textual_inversion("my-red", "<my-red>")
pipe.unload_textual_inversion()

for name in ("before", "after"):  # only after loading is <my-red> a colour
    image = pipe("a <my-red> circle", num_inference_steps=8, generator=ppsd3.TorchGenerator(0)).images[0]
    image.save(f"textual_inversion_{name}.png")
    if name == "before":
        pipe.load_textual_inversion("my-red")
