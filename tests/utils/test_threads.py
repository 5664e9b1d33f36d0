"""Networks are changed by one thread while no other works with them: who waits, who is refused, and that no method is
forgotten."""

import inspect
import threading

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, loras, tiny

import ppsd3
from ppsd3 import LoraConfig, SD3ControlNetModel, SD3MultiControlNetModel
from ppsd3.models.attention_processor import JointAttnProcessor2_5
from ppsd3.utils.errors import InputError
from ppsd3.utils.threads import Changing, Shared, changes_networks, working_with

SECONDS = 20


class Part(Shared):
    """What threads share."""

    @changes_networks
    def change(self):
        return "changed"

    def work(self):
        with working_with(self):
            return "worked"


def started(function):
    """A running thread, and a list that has the result of ``function`` at its end."""
    result = []

    def run():
        try:
            result.append(function())
        except InputError as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def waits(thread):
    thread.join(0.05)
    return thread.is_alive()


def ended(thread):
    thread.join(SECONDS)
    return not thread.is_alive()


class TestTurns:
    def test_a_change_waits_for_work_and_later_work_for_the_change(self):
        part, order = Part(), []

        def change():
            with Changing(part, "change"):
                order.append("change")

        def work():
            with working_with(part):
                order.append("later")

        with working_with(part):
            changing, _ = started(change)
            assert waits(changing)
            working, _ = started(work)
            assert waits(working)
            with working_with(part):  # what works already goes on
                order.append("inner")
        assert ended(changing) and ended(working)
        assert order == ["inner", "change", "later"]

    def test_work_goes_on_beside_work_and_beside_changes_of_other_parts(self):
        part, other = Part(), Part()
        with working_with(part):
            for function in (part.work, other.work, other.change):
                assert ended(started(function)[0])

    def test_work_waits_for_a_change(self):
        part = Part()
        with Changing(part, "change"):
            assert (part.change(), part.work()) == ("changed", "worked")  # inside of its own
            working, worked = started(part.work)
            changing, changed = started(part.change)
            assert waits(working) and waits(changing)
            assert part.work() == "worked"  # though a change waits
        assert ended(working) and ended(changing)
        assert (worked, changed) == (["worked"], ["changed"])

    def test_a_thread_does_not_wait_for_its_own_call(self):
        part, other = Part(), Part()
        with working_with(part):
            with pytest.raises(InputError, match=r"change\(\) changes what this very thread works with"):
                part.change()
            assert other.change() == "changed"  # nobody works with it
        assert part.change() == "changed"

    def test_a_thread_does_not_wait_for_others_inside_of_a_call(self):
        part, other, go = Part(), Part(), threading.Event()

        def work():
            with working_with(other):
                go.wait(SECONDS)

        thread, _ = started(work)
        try:
            while not _works_with(other):
                pass
            with working_with(part), pytest.raises(InputError, match="would wait, inside of a call"):
                other.change()
        finally:
            go.set()
        assert ended(thread) and other.change() == "changed"

    def test_an_error_ends_a_turn(self):
        part = Part()
        for block in (Changing(part, "change"), working_with(part)):
            with pytest.raises(RuntimeError), block:
                raise RuntimeError
        assert ended(started(part.change)[0])

    def test_networks_inside_of_one_are_shared_with_it(self):
        nets = [SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 1}) for _ in range(2)]
        with working_with(SD3MultiControlNetModel(nets)), pytest.raises(InputError, match="this very thread"):
            nets[1].quantize("int8")


def _works_with(part):
    from ppsd3.utils import threads

    return any(known == id(part) for known, _ in threads._working)


