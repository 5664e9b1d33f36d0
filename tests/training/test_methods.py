"""The methods of `ppsd3 train` beside plain LoRA: what is trained, what is saved, and that it resumes."""

import dataclasses
import pathlib
import shutil

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, process, tiny
from helpers.training_runs import configuration, draw, write_data, write_model
from PIL import Image

import ppsd3
from ppsd3 import AutoencoderKL, LoKrConfig, StableDiffusion3Pipeline
from ppsd3.ops.quantized import QuantizedLinear, WeightOnlyLinear
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.training.configuration import TrainConfiguration, meanings
from ppsd3.training.ip_adapter import new_adapter
from ppsd3.training.log import read_log
from ppsd3.training.methods import METHODS, Method
from ppsd3.training.runs import TrainingRun
from ppsd3.training.texts import TOWERS
from ppsd3.training.trainer import training_mode
from ppsd3.utils.errors import ConfigError, InputError, PPSD3Error


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def weights_of(path):
    """The bytes of what was saved, a file or a directory."""
    path = pathlib.Path(path)
    return (next(path.glob("*.safetensors")) if path.is_dir() else path).read_bytes()


LONGER = pytest.mark.machine  # another case of what is tried in every run


def trained(model, data, output, *settings):
    """(the run of two steps, what it saved)"""
    run = TrainingRun(configuration(model, data, output, "training.max_steps=2", *settings))
    return run, run.run()


def numbers(network):
    return {name: parameter.numpy().copy() for name, parameter in network.state_dict().items()}


WORD = ("method=textual_inversion", "textual_inversion.token=<blob>", "textual_inversion.vectors=2",
        "textual_inversion.initial_word=circle", "data.instance_prompt=a photo of <blob>")  # fmt: skip


def test_a_word_is_all_that_textual_inversion_trains(model, data, tmp_path):
    run, path = trained(model, data, tmp_path, *WORD, "training.learning_rate=0.1")
    tensors = {key: SafetensorsFile(path).read(key).numpy() for key in ("clip_l", "clip_g")}
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"clip_l": (2, 16), "clip_g": (2, 12)}
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    for name in ("text_encoder", "text_encoder_2", "transformer"):
        before, after = numbers(getattr(pipe, name)), numbers(getattr(run.pipe, name))
        for key, value in before.items():
            np.testing.assert_array_equal(
                after[key.replace("token_embedding.", "token_embedding.table.")][: len(value)]
                if "token_embedding" in key
                else after[key],
                value,
                err_msg=key,
            )
    (first,) = pipe.tokenizer.encode("circle", add_special_tokens=False)[:1]
    start = pipe.text_encoder.get_input_embeddings().weight[first].numpy()
    assert 1e-3 < np.abs(tensors["clip_l"][0] - start).max() < 1  # it began there, and moved
    plain = draw(pipe, "a <blob>")
    pipe.load_textual_inversion(path)  # the word is in the file
    assert np.abs(draw(pipe, "a <blob>") - plain).max() > 1e-3
    np.testing.assert_array_equal(draw(pipe, "a circle"), draw(StableDiffusion3Pipeline.from_pretrained(model)))
    pipe.save_textual_inversion(tmp_path, "<blob>")
    assert weights_of(tmp_path / "learned_embeds.safetensors") == weights_of(path)


@LONGER
def test_textual_inversion_of_one_encoder(model, data, tmp_path):
    settings = (*WORD, "textual_inversion.text_encoders=[text_encoder_2]", "gradient_checkpointing=true")
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    assert run.pipe.text_encoder is None and list(run.trainer.parameters) == [
        "text_encoder_2.text_model.embeddings.token_embedding.learnt"
    ]
    assert list(SafetensorsFile(run.run()).keys()) == ["<blob>"]  # diffusers' layout


@pytest.mark.parametrize(
    "setting, named",
    [
        (
            "data.instance_prompt=a photo",
            r"No caption has the word '<blob>'.*data\.instance_prompt='a photo of <blob>'",
        ),
        ("textual_inversion.token='!'", "the token '!' already"),
        ("textual_inversion.initial_word=''", "initial_word is ''"),
        ("data.control_column=edges", "method=controlnet"),
    ],
)
def test_words_that_cannot_be_learnt(model, data, tmp_path, setting, named):
    with pytest.raises((ConfigError, InputError), match=named):
        TrainingRun(configuration(model, data, tmp_path, *WORD, setting))


