"""Say what to begin with."""

_FIRST_STEPS = """\
Stable Diffusion 3 and 3.5 on PaddlePaddle. To begin with, nothing to download:

  ppsd3 generate "a red circle to the left of a blue square"   draws with the bundled model
  ppsd3 webui --open                                           the same in the browser; needs "ppsd3[webui]"
  ppsd3 info                                                   what this machine computes with
  ppsd3 doctor                                                 what is amiss, and what to do about it

With weights in diffusers format, on disk or by their id on the hub:

  ppsd3 info path/to/sd3                                       whether they fit, and how
  ppsd3 generate "a cat" --model path/to/sd3

`ppsd3 --help` lists all commands, `ppsd3 COMMAND --help` explains one."""


def add_arguments(parser):
    """There are none."""


def run(arguments):
    print(_FIRST_STEPS)