# How to call each method that changes networks, as a function of the pipeline or network and of one more thing to load.
NETWORK = {
    "add_adapter": lambda net, _: net.add_adapter(LoraConfig(target_modules=["to_q"])),
    "compile": lambda net, _: net.compile(),
    "delete_adapters": lambda net, _: net.delete_adapters("first"),
    "disable_adapters": lambda net, _: net.disable_adapters(),
    "disable_forward_chunking": lambda net, _: net.disable_forward_chunking(),
    "disable_lora": lambda net, _: net.disable_lora(),
    "disable_slicing": lambda net, _: net.disable_slicing(),
    "disable_tiling": lambda net, _: net.disable_tiling(),
    "enable_adapters": lambda net, _: net.enable_adapters(),
    "enable_forward_chunking": lambda net, _: net.enable_forward_chunking(),
    "enable_layerwise_casting": lambda net, _: net.enable_layerwise_casting(),
    "enable_lora": lambda net, _: net.enable_lora(),
    "enable_slicing": lambda net, _: net.enable_slicing(),
    "enable_tiling": lambda net, _: net.enable_tiling(),
    "fuse_lora": lambda net, _: net.fuse_lora(),
    "fuse_qkv_projections": lambda net, _: net.fuse_qkv_projections(),
    "load_lora_adapter": lambda net, lora: net.load_lora_adapter(lora),
    "load_weights": lambda net, _: net.load_weights(None),
    "quantize": lambda net, _: net.quantize("int8"),
    "set_adapter": lambda net, _: net.set_adapter("first"),
    "set_adapters": lambda net, _: net.set_adapters("first", 0.5),
    "set_added_embeddings": lambda net, _: net.set_added_embeddings(np.zeros([1, 16], "float32"), 521, 520),
    "set_attn_processor": lambda net, _: net.set_attn_processor(JointAttnProcessor2_5()),
    "to": lambda net, _: net.to(dtype="float64"),
    "train": lambda net, _: net.train(),
    "unfuse_lora": lambda net, _: net.unfuse_lora(),
    "unfuse_qkv_projections": lambda net, _: net.unfuse_qkv_projections(),
    "unload_lora": lambda net, _: net.unload_lora(),
}
PIPELINE = {
    "compile": lambda pipe, _: pipe.compile(),
    "delete_adapters": lambda pipe, _: pipe.delete_adapters("first"),
    "disable_lora": lambda pipe, _: pipe.disable_lora(),
    "disable_vae_slicing": lambda pipe, _: pipe.disable_vae_slicing(),
    "disable_vae_tiling": lambda pipe, _: pipe.disable_vae_tiling(),
    "enable_lora": lambda pipe, _: pipe.enable_lora(),
    "enable_model_cpu_offload": lambda pipe, _: pipe.enable_model_cpu_offload(),
    "enable_sequential_cpu_offload": lambda pipe, _: pipe.enable_sequential_cpu_offload(),
    "enable_vae_slicing": lambda pipe, _: pipe.enable_vae_slicing(),
    "enable_vae_tiling": lambda pipe, _: pipe.enable_vae_tiling(),
    "fuse_lora": lambda pipe, _: pipe.fuse_lora(),
    "fuse_qkv_projections": lambda pipe, _: pipe.fuse_qkv_projections(),
    "load_image_encoder": lambda pipe, _: pipe.load_image_encoder("."),
    "load_ip_adapter": lambda pipe, _: pipe.load_ip_adapter(ip_adapters.tensors(3), image_encoder_folder=None),
    "load_lora_weights": lambda pipe, lora: pipe.load_lora_weights(lora),
    "load_textual_inversion": lambda pipe, _: pipe.load_textual_inversion(np.ones([1, 16], "float32"), token="<cat>"),
    "quantize": lambda pipe, _: pipe.quantize("int8"),
    "remove_all_hooks": lambda pipe, _: pipe.remove_all_hooks(),
    "set_adapters": lambda pipe, _: pipe.set_adapters("first", 0.5),
    "to": lambda pipe, _: pipe.to("cpu"),
    "unfuse_lora": lambda pipe, _: pipe.unfuse_lora(),
    "unfuse_qkv_projections": lambda pipe, _: pipe.unfuse_qkv_projections(),
    "unload_ip_adapter": lambda pipe, _: pipe.unload_ip_adapter(),
    "unload_lora_weights": lambda pipe, _: pipe.unload_lora_weights(),
    "unload_textual_inversion": lambda pipe, _: pipe.unload_textual_inversion(),
}
# What makes, reads or says something, or sets what a call reads once: beside calls too.
NETWORK_BESIDE = set(
    """
    active_adapters decode encode extract_init_arguments forward from_config from_pretrained from_single_file
    from_source from_transformer get_input_embeddings load_config num_parameters prepare register_to_config save_config
    save_lora_adapter save_pretrained scale_latents to_json_dict unscale_latents with_own_names
    disable_attention_slicing enable_attention_slicing enable_lora_hotswap
    disable_xformers_memory_efficient_attention enable_xformers_memory_efficient_attention
    disable_gradient_checkpointing enable_gradient_checkpointing
    """.split()  # the last two act in training alone
)
PIPELINE_BESIDE = set(
    """
    call_arguments check_inputs download encode_image encode_prompt from_pipe from_pretrained from_single_file
    get_active_adapters get_list_adapters lora_scaled lora_state_dict maybe_free_model_hooks numpy_to_pil
    prepare_ip_adapter_image_embeds prepare_latents progress_bar require save_lora_weights save_pretrained
    save_textual_inversion using
    disable_attention_slicing enable_attention_slicing enable_lora_hotswap
    disable_xformers_memory_efficient_attention enable_xformers_memory_efficient_attention
    disable_cache disable_cfg_parallel disable_prompt_cache enable_cache enable_cfg_parallel enable_prompt_cache
    register_modules set_ip_adapter_scale
    set_pag_applied_layers set_progress_bar_config with_call_defaults
    """.split()
)


