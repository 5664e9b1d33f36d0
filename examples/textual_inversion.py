"""Textual inversion: makes a word from the embeddings of "red", saves it, loads it, and uses it in a prompt.

python examples/textual_inversion.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")


def vectors(tower, tokenizer):
    """[n, width]: embeddings of "red"; a learned word has what training gave it."""
    return tower.get_input_embeddings().weight[[token for token, _, _ in tokenizer.spans("red")]]


embedding = {
    "clip_l": vectors(pipe.text_encoder, pipe.tokenizer),
    "clip_g": vectors(pipe.text_encoder_2, pipe.tokenizer_2),
}
pipe.load_textual_inversion(embedding, token="<my-red>")
pipe.save_textual_inversion("my-red", "<my-red>")
pipe.unload_textual_inversion()

for name in ("before", "after"):  # <my-red> is a colour only after loading
    image = pipe("a <my-red> circle", num_inference_steps=8, generator=ppsd3.TorchGenerator(0)).images[0]
    image.save(f"textual_inversion_{name}.png")
    if name == "before":
        pipe.load_textual_inversion("my-red")
