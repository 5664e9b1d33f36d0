"""The concerns of ``helpers.concerns`` over every pipeline."""

import pytest
from helpers import tiny
from helpers.concerns import EveryConcern
from helpers.tiny import mask, picture

import ppsd3
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES


def controlnet(**config):
    net = tiny.randomize(ppsd3.SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2, **config}), 30, 0.5)
    net.eval()
    return net


@pytest.fixture(scope="class")
def pipe(request):
    cls = request.cls
    made = cls.pipeline(**{**tiny.make_components(**cls.transformer), **cls.components()})
    made.set_progress_bar_config(disable=True)
    return made


class OfTask(EveryConcern):
    """A class for each pipeline says how it is made and what its calls need."""

    pipeline, transformer = None, {}

    @staticmethod
    def components():
        return {}

    def inputs(self):
        return {}


class TestTextToImage(OfTask):
    pipeline = ppsd3.StableDiffusion3Pipeline


class TestTextToImageOfSD35(OfTask):
    pipeline, transformer = ppsd3.StableDiffusion3Pipeline, tiny.SD35


class TestPerturbedAttention(OfTask):
    pipeline = ppsd3.StableDiffusion3PAGPipeline


class TestPerturbedAttentionImageToImage(OfTask):
    pipeline = ppsd3.StableDiffusion3PAGImg2ImgPipeline

    def inputs(self):
        return {"image": picture(), "strength": 1.0}

    def latents_inputs(self, latents):
        return {"latents": latents, "image": None}


class TestImageToImage(OfTask):
    pipeline = ppsd3.StableDiffusion3Img2ImgPipeline

    def inputs(self):
        return {"image": picture(), "strength": 1.0}

    def latents_inputs(self, latents):
        return {"latents": latents, "image": None}


class TestInpainting(OfTask):
    pipeline = ppsd3.StableDiffusion3InpaintPipeline

    def inputs(self):
        return {"image": picture(), "mask_image": mask(), "strength": 1.0}

    def batch_inputs(self):
        return {"image": [picture()] * 2}


class TestInpaintingThatReadsTheMask(TestInpainting):
    transformer = {"in_channels": 9, "out_channels": 4}


class TestControl(OfTask):
    pipeline = ppsd3.StableDiffusion3ControlNetPipeline

    @staticmethod
    def components():
        return {"controlnet": controlnet()}

    def inputs(self):
        return {"control_image": picture()}


class TestSeveralControls(TestControl):
    @staticmethod
    def components():
        return {"controlnet": [controlnet(), controlnet(joint_attention_dim=None, use_pos_embed=False)]}

    def inputs(self):
        return {"control_image": [picture(), picture(1)]}


class TestControlledImageToImage(TestControl):
    pipeline = ppsd3.StableDiffusion3ControlNetImg2ImgPipeline

    def inputs(self):
        return {"image": picture(2), "control_image": picture(), "strength": 1.0}

    def latents_inputs(self, latents):
        return {"latents": latents, "image": None}


class TestControlledInpainting(TestControl):
    pipeline = ppsd3.StableDiffusion3ControlNetInpaintingPipeline

    @staticmethod
    def components():
        return {"controlnet": controlnet(extra_conditioning_channels=1)}

    def inputs(self):
        return {"control_image": picture(), "control_mask": mask()}


def test_no_pipeline_is_left_out():
    tested = {class_.pipeline.__name__ for name, class_ in globals().items() if name.startswith("Test")}
    assert tested == set(PIPELINE_CLASSES)
