"""int8 models: what becomes int8, how near it stays, that it is saved and loaded, and what is refused."""

import json

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.process import run

import ppsd3
from ppsd3.cli import info
from ppsd3.cli.main import main
from ppsd3.cli.png import read_settings
from ppsd3.ops import Linear, QuantizedLinear, WeightOnlyLinear, use_native
from ppsd3.serialization import Checkpoint
from ppsd3.serialization.writers import write_checkpoint
from ppsd3.utils.errors import CheckpointFormatError, ConfigError, InputError, WeightMismatchError

CALL = dict(num_inference_steps=3, height=64, width=64, max_sequence_length=16)


@pytest.fixture
def transformer():
    return tiny.make_components()["transformer"]


def velocity(transformer):
    rng = np.random.RandomState(0)
    inputs = [(2, 4, 16, 16), (2, 9, 40), (2, 28)]
    inputs = [paddle.to_tensor(rng.standard_normal(shape).astype("float32")) for shape in inputs]
    with paddle.no_grad():
        return transformer(*inputs, paddle.to_tensor([500.0, 100.0])).sample


def encoded(t5):
    with paddle.no_grad():
        return t5(paddle.to_tensor(np.random.RandomState(0).randint(0, 100, (2, 7)))).last_hidden_state


def drawn(pipe, **call):
    call = {**CALL, "generator": ppsd3.TorchGenerator(0), "output_type": "latent", **call}
    return pipe("a red circle", **call).images


def relative(x, y):
    return float((x - y).norm() / y.norm())


def types(model, *parts):
    return {type(layer) for name, layer in model.named_sublayers() if name.rpartition(".")[2] in parts}


class TestQuantize:
    def test_the_layers_of_all_tokens(self, transformer):
        assert transformer.quantize("int8") is transformer and transformer.is_quantized
        everywhere = {type(layer) for layer in (transformer.context_embedder, transformer.proj_out)}
        assert everywhere == {Linear} == types(transformer, "linear_1", "linear_2")
        assert types(transformer.transformer_blocks, "linear") == {WeightOnlyLinear}  # the modulation
        assert type(transformer.norm_out.linear) is Linear
        inside = [
            *transformer.transformer_blocks[0].attn.sublayers(),
            *transformer.transformer_blocks[1].ff.sublayers(),
        ]
        assert QuantizedLinear in {type(layer) for layer in inside} and Linear not in {type(layer) for layer in inside}

    @pytest.mark.parametrize("overrides", [{}, tiny.SD35])
    @pytest.mark.parametrize("native", [True, False])
    def test_transformer_stays_near(self, overrides, native):
        transformer = tiny.make_components(**overrides)["transformer"]
        expected = velocity(transformer)
        with use_native(native):
            assert 0 < relative(velocity(transformer.quantize("int8")), expected) < 0.02

    @pytest.mark.parametrize("native", [True, False])
    def test_t5_stays_near(self, native):
        t5 = tiny.make_components()["text_encoder_3"]
        expected = encoded(t5)
        with use_native(native):
            assert 0 < relative(encoded(t5.quantize("int8")), expected) < 0.04

    def test_picture_stays_near(self):
        pipe = tiny.make_pipeline()
        expected = drawn(pipe)
        assert pipe.quantize("int8") is pipe
        assert pipe.transformer.is_quantized and pipe.text_encoder_3.is_quantized and not pipe.vae.is_quantized
        assert 0 < relative(drawn(pipe), expected) < 0.05  # guidance of 7, and a width of 32 averages little

    def test_fused_projections(self, transformer):
        expected = velocity(transformer.quantize("int8"))
        transformer.fuse_qkv_projections()
        assert relative(velocity(transformer), expected) < 1e-5
        transformer.unfuse_qkv_projections()
        np.testing.assert_array_equal(velocity(transformer).numpy(), expected.numpy())

    def test_a_processor_of_ones_own_gets_tensors(self, transformer):
        class Keeping(type(transformer.transformer_blocks[0].attn.processor)):
            def __call__(self, attn, hidden_states, encoder_hidden_states=None):
                assert isinstance(hidden_states, paddle.Tensor)
                assert all(isinstance(x, paddle.Tensor) for x in attn.qkv(hidden_states))
                return super().__call__(attn, hidden_states, encoder_hidden_states)

        expected = velocity(transformer.quantize("int8"))
        transformer.set_attn_processor(Keeping())
        np.testing.assert_array_equal(velocity(transformer).numpy(), expected.numpy())

    def test_numbers_and_dtype(self, transformer):
        def memory():
            return sum(int(t.size) * (1 if t.dtype == paddle.int8 else 4) for t in transformer.state_dict().values())

        number, dtype, before = transformer.num_parameters(), transformer.dtype, memory()
        transformer.quantize("int8")
        tensors = transformer.state_dict()
        scales = sum(int(t.size) for name, t in tensors.items() if name.endswith("weight_scale"))
        int8 = sum(int(t.size) for t in tensors.values() if t.dtype == paddle.int8)
        assert transformer.num_parameters() == number and transformer.dtype == dtype
        assert memory() == before - 3 * int8 + 4 * scales and int8 > 0.3 * number

    def test_skip(self, transformer):
        transformer.quantize("int8", skip=("transformer_blocks.1", "ff_context"))
        first, second = transformer.transformer_blocks[0], transformer.transformer_blocks[1]
        assert type(first.ff.net[2]) is QuantizedLinear and type(second.ff.net[2]) is Linear
        assert type(first.ff_context.net[2]) is Linear and type(first.attn.to_out[0]) is QuantizedLinear


