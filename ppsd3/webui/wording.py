"""The page's words in English and Chinese. English texts are their own keys; what has no Chinese stays English."""

from __future__ import annotations

from .fields import Field

LANGUAGES = {"en": "English", "zh": "中文"}

# Parts of a page.
CHINESE = {
    "Stable Diffusion 3 on PaddlePaddle": "PaddlePaddle 上的 Stable Diffusion 3",
    "Text to image": "文生图",
    "Image to image": "图生图",
    "Inpainting": "局部重绘",
    "ControlNet": "ControlNet",
    "Compare": "对比",
    "X/Y grid": "X/Y 网格",
    "Gallery": "图库",
    "Draw": "生成",
    "Cancel": "取消",
    "Model": "模型",
    "Checkpoint": "检查点",
    "The bundled model, what lies in the directory of models, and what the hub's cache has.": (
        "自带的模型、模型目录中的模型，以及 hub 缓存中的模型。"
    ),
    "Sampler": "采样器",
    "the model's own": "模型自带",
    "auto": "自动",
    "Step cache": "步缓存",
    "Evaluates the transformer at fewer steps.": "在更少的步上计算 transformer。",
    "none": "无",
    "int8 weights": "int8 权重",
    "Less memory, and on many CPUs less time.": "占用内存更少，在许多 CPU 上更快。",
    "On demand": "按需加载",
    "Reads each network when it is used: least memory.": "用到哪个网络才读取哪个：内存占用最少。",
    "Weighted prompts": "加权提示词",
    "Reads (word:1.3), [word] and BREAK.": "识别 (word:1.3)、[word] 和 BREAK。",
    "LoRA": "LoRA",
    "Scale": "权重",
    "There are no LoRAs in the directory of models.": "模型目录中没有 LoRA。",
    "Guidance": "引导",
    "The plain scale": "只用引导强度",
    "What weighs the prompts, at the guidance scale.": "如何在引导强度下权衡提示词。",
    "Seed": "种子",
    "Empty: a random one. The same seed gives the same picture.": "留空则随机。相同的种子得到相同的图像。",
    "Use this seed again": "再次使用此种子",
    "More settings": "更多设置",
    "Settings from a picture": "从图像读取设置",
    "A PNG that ppsd3 drew": "ppsd3 生成的 PNG",
    "Settings were read. Draw to see the picture.": "已读取设置。点击“生成”查看图像。",
    "A picture sets prompts and numbers alone. Not used: ": "图像只能设置提示词和数值。未采用：",
    "Pictures": "图像",
    "This is no picture, a damaged one, or one of more than 4096 x 4096 pixels.": (
        "这不是图像，或已损坏，或超过 4096 x 4096 像素。"
    ),
    "Picture": "图像",
    "Paint over what should change, or give a mask below.": "涂抹要改变的部分，或在下方提供蒙版。",
    "ControlNet model": "ControlNet 模型",
    "Preprocessor": "预处理",
    "Makes the control picture of the picture above.": "用上面的图像制作控制图。",
    "as it is": "保持原样",
    "edges": "边缘",
    "silhouette": "轮廓剪影",
    "inverted": "反相",
    "soft": "模糊",
    "Left": "左侧",
    "Right": "右侧",
    "as in Text to image": "与文生图相同",
    "Draws with the prompt, the seed and the settings of Text to image; what is empty stays as it is there.": (
        "使用文生图的提示词、种子和设置；留空的项保持不变。"
    ),
    "Draws a picture for each pair of values, with the settings and one seed of Text to image.": (
        "为每一对取值生成一张图像，使用文生图的设置和同一个种子。"
    ),
    "X parameter": "X 参数",
    "Y parameter": "Y 参数",
    "X values": "X 取值",
    "Y values": "Y 取值",
    "Separated by semicolons, e.g. 4; 8; 16": "用分号分隔，例如 4; 8; 16",
    "Send to image to image": "发送到图生图",
    "Send to inpainting": "发送到局部重绘",
    "Send to ControlNet": "发送到 ControlNet",
    "Take the settings": "采用其设置",
    "Refresh": "刷新",
    "Settings of the picture": "图像的设置",
    "Nothing has been drawn yet.": "还没有生成图像。",
    "waiting, {n} before it": "排队中，前面还有 {n} 个",
    "step {step} of {steps}, about {seconds} s left": "第 {step} / {steps} 步，大约还需 {seconds} 秒",
    "loading the model": "正在加载模型",
    "done, seed {seeds}": "完成，种子 {seeds}",
    "cancelled": "已取消",
    "picture as it is by now": "当前的图像",
    "Language": "语言",
    "Light or dark": "浅色或深色",
    "More prompts": "更多提示词",
    "More negative prompts": "更多负面提示词",
    "More of steps": "更多步数设置",
    "Picture prompt": "图像提示",
    "Options": "选项",
    "Skip-layer guidance": "跳层引导",
    "Shift": "时移",
    "Own timesteps": "自定义时间步",
    "Mask": "蒙版",
    "Mask crop": "蒙版裁剪",
    "Strength of the ControlNet": "ControlNet 强度",
    "Interval of the ControlNet": "ControlNet 区间",
    "Output directory": "输出目录",
}

# Group of arguments -> what the form calls it; another group is called by its own name.
GROUPS = {
    "Prompts": "More prompts",
    "NegativePrompts": "More negative prompts",
    "Steps": "More of steps",
    "PicturePrompt": "Picture prompt",
    "SkipLayers": "Skip-layer guidance",
    "OwnTimesteps": "Own timesteps",
    "MaskCrop": "Mask crop",
    "ControlWeight": "Strength of the ControlNet",
    "ControlInterval": "Interval of the ControlNet",
}

