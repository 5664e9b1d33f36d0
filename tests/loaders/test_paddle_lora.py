"""LoRA files as ppdiffusers writes them: A is [in, r] and B [r, out], whatever the file says of itself."""

import functools
import pickle

import numpy as np
import pytest
from helpers import loras, tiny
from safetensors.numpy import load_file, save_file

import ppsd3
from ppsd3 import TorchGenerator
from ppsd3.cli.main import main
from ppsd3.ops.adapted import checkpoint_tensors
from ppsd3.serialization import SafetensorsFile
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError, WeightMismatchError

SQUARE = ("to_q", "to_k", "to_v", "to_out.0")
PADDLE, TORCH = "paddle_lora_weights.safetensors", "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def network():
    return shared_pipeline().transformer


@functools.cache
def shared_pipeline():
    """Whoever changes it changes it back."""
    return tiny.make_pipeline()


def lora(network, rank, wanted=SQUARE):
    """In torch's layout, under diffusers' keys."""
    return {f"transformer.{k}": v for k, v in loras.low_rank(loras.shapes_of(network, wanted), rank).items()}


def turned(tensors):
    return {key: np.ascontiguousarray(value.T) for key, value in tensors.items()}


def weights_with(path, **options):
    """The weights of the tiny transformer with the adapter in them, by name."""
    pipe = shared_pipeline()
    pipe.load_lora_weights(path, **options)
    pipe.fuse_lora()
    weights = {name: tensor.numpy() for name, tensor in checkpoint_tensors(pipe.transformer).items()}
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    return weights


def assert_acts_as(path, tensors, **options):
    found, changes = weights_with(path, **options), loras.changes(loras.part(tensors, "transformer"))
    for name, tensor in shared_pipeline().transformer.state_dict().items():
        expected = tensor.numpy() + changes.pop(name, 0.0)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6, err_msg=name)
    assert not changes


@pytest.mark.parametrize("rank", [3, 32, 40])  # the width is 32
@pytest.mark.parametrize("wanted", [SQUARE, (*SQUARE, "net.0.proj", "net.2", "linear", "linear_1")])
@pytest.mark.parametrize("mark", ["pd", "np", None])
def test_format_name_and_shapes(network, tmp_path, rank, wanted, mark):
    tensors = lora(network, rank, wanted)
    save_file(turned(tensors), tmp_path / PADDLE, {"format": mark} if mark else None)
    assert_acts_as(tmp_path / PADDLE, tensors)
    assert_acts_as(tmp_path, tensors)


@pytest.mark.parametrize("mark", ["pt", None])
@pytest.mark.parametrize("rank", [3, 40])
def test_shapes_against_the_format(network, tmp_path, rank, mark):
    """ppdiffusers' ``to_diffusers=True`` changes the name and the format of the file, not its layout."""
    tensors = lora(network, rank)
    save_file(turned(tensors), tmp_path / TORCH, {"format": mark} if mark else None)
    assert_acts_as(tmp_path, tensors)
    assert_acts_as(turned(tensors), tensors)


@pytest.mark.parametrize("name, mark", [(TORCH, "pt"), (TORCH, None), (PADDLE, "pt"), ("x.safetensors", None)])
@pytest.mark.parametrize("rank", [3, 32, 40])
def test_torchs_layout_stays(network, tmp_path, rank, name, mark):
    tensors = lora(network, rank)
    save_file(tensors, tmp_path / name, {"format": mark} if mark else None)
    assert_acts_as(tmp_path, tensors)


def test_shapes_of_some_layers_tell_of_all(network, tmp_path):
    """A rank that equals the width of most layers, and one layer that is not square."""
    tensors = lora(network, 32, ("to_q", "net.0.proj"))
    save_file(turned(tensors), tmp_path / "x.safetensors", {"format": "pt"})
    assert_acts_as(tmp_path / "x.safetensors", tensors)


