"""Turn a checkpoint into a single file, a diffusers directory or a ppdiffusers directory, or into another dtype."""

from ..loaders.conversion import LAYOUTS, convert
from ..utils.errors import InputError

_PARTS = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
# Encoder -> what makes its input, and goes with it.
_READERS = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
    "image_encoder": "feature_extractor",
}


def add_arguments(parser):
    parser.add_argument("source", metavar="SOURCE", help="a .safetensors file, a directory, a hub id or a link")
    parser.add_argument("target", metavar="TARGET", help="a .safetensors file (original layout) or a directory")
    parser.add_argument(
        "--to", dest="layout", choices=LAYOUTS, help="default: original for a file, diffusers for a directory"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: as it is, 8-bit floats as bfloat16"
    )
    parser.add_argument("--variant", help="in the names of what is written, e.g. fp16")
    parser.add_argument("--source-variant", help="which weight files to read, e.g. fp16")
    parser.add_argument(
        "--max-shard-size", default="10GB", metavar="SIZE", help="of a directory's files (default: %(default)s)"
    )
    parser.add_argument("--config", help="directory or hub id with what a single file lacks: tokenizers, scheduler")
    for name in _PARTS:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, dest=name, metavar="PATH", help=f"the {name}, if the source file lacks it")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help=f"encoders to leave out: {', '.join(_READERS)}"
    )


def run(arguments):
    components = {name: getattr(arguments, name) for name in _PARTS if getattr(arguments, name) is not None}
    for name in arguments.without:
        if name not in _READERS or name in components:
            raise InputError(f"--without {name}: name {', '.join(_READERS)}; one that is not passed.")
        components.update({name: None, _READERS[name]: None})
    target = convert(
        arguments.source,
        arguments.target,
        layout=arguments.layout,
        dtype=arguments.dtype,
        variant=arguments.variant,
        max_shard_size=arguments.max_shard_size,
        source_variant=arguments.source_variant,
        config=arguments.config,
        **components,
    )
    print(target)
