"""What the methods of `ppsd3 train` save is what diffusers loads, and draws the same with."""

import numpy as np
import paddle
import pytest
from helpers import ip_adapters
from helpers.training_runs import configuration, write_data

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from helpers import reference

import ppsd3
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.training.runs import TrainingRun
from ppsd3.training.textual_inversion import train_word

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    reference.write_checkpoint(directory)
    return str(directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def trained(model, data, tmp_path, *settings):
    run = TrainingRun(
        configuration(model, data, tmp_path, "training.max_steps=2", "training.learning_rate=1e-2", *settings)
    )
    return run, run.run()


def load_both(model):
    pipes = ppsd3.StableDiffusion3Pipeline, diffusers.StableDiffusion3Pipeline
    ours, theirs = pipes[0].from_pretrained(model), pipes[1].from_pretrained(model, dtype=torch.float32)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    return ours, theirs


def latents(pipe, **options):
    generator = ppsd3.TorchGenerator(0) if isinstance(pipe, ppsd3.StableDiffusion3Pipeline) else reference.generator(0)
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", "guidance_scale": 1.0}
    return np.asarray(pipe(PROMPT, generator=generator, **settings, **options).images)


class Tower(TextualInversionLoaderMixin):
    """What diffusers' loader needs of a pipeline."""

    hf_device_map = None
    components = {}

    def __init__(self, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def states(self, prompt):
        text = self.maybe_convert_prompt(prompt, self.tokenizer)
        ids = self.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]


def test_a_word_and_its_gradient(model, data, tmp_path):
    settings = ("method=textual_inversion", "textual_inversion.token=<blob>", "textual_inversion.vectors=2")
    _, path = trained(model, data, tmp_path, *settings, "text={}", "data.instance_prompt=a <blob>")
    ours, theirs = load_both(model)
    for encoder in (ours.text_encoder, ours.text_encoder_2):
        for parameter in encoder.parameters():
            parameter.stop_gradient = True
    train_word(ours, "<blob>", 2)
    for suffix, key in (("", "clip_l"), ("_2", "clip_g")):
        tower = Tower(getattr(theirs, f"tokenizer{suffix}"), getattr(theirs, f"text_encoder{suffix}"))
        rows = SafetensorsFile(path).read(key).numpy()
        tower.load_textual_inversion({"<blob>": torch.from_numpy(rows)})
        wanted = tower.states("a <blob> circle")
        (wanted.square().sum()).backward()
        encoder, tokenizer = getattr(ours, f"text_encoder{suffix}"), getattr(ours, f"tokenizer{suffix}")
        embedding = encoder.get_input_embeddings()
        embedding.learnt.set_value(rows)
        found = encoder(tokenizer("a <blob> circle").input_ids, output_hidden_states=True).hidden_states[-2]
        np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), atol=1e-5)
        found.square().sum().backward()
        gradient = tower.text_encoder.get_input_embeddings().weight.grad[-2:].numpy()
        np.testing.assert_allclose(embedding.learnt.grad.numpy(), gradient, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("rank", [1, 100])
def test_a_lokr_changes_weights_as_lycoris_says(model, data, tmp_path, rank):
    _, path = trained(model, data, tmp_path, "text={}", "lora.kind=lokr", f"lora.rank={rank}", "lora.alpha=0.5")
    ours, theirs = load_both(model)
    before = latents(ours)
    ours.load_lora_weights(path)
    file = SafetensorsFile(path)
    tensors = {key: torch.from_numpy(file.read(key).numpy()) for key in file.keys()}
    modules = dict(theirs.transformer.named_modules())
    with torch.no_grad():
        for key in [key for key in tensors if key.endswith(".lokr_w1")]:
            name, first = key[: -len(".lokr_w1")], tensors[key]
            scale, second = 1.0, tensors.get(f"{name}.lokr_w2")
            if second is None:
                second = tensors[f"{name}.lokr_w2_a"] @ tensors[f"{name}.lokr_w2_b"]
                scale = tensors[f"{name}.alpha"].item() / tensors[f"{name}.lokr_w2_b"].shape[0]
            modules[name[len("transformer.") :]].weight += scale * torch.kron(first, second)
    found = latents(ours)
    assert np.abs(found - before).max() > 1e-2
    np.testing.assert_allclose(found, latents(theirs), atol=1e-4)


def test_an_autoencoder(model, data, tmp_path):
    run, path = trained(model, data, tmp_path, "text={}", "method=vae", "data.batch_size=2")
    theirs = diffusers.AutoencoderKL.from_pretrained(path)
    z = np.random.default_rng(0).standard_normal([1, run.pipe.vae.config.latent_channels, 8, 8]).astype("float32")
    with torch.no_grad():
        wanted = theirs.decode(torch.from_numpy(z)).sample.numpy()
    np.testing.assert_allclose(run.pipe.vae.decode(paddle.to_tensor(z)).sample.numpy(), wanted, atol=1e-4)


def test_an_ip_adapter(model, data, tmp_path):
    encoder = ip_adapters.write(tmp_path / "adapter", 3) / "image_encoder"
    sizes = ("ip_adapter.hidden_dim=16", "ip_adapter.heads=2", "ip_adapter.num_queries=5")
    _, path = trained(
        model, data, tmp_path, "text={}", "method=ip_adapter", f"ip_adapter.image_encoder={encoder}", *sizes
    )
    ours, theirs = load_both(model)
    features = np.random.default_rng(0).standard_normal([1, 4, 24]).astype("float32")
    before = latents(ours)
    ours.load_ip_adapter(path, image_encoder_folder=None)
    theirs.load_ip_adapter(str(tmp_path), weight_name="ip-adapter.safetensors", image_encoder_folder=None)
    for pipe in (ours, theirs):
        pipe.set_ip_adapter_scale(1.0)
    found = latents(ours, ip_adapter_image_embeds=paddle.to_tensor(features))
    assert np.abs(found - before).max() > 1e-3
    np.testing.assert_allclose(found, latents(theirs, ip_adapter_image_embeds=torch.from_numpy(features)), atol=1e-4)