class TestSaving:
    @pytest.mark.parametrize("name", ["transformer", "text_encoder_3"])
    @pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB", "variant": "int8"}])
    def test_round_trip(self, tmp_path, name, options):
        model = tiny.make_components()[name].quantize("int8")
        run = velocity if name == "transformer" else encoded
        model.save_pretrained(tmp_path, **options)
        again = type(model).from_pretrained(tmp_path, variant=options.get("variant"))
        assert again.is_quantized and not again.training
        np.testing.assert_array_equal(run(again).numpy(), run(model).numpy())
        assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {"quant_method": "int8"}
        assert set(again.state_dict()) == set(model.state_dict())

    def test_skipped_layers_come_back_as_they_were(self, transformer, tmp_path):
        transformer.quantize("int8", skip="transformer_blocks.0").save_pretrained(tmp_path)
        again = ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path)
        assert type(again.transformer_blocks[0].ff.net[2]) is Linear
        np.testing.assert_array_equal(velocity(again).numpy(), velocity(transformer).numpy())

    def test_pipeline(self, tmp_path):
        pipe = tiny.make_pipeline().quantize("int8")
        pipe.save_pretrained(tmp_path)
        again = ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(drawn(again).numpy(), drawn(pipe).numpy())

    def test_dtype_leaves_int8_alone(self, transformer, tmp_path):
        transformer.quantize("int8").save_pretrained(tmp_path)
        half = ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path, paddle_dtype="float16")
        layer = half.transformer_blocks[0].attn.to_q
        assert layer.weight.dtype == paddle.int8 and layer.weight_scale.dtype == paddle.float16 == layer.bias.dtype
        assert half.to("float32").transformer_blocks[0].attn.to_q.weight.dtype == paddle.int8
        assert half.dtype == paddle.float32

    def test_without_the_native_library(self, tmp_path):
        """Loads and draws where nothing can be compiled."""
        pipe = tiny.make_pipeline().quantize("int8")
        pipe.save_pretrained(tmp_path)
        np.save(tmp_path / "latents.npy", drawn(pipe).numpy())
        code = """
import sys
import numpy as np, ppsd3
from ppsd3.ops import native
from test_quantization import drawn
pipe = ppsd3.DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
expected = np.load(sys.argv[1] + "/latents.npy")
assert not native.status()[0]
assert np.linalg.norm(drawn(pipe).numpy() - expected) < 0.05 * np.linalg.norm(expected)
"""
        run(code, tmp_path, environment={"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)})


class TestErrors:
    def test_unknown_kind(self, transformer):
        with pytest.raises(InputError, match=r"kind='int4' is not known. Choose 'int8'"):
            transformer.quantize("int4")

    def test_twice(self, transformer):
        transformer.quantize("int8")
        with pytest.raises(InputError, match=r"SD3Transformer2DModel is in int8 already. Load it again"):
            transformer.quantize("int8")

    def test_training(self, transformer):
        transformer.quantize("int8")
        transformer.eval()
        with pytest.raises(InputError, match=r"cannot be trained. Train the model that it was made from"):
            transformer.train()

    def test_fused_before(self, transformer):
        transformer.fuse_qkv_projections()
        with pytest.raises(InputError, match="Call unfuse_qkv_projections"):
            transformer.quantize("int8")

    def test_nothing_to_quantize(self):
        with pytest.raises(InputError, match="AutoencoderKL has no layers that gain"):
            tiny.make_components()["vae"].quantize("int8")

    def test_skip_that_names_nothing(self, transformer):
        with pytest.raises(InputError, match=r"skip has 'ff_contxt'.*transformer_blocks.0"):
            transformer.quantize("int8", skip=["ff_contxt"])

    def test_weights_that_are_not_finite(self, transformer):
        weight = transformer.transformer_blocks[1].ff.net[2].weight
        weight.set_value(paddle.full_like(weight, float("nan")))
        with pytest.raises(InputError, match=r"transformer_blocks\.1\.ff\.net\.2"):
            transformer.quantize("int8")
        assert not transformer.is_quantized

    def test_pipeline_changes_all_or_nothing(self):
        pipe = tiny.make_pipeline()
        pipe.text_encoder_3.quantize("int8")
        with pytest.raises(InputError, match="T5EncoderModel is in int8 already"):
            pipe.quantize("int8")
        assert not pipe.transformer.is_quantized
        pipe.quantize("int8", components="transformer")
        assert pipe.transformer.is_quantized

    @pytest.mark.parametrize("components", [["text_encoder_4"], ["scheduler"], []])
    def test_components_that_are_not_there(self, components):
        with pytest.raises(InputError, match=r"the networks of this pipeline are .*transformer"):
            tiny.make_pipeline().quantize("int8", components=components)

    def test_pipeline_without_t5(self):
        pipe = ppsd3.StableDiffusion3Pipeline(**{**tiny.make_components(), "text_encoder_3": None, "tokenizer_3": None})
        assert pipe.quantize("int8").transformer.is_quantized

    def test_another_quantization(self, transformer, tmp_path):
        transformer.save_pretrained(tmp_path)
        self.edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
        with pytest.raises(ConfigError, match=r"is quantized by bitsandbytes, in 4 bits.*quantize\('int8'\)"):
            ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path)

    def test_a_configuration_without_int8_weights(self, transformer, tmp_path):
        transformer.save_pretrained(tmp_path)
        self.edit_config(tmp_path, quantization_config={"quant_method": "int8"})
        with pytest.raises(CheckpointFormatError, match="should hold an int8 model"):
            ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path)

    def test_int8_weights_without_a_configuration(self, transformer, tmp_path):
        transformer.quantize("int8").save_pretrained(tmp_path)
        self.edit_config(tmp_path, quantization_config=None)
        with pytest.raises(WeightMismatchError, match="weight_scale"):
            ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path)

    def test_a_scale_beside_float_weights(self, transformer, tmp_path):
        transformer.quantize("int8").save_pretrained(tmp_path)
        checkpoint = Checkpoint.open(tmp_path, "diffusion_pytorch_model")
        tensors = {name: checkpoint.read(name) for name in checkpoint.keys()}
        name = "transformer_blocks.0.attn.to_q.weight"
        tensors[name] = tensors[name].astype("float32")
        write_checkpoint(str(tmp_path / "broken"), "diffusion_pytorch_model", tensors)
        (tmp_path / "broken" / "config.json").write_text((tmp_path / "config.json").read_text())
        with pytest.raises(CheckpointFormatError, match=r"transformer_blocks.0.attn.to_q is no int8 linear layer"):
            ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path / "broken")

    @staticmethod
    def edit_config(directory, **entries):
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


class TestCommands:
    def test_generate(self, tiny_checkpoint, tmp_path):
        file = tmp_path / "picture.png"
        call = ["generate", "a red circle", "--model", str(tiny_checkpoint), "--steps", "2", "--seed", "1", "--quiet"]
        assert main([*call, "--quantize", "int8", "--output", str(file)]) == 0
        assert read_settings(file)["quantize"] == "int8"

    def test_info(self, tmp_path, capsys):
        tiny.make_pipeline().quantize("int8").save_pretrained(tmp_path)
        assert main(["info", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert "int8" in next(line for line in shown.splitlines() if line.startswith("transformer "))
        assert "quantized_linear: " in shown
        part = info.read_component(str(tmp_path), "transformer", "SD3Transformer2DModel")
        assert 0 < part.int8_values < part.values