@pytest.mark.parametrize("rank", [1, pytest.param(100, marks=LONGER)])  # the second matrix of low rank, or whole
def test_a_lokr(model, data, tmp_path, rank):
    run, path = trained(model, data, tmp_path, "lora.kind=lokr", f"lora.rank={rank}", "lora.alpha=3")
    names = {key.rpartition(".")[2] for key in SafetensorsFile(path).keys()}  # LyCORIS'
    assert names == ({"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"} if rank == 1 else {"lokr_w1", "lokr_w2"})
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    plain = draw(pipe)
    pipe.load_lora_weights(path)
    found, wanted = draw(pipe), draw(with_encoders(run.pipe, model))
    assert np.abs(found - plain).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert run.trainer.parameters.keys() and not any(p.stop_gradient for p in run.trainer.parameters.values())


def test_a_lokr_has_fewer_numbers_and_changes_nothing_at_first():
    layer = ppsd3.ops.Linear(96, 192)
    made = LoKrConfig(r=2, alpha=1, target_modules=["x"]).make("x", layer)
    assert [made.lokr_w1.shape, *(f.shape for f in made.factors.values())] == [[12, 8], [16, 2], [2, 12]]
    assert made.scaling == 0.5 and not made.matrix().any()
    limited = LoKrConfig(decompose_factor=4, target_modules=["x"]).make("x", layer)
    assert limited.lokr_w1.shape == [4, 4]
    made.lokr_w2_b.set_value(paddle.randn([2, 12]))
    x = paddle.randn([3, 5, 96])
    np.testing.assert_allclose(made.product(x, x), paddle.matmul(x, made.matrix(), transpose_y=True), atol=1e-5)


@pytest.mark.parametrize(
    "config, named",
    [
        (dict(r=0), "r` is 0"),
        (dict(decompose_factor=0), "decompose_factor"),
        (dict(lora_alpha=3), "lora_alpha"),
        (dict(target_modules=["proj_out", "pos_embed.proj"]), "pos_embed.proj, and a LoKr is trained for linear"),
    ],
)
def test_impossible_lokr(config, named):
    with pytest.raises(PPSD3Error, match=named):
        tiny.make_pipeline().transformer.add_adapter(LoKrConfig(**config))


def with_encoders(pipe, model):
    """``pipe`` with the text encoders that it let go."""
    for name in TOWERS:
        if getattr(pipe, name) is None:
            setattr(pipe, name, getattr(StableDiffusion3Pipeline.from_pretrained(model), name))
    return pipe


@pytest.mark.parametrize(
    "setting, named", [("lora.dropout=0.1", "lora.kind 'lokr' has none"), ("weights=int4", "int8")]
)
def test_a_lora_that_is_not_possible(model, data, tmp_path, setting, named):
    with pytest.raises(ConfigError, match=named):
        TrainingRun(configuration(model, data, tmp_path, "lora.kind=lokr", setting))


# ----------------------------------------------------------------------------------------- frozen weights in few bits