def test_keys_of_before_peft(network, tmp_path):
    tensors = {key: value for key, value in lora(network, 3).items() if ".to_q." in key}
    words = {
        ".to_q.lora_A.weight": ".processor.to_q_lora.down.weight",
        ".to_q.lora_B.weight": ".processor.to_q_lora.up.weight",
    }
    old = {}
    for key, value in turned(tensors).items():
        end = next(end for end in words if key.endswith(end))
        old[key[: -len(end)] + words[end]] = value
    save_file(old, tmp_path / PADDLE, {"format": "pd"})
    assert_acts_as(tmp_path, tensors)


def test_text_encoders(tmp_path):
    pipe = tiny.make_pipeline()
    tensors = {k: v for k, v in loras.for_pipeline(pipe).items() if k.startswith("text_encoder.")}
    save_file(turned(tensors), tmp_path / PADDLE, {"format": "pd"})
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    merged = tiny.make_pipeline().text_encoder
    loras.merge(merged, loras.part(tensors, "text_encoder"))
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    fused = pipe.text_encoder.text_model.encoder.layers[0].mlp.fc1.base_layer.weight.numpy()
    np.testing.assert_allclose(fused, merged.state_dict()[name].numpy(), rtol=0, atol=1e-6)


def test_which_file_of_a_directory(network, tmp_path):
    torchs, paddles = lora(network, 3), lora(network, 4)
    save_file(turned(paddles), tmp_path / PADDLE, {"format": "pd"})
    save_file(torchs, tmp_path / "other.safetensors", {"format": "pt"})
    assert_acts_as(tmp_path, paddles)
    save_file(torchs, tmp_path / TORCH, {"format": "pt"})
    assert_acts_as(tmp_path, torchs)
    assert_acts_as(tmp_path, paddles, weight_name=PADDLE)
    (tmp_path / PADDLE).unlink()
    (tmp_path / TORCH).unlink()
    save_file(torchs, tmp_path / "another.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointNotFoundError, match=r"no pytorch_lora_weights.safetensors; it has another.safetensors, o"
    ):
        tiny.make_pipeline().load_lora_weights(tmp_path)