def classes(base):
    return [
        found for name in ppsd3.__all__ if inspect.isclass(found := getattr(ppsd3, name)) and issubclass(found, base)
    ]


def methods(class_):
    """Names of the public methods that the package gives a class."""
    owners = [owner for owner in class_.__mro__ if owner.__module__.startswith("ppsd3.")]
    names = {name for owner in owners for name in vars(owner) if not name.startswith("_")}
    return {name for name in names if callable(getattr(class_, name)) and not inspect.isclass(getattr(class_, name))}


@pytest.mark.parametrize(
    "base, changing, beside",
    [(ppsd3.ModelMixin, NETWORK, NETWORK_BESIDE), (ppsd3.DiffusionPipeline, PIPELINE, PIPELINE_BESIDE)],
    ids=["network", "pipeline"],
)
def test_every_method_is_known_to_change_networks_or_not(base, changing, beside):
    """A new one that changes networks is decorated by ``changes_networks``, and listed above with a call of it."""
    found = {name for class_ in classes(base) for name in methods(class_)}
    assert found - set(changing) - beside == set(), "say of these whether they change networks"
    assert (set(changing) | beside) - found == set(), "these are gone"


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.make_pipeline()
    pipe.load_lora_weights(loras.for_pipeline(pipe), adapter_name="first")
    pipe.image_encoder = ppsd3.SiglipVisionModel(**ip_adapters.SIGLIP)
    pipe.feature_extractor = ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR)
    return pipe


def state(pipe):
    networks = [part for part in pipe.components.values() if isinstance(part, paddle.nn.Layer)]
    return [(repr(network), dict(vars(network)), network.training) for network in networks]


class TestChangesInsideOfACall:
    """From a callback, what changes networks is refused before it has changed anything."""

    def refused(self, pipe, owners, changes):
        """Names of the changes that a callback makes in vain."""
        lora, refused = loras.for_pipeline(pipe), {}

        def callback(pipe, step, timestep, tensors):
            for name, change in changes.items():
                with pytest.raises(InputError, match=f"{NAMES.get(name, name)}.* this very thread") as error:
                    change(next(owner for owner in owners if hasattr(type(owner), name)), lora)
                refused[name] = error.value
            return {}

        before = state(pipe)
        pipe("a star", num_inference_steps=1, output_type="latent", callback_on_step_end=callback)
        assert repr(state(pipe)) == repr(before)
        return set(refused)

    def test_by_a_pipeline(self, pipe):
        assert self.refused(pipe, [pipe], PIPELINE) == set(PIPELINE)

    def test_by_a_network(self, pipe):
        owners = [pipe.transformer, pipe.vae, pipe.text_encoder]
        assert self.refused(pipe, owners, NETWORK) == set(NETWORK)

    def test_by_another_pipeline_over_the_same_networks(self, pipe):
        other = ppsd3.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
        assert self.refused(pipe, [other], {"fuse_lora": PIPELINE["fuse_lora"]}) == {"fuse_lora"}


# What errors call a method that hands the change on.
NAMES = {
    **{f"{on}_vae_{what}": f"{on}_{what}" for on in ("enable", "disable") for what in ("slicing", "tiling")},
    "disable_lora": "disable_(lora|adapters)",
    "enable_lora": "enable_(lora|adapters)",
}
