"""The workloads that are measured, and the sides of each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import flops
from .configurations import MEDIUM, TINY, width
from .sides.base import Side
from .sides.openvino_based import OpenVinoSide
from .sides.ours import PaddleGemm, PaddleLoraSide, PaddleSide
from .sides.process import GenerateSide
from .sides.torch_based import TorchGemm, TorchLoraSide, TorchSide

if TYPE_CHECKING:
    from typing_extensions import Self

GUIDANCE_BATCH = 2  # the negative and the positive prompt
TEXT_TOKENS = {"step": 77 + 256, "train": 77 + 77}
TINY_TEXT_TOKENS = 13


@dataclasses.dataclass
class Bench:
    """A workload of one size.

    Args:
        size: side of the picture in pixels.
        layers: of the transformer, or of T5.
        threads: for each side.
        tiny: tiny networks, to test that everything runs.
        file_dtype: of the checkpoints.

    Attributes:
        name: as on the command line.
        task: its key in the sides' tables.
        components: the networks that it needs.
        repeats: default number of timed runs of each side.
        sizes, default_layers: defaults.
        always_fresh: every run has a new process and no warm-up.
        warm_up: arguments of the untimed first run.
        bars: largest relative error to the first side's output, of a float32 side and of an int8 one.
    """

    size: int
    layers: int
    threads: int = 1
    tiny: bool = False
    file_dtype: str = "float32"

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    task: ClassVar[str] = ""
    components: ClassVar[tuple[str, ...]] = ("transformer",)
    repeats: ClassVar[int] = 5
    sizes: ClassVar[tuple[int, ...]] = (512,)
    tiny_sizes: ClassVar[tuple[int, ...]] = (64,)
    default_layers: ClassVar[int] = 2
    always_fresh: ClassVar[bool] = False
    warm_up: ClassVar[dict[str, Any]] = {}
    bars: ClassVar[tuple[float, float]] = (1e-3, 0.1)

    @classmethod
    def make(
        cls, sizes: Sequence[int] | None = None, layers: int | None = None, threads: int = 1, tiny: bool = False
    ) -> list[Self]:
        """The benches of this kind: one for each of ``sizes``."""
        sizes = sizes or (cls.tiny_sizes if tiny else cls.sizes)
        layers = layers or (min(2, cls.default_layers) if tiny else cls.default_layers)
        return [cls(size, layers, threads, tiny) for size in sizes]

    @property
    def title(self) -> str:
        """Title for people."""
        return f"{self.name} {self.size}x{self.size}, {self.layers} layers"

    @property
    def configuration(self) -> dict[str, dict[str, Any]]:
        """Component -> constructor arguments."""
        found = {name: dict(config) for name, config in (TINY if self.tiny else MEDIUM).items()}
        found["transformer"]["num_layers"] = self.layers
        found["text_encoder_3"]["num_layers"] = self.layers
        return found

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, with which another process makes the same bench."""
        return dataclasses.asdict(self)

    def key(self) -> str:
        """A unique name for this bench's files."""
        return _digest([self.name, self.settings()])

    def folder(self, workspace: str, component: str) -> str:
        """Directory of the checkpoint of ``component``."""
        return os.path.join(workspace, f"{component}-{_digest([self.configuration[component], self.file_dtype])}")

    def prepare(self, workspace: str) -> None:
        """Writes the checkpoints; called in a process of its own."""
        from .weights import write

        for component in self.components:
            write(self.folder(workspace, component), component, self.configuration[component], self.file_dtype)

    def bytes_of_weights(self, workspace: str) -> int:
        """Bytes on disk of all components."""
        folders = [self.folder(workspace, component) for component in self.components]
        return sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))

    def inputs(self) -> dict[str, np.ndarray]:
        """Arguments of networks or pipelines as arrays, the same in every process."""
        raise NotImplementedError

    def flops(self) -> float | None:
        """Floating-point operations of one run, or None if the roofline does not apply."""
        return None

    @property
    def gemms(self) -> list[tuple[int, int, int]]:
        """Shapes (M, K, N) of the matrix products that measure the roofline: those of a block's image stream."""
        d = width(self.configuration["transformer"])
        return [(GUIDANCE_BATCH * self.image_tokens, k, n) for k, n in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))]

    @property
    def image_tokens(self) -> int:
        """N."""
        return (self.size // 8 // self.configuration["transformer"]["patch_size"]) ** 2

    @property
    def text_tokens(self) -> int:
        """L."""
        return TINY_TEXT_TOKENS if self.tiny else TEXT_TOKENS.get(self.task, TEXT_TOKENS["step"])

    def sides(self) -> list[Side]:
        """The sides; outputs are compared with those of the first that runs."""
        raise NotImplementedError

    def rooflines(self) -> list[Side]:
        """Sides that measure the machine."""
        if self.flops() is None:
            return []
        ours = [PaddleGemm(f"gemm-{name}", self, native) for name, native in (("paddle", False), ("native", True))]
        return [TorchGemm("gemm-torch", self), *ours]

    def side(self, name: str) -> Side:
        """The side or roofline called ``name``."""
        return next(side for side in [*self.sides(), *self.rooflines()] if side.name == name)

    def sample(self, array: np.ndarray) -> np.ndarray:
        """The part of an output that is compared."""
        return array

    def _rivals(self, int8: bool = False) -> list[Side]:
        names: list[Side] = [TorchSide("diffusers", self), TorchSide("diffusers-compiled", self, compiled=True)]
        names.append(OpenVinoSide("openvino", self))
        return names + ([OpenVinoSide("openvino-int8", self, int8=True)] if int8 else [])

    def _ours(self, compiled: bool = True, int8: bool = True) -> list[Side]:
        sides: list[Side] = [PaddleSide("ppsd3", self), PaddleSide("ppsd3-no-compiler", self, native=False)]
        if compiled:
            sides.append(PaddleSide("ppsd3-compiled", self, method=("compile",)))
        return sides + ([PaddleSide("ppsd3-int8", self, method=("quantize", "int8"), int8=True)] if int8 else [])


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


class StepBench(Bench):
    """One call of the transformer with a guidance batch, as each denoising step makes it."""

    name = task = "step"
    summary = "one denoising step: the transformer, guidance batch of 2"
    sizes: ClassVar[tuple[int, ...]] = (512, 1024)

    def inputs(self) -> dict[str, np.ndarray]:
        return self.step_inputs()

    def step_inputs(self, batch: int = GUIDANCE_BATCH) -> dict[str, np.ndarray]:
        """Arguments of the transformer."""
        config, grid = self.configuration["transformer"], self.size // 8
        return {
            "hidden_states": _normal(1, batch, config["in_channels"], grid, grid),
            "encoder_hidden_states": _normal(2, batch, self.text_tokens, config["joint_attention_dim"]),
            "pooled_projections": _normal(3, batch, config["pooled_projection_dim"]),
            "timestep": np.full(batch, 612.5, np.float32),
        }

    def flops(self) -> float:
        config = self.configuration["transformer"]
        return flops.transformer(config, self.image_tokens, self.text_tokens, GUIDANCE_BATCH)

    def sides(self) -> list[Side]:
        return self._rivals(int8=True) + self._ours()


class ScaleBench(StepBench):
    """Steps from 256 to 4,096 image tokens, and at one size with 1 thread beside all."""

    name = "scale"
    summary = "a step's time over image tokens, and with 1 thread against all"
    sizes: ClassVar[tuple[int, ...]] = (256, 384, 512, 768, 1024)
    tiny_sizes: ClassVar[tuple[int, ...]] = (32, 48, 64, 96)
    repeats = 3

    def sides(self) -> list[Side]:
        sides: list[Side] = [TorchSide("diffusers", self), PaddleSide("ppsd3", self)]
        if self.threads > 1 and self.size == (64 if self.tiny else 512):
            sides += [TorchSide("diffusers-1-thread", self, threads=1), PaddleSide("ppsd3-1-thread", self, threads=1)]
        return sides


class _VaeBench(Bench):
    components: ClassVar[tuple[str, ...]] = ("vae",)
    repeats = 3

    @property
    def title(self) -> str:
        return f"vae {self.task} {self.size}x{self.size}"

    def flops(self) -> float:
        return flops.vae(self.configuration["vae"], self.size, encode=self.task == "encode")

    def vae_input(self) -> np.ndarray:
        """Input of the decoder or encoder."""
        return next(iter(self.inputs().values()))

    def sides(self) -> list[Side]:
        eager, compiled, openvino = self._rivals()
        last = [
            TorchSide("diffusers-channels-last", self, channels_last=True),
            TorchSide("diffusers-compiled-channels-last", self, compiled=True, channels_last=True),
        ]
        return [eager, compiled, *last, openvino, *self._ours(int8=False)]


class DecodeBench(_VaeBench):
    """Latents to a picture."""

    name: ClassVar[str] = "vae"
    task: ClassVar[str] = "decode"
    summary = "the VAE's decoder and encoder"

    def inputs(self) -> dict[str, np.ndarray]:
        grid = self.size // 8
        return {"latents": _normal(4, 1, self.configuration["vae"]["latent_channels"], grid, grid)}

    @classmethod
    def make(cls, *arguments: Any, **options: Any) -> list[Any]:
        """Both directions at each size."""
        return [*super().make(*arguments, **options), *EncodeBench.make(*arguments, **options)]


class EncodeBench(_VaeBench):
    """A picture to latents."""

    name: ClassVar[str] = "vae-encode"
    task: ClassVar[str] = "encode"

    def inputs(self) -> dict[str, np.ndarray]:
        return {"picture": np.tanh(_normal(5, 1, 3, self.size, self.size))}


class TextBench(Bench):
    """CLIP-L, CLIP-G and T5 on a prompt and a negative prompt."""

    name = task = "text"
    summary = "CLIP-L, CLIP-G and T5, a prompt and its negative"
    components: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    lengths: ClassVar[dict[str, int]] = {"text_encoder": 77, "text_encoder_2": 77, "text_encoder_3": 256}
    repeats = 5

    @property
    def title(self) -> str:
        return f"text, CLIP-L + CLIP-G + T5 of {self.layers} layers"

    def inputs(self) -> dict[str, np.ndarray]:
        """Token ids; CLIP's end with the end token, which a row pads with after its text."""
        random = np.random.RandomState(6)
        found = {}
        for name, length in self.lengths.items():
            config = self.configuration[name]
            found[name] = random.randint(3, config["vocab_size"] - 3, (GUIDANCE_BATCH, length)).astype(np.int64)
            if name != "text_encoder_3":
                found[name][:, length // 4 :] = config.get("eos_token_id", 49407)
        return found

    def flops(self) -> float:
        configs, lengths = self.configuration, self.lengths
        clips = sum(flops.clip(configs[name], lengths[name], GUIDANCE_BATCH) for name in self.components[:2])
        return clips + flops.t5(configs["text_encoder_3"], lengths["text_encoder_3"], GUIDANCE_BATCH)

    def sides(self) -> list[Side]:
        return self._rivals(int8=True) + self._ours(compiled=False)


class LoadBench(Bench):
    """A float16 file to a float32 transformer: time and peak memory."""

    name = task = "load"
    summary = "SD3-medium's transformer from a float16 file to a float32 model"
    default_layers = 24
    repeats = 3
    always_fresh = True
    bars: ClassVar[tuple[float, float]] = (0.0, 0.0)

    @classmethod
    def make(cls, *arguments: Any, **options: Any) -> list[Self]:
        """One bench: loading does not depend on the picture's size."""
        found = super().make(*arguments, **options)[:1]
        return [dataclasses.replace(bench, file_dtype="float16") for bench in found]

    @property
    def title(self) -> str:
        return f"load, {self.layers} layers, float16 file to float32 model"

    def settle(self, workspace: str) -> None:
        """Brings the machine into the same state for every side: files cached, free memory recently used.

        Loading mostly touches new pages. In a virtual machine their cost depends on their last use: free blocks are
        returned to the host, which must allocate them again. So another process first takes and frees the memory that a
        float32 model needs.

        Raises:
            RuntimeError: not enough free memory.
        """
        for component in self.components:
            for entry in os.scandir(self.folder(workspace, component)):
                with open(entry.path, "rb") as file:
                    while file.read(1 << 24):
                        pass
        weights = self.bytes_of_weights(workspace) // np.dtype(self.file_dtype).itemsize
        items = weights * 5 // 4  # sides need more than the weights
        command = [sys.executable, "-c", f"import numpy; numpy.ones({items}, numpy.float32)"]
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
            raise RuntimeError(f"The machine has no {items * 4 / 1e9:.1f} GB free to load a float32 model into.")

    def inputs(self) -> dict[str, np.ndarray]:
        return {}

    def sample(self, array: np.ndarray) -> np.ndarray:
        return array.ravel()[:: array.size // 1000 + 1].copy()

    def sides(self) -> list[Side]:
        return [TorchSide("diffusers", self), *self._ours(compiled=False, int8=False)]


class PictureBench(StepBench):
    """All steps of a picture and its decoding, from given text embeddings and noise."""

    name = task = "picture"
    summary = "28 steps with guidance, and the VAE, from embeddings to pixels"
    components: ClassVar[tuple[str, ...]] = ("transformer", "vae")
    sizes: ClassVar[tuple[int, ...]] = (512,)
    default_layers = 4
    repeats = 2
    warm_up: ClassVar[dict[str, Any]] = {"steps": 1}
    bars: ClassVar[tuple[float, float]] = (1e-2, 0.1)

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return 3 if self.tiny else 28

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline beside tensors."""
        return {"height": self.size, "width": self.size, "guidance_scale": 7.0, "output_type": "np"}

    def inputs(self) -> dict[str, np.ndarray]:
        positive, negative = self.step_inputs(1), self.step_inputs(2)
        return {
            "latents": positive["hidden_states"],
            "prompt_embeds": positive["encoder_hidden_states"],
            "pooled_prompt_embeds": positive["pooled_projections"],
            "negative_prompt_embeds": negative["encoder_hidden_states"][1:],
            "negative_pooled_prompt_embeds": negative["pooled_projections"][1:],
        }

    def vae_input(self) -> np.ndarray:
        """Input of the decoder."""
        return self.step_inputs(1)["hidden_states"]

    def flops(self) -> float:
        return self.steps * super().flops() + flops.vae(self.configuration["vae"], self.size, encode=False)


class TrainBench(StepBench):
    """Forward, backward and an AdamW step of the transformer."""

    name: ClassVar[str] = "train"
    task: ClassVar[str] = "train"
    summary = "a training step: forward, backward, AdamW; batch of 4; of all weights, and of a LoRA"
    sizes: ClassVar[tuple[int, ...]] = (256,)
    batch = 4
    learning_rate: ClassVar[float] = 1e-5
    watched: ClassVar[tuple[str, ...]] = (
        "proj_out.weight",
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.ff.net.2.weight",
    )

    @classmethod
    def make(cls, *arguments: Any, **options: Any) -> list[Any]:
        """Both at each size."""
        return [*super().make(*arguments, **options), *LoraTrainBench.make(*arguments, **options)]

    def inputs(self) -> dict[str, np.ndarray]:
        found = self.step_inputs(self.batch)
        return {**found, "target": _normal(7, *found["hidden_states"].shape)}

    def flops(self) -> float:
        """The backward pass has two products for each of the forward's."""
        config = self.configuration["transformer"]
        return 3 * flops.transformer(config, self.image_tokens, self.text_tokens, self.batch)

    def sides(self) -> list[Side]:
        return self._rivals()[:2] + self._ours(compiled=False, int8=False)


class LoraTrainBench(TrainBench):
    """The same with all weights frozen and a LoRA on the joint attention, which diffusers has through PEFT."""

    name: ClassVar[str] = "train-lora"
    summary = ""
    rank: ClassVar[int] = 16
    targets: ClassVar[tuple[str, ...]] = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    watched: ClassVar[tuple[str, ...]] = (
        "transformer_blocks.0.attn.to_q.lora_A",
        "transformer_blocks.0.attn.to_v.lora_B",
        "transformer_blocks.1.attn.to_out.0.lora_B",
    )

    @classmethod
    def make(cls, *arguments: Any, **options: Any) -> list[Any]:
        """One at each size."""
        return super(TrainBench, cls).make(*arguments, **options)

    def lora_weight(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """What a weight of the LoRA begins with: not zero, so that each has a gradient."""
        return 0.02 * _normal(zlib.crc32(name.encode()), *shape)

    def flops(self) -> float:
        """Frozen weights need no gradient, which is one of the backward pass's two products; a LoRA's are few."""
        return super().flops() * 2 / 3

    def sides(self) -> list[Side]:
        rivals = [TorchLoraSide("diffusers", self), TorchLoraSide("diffusers-compiled", self, compiled=True)]
        ours = [PaddleLoraSide("ppsd3", self), PaddleLoraSide("ppsd3-no-compiler", self, native=False)]
        return [*rivals, *ours]


class GenerateBench(Bench):
    """The bundled model from the command line: a whole process, imports and loading included."""

    name = task = "generate"
    summary = "the process `ppsd3 generate` with the bundled model"
    components: ClassVar[tuple[str, ...]] = ()
    prompt: ClassVar[str] = "a red circle to the left of a blue square"
    seed: ClassVar[int] = 0
    bars: ClassVar[tuple[float, float]] = (2e-2, 0.0)  # pixels are rounded to whole numbers

    @property
    def title(self) -> str:
        return f"generate, bundled model, {self.steps} steps, the whole process"

    @classmethod
    def make(cls, *arguments: Any, **options: Any) -> list[Self]:
        """One bench: the bundled model has one size and its own layers."""
        return super().make(*arguments, **options)[:1]

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return 2 if self.tiny else 28

    @property
    def checkpoint(self) -> str:
        """Directory of the bundled model."""
        return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "shapes", "checkpoint")

    def inputs(self) -> dict[str, np.ndarray]:
        return {}

    def sides(self) -> list[Side]:
        return [
            GenerateSide("diffusers", self, ours=False),
            GenerateSide("ppsd3", self, ours=True),
            GenerateSide("ppsd3-no-compiler", self, ours=True, compiler=False),
        ]


_ALL = (
    StepBench,
    DecodeBench,
    EncodeBench,
    TextBench,
    LoadBench,
    PictureBench,
    TrainBench,
    LoraTrainBench,
    ScaleBench,
    GenerateBench,
)
BY_NAME = {bench.name: bench for bench in _ALL}
# Names on the command line.
BENCHES = {name: bench for name, bench in BY_NAME.items() if bench.summary}