def test_a_pickle_is_refused_with_the_way_out_and_converted(network, tmp_path, capsys):
    tensors = lora(network, 32)
    file = tmp_path / "paddle_lora_weights.pdparams"
    file.write_bytes(pickle.dumps(turned(tensors), 4))
    for given, options in ((file, {}), (tmp_path, {}), (tmp_path, {"weight_name": file.name})):
        with pytest.raises(CheckpointFormatError, match=r"pdparams is a pickle.*ppsd3 convert FILE NEW_FILE"):
            tiny.make_pipeline().load_lora_weights(given, **options)
    assert main(["convert", str(file), str(tmp_path / "x.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.safetensors")
    assert_acts_as(tmp_path / "x.safetensors", tensors)


def test_what_does_not_fit_is_no_other_size(network):
    key = "transformer.transformer_blocks.0.attn.to_q.lora_"
    ours = {f"{key}A.weight": np.zeros((3, 32), "f4"), f"{key}B.weight": np.zeros((32, 4), "f4")}
    with pytest.raises(WeightMismatchError, match=r"A.weight is \[3, 32\] and .*B.weight \[32, 4\], which are not"):
        tiny.make_pipeline().load_lora_weights(ours)


def test_what_info_says(network, tmp_path, capsys):
    for rank, name, mark in ((3, PADDLE, "pd"), (3, "x.safetensors", "pt"), (32, PADDLE, None)):
        save_file(turned(lora(network, rank)), tmp_path / name, {"format": mark} if mark else None)
        assert main(["info", str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out
        assert "an adapter (LoRA), under the names of diffusers and PEFT, in ppdiffusers' layout" in shown
        assert f"ranks: {rank} (12 layers)" in shown and "a transformer of width 32" in shown
    save_file(lora(network, 3), tmp_path / TORCH, {"format": "pt"})
    main(["info", str(tmp_path / TORCH)])
    assert "ppdiffusers" not in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- saving


def test_what_is_saved_for_ppdiffusers(network, tmp_path):
    tensors = lora(network, lambda name: 2 if name.endswith("to_q") else 3)
    alphas = {f"{key[: -len('.lora_A.weight')]}.alpha": np.float32(6) for key in tensors if key.endswith("A.weight")}
    pipe = tiny.make_pipeline()
    pipe.load_lora_weights({**tensors, **alphas}, adapter_name="a")
    pipe.save_lora_weights(tmp_path, layout="ppdiffusers")
    assert [path.name for path in tmp_path.iterdir()] == [PADDLE]
    assert SafetensorsFile(tmp_path / PADDLE).metadata == {"format": "pd"}
    written = load_file(tmp_path / PADDLE)
    assert set(written) == set(tensors)
    for key, value in tensors.items():
        scaling = 1 if "lora_A" in key else 6 / value.shape[1]
        np.testing.assert_allclose(written[key], value.T * scaling, rtol=1e-6)
    found, expected = weights_with(tmp_path), weights_with({**tensors, **alphas})
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)


def test_layers_that_are_passed(network, tmp_path):
    tensors = loras.part(lora(network, 4), "transformer")
    pipe = tiny.make_pipeline()
    options = {"weight_name": "x.safetensors", "layout": "ppdiffusers"}
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=tensors, **options)
    for key, value in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(value, tensors[key[len("transformer.") :]].T)
    config = {"r": 4, "lora_alpha": 2, "use_rslora": True}
    pipe.save_lora_weights(
        tmp_path, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=config, **options
    )
    key = "transformer_blocks.1.attn.to_k.lora_B.weight"
    written = load_file(tmp_path / "x.safetensors")[f"transformer.{key}"]
    np.testing.assert_allclose(written, tensors[key].T * (2 / 4**0.5), rtol=1e-6)


def test_bfloat16_is_written_as_they_read_it(network, tmp_path):
    pipe = tiny.make_pipeline()
    layers = {key: ppsd3.serialization.tensors.from_numpy(value) for key, value in lora(network, 4).items()}
    layers = {key[len("transformer.") :]: tensor.astype("bfloat16") for key, tensor in layers.items()}
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=layers, layout="ppdiffusers")
    assert {array.dtype for array in load_file(tmp_path / PADDLE).values()} == {np.dtype(np.uint16)}
    pipe.load_lora_weights(tmp_path)


@pytest.mark.parametrize("kind", ["text encoders", "DoRA", "LoKr", "bias"])
def test_what_ppdiffusers_has_not(network, tmp_path, kind):
    tensors = lora(network, 3)
    module = "transformer.transformer_blocks.0.attn.to_q"
    more = {
        "text encoders": lora_of_text_encoder(),
        "DoRA": {f"{module}.lora_magnitude_vector": np.ones(32, "f4")},
        "LoKr": {"transformer.context_embedder.lokr_w1": np.ones((4, 4), "f4"),
                 "transformer.context_embedder.lokr_w2": np.ones((8, 10), "f4")},
        "bias": {f"{module}.lora_B.bias": np.ones(32, "f4")},
    }[kind]  # fmt: skip
    pipe = tiny.make_pipeline()
    pipe.load_lora_weights({**tensors, **more})
    with pytest.raises(InputError, match=r"takes LoRA of the transformer only.*Save without layout='ppdiffusers'"):
        pipe.save_lora_weights(tmp_path / "x", layout="ppdiffusers")
    with pytest.raises(InputError, match="layout is 'paddle'; an adapter can be saved as 'diffusers' or 'ppdiffusers'"):
        pipe.save_lora_weights(tmp_path / "x", layout="paddle")
    assert not (tmp_path / "x").exists()


def lora_of_text_encoder():
    return {k: v for k, v in loras.for_pipeline(tiny.make_pipeline()).items() if k.startswith("text_encoder.")}


def test_it_draws(network, tmp_path):
    tensors = lora(network, 3)
    pictures = []
    for name, arrays, mark in ((PADDLE, turned(tensors), "pd"), (TORCH, tensors, "pt")):
        (tmp_path / mark).mkdir()
        save_file(arrays, tmp_path / mark / name, {"format": mark})
        pipe = tiny.make_pipeline()
        pipe.load_lora_weights(tmp_path / mark)
        picture = pipe("a red circle", num_inference_steps=2, generator=TorchGenerator(0), output_type="np").images
        pictures.append(picture)
    np.testing.assert_array_equal(*pictures)
