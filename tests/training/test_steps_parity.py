"""One step of training equals that of diffusers' scripts on the same batch, noise and times: losses and gradients."""

from typing import ClassVar

import numpy as np
import paddle
import pytest
from helpers import tiny

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")

import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from helpers import reference

import ppsd3
from ppsd3.models import SD3ControlNetModel, SD3Transformer2DModel
from ppsd3.pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ppsd3.training.controlnet import ControlNetTask
from ppsd3.training.flow_matching import loss_weight
from ppsd3.training.optimizers import make_optimizer
from ppsd3.training.text_to_image import Batch, TextToImageTask
from ppsd3.training.texts import CachedTexts
from ppsd3.training.timestep_sampling import Indexed, LogitNormal

ROWS = 4
MODELS = {"sd3": {}, "sd35": tiny.SD35}
# Text of the last block asks nothing: no gradient in Paddle, zeros in torch, so that only torch's AdamW decays it.
UNUSED = (".add_q_proj.", ".norm_added_q.")


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """(our transformer, diffusers') of the same weights."""
    directory = tmp_path_factory.mktemp(request.param)
    theirs = reference.randomize(
        diffusers.SD3Transformer2DModel(**{**tiny.TRANSFORMER, **MODELS[request.param]}), 0, 0.4
    )
    theirs.save_pretrained(directory)
    return SD3Transformer2DModel.from_pretrained(directory), theirs.train()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype("float32")  # noqa: E731
    latents = [ROWS, tiny.TRANSFORMER["in_channels"], 16, 16]
    return {
        "latents": normal(*latents),
        "noise": normal(*latents),
        "controls": normal(*latents),
        "embeds": normal(ROWS, 9, tiny.TRANSFORMER["joint_attention_dim"]),
        "pooled": normal(ROWS, tiny.TRANSFORMER["pooled_projection_dim"]),
        "t": Indexed(LogitNormal(), shift=3.0).sample(rng, ROWS),
    }


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def no_batches(rng, number):
    raise AssertionError("the batch is given")


class Nothing:
    """Texts that nobody reads."""

    configuration: ClassVar[dict] = {}

    def condition(self, prompts, rng, clip_length, t5_length):
        raise AssertionError("the condition is given")


def our_loss(transformer, batch, weight, controlnet=None, condition=None):
    """The mean of the weighted errors, with gradients; ``condition``: in the place of the batch's."""
    task = (
        TextToImageTask(transformer, Nothing(), no_batches, weight=weight)
        if controlnet is None
        else ControlNetTask(controlnet, transformer, Nothing(), no_batches, weight=weight)
    )
    read = Batch(batch["latents"], [""] * len(batch["t"]), 0, 0, controls=batch["controls"])
    condition = condition or TextCondition(paddle.to_tensor(batch["embeds"]), paddle.to_tensor(batch["pooled"]))
    errors = task.errors(read, paddle.to_tensor(batch["noise"]), batch["t"], condition)
    return (errors * paddle.to_tensor(loss_weight(weight, batch["t"]).astype("float32"))).mean()


def their_loss(transformer, batch, scheme, precondition, controlnet=None, **condition):
    """What train_dreambooth_sd3.py and its relatives compute of a batch; ``condition``: its embeds and pooled."""
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in batch.items()}
    tensors.update(condition)
    x0, noise = tensors["latents"], tensors["noise"]
    sigmas = tensors["t"][:, None, None, None]
    noisy = (1 - sigmas) * x0 + sigmas * noise
    inputs = dict(
        hidden_states=noisy,
        timestep=1000 * tensors["t"],
        encoder_hidden_states=tensors["embeds"],
        pooled_projections=tensors["pooled"],
        return_dict=False,
    )
    if controlnet is not None:
        inputs["block_controlnet_hidden_states"] = controlnet(controlnet_cond=tensors["controls"], **inputs)[0]
    prediction = transformer(**inputs)[0]
    target = noise - x0
    if precondition:
        prediction, target = prediction * (-sigmas) + noisy, x0
    weighting = compute_loss_weighting_for_sd3(scheme, sigmas)
    return (weighting * (prediction - target) ** 2).flatten(1).mean(1).mean()


