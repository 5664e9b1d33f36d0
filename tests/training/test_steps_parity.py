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


def our_loss(transformer, batch, weight, controlnet=None):
    """The mean of the weighted errors, with gradients."""
    task = (
        TextToImageTask(transformer, Nothing(), no_batches, weight=weight)
        if controlnet is None
        else ControlNetTask(controlnet, transformer, Nothing(), no_batches, weight=weight)
    )
    read = Batch(batch["latents"], [""] * len(batch["t"]), 0, 0, controls=batch["controls"])
    condition = TextCondition(paddle.to_tensor(batch["embeds"]), paddle.to_tensor(batch["pooled"]))
    errors = task.errors(read, paddle.to_tensor(batch["noise"]), batch["t"], condition)
    return (errors * paddle.to_tensor(loss_weight(weight, batch["t"]).astype("float32"))).mean()


def their_loss(transformer, batch, scheme, precondition, controlnet=None):
    """What train_dreambooth_sd3.py and its relatives compute of a batch."""
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in batch.items()}
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
    assert {name for name in wanted if not any(part in name for part in UNUSED)} <= set(found) <= set(wanted)
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
    ("sigma_sqrt", 1, "none"),  # sigma^-2 of the data's error is the plain velocity error
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


def test_full_step_with_accumulation_and_checkpointing(both, batch):
    ours, theirs = both
    clear(ours, theirs)
    ours.enable_gradient_checkpointing()
    ours.train()
    for rows in (slice(0, 2), slice(2, 4)):
        (our_loss(ours, rows_of(batch, rows), "precondition") / 2).backward()
    ours.disable_gradient_checkpointing()
    ours.eval()
    their_loss(theirs, batch, "logit_normal", 1).backward()
    compare_gradients(ours, theirs)


def test_controlnet_step(both, batch):
    ours, theirs = both
    mine = SD3ControlNetModel.from_transformer(ours, num_layers=2)
    paddle.seed(5)
    for name, parameter in mine.named_parameters():
        if "controlnet_blocks" in name or name.startswith("pos_embed_input"):
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    other = diffusers.SD3ControlNetModel.from_config(
        {**theirs.config, "num_layers": 2, "extra_conditioning_channels": 0}
    )
    other.load_state_dict({name: torch.from_numpy(p.numpy()) for name, p in mine.state_dict().items()})
    found, wanted = our_loss(ours, batch, "none", mine), their_loss(theirs, batch, "none", 0, other.train())
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    found.backward()
    wanted.backward()
    compare_gradients(mine, other)
    for parameter in ours.parameters():
        parameter.stop_gradient = False


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


def test_lora_step(both, batch):
    ours, theirs = both
    mine, tensors, adapted = adapt(ours, theirs, ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"])
    found, wanted = our_loss(ours, batch, "precondition"), their_loss(adapted, batch, "logit_normal", 1)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    found.backward()
    wanted.backward()
    compare_lora(mine, tensors)
    ours.delete_adapters("parity")
