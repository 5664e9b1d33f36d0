"""Writes docs/training-options.md and its Chinese version: ``python docs/make_training_options.py``.

The tables are those of ppsd3/training/option_names.py.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from ppsd3.training import option_names as names  # noqa: E402

PAGES = {"en": ROOT / "docs/training-options.md", "zh": ROOT / "docs/zh/training-options.md"}

FLOW = {
    "weighting_scheme": "flow.density, flow.weight",
    "logit_mean": "flow.logit_mean",
    "logit_std": "flow.logit_std",
    "mode_scale": "flow.mode_scale",
    "precondition_outputs": "flow.weight",
}
OTHERS = {
    "lora_layers": "lora.targets",
    "lora_blocks": "lora.targets",
    "lr_scheduler": "training.lr_schedule, training.final_lr_ratio",
    "optimizer": "training.optimizer",
    "optimizer_type": "training.optimizer",
    "validation_prompt": "validation.prompts",
    "placeholder_token": "method, textual_inversion.token",
    "token_string": "method, textual_inversion.token",
    "use_dora": "lora.kind",
    "network_module": "method",
    "adam_beta1": "training.betas",
    "adam_beta2": "training.betas",
    "resume_from_checkpoint": "--resume",
}

TEXTS = {
    "en": {
        "title": "# Options of other trainers",
        "other": "[简体中文](zh/training-options.md) · [Training](guide/training.md)",
        "made": "<!-- Written by docs/make_training_options.py: change option_names.py, not this page. -->",
        "introduction": (
            "`ppsd3 train` takes the options of diffusers' and ppdiffusers' `train_*_sd3.py` (which are the same), of "
            "kohya's `sd3_train_network.py` and of SimpleTuner under their own names, with the meaning that they have "
            "there. They go together with a YAML file and `--set`."
        ),
        "settings": ("## Settings by another name", ("option", "of", "setting")),
        "converted": ("## Other values, or several settings", ("option", "of", "settings")),
        "flow": (
            "## Times and weights",
            (
                "These five go together; one of them sets all, the others by diffusers' defaults. They mean what they "
                "mean in diffusers' scripts: times are entries of the scheduler's table of 1000 shifted sigmas "
                "(`flow.indexed`), which begins with noise, so that a positive `--logit_mean` is **less** noise; in "
                "kohya's scripts, and in `flow.logit_mean` without `flow.indexed`, it is more. The loss is by default "
                "the squared error of the data."
            ),
            ("option", "default", "settings"),
        ),
        "done": ("## Done anyway", ("option", "of", "why")),
        "refused": ("## Refused, with what to do", ("option", "of", "what to do")),
    },
    "zh": {
        "title": "# 其他训练程序的选项",
        "other": "[English](../training-options.md) · [训练](guide/training.md)",
        "made": "<!-- 由 docs/make_training_options.py 写出：请改 option_names.py，不要改本页。 -->",
        "introduction": (
            "`ppsd3 train` 接受 diffusers 和 ppdiffusers 的 `train_*_sd3.py`（两者相同）、kohya 的 "
            "`sd3_train_network.py` 以及 SimpleTuner 的选项，名字照旧，含义也与那里相同，"
            "可以与 YAML 文件和 `--set` 一起使用。"
        ),
        "settings": ("## 换了名字的设置", ("选项", "来自", "设置")),
        "converted": ("## 取值不同，或对应几个设置", ("选项", "来自", "设置")),
        "flow": (
            "## 时刻与权重",
            (
                "这五个选项是一组：给出其中一个就会设置全部，其余取 diffusers 的默认值。含义与 diffusers 的脚本相同："
                "时刻是调度器 1000 个偏移后的 sigma 的表（`flow.indexed`）里的项，表从噪声开始，"
                "所以正的 `--logit_mean` 表示噪声**更少**；在 kohya 的脚本里，以及没有 `flow.indexed` 的 "
                "`flow.logit_mean`，则表示更多。损失默认是数据的平方误差。"
            ),
            ("选项", "默认值", "设置"),
        ),
        "done": ("## 总是这样做的", ("选项", "来自", "原因")),
        "refused": ("## 会被拒绝的，以及该怎么做", ("选项", "来自", "办法")),
    },
}


def trainer(option):
    """Whose scripts have the option."""
    kinds = {"kohya": names.KOHYA, "SimpleTuner": names.SIMPLETUNER}
    return next((name for name, options in kinds.items() if option in options), "diffusers")


def page(language):
    """The text of the page in "en" or "zh"."""
    texts = TEXTS[language]
    parts = [texts[name] for name in ("title", "other", "made", "introduction")]
    others = {name: ", ".join(f"`{part}`" for part in OTHERS[name].split(", ")) for name in OTHERS}
    settings = {name: f"`{setting}`" for name, setting in names.SETTINGS.items()}
    rows = {"settings": settings, "converted": others}
    for kind, found in rows.items():
        parts += _section(texts[kind], found)
    heading, text, header = texts["flow"]
    flow = [
        [f"`--{name}`", f"`{names.FLOW[name]}`", ", ".join(f"`{part}`" for part in setting.split(", "))]
        for name, setting in FLOW.items()
    ]
    parts += [heading, text, _table(header, flow)]
    parts += _section(texts["done"], names.DONE_ANYWAY)
    parts += _section(texts["refused"], names.REFUSED)
    return "\n\n".join(parts) + "\n"


def _section(texts, rows):
    heading, header = texts
    return [heading, _table(header, [[f"`--{name}`", trainer(name), text] for name, text in rows.items()])]


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8")