# Field -> label and meaning in Chinese.
FIELDS = {
    "prompt": ("提示词", "要画什么。"),
    "prompt_2": ("提示词 2", "给 CLIP-G 的提示词。默认与提示词相同。"),
    "prompt_3": ("提示词 3", "给 T5 的提示词。默认与提示词相同。"),
    "negative_prompt": ("负面提示词", "要远离什么。没有引导时不起作用。"),
    "negative_prompt_2": ("负面提示词 2", "给 CLIP-G 的负面提示词。"),
    "negative_prompt_3": ("负面提示词 3", "给 T5 的负面提示词。"),
    "height": ("高度", "像素，16 的倍数。"),
    "width": ("宽度", "像素，16 的倍数。"),
    "image": ("图像", "起始图像，会缩放到设定的宽和高。"),
    "strength": ("强度", "0 到 1，改变多少。"),
    "mask_image": ("蒙版", "与图像同样大小：白色重绘，黑色保留。"),
    "padding_mask_crop": ("蒙版裁剪边距", "裁出蒙版标出的部分及其周围这么多像素，放大绘制后贴回。"),
    "num_inference_steps": ("步数", "越多越精确。"),
    "sigmas": ("噪声水平", "各步的噪声水平；其个数代替步数。"),
    "guidance_scale": ("引导强度", "遵循提示词的程度。"),
    "num_images_per_prompt": ("图像数量", "同时生成。"),
    "ip_adapter_image": ("图像提示", "给 IP-adapter 的图像。"),
    "clip_skip": ("CLIP 跳层", "再略去 CLIP 最后的几层。"),
    "max_sequence_length": ("T5 长度", "T5 得到的 token 数，最多 512。"),
    "skip_guidance_layers": ("跳过的层", "跳层引导略去的层，例如 SD3.5-medium 用 7 8 9。"),
    "skip_layer_guidance_scale": ("跳层引导强度", "跳层引导的权重。"),
    "skip_layer_guidance_start": ("跳层引导开始", "在步数的哪一比例处开始，0 到 1。"),
    "skip_layer_guidance_stop": ("跳层引导结束", "在步数的哪一比例处结束，0 到 1。"),
    "mu": ("时移 mu", "用于动态时移的调度器。默认由图像大小决定。"),
    "timesteps": ("时间步", "以 1000 为单位的噪声水平，从高到低；其个数代替步数。"),
    "control_image": ("控制图", "引导绘制的图像，例如边缘。"),
    "control_mask": ("控制蒙版", "与控制图同样大小：白色重绘，黑色保留。"),
    "controlnet_conditioning_scale": ("ControlNet 强度", "ControlNet 残差的权重。"),
    "control_guidance_start": ("ControlNet 开始", "在步数的哪一比例处开始，0 到 1。"),
    "control_guidance_end": ("ControlNet 结束", "在步数的哪一比例处结束，0 到 1。"),
    "eta": ("eta", "沿正向速度的部分的权重：1 为全部，0 为没有。"),
    "norm_threshold": ("长度上限", "差的最大长度；0 表示不限。"),
    "momentum": ("动量", "之前各步的权重，通常为负，例如 -0.5。"),
    "zero_init_steps": ("静止步数", "开头静止的步数。"),
    "start": ("开始", "在步数的哪一比例处开始，0 到 1。"),
    "stop": ("结束", "在步数的哪一比例处结束，0 到 1。"),
    "factor": ("系数", "1 完全恢复，0 保持不变。"),
    "layers": ("层", "略去或扰动的层的编号。"),
    "skip_scale": ("权重", "跳层引导的权重。"),
    "pag_scale": ("PAG 强度", "扰动注意力引导的权重。"),
    "pag_adaptive_scale": ("PAG 衰减", "每过一个时间步单位减少的权重。"),
}

# Field -> label in English, where it is not the name with spaces.
LABELS = {
    "num_inference_steps": "Steps",
    "num_images_per_prompt": "Number of pictures",
    "mu": "Shift mu",
    "eta": "Eta",
    "mask_image": "Mask",
    "ip_adapter_image": "Picture prompt",
    "control_image": "Control picture",
    "image": "Picture",
    "controlnet_conditioning_scale": "ControlNet scale",
}

# Field -> meaning in English, where a form has room for less than the declaration says.
MEANINGS = {
    "prompt": "What to draw.",
    "negative_prompt": "What to move away from; without guidance it has no effect.",
    "num_inference_steps": "More are more exact.",
    "guidance_scale": "How strictly to follow.",
    "width": "Pixels, 16 times n.",
    "height": "Pixels, 16 times n.",
    "num_images_per_prompt": "Drawn at once.",
    "strength": "0 to 1, how far to go.",
}


class Words:
    """The words of one language.

    Args:
        language: a key of ``LANGUAGES``.
    """

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, english: str, **values: object) -> str:
        """``english`` in this language, with ``values`` in its braces."""
        text = CHINESE.get(english, english) if self.language == "zh" else english
        return text.format(**values) if values else text

    def label(self, field: Field) -> str:
        """What a form calls the field."""
        if self.language == "zh" and field.name in FIELDS:
            return FIELDS[field.name][0]
        return LABELS.get(field.name, field.name.replace("_", " ").capitalize())

    def meaning(self, field: Field) -> str:
        """The line below the label."""
        if self.language == "zh" and field.name in FIELDS:
            return FIELDS[field.name][1]
        text = MEANINGS.get(field.name) or field.text.replace("`", "").replace("_", " ")
        return text[:1].upper() + text[1:]

    def group(self, name: str) -> str:
        """What a form calls a group of arguments."""
        return self(GROUPS.get(name, name))