def test_gradients_through_int8_weights_are_those_of_the_rounded_matrix():
    paddle.seed(0)
    plain = ppsd3.ops.Linear(96, 64)
    for rounded in (QuantizedLinear.from_linear(plain), WeightOnlyLinear.from_linear(plain)):
        x, y = (paddle.randn([2, 5, 96]) for _ in range(2))
        x.stop_gradient = y.stop_gradient = False
        y.set_value(x)
        paddle.tanh(rounded(x)).sum().backward()
        dense = rounded.weight.astype("float32") * rounded.weight_scale.unsqueeze(1)
        paddle.tanh(paddle.matmul(y, dense, transpose_y=True) + rounded.bias).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "weights, close",
    [("int8", 0.05), pytest.param("bfloat16", 0.02, marks=LONGER), pytest.param("float16", 2e-3, marks=LONGER)],
)
def test_a_lora_on_frozen_weights_in_few_bits(model, data, tmp_path, weights, close):
    """The first loss and gradient are those of float32 weights up to the rounding of the weights."""
    settings = ("training.optimizer=sgd", "training.max_grad_norm=1e9", "lora.rank=2", "gradient_checkpointing=true")
    runs = [
        TrainingRun(configuration(model, data, tmp_path / held, *settings, f"weights={held}"))
        for held in ("float32", weights)
    ]
    assert runs[1].pipe.transformer.is_quantized == (weights == "int8")
    assert {str(p.dtype) for p in runs[1].trainer.parameters.values()} == {"paddle.float32"}
    losses, gradients = zip(*(loss_and_gradient(run) for run in runs))
    assert losses[1] == pytest.approx(losses[0], rel=close)
    assert 0 < np.linalg.norm(gradients[1] - gradients[0]) < close * np.linalg.norm(gradients[0])
    path = runs[1].run()
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    plain = draw(pipe)
    pipe.load_lora_weights(path)  # an ordinary file, for the model in any dtype
    assert np.abs(draw(pipe) - plain).max() > 1e-5
    with pytest.raises(ConfigError, match=rf"task\.weights is 'float32' and was '{weights}'"):
        TrainingRun(configuration(model, data, tmp_path / weights, *settings)).run()


def loss_and_gradient(run):
    """Of one batch, with B of the LoRA at numbers that are not zero."""
    rng = np.random.default_rng(0)
    for parameter in run.trainer.parameters.values():
        parameter.set_value(rng.standard_normal(parameter.shape).astype("float32") * 0.1)
    with training_mode(run.task.layers):
        loss, _ = run.task.loss(np.random.default_rng(1), 0)
        loss.backward()
    gradients = [p.grad.numpy().ravel() for p in run.trainer.parameters.values() if p.grad is not None]
    run.trainer.optimizer.optimizer.clear_grad()
    return float(loss), np.concatenate(gradients)


@LONGER
def test_a_model_that_is_int8_already(model, data, tmp_path):
    """It is trained as it is, so that nothing larger is ever in memory; copies of it are refused."""
    shutil.copytree(model, tmp_path / "model")
    tiny.make_pipeline().transformer.quantize("int8").save_pretrained(tmp_path / "model" / "transformer")
    chosen = [configuration(m, data, tmp_path / str(i), "weights=int8", "lora.rank=2", "training.max_steps=1")
              for i, m in enumerate((model, tmp_path / "model"))]  # fmt: skip
    one, other = (weights_of(TrainingRun(some).run()) for some in chosen)
    assert one == other
    settings = ("weights=int8", "method=controlnet", "data.control_column=edges")
    with pytest.raises(InputError, match="in int8, and its copies"):
        TrainingRun(configuration(tmp_path / "model", data, tmp_path / "net", *settings))


MEMORY = (
    process.PEAK
    + """
import sys
import numpy as np
import paddle
from ppsd3 import LoraConfig, SD3Transformer2DModel

held = {"storage_dtype": "bfloat16"} if "bfloat16" in sys.argv[1] else {}

def train():
    transformer = SD3Transformer2DModel.from_pretrained(sys.argv[1], **held)
    transformer.add_adapter(LoraConfig(r=4))
    transformer.train()
    transformer.enable_gradient_checkpointing()
    shapes = [1, 16, 16, 16], [1, 20, 256], [1, 64]
    inputs = [paddle.to_tensor(np.ones(shape, "float32")) for shape in shapes]
    for _ in range(2):
        transformer(*inputs, paddle.to_tensor([500.0])).sample.square().mean().backward()
    return transformer

print(peak(train))
"""
)


@pytest.mark.machine
@pytest.mark.skipif(not process.HAS_PEAK, reason="the peak cannot be reset")
def test_memory_of_a_lora_on_weights_in_few_bits(tmp_path):
    """From files of that dtype; a weight that is multiplied out is there for one product alone."""
    sizes = dict(num_layers=4, num_attention_heads=12, attention_head_dim=64, caption_projection_dim=768)
    rest = dict(in_channels=16, out_channels=16, joint_attention_dim=256, pooled_projection_dim=64, sample_size=32)
    model = ppsd3.SD3Transformer2DModel(**sizes, **rest, pos_embed_max_size=32)
    total = 4 * model.num_parameters()
    model.save_pretrained(tmp_path / "float32")
    ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path / "float32").to(dtype="bfloat16").save_pretrained(
        tmp_path / "bfloat16"
    )
    model.quantize("int8").save_pretrained(tmp_path / "int8")
    peaks = {name: int(process.run(MEMORY, tmp_path / name)) for name in ("float32", "bfloat16", "int8")}
    spare = peaks["float32"] - total  # activations and the LoRA
    assert 0 < spare < 0.3 * total, peaks
    assert peaks["bfloat16"] < 0.65 * peaks["float32"], peaks
    assert peaks["int8"] < 0.55 * peaks["float32"], peaks  # embedders and norms stay float32


