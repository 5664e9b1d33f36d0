"""The tiny Stable Diffusion 3 of ``helpers.tiny`` made and drawn by diffusers and transformers.

Imported by parity tests only, after ``pytest.importorskip("diffusers")``.
"""

import diffusers
import numpy as np
import torch
import transformers

import ppsd3

from . import tiny

CORPUS = """a red circle to the left of a blue square
two green triangles above a yellow star
there is a small purple diamond on a white background
the picture shows three large orange hearts, and nothing else!
"""


def write_t5_tokenizer(directory):
    """A ``spiece.model`` laid out like T5's: pad 0, end 1, unknown 2."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "corpus.txt").write_text(CORPUS * 5)
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "spiece"),
        vocab_size=100,
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "corpus.txt").unlink()
    (directory / "spiece.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(
        '{"extra_ids": 0, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}'
    )


def write_published_tokenizers(directory):
    """The files that the published SD3 repositories have: ``vocab.json`` + ``merges.txt``, and ``spiece.model``."""
    tiny.write_clip_tokenizer(directory / "tokenizer")
    tiny.write_clip_tokenizer(directory / "tokenizer_2", pad_token="!")
    write_t5_tokenizer(directory / "tokenizer_3")


def randomize(module, seed, gain=1.0):
    """As ``tiny.randomize``, for a torch module."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(tiny.random_weight(name, parameter.shape, rng, gain)))
    return module.eval()


def fill(module, gain=1.0):
    """As ``tiny.fill``, for a torch module."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(tiny.named_weight(name, tuple(parameter.shape), gain)))
    return module.eval()


def write_checkpoint(directory, seed=0, scheduler=None, vae=None, **transformer):
    """Makes a pipeline in diffusers and saves it to ``directory`` with diffusers."""
    write_published_tokenizers(directory / "made_from")
    clip = transformers.CLIPTextConfig, transformers.CLIPTextModelWithProjection
    networks = {
        "transformer": diffusers.SD3Transformer2DModel(**{**tiny.TRANSFORMER, **transformer}),
        "vae": diffusers.AutoencoderKL(**{**tiny.VAE, **(vae or {})}),
        "text_encoder": clip[1](clip[0](**tiny.CLIP_L, **tiny.CLIP_IDS)),
        "text_encoder_2": clip[1](clip[0](**tiny.CLIP_G, **tiny.CLIP_IDS)),
        "text_encoder_3": transformers.T5EncoderModel(transformers.T5Config(**tiny.T5)),
    }
    for offset, (name, network) in enumerate(networks.items()):
        randomize(network, seed + offset, tiny.GAINS.get(name, 1.0))
    pipe = diffusers.StableDiffusion3Pipeline(
        **networks,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{**tiny.SCHEDULER, **(scheduler or {})}),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "made_from" / "tokenizer"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(directory / "made_from" / "tokenizer_2"),
        tokenizer_3=transformers.T5TokenizerFast.from_pretrained(directory / "made_from" / "tokenizer_3"),
    )
    pipe.save_pretrained(directory)
    return directory


def load(directory, **components):
    """``directory`` as a diffusers pipeline in fp32 that shows no progress bar."""
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(directory, dtype=torch.float32, **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed):
    """torch's CPU generator, or a list of them for a list of seeds."""
    if isinstance(seed, list):
        return [generator(one) for one in seed]
    return torch.Generator("cpu").manual_seed(seed)


def load_both(directory, task, ours=None, theirs=None):
    """(our pipeline, diffusers') for ``task`` from one directory; ``ours`` and ``theirs``: what else each is given."""
    name = f"StableDiffusion3{task}Pipeline"
    pipes = (
        getattr(ppsd3, name).from_pretrained(directory, **(ours or {})),
        getattr(diffusers, name).from_pretrained(directory, dtype=torch.float32, **(theirs or {})),
    )
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


def levels(images):
    """PIL pictures as integers ``[B, H, W, 3]``, whose differences are not taken modulo 256."""
    return np.stack([np.asarray(image) for image in images]).astype(int)
