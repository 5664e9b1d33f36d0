"""Installation of ppsd3: ``pip install ".[cpu]"`` or ``pip install ".[gpu]"``."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

MODELSCOPE = "modelscope>=1.38; python_version >= '3.10'"  # earlier ones know neither endpoint nor token


def read(name):
    return (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""


def requirements(name):
    return [line for line in read(name).splitlines() if line.strip() and not line.startswith("#")]


setup(
    name="ppsd3",
    version=re.search(r'__version__ = "(.+?)"', read("ppsd3/__init__.py")).group(1),
    description="Stable Diffusion 3 and 3.5 on PaddlePaddle: diffusers weights in, the same picture out",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ppsd3", "ppsd3.*"]),
    # The bundled model `shapes`, the sources of the kernels, which are compiled where they are used, CLIP's merges, and
    # the public names for type checkers.
    package_data={
        "ppsd3": [
            "shapes/checkpoint/*",
            "shapes/checkpoint/*/*",
            "shapes/silhouette/*",
            "ops/native/*.cpp",
            "ops/native/*.h",
            "transformers/clip/*.gz",
            "__init__.pyi",
            "py.typed",
            "**/*.json",
            "**/*.html",
            "cli/doctor/*.png",
        ]
    },
    python_requires=">=3.9,<3.14",
    install_requires=requirements("requirements.txt"),
    extras_require={
        # Never a hard requirement: installing the CPU wheel over a GPU one breaks it.
        "cpu": ["paddlepaddle>=2.6.2,<3.4"],
        # Of PyPI, where 2.6.2 is the newest; docs/gpu.md says where the others are. It imports setuptools.
        "gpu": ["paddlepaddle-gpu>=2.6.2,<3.4", "setuptools; python_version >= '3.12'"],
        "test": [
            "pytest>=7",
            "pytest-xdist>=3.5",
            "scipy>=1.9",
            "sentencepiece>=0.1.99",
            "matplotlib>=3.6",
            "pyyaml>=6",
            MODELSCOPE,
        ],
        # `ppsd3 train`: its configuration, data sets of Hugging Face and WebDataset, VisualDL's logs.
        "train": ["pyyaml>=6", "datasets>=3", "webdataset>=0.2.100", "visualdl>=2.5", "matplotlib>=3.6"],
        # `ppsd3 serve`.
        "server": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.18", "prometheus-client>=0.20"],
        # Models by "modelscope:org/name".
        "modelscope": [MODELSCOPE],
        # `ppsd3 webui`; Gradio 6 has no release for Python 3.9.
        "webui": ["gradio>=6.20,<7; python_version >= '3.10'"],
        # What drives the page in its tests. Chromium comes from the system, axe's rules come with the package.
        "browser": ["playwright>=1.50", "axe-playwright-python>=0.1.4"],
        # What the parity tests compare with.
        "parity": [
            "torch>=2.4",
            "diffusers==0.42.1",
            "transformers>=5,<6",
            "accelerate>=1",
            "peft>=0.17,<1",
            "sentencepiece>=0.1.99",
        ],
        # Text encoders and tokenizers of PaddleNLP as components; install it with `-c constraints-paddlenlp.txt`, which
        # says how. The release for Paddle 3 is a beta.
        "paddlenlp": ["paddlenlp>=2.8.1rc0,<3.1"],
        # Checks that `.ci/run lint` runs; basedpyright carries its own node.
        "dev": [
            "pytest>=7",
            "ruff>=0.17.6,<0.18",
            "basedpyright>=1.40.2,<1.41",
            "clang-format>=23.1,<24",
            "pre-commit>=4,<5",
        ],
        # What `ppsd3 bench` measures beside [parity], and what it plots with; each may be missing.
        "bench": ["openvino>=2025.0", "nncf>=2.15", "peft>=0.13", "matplotlib>=3.6"],
    },
    entry_points={"console_scripts": ["ppsd3=ppsd3.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