def test_an_int8_model_is_not_trained_whole(model, data, tmp_path):
    with pytest.raises(ConfigError, match="'full' has no frozen transformer"):
        TrainingRun(configuration(model, data, tmp_path, "method=full", "weights=int8"))
    transformer = tiny.make_pipeline().transformer.quantize("int8")
    with pytest.raises(InputError, match="add_adapter"):
        transformer.train()


# ---------------------------------------------------------------------------------------------------------- IP-adapter


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    return str(ip_adapters.write(tmp_path_factory.mktemp("ip") / "adapter", 3) / "image_encoder")


@pytest.mark.parametrize("weights", ["float32", pytest.param("int8", marks=LONGER)])
def test_an_ip_adapter(model, data, image_encoder, tmp_path, weights):
    sizes = ("ip_adapter.hidden_dim=16", "ip_adapter.heads=2", "ip_adapter.num_queries=5", f"weights={weights}")
    shown = ("validation.prompts=[a circle]", "validation.num_inference_steps=1", "training.validate_every=2")
    settings = ("method=ip_adapter", f"ip_adapter.image_encoder={image_encoder}", *sizes, *shown)
    run, path = trained(model, data, tmp_path, *settings)
    assert run.pipe.image_encoder is None  # once it has seen the pictures
    assert all(name.startswith("transformer.ip_adapter.") for name in run.trainer.parameters)
    frozen = StableDiffusion3Pipeline.from_pretrained(model)
    for name, value in frozen.transformer.named_parameters() if weights == "float32" else ():
        np.testing.assert_array_equal(dict(run.pipe.transformer.named_parameters())[name], value)
    frozen.load_ip_adapter(path, image_encoder_folder=None)
    frozen.set_ip_adapter_scale(1.0)
    features = paddle.to_tensor(run.method.features.of(run.batches.samples[0])[None])
    features = paddle.concat([paddle.zeros_like(features), features])
    pictures = [draw(frozen, ip_adapter_image_embeds=features), draw(frozen)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-4
    again = (*settings[:2], f"ip_adapter.from_pretrained={path}", f"weights={weights}")
    adapter = TrainingRun(configuration(model, data, tmp_path / "on", *again)).pipe.transformer.ip_adapter
    stored = SafetensorsFile(path)
    for name, value in adapter.state_dict().items():
        np.testing.assert_array_equal(value, stored.read(name))


def test_gradients_of_an_ip_adapter_with_checkpointing():
    """The same as without: also where all blocks read one tensor, the picture's tokens."""
    gradients = []
    for again in (False, True):
        paddle.seed(0)
        transformer = tiny.make_pipeline().transformer
        for parameter in transformer.parameters():
            parameter.stop_gradient = True
        adapter = tiny.randomize(new_adapter(transformer, 24, hidden_dim=16, heads=2, num_queries=5), 3)
        for parameter in adapter.parameters():
            parameter.stop_gradient = False
        transformer.train()
        if again:
            transformer.enable_gradient_checkpointing()
        rng, config = np.random.default_rng(0), transformer.config
        normal = lambda *shape, rng=rng: paddle.to_tensor(rng.standard_normal(shape).astype("float32"))  # noqa: E731
        velocity = transformer(
            normal(2, config.in_channels, 8, 8),
            normal(2, 9, config.joint_attention_dim),
            normal(2, config.pooled_projection_dim),
            paddle.to_tensor([300.0, 700.0]),
            joint_attention_kwargs={"ip_adapter_image_embeds": normal(2, 7, 24)},
        ).sample
        velocity.square().mean().backward()
        gradients.append({name: parameter.grad.numpy() for name, parameter in adapter.named_parameters()})
    for name, gradient in gradients[0].items():
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(gradients[1][name], gradient, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- autoencoder


VAE = ("method=vae", "text={}")


def test_the_decoder_of_an_autoencoder(model, data, tmp_path):
    settings = (*VAE, "data.batch_size=3", "data.random_crop=true", "training.validate_every=2")
    _, path = trained(model, data, tmp_path, *settings, "gradient_checkpointing=true")
    after, before = (AutoencoderKL.from_pretrained(p) for p in (path, f"{model}/vae"))
    old = before.state_dict()
    moved = {key for key, value in after.state_dict().items() if not np.array_equal(value, old[key])}
    assert moved and all(key.startswith(("decoder.", "post_quant_conv.")) for key in moved)
    (entry,) = [entry for entry in read_log(f"{tmp_path}/log.jsonl") if "psnr" in entry]
    assert np.isfinite(entry["psnr"]) and entry["step"] == 2
    assert Image.open(tmp_path / "validation" / "step-00000002.png").size == (4 * 64, 2 * 64)
    pipe = StableDiffusion3Pipeline.from_pretrained(model, vae=after)
    pictures = [np.asarray(draw(p, output_type="np")) for p in (pipe, StableDiffusion3Pipeline.from_pretrained(model))]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3
    with pytest.raises(ConfigError, match=r"task\.part is 'all' and was 'decoder'"):
        TrainingRun(configuration(model, data, tmp_path, *settings, "vae.part=all")).trainer.resume()


@LONGER
def test_a_whole_autoencoder_learns_its_pictures(model, data, tmp_path):
    run = TrainingRun(configuration(model, data, tmp_path, *VAE, "vae.part=all", "data.batch_size=4",
                                    "training.max_steps=12", "training.learning_rate=3e-3"))  # fmt: skip
    before = run.method.validation(run)[1]["psnr"]
    run.run()
    assert run.method.validation(run)[1]["psnr"] > before + 0.3
    assert any(".encoder." in name or "vae.encoder" in name for name in run.trainer.parameters)


@pytest.mark.parametrize(
    "settings, named",
    [
        (("data.instance_prompt=x",), "data.instance_prompt is 'x'"),
        (("validation.prompts=[x]",), r"validation.prompts is \['x'\]"),
        (("vae.kl_weight=0",), "vae.part=decoder does not train"),
        (("lora.rank=3",), r"does not read lora\.\*"),
        (("flow.shift=2",), r"does not read flow\.\*"),
        (("weights=int8",), "no frozen transformer"),
    ],
)
def test_settings_that_an_autoencoder_does_not_read(model, data, tmp_path, settings, named):
    with pytest.raises(ConfigError, match=named):
        TrainingRun(configuration(model, data, tmp_path, *VAE, *settings))


RESUMED = {
    "word": WORD,
    "lokr": ("lora.kind=lokr",),
    "int8": ("weights=int8", "lora.train_text_encoders=true", "lora.kind=dora"),
    "vae": (*VAE, "data.batch_size=3", "data.random_crop=true", "vae.latent_noise=0.1"),
    "ip_adapter": ("method=ip_adapter", "ip_adapter.hidden_dim=16", "ip_adapter.heads=2", "ip_adapter.num_queries=5",
                   "ip_adapter.picture_dropout=0.3"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name if name == "word" else pytest.param(name, marks=LONGER) for name in RESUMED])
def test_it_resumes_bit_for_bit(model, data, image_encoder, tmp_path, name):
    settings = (*RESUMED[name], "training.max_steps=3")
    settings += (f"ip_adapter.image_encoder={image_encoder}",) if name == "ip_adapter" else ()
    whole = TrainingRun(configuration(model, data, tmp_path / "whole", *settings)).run()
    TrainingRun(configuration(model, data, tmp_path / "parts", *settings)).run(until=2)
    assert weights_of(TrainingRun(configuration(model, data, tmp_path / "parts", *settings)).run()) == weights_of(whole)


def test_every_method_has_its_section_and_result():
    sections = {field.name for field in dataclasses.fields(TrainConfiguration)}
    for name, method in METHODS.items():
        assert issubclass(method, Method) and method.result and set(method.sections) <= sections
        assert f'"{name}"' in meanings(TrainConfiguration)["method"]