def compare_gradients(ours, theirs, renamed=lambda name: name):
    """Each gradient to 1e-5 of the largest number of all."""
    found = {name: p.grad.numpy() for name, p in ours.named_parameters() if p.grad is not None}
    wanted = {renamed(name): p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    assert {name for name in wanted if not any(part in name for part in UNUSED)} <= set(found)
    assert not any(value.any() for name, value in found.items() if name not in wanted)  # recomputed, to no effect
    largest = max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        np.testing.assert_allclose(found.get(name, 0 * value), value, atol=1e-5 * largest, rtol=0, err_msg=name)
    return len(found)


def clear(*networks):
    for network in networks:
        if isinstance(network, torch.nn.Module):
            network.zero_grad()
        else:
            network.clear_gradients()


# The weight that has the meaning of diffusers' two options.
SCHEMES = [
    ("logit_normal", 0, "none"),
    ("mode", 0, "none"),
    ("none", 0, "none"),
    ("sigma_sqrt", 0, "sigma_sqrt"),
    ("cosmap", 0, "cosmap"),
    ("logit_normal", 1, "precondition"),
    ("mode", 1, "precondition"),
    ("none", 1, "precondition"),
    ("sigma_sqrt", 1, "sigma_sqrt*precondition"),
    ("sigma_sqrt", 1, "none"),  # sigma^-2 of the data's error is the plain velocity error
    ("cosmap", 1, "cosmap*precondition"),
]


@pytest.mark.parametrize("scheme, precondition, weight", SCHEMES)
def test_full_step(both, batch, scheme, precondition, weight):
    ours, theirs = both
    clear(ours, theirs)
    mine, other = our_loss(ours, batch, weight), their_loss(theirs, batch, scheme, precondition)
    assert float(mine) == pytest.approx(float(other), rel=1e-6)
    mine.backward()
    other.backward()
    assert compare_gradients(ours, theirs) > 70


def accumulated(batch, loss, *checkpointed):
    """Gradients of the batch's halves, one after the other, with checkpointing: what our trainer adds up."""
    for network in checkpointed:
        network.enable_gradient_checkpointing()
        network.train()
    for rows in (slice(0, 2), slice(2, 4)):
        (loss(rows) / 2).backward()
    for network in checkpointed:
        network.disable_gradient_checkpointing()
        network.eval()


def test_full_step_with_accumulation_and_checkpointing(both, batch):
    ours, theirs = both
    clear(ours, theirs)
    accumulated(batch, lambda rows: our_loss(ours, rows_of(batch, rows), "precondition"), ours)
    their_loss(theirs, batch, "logit_normal", 1).backward()
    compare_gradients(ours, theirs)


@pytest.fixture(scope="module")
def controlnets(both):
    """(ours, diffusers') of the same weights, for frozen transformers."""
    ours, theirs = both
    mine = SD3ControlNetModel.from_transformer(ours, num_layers=2)
    paddle.seed(5)
    for name, parameter in mine.named_parameters():
        if "controlnet_blocks" in name or name.startswith("pos_embed_input"):
            parameter.set_value(paddle.randn(parameter.shape) * 0.05)
    other = diffusers.SD3ControlNetModel.from_config(
        {**theirs.config, "num_layers": 2, "extra_conditioning_channels": 0, "force_zeros_for_pooled_projection": False}
    )
    other.load_state_dict({name: torch.from_numpy(p.numpy()) for name, p in mine.state_dict().items()})
    yield mine, other.train()
    for parameter in ours.parameters():  # which the task froze
        parameter.stop_gradient = False


@pytest.mark.parametrize("scheme, precondition, weight", SCHEMES)
def test_controlnet_step(both, controlnets, batch, scheme, precondition, weight):
    (ours, theirs), (mine, other) = both, controlnets
    clear(mine, other)
    found, wanted = our_loss(ours, batch, weight, mine), their_loss(theirs, batch, scheme, precondition, other)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    found.backward()
    wanted.backward()
    compare_gradients(mine, other)


def test_controlnet_step_with_accumulation_and_checkpointing(both, controlnets, batch):
    (ours, theirs), (mine, other) = both, controlnets
    clear(mine, other)
    accumulated(batch, lambda rows: our_loss(ours, rows_of(batch, rows), "precondition", mine), mine, ours)
    their_loss(theirs, batch, "logit_normal", 1, other).backward()
    compare_gradients(mine, other)


def test_twenty_steps_of_adamw(tmp_path, batch):
    theirs = reference.randomize(diffusers.SD3Transformer2DModel(**tiny.TRANSFORMER), 3, 0.4)
    theirs.save_pretrained(tmp_path)
    ours = SD3Transformer2DModel.from_pretrained(tmp_path)
    theirs.train()
    mine = make_optimizer("adamw", dict(ours.named_parameters()), (0.9, 0.999), weight_decay=1e-2)
    decayed, plain = ([p for p in theirs.parameters() if (p.ndim > 1) is many] for many in (True, False))
    other = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=1e-4, weight_decay=1e-2)
    for step in range(20):
        shifted = {**batch, "noise": np.roll(batch["noise"], step, axis=-1)}
        found, wanted = our_loss(ours, shifted, "none"), their_loss(theirs, shifted, "none", 0)
        assert float(found) == pytest.approx(float(wanted), rel=1e-4)
        found.backward()
        wanted.backward()
        mine.step(1e-4)
        other.step()
        clear(ours, theirs)
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if not any(part in name for part in UNUSED):
            moved = 1e-4 * max(1.0, np.abs(weights[name]).max())
            np.testing.assert_allclose(parameter.numpy(), weights[name], atol=moved, rtol=0, err_msg=name)


class Adapted(torch.nn.Module):
    """A torch network whose weights are ``W + scale B A``: what PEFT's layers compute, in a few lines."""

    def __init__(self, network, adapters, scale):
        super().__init__()
        self.network, self.adapters, self.scale = network, adapters, scale

    def forward(self, **inputs):
        weights = dict(self.network.named_parameters())
        for name, (down, up) in self.adapters.items():
            weights[name] = weights[name].detach() + self.scale * up @ down
        return torch.func.functional_call(self.network, weights, kwargs=inputs)


