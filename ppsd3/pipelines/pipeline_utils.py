"""What every pipeline can do: hold components, move and quantize them, lend them to a call, show progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import paddle
from paddle import nn

from ..compilation import Compilable
from ..configuration_utils import FrozenConfig
from ..loaders import FromSingleFileMixin
from ..loaders.host import components_taken
from ..modeling_utils import read_destination
from ..quantization import choose_layers
from ..serialization.tensors import floating_dtype
from ..utils import logging
from ..utils.checking import checks_arguments
from ..utils.device import device_name, execution_device
from ..utils.errors import InputError
from ..utils.foreign import require_own
from ..utils.keywords import LOADING, MOVING, takes_keywords_of
from ..utils.paddle_internals import current_place, place_of
from ..utils.threads import Shared, changes_networks, working_with
from .call_defaults import CallDefaults
from .call_signature import Argument, describe
from .component_classes import check_fit, index_entry
from .familiar_methods import FamiliarMethods
from .pipeline_checkpoint import INDEX_NAME, PipelineCheckpointMixin
from .residency import (
    ModelOffload,
    Offload,
    OnDemandNetwork,
    Resident,
    SequentialOffload,
    is_network,
    join,
    residency_for,
    residency_of,
)

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Self


class DiffusionPipeline(Shared, CallDefaults, FamiliarMethods, PipelineCheckpointMixin, FromSingleFileMixin):
    """Base of the pipelines. A subclass's ``__init__`` arguments are its components, but for its ``_settings``.

    ``DiffusionPipeline.from_pretrained(path)`` makes the pipeline that the checkpoint names;
    ``StableDiffusion3Pipeline.from_pretrained(path)`` that one.
    """

    config_name: ClassVar[str] = INDEX_NAME
    _component_names: tuple[str, ...] = ()
    _carried: ClassVar[tuple[str, ...]] = ()  # attributes that from_pipe takes along, where the other pipeline has them
    _quantized_components: ClassVar[tuple[str, ...]] = ("transformer", "controlnet", "text_encoder_3")

    def __init__(self, **components: Any):
        self._progress_bar_config: dict[str, Any] = {}
        check_fit(components)
        self.register_modules(**components)
        self._residency: Resident = residency_for(self)

    @classmethod
    def call_arguments(cls) -> list[Argument]:
        """The arguments of the pipeline's call as data, in the order of its signature: for forms, schemas, tables."""
        return describe(getattr(cls.__call__, "arguments"))  # noqa: B009 (set by `takes`)

    def register_modules(self, **components: Any) -> None:
        """Makes each component an attribute and remembers it as such."""
        self._component_names = (*self._component_names, *components)
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self) -> dict[str, Any]:
        """Name -> component, None for one that is absent; ``Other(**pipe.components)`` shares them."""
        return {name: getattr(self, name) for name in self._component_names}

    def _shared_parts(self) -> Iterable[Any]:
        return self.components.values()

    @property
    def config(self) -> FrozenConfig:
        """Name -> (library, class name), what ``model_index.json`` holds."""
        return FrozenConfig({name: index_entry(name, part) for name, part in self.components.items()})

    @classmethod
    @takes_keywords_of(LOADING, also=components_taken)
    def from_pipe(cls, pipeline: DiffusionPipeline, paddle_dtype: Any = None, **components: Any) -> Self:
        """A pipeline of this class over the components of another: to change the task without loading twice.

        Networks are shared, with their adapters, quantization and processors; what only the other has is left out.

        Args:
            pipeline: whose components are shared.
            paddle_dtype: what the shared networks, and thereby those of the other pipeline, are cast to. Default: they
                stay as they are.
            **components: used in place of the other pipeline's, e.g. ``scheduler=...``.

        Raises:
            InputError: components that this class needs and the other pipeline has not.
        """
        if not cls._component_signature():
            raise InputError("DiffusionPipeline.from_pipe does not say which task; use the class of the task.")
        known = cls._component_signature()
        settings = {name: getattr(pipeline, name) for name in cls._settings if hasattr(pipeline, name)}
        parts = {**settings, **{n: part for n, part in pipeline.components.items() if n in known}, **components}
        missing = [name for name in known if name not in parts and name not in cls._optional_components]
        if missing:
            raise InputError(f"{cls.__name__} needs {', '.join(missing)}, which a {type(pipeline).__name__} has not.")
        made = cls(**parts)
        join(made._networks())
        made._progress_bar_config = dict(pipeline._progress_bar_config)
        for name in ("_call_defaults", *cls._carried):
            setattr(made, name, getattr(pipeline, name, getattr(made, name)))
        return made if paddle_dtype is None else made.to(dtype=floating_dtype(paddle_dtype))

    @changes_networks
    @takes_keywords_of(MOVING, also=())
    def to(self, *args: Any, device: Any = None, dtype: Any = None, **others: Any) -> Self:
        """Moves the networks to a device and / or a dtype; returns the pipeline.

        Args:
            *args: a device, a dtype or both, in any order.
            device: "cpu", "gpu" or e.g. "gpu:1"; "cuda" means "gpu". Paddle computes there from now on. "cpu" changes
                nothing of networks that are offloaded: they are there, and go to their device while they compute.
            dtype: Paddle's or torch's, or its name.
            **others: keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            InputError: a device that Paddle has not, something that is neither device nor dtype, networks that are
                loaded on demand, or another device than "cpu" for networks that are offloaded.
        """
        self._refuse_moving_on_demand("to()")
        device, dtype = read_destination([*args, device, dtype])
        if device is not None and self._residency.place is not None:
            self._refuse_moving_offloaded(device)
            device = None  # they are on the CPU
        if device is not None:
            paddle.device.set_device(device)
        for network in self._networks():
            network.to(device=device, dtype=dtype)
        return self

    @checks_arguments
    @changes_networks
    def quantize(self, kind: str, components: str | Sequence[str] | None = None) -> Self:
        """Holds the networks that take the time and the memory in int8; returns the pipeline.

        Args:
            kind: "int8"; see :meth:`ppsd3.modeling_utils.ModelMixin.quantize`, which also has ``skip``.
            components: names of the networks. Default: the transformer and T5, if there.

        Raises:
            InputError: a name that is no network here, or what a network's own ``quantize`` refuses; then nothing has
                changed.
        """
        if components is None:
            components = [name for name in self._quantized_components if getattr(self, name, None) is not None]
        networks = self._chosen(components, nn.Layer, "the networks of this pipeline are")
        for name, part in self.components.items():
            if part in networks:
                require_own("int8", part, name)
        for network in networks:
            choose_layers(network, kind)
        for network in networks:
            network.quantize(kind)
        return self

    @checks_arguments
    @changes_networks
    def compile(self, components: str | Sequence[str] | None = None) -> Self:
        """Runs networks as static graphs from the next call on; returns the pipeline.

        The first picture takes longer: it traces each network, once for all sizes and steps. Meant for GPUs; a CPU is
        faster without, since graphs cannot hold the native kernels.

        Args:
            components: names of the networks. Default: the transformer and the VAE.

        Raises:
            InputError: a name that is no network here, or one of a network that has nothing to compile.
        """
        for network in self._chosen(components, Compilable, "what can be compiled in this pipeline is"):
            network.compile()
        return self

    def _chosen(self, components, kind, introduction):
        """The components of these names (one, several, or None for all) that are of the class ``kind``.

        Raises:
            InputError: another name, or none; ``introduction`` and what there is are in the message.
        """
        absent = [name for name, part in self.components.items() if isinstance(part, OnDemandNetwork)]
        if absent:
            raise InputError(
                f"{', '.join(absent)} are loaded on demand, so nothing can be done to them between calls. Load the "
                "pipeline without load_components='on_demand', change it, and save it: then load that on demand."
            )
        there = {name: part for name, part in self.components.items() if isinstance(part, kind)}
        names = there if components is None else (components,) if isinstance(components, str) else components
        if not names or any(name not in there for name in names):
            known = ", ".join(there) or "none"
            raise InputError(f"components is {list(names)}; {introduction} {known}. Name one or more of them.")
        return [there[name] for name in names]

    @checks_arguments
    def require(self, name: str) -> Any:
        """The component called ``name``. Raises an InputError if the pipeline has none."""
        part = getattr(self, name, None)
        if part is None:
            raise _missing(name)
        return part

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """The network called ``name``, ready to compute as long as the block lasts.

        ``with pipe.using("vae") as vae:`` reads one that is loaded on demand, and brings one that is offloaded to its
        device; otherwise it gives ``pipe.vae`` as it is.
        """
        with working_with(part := self.require(name)), self._residency.resident(part) as network:
            yield network

    def _tell(self, name, method, **options):
        """Calls ``method`` (str) of the network called ``name``; of one on demand, whenever it has been read."""
        part = self.require(name)
        if isinstance(part, OnDemandNetwork):
            part.call_after_loading(method, **options)
        else:
            getattr(part, method)(**options)

    @checks_arguments
    @changes_networks
    def enable_model_cpu_offload(self, gpu_id: int | str | None = None, device: Any = None) -> None:
        """Keeps each network in the computer's memory and brings it to the GPU only while it is used.

        Memory of the GPU: the largest network, for some tenths of a second per call. Networks that are on the GPU leave
        it; in place of the other kind of offloading, or of another device, this one holds from now on.

        Args:
            gpu_id: number of the GPU; or its name, as ``device``.
            device: "gpu", "gpu:1" or another device that Paddle has, in place of ``gpu_id``. Default: where Paddle
                computes, or the first GPU. Paddle computes there from now on.

        Raises:
            InputError: there is no such device, both are given, or networks are loaded on demand.
        """
        self._offload(ModelOffload, gpu_id, device)

    @checks_arguments
    @changes_networks
    def enable_sequential_cpu_offload(self, gpu_id: int | str | None = None, device: Any = None) -> None:
        """Keeps the weights in the computer's memory and brings those of each block to the GPU while it is called.

        Memory of the GPU: the largest block, or two of them, since the next one is copied meanwhile, from page-locked
        memory if there is enough. Each step copies all weights. Arguments and errors are those of
        :meth:`enable_model_cpu_offload`; networks that are compiled are refused, too.
        """
        compiled = [name for name, part in self.components.items() if getattr(part, "_graphs", None) is not None]
        if compiled:
            raise InputError(
                f"{', '.join(compiled)} run as static graphs, which cannot bring their layers one by one. Call "
                "enable_model_cpu_offload(), or load the pipeline and do not compile it."
            )
        self._offload(SequentialOffload, gpu_id, device)

    def _offload(self, kind, gpu_id, device):
        self._refuse_moving_on_demand("offloading")
        name = execution_device(device, gpu_id)
        self.remove_all_hooks()
        paddle.device.set_device(name)
        kind(self._networks(), place_of(name))

    @changes_networks
    def remove_all_hooks(self) -> None:
        """Ends offloading: the networks are in the computer's memory, and ``to()`` moves them."""
        for network in self._networks():
            offload = residency_of([network])
            if isinstance(offload, Offload):
                offload.let_go(network)

    def _refuse_moving_on_demand(self, what):
        absent = [name for name, part in self.components.items() if isinstance(part, OnDemandNetwork)]
        if absent:
            raise InputError(
                f"{what} cannot move networks that are loaded on demand ({', '.join(absent)}). Give paddle_dtype to "
                "from_pretrained; they are read to Paddle's present device."
            )

    def _refuse_moving_offloaded(self, device):
        if device != "cpu":
            raise InputError(
                f"to({device!r}): the networks are offloaded, and go to {device_name(self.device)} by themselves while "
                "they compute. Leave to() out, or call remove_all_hooks() before."
            )

    def _networks(self):
        return [part for part in self.components.values() if isinstance(part, nn.Layer)]

    @property
    def dtype(self) -> Any:
        """Of the transformer, or of the first network if there is none."""
        networks = [part for part in self.components.values() if is_network(part)]
        main = getattr(self, "transformer", None) or (networks[0] if networks else None)
        return main.dtype if main is not None else paddle.get_default_dtype()

    @property
    def device(self) -> Any:
        """Where the networks compute, as ``Tensor.place``; those that are offloaded, or loaded on demand, go there."""
        if self._residency.place is not None:
            return self._residency.place
        for network in self._networks():
            for parameter in network.parameters():
                return parameter.place
        return current_place()

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of ``tqdm`` for the progress bar, e.g. ``disable=True``."""
        self._progress_bar_config = options

    @checks_arguments
    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> tqdm[Any]:
        """A ``tqdm`` bar over ``iterable`` or up to ``total``, with the options set above."""
        from tqdm.auto import tqdm

        return tqdm(iterable, total=total, **{"disable": not logging.progress_bars, **self._progress_bar_config})

    def __repr__(self):
        lines = [f"  {name}: {type(component).__name__}" for name, component in self.components.items()]
        return "\n".join([f"{type(self).__name__} {{", *lines, "}"])


def _missing(name):
    return InputError(
        f"The pipeline has no `{name}`, which this needs. Load it with the pipeline, or load one and set `pipe.{name}`."
    )
