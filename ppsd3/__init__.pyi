"""The public names and the modules that define them: for type checkers, and for ``__init__.py``, which reads them."""

from .adapters import (
    LoKrConfig as LoKrConfig,
    LoraConfig as LoraConfig,
    add_adapter as add_adapter,
    get_peft_model_state_dict as get_peft_model_state_dict,
    set_peft_model_state_dict as set_peft_model_state_dict,
)
from .configuration_utils import ConfigMixin as ConfigMixin
from .loaders.conversion import convert as convert
from .modeling_utils import ModelMixin as ModelMixin
from .models import (
    AutoencoderKL as AutoencoderKL,
    AutoencoderTiny as AutoencoderTiny,
    IPAdapter as IPAdapter,
    SD3ControlNetModel as SD3ControlNetModel,
    SD3MultiControlNetModel as SD3MultiControlNetModel,
    SD3Transformer2DModel as SD3Transformer2DModel,
)
from .pipelines import (
    AutoPipelineForImage2Image as AutoPipelineForImage2Image,
    AutoPipelineForInpainting as AutoPipelineForInpainting,
    AutoPipelineForText2Image as AutoPipelineForText2Image,
    DiffusionPipeline as DiffusionPipeline,
    SD3CannyImageProcessor as SD3CannyImageProcessor,
    StableDiffusion3ControlNetImg2ImgPipeline as StableDiffusion3ControlNetImg2ImgPipeline,
    StableDiffusion3ControlNetInpaintingPipeline as StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline as StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline as StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline as StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline as StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline as StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline as StableDiffusion3Pipeline,
    StableDiffusion3PipelineOutput as StableDiffusion3PipelineOutput,
    VaeImageProcessor as VaeImageProcessor,
)
from .pipelines.exporting import export_pipeline as export_pipeline
from .pipelines.latent_preview import LatentPreview as LatentPreview
from .pipelines.stable_diffusion_3.guidance import (
    AdaptiveProjectedGuidance as AdaptiveProjectedGuidance,
    ClassifierFreeGuidance as ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance as ClassifierFreeZeroStarGuidance,
    Guidance as Guidance,
    GuidanceInterval as GuidanceInterval,
    GuidanceRescale as GuidanceRescale,
    NoGuidance as NoGuidance,
    PerturbedAttentionGuidance as PerturbedAttentionGuidance,
    SkipLayerGuidance as SkipLayerGuidance,
)
from .pipelines.stable_diffusion_3.prompt_cache import PromptCache as PromptCache
from .pipelines.stable_diffusion_3.prompt_reading import WeightedPrompts as WeightedPrompts
from .pipelines.stable_diffusion_3.step_caching import (
    EasyCache as EasyCache,
    FirstBlockCache as FirstBlockCache,
    StepCache as StepCache,
    TaylorCache as TaylorCache,
)
from .schedulers import (
    DPMSolverMultistepScheduler as DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler as FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler as FlowMatchLCMScheduler,
    SchedulerMixin as SchedulerMixin,
    UniPCMultistepScheduler as UniPCMultistepScheduler,
)
from .transformers import (
    CLIPTextModelWithProjection as CLIPTextModelWithProjection,
    CLIPTokenizer as CLIPTokenizer,
    CLIPTokenizerFast as CLIPTokenizerFast,
    SiglipImageProcessor as SiglipImageProcessor,
    SiglipVisionModel as SiglipVisionModel,
    T5EncoderModel as T5EncoderModel,
    T5Tokenizer as T5Tokenizer,
    T5TokenizerFast as T5TokenizerFast,
)
from .transformers.paddlenlp import from_paddlenlp as from_paddlenlp
from .utils.device import tune_process as tune_process
from .utils.random import TorchGenerator as TorchGenerator

__version__: str