def adapt(network, other, targets):
    """Adds a LoRA with random numbers to ours; the same to ``other``, and its tensors by our names."""
    network.add_adapter(ppsd3.LoraConfig(r=4, lora_alpha=8, target_modules=targets), "parity")
    rng = np.random.default_rng(1)
    mine = {name: p for name, p in network.named_parameters() if p.trainable}
    tensors, adapters = {}, {}
    for name, parameter in mine.items():
        parameter.set_value(rng.standard_normal(parameter.shape).astype("float32") * 0.03)
        tensors[name] = torch.from_numpy(parameter.numpy()).requires_grad_()
    for name in mine:
        layer, kind = name.split(".lora_", 1)
        if kind.startswith("A"):
            adapters[layer.replace(".adapters.parity", "") + ".weight"] = (
                tensors[name],
                tensors[name.replace(".lora_A", ".lora_B")],
            )
    return mine, tensors, Adapted(other, adapters, scale=2.0)


def compare_lora(mine, theirs):
    largest = max(float(t.grad.abs().max()) for t in theirs.values())
    assert largest > 0
    for name, parameter in mine.items():
        wanted = theirs[name].grad
        if parameter.grad is None:
            assert any(part.strip(".") in name for part in UNUSED), name
            continue
        np.testing.assert_allclose(parameter.grad.numpy(), wanted.numpy(), atol=1e-5 * largest, rtol=0, err_msg=name)


ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]


@pytest.mark.parametrize("scheme, precondition, weight", SCHEMES)
def test_lora_step(both, batch, scheme, precondition, weight):
    ours, theirs = both
    mine, tensors, adapted = adapt(ours, theirs, ATTENTION)
    found, wanted = our_loss(ours, batch, weight), their_loss(adapted, batch, scheme, precondition)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    found.backward()
    wanted.backward()
    compare_lora(mine, tensors)
    ours.delete_adapters("parity")


def test_lora_step_with_accumulation_and_checkpointing(both, batch):
    ours, theirs = both
    mine, tensors, adapted = adapt(ours, theirs, ATTENTION)
    accumulated(batch, lambda rows: our_loss(ours, rows_of(batch, rows), "precondition"), ours)
    their_loss(adapted, batch, "logit_normal", 1).backward()
    compare_lora(mine, tensors)
    ours.delete_adapters("parity")


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """(our pipeline, diffusers') of one checkpoint, with text encoders."""
    return reference.load_both(reference.write_checkpoint(tmp_path_factory.mktemp("towers")), "")


PROMPTS = ["a red circle", "two green triangles above a yellow star", "a blue square", ""]


def their_condition(pipe, clip_towers, t5_length):
    """What the scripts' ``encode_prompt`` makes of prompts: both CLIP encoders with gradients, T5 without."""
    hidden, pooled = [], []
    for tower, tokenizer in zip(clip_towers, (pipe.tokenizer, pipe.tokenizer_2)):
        ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        answer = tower(input_ids=ids, output_hidden_states=True)
        hidden.append(answer.hidden_states[-2])
        pooled.append(answer[0])
    ids = pipe.tokenizer_3(
        PROMPTS, padding="max_length", max_length=t5_length, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        t5 = pipe.text_encoder_3(ids)[0]
    clip = torch.cat(hidden, dim=-1)
    clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return {"embeds": torch.cat([clip, t5], dim=-2), "pooled": torch.cat(pooled, dim=-1)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("scheme, precondition, weight", [SCHEMES[0], SCHEMES[5]])
def test_lora_step_of_the_transformer_and_both_clip_towers(pipes, batch, scheme, precondition, weight, checkpointing):
    """Gradients reach both CLIP encoders, while T5 is read from the cache."""
    ours, theirs = pipes
    towers = ("text_encoder", "text_encoder_2")
    added = {"transformer": adapt(ours.transformer, theirs.transformer, ATTENTION)}
    added.update(
        (name, adapt(getattr(ours, name), getattr(theirs, name), ["q_proj", "k_proj", "v_proj", "out_proj"]))
        for name in towers
    )
    texts = CachedTexts(ours._text_encoders(), trained=towers)
    texts.prepare(PROMPTS, 77, 16)
    assert texts.encoders.text_encoder_3 is None
    adapted = {name: network for name, (_, _, network) in added.items()}
    wanted = their_loss(
        adapted["transformer"], batch, scheme, precondition, **their_condition(theirs, [adapted[t] for t in towers], 16)
    )
    wanted.backward()

    def loss(rows):
        condition = texts.plain(PROMPTS[rows], 77, 16)
        return our_loss(ours.transformer, rows_of(batch, rows), weight, condition=condition)

    if checkpointing:
        accumulated(batch, loss, *(getattr(ours, name) for name in added))
    else:
        found = loss(slice(0, ROWS))
        assert float(found) == pytest.approx(float(wanted), rel=1e-6)
        found.backward()
    for name, (mine, tensors, _) in added.items():
        compare_lora(mine, tensors)
        getattr(ours, name).delete_adapters("parity")
