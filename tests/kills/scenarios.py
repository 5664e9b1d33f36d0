"""Saves over something that was saved before, killed at each of their file events: the program that the tests run.

``python scenarios.py DIRECTORY NAME:STEP:ERROR...`` with ``faults.c`` loaded: saves in a forked process for each
STEP-th event, which is killed at it (ERROR 0), or in which that write fails with the error number ERROR. Prints the
numbers of events, or fails. ``NAME:random:TIMES`` kills at random moments.
"""

import ctypes
import hashlib
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback

import numpy as np
import paddle
from helpers import tiny
from PIL import Image

import ppsd3
from ppsd3.cli.png import save_png
from ppsd3.serialization.tensors import from_numpy
from ppsd3.utils.errors import DiskError
from ppsd3.utils.files import is_temporary, settled

NO_ROOM, OTHER = 7, 8  # exit codes of the process that saves
SHARD = 20_000  # bytes


class Scenario:
    """Something is saved into ``target`` below a directory, and then saved over."""

    target = "saved"
    swapped = True  # whether readers of other libraries find all of the old or all of the new, too
    former = True  # whether there is something to save over
    changes = True  # whether what is compared differs then

    def first(self, target):
        """Saves what is there before."""

    def save(self, target):
        """Saves over it: what is killed."""

    def contents(self, target):
        """What is compared: the files by name."""
        found = {}
        for folder, directories, files in os.walk(target, followlinks=True):
            directories[:] = [name for name in directories if not is_temporary(name)]
            for name in files:
                if not is_temporary(name):
                    path = os.path.join(folder, name)
                    found[os.path.relpath(path, target)] = self.content(path)
        return found

    def content(self, path):
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    def load(self, target):
        """Fails if it cannot be loaded."""


class Model(Scenario):
    """A network of one file, or shards."""

    def __init__(self, before, after):
        self.sizes = before, after
        self.model = tiny.make_components()["vae"]

    def first(self, target):
        self.model.save_pretrained(target, max_shard_size=self.sizes[0])
        with open(os.path.join(target, "README.md"), "w") as file:
            file.write("the user's")
        os.makedirs(os.path.join(target, "pictures", "more"))
        shutil.copy(os.path.join(target, "README.md"), os.path.join(target, "pictures", "more"))

    def save(self, target):
        for parameter in self.model.parameters():
            parameter.set_value(np.ones(parameter.shape, "float32"))
        self.model.register_to_config(scaling_factor=2.0)
        self.model.save_pretrained(target, max_shard_size=self.sizes[1])

    def load(self, target):
        values = {float(p.max()) for p in ppsd3.AutoencoderKL.from_pretrained(target).parameters()}
        assert values == {1.0} or len(values) > 3


class NewModel(Model):
    """Where nothing was."""

    former = False

    def contents(self, target):
        return super().contents(target) or None


class ModelInPlace(Model):
    """Into the current directory, which keeps its place."""

    swapped = False

    def save(self, target):
        os.chdir(target)
        super().save(".")


class Pipeline(Scenario):
    def __init__(self):
        self.before, self.after = tiny.make_pipeline(), tiny.make_pipeline(seed=1)
        self.after.text_encoder_3 = self.after.tokenizer_3 = None

    def first(self, target):
        self.before.save_pretrained(target, max_shard_size=SHARD)
        shutil.copy(os.path.join(target, "model_index.json"), os.path.join(target, "transformer", "NOTES.md"))

    def save(self, target):
        self.after.save_pretrained(target)

    def load(self, target):
        ppsd3.StableDiffusion3Pipeline.from_pretrained(target)


class PipelineInPlace(Pipeline):
    swapped = False

    def save(self, target):
        os.chdir(target)
        super().save(".")


class Component(Pipeline):
    """One network over that of a pipeline."""

    def save(self, target):
        self.after.vae.save_pretrained(os.path.join(target, "vae"), max_shard_size=SHARD)


class Export(Scenario):
    """What Paddle's own code writes."""

    def __init__(self):
        self.pipe = tiny.make_pipeline(num_layers=1)
        self.pipe.text_encoder = self.pipe.text_encoder_2 = self.pipe.text_encoder_3 = None

    def first(self, target):
        ppsd3.export_pipeline(self.pipe, target)

    def save(self, target):
        for parameter in self.pipe.vae.parameters():
            parameter.set_value(np.ones(parameter.shape, "float32"))
        ppsd3.export_pipeline(self.pipe, target)

    def content(self, path):
        return super().content(path) if path.endswith(("pdiparams", "index.json")) else None


class Word(Scenario):
    """A learned word."""

    def __init__(self):
        self.pipe = tiny.make_pipeline()
        for value, name in ((1.0, "before"), (2.0, "after")):
            self.pipe.load_textual_inversion({"clip_l": from_numpy(np.full((1, 16), value, "float32"))}, token=name)

    def first(self, target):
        self.pipe.save_textual_inversion(target, "before")

    def save(self, target):
        self.pipe.save_textual_inversion(target, "after")


class Tokenizer(Scenario):
    def __init__(self):
        parts = tiny.make_components()
        self.before, self.after = parts["tokenizer"], parts["tokenizer_2"]

    def first(self, target):
        self.before.save_pretrained(target)

    def save(self, target):
        self.after.save_pretrained(target)

    def load(self, target):
        ppsd3.CLIPTokenizer.from_pretrained(target)


class Convert(Scenario):
    """A directory over a directory, from which it is made."""

    def first(self, target):
        tiny.make_pipeline().save_pretrained(target)

    def save(self, target):
        ppsd3.convert(target, target, dtype="float16", max_shard_size=SHARD)

    def load(self, target):
        ppsd3.StableDiffusion3Pipeline.from_pretrained(target)


class ConvertFile(Scenario):
    """A directory to a single file, over another file."""

    target = "one.safetensors"

    def first(self, target):
        self.source = os.path.join(os.path.dirname(os.path.dirname(target)), "source")
        tiny.make_pipeline().save_pretrained(self.source)
        ppsd3.convert(self.source, target)

    def save(self, target):
        ppsd3.convert(self.source, target, dtype="float16")

    def contents(self, target):
        return self.content(target)


class Lora(Scenario):
    def first(self, target):
        self.write(target, 1.0)

    def save(self, target):
        self.write(target, 2.0)

    def write(self, target, value):
        name = "transformer_blocks.0.attn.to_q.lora_"
        shapes = {name + "A.weight": [4, 32], name + "B.weight": [32, 4]}
        layers = {key: from_numpy(np.full(shape, value, "float32")) for key, shape in shapes.items()}
        ppsd3.StableDiffusion3Pipeline.save_lora_weights(target, transformer_lora_layers=layers)


class Arrays(Scenario):
    """Files of numpy's, in which the time is."""

    def content(self, path):
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}


class PromptCache(Arrays):
    former = False

    def __init__(self):
        self.pipe = tiny.make_pipeline()

    def save(self, target):
        self.pipe.enable_prompt_cache(ppsd3.PromptCache(target))
        self.pipe.encode_prompt("a red circle", None, None, do_classifier_free_guidance=False)  # one entry

    def contents(self, target):
        return super().contents(target) or None


class Training(Scenario):
    """A run that is resumed ends as one that nothing interrupts, and has kept no more."""

    swapped = changes = False

    def first(self, target):
        self.train(target, until=4)

    def save(self, target):
        self.train(target, until=12)

    def train(self, target, until=16):
        from helpers.regression import train

        settings = {"max_steps": 16, "save_every": 3, "log_every": 2, "batches_per_step": 2, "validate_every": 5}
        return train(target, until, validate=lambda step: {"validation": float(step)}, **settings)

    def contents(self, target):
        from helpers.regression import log_of, weights

        resumed = target + "-resumed"
        shutil.copytree(target, resumed)
        try:
            ended = {name: value.tobytes() for name, value in weights(self.train(resumed)).items()}
            files = sorted(os.path.join(folder, name) for folder, *names in os.walk(resumed) for name in sum(names, []))
            return ended, log_of(pathlib.Path(resumed)), files
        finally:
            shutil.rmtree(resumed)


class Png(Scenario):
    target = "picture.png"

    def first(self, target):
        save_png(Image.new("RGB", (300, 300), "red"), target, {"prompt": "red"})

    def save(self, target):
        noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
        save_png(Image.fromarray(noise), target, {"prompt": "noise"})

    def contents(self, target):
        return self.content(target)


SCENARIOS = {
    "one file": lambda: Model("1GB", "1GB"),
    "shards over one file": lambda: Model("1GB", SHARD),
    "one file over shards": lambda: Model(SHARD, "1GB"),
    "shards over one file, in place": lambda: ModelInPlace("1GB", SHARD),
    "one file over shards, in place": lambda: ModelInPlace(SHARD, "1GB"),
    "a new directory": lambda: NewModel("1GB", SHARD),
    "pipeline": Pipeline,
    "pipeline, in place": PipelineInPlace,
    "component": Component,
    "export": Export,
    "learned word": Word,
    "tokenizer": Tokenizer,
    "convert": Convert,
    "convert to a file": ConvertFile,
    "LoRA": Lora,
    "prompt cache": PromptCache,
    "training": Training,
    "PNG": Png,
}


class Run:
    """One scenario in one directory, again and again."""

    def __init__(self, scenario, directory):
        self.scenario, self.directory = scenario, directory
        self.old, self.place = os.path.join(directory, "old"), os.path.join(directory, "place")
        self.target = os.path.join(self.place, scenario.target)
        self.faults = ctypes.CDLL(None)
        self.faults.faults_count.restype = ctypes.c_long
        os.makedirs(self.old)
        if scenario.former:
            scenario.first(os.path.join(self.old, scenario.target))
        self.restore()
        self.before = self.after_restart()

    def restore(self):
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.old, self.place)

    def saved(self, number=0, error=0):
        """How the process ends that saves and meets the event ``number``."""
        child = os.fork()
        if not child:
            code = OTHER
            try:
                self.faults.faults_arm(ctypes.c_long(number), self.place.encode(), error, int(error > 0))
                self.scenario.save(self.target)
                if not number:
                    with open(os.path.join(self.directory, "count"), "w") as file:
                        file.write(str(self.faults.faults_count()))
                code = 0
            except DiskError as failure:
                code = NO_ROOM if self.place in str(failure) and "free" in str(failure) else OTHER
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def after_restart(self):
        """What the next process finds."""
        if os.path.isdir(self.target):
            return self.scenario.contents(settled(self.target))
        return self.scenario.contents(self.target) if os.path.exists(self.target) else None

    def leftovers(self):
        found = [os.path.join(folder, name) for folder, *names in os.walk(self.place) for name in sum(names, [])]
        return [path for path in found if is_temporary(os.path.basename(path))]

    def all(self, step, error):
        """Meets every ``step``-th event; returns the number of events."""
        assert self.saved(0, error) == 0
        after = self.after_restart()
        assert (after != self.before) == self.scenario.changes and not self.leftovers(), self.leftovers()
        if self.scenario.former:
            self.scenario.load(self.target)
        with open(os.path.join(self.directory, "count")) as file:
            count = int(file.read())
        seen = []
        for number in range(1, count + 1, step):
            self.restore()
            code = self.saved(number, error)
            assert code == (NO_ROOM if error else -signal.SIGKILL), f"event {number} of {count}: ended with {code}"
            if self.scenario.swapped and os.path.exists(self.target):
                found = self.scenario.contents(self.target)
                assert found in (self.before, after), f"event {number} of {count}: a mixture for other libraries"
            found = self.after_restart()
            assert found in ([self.before] if error else [self.before, after]), f"event {number} of {count}: a mixture"
            seen.append(found == after)
            if error:
                assert not self.leftovers(), f"event {number} of {count}: {self.leftovers()} is left over"
            elif number % 5 == 1:
                self.scenario.load(self.target) if found is not None else None
                assert self.saved() == 0 and self.after_restart() == after
                assert not self.leftovers(), f"event {number} of {count}: {self.leftovers()} is never removed"
        assert error or sorted(seen) == seen, "the new was there, and then the old again"
        return count

    def some(self, times, rng):
        """Kills the saving process from outside, each time at a random moment, until ``times`` of them have died."""
        begin = time.perf_counter()
        assert self.saved() == 0
        longest, after, died = 1.2 * (time.perf_counter() - begin), self.after_restart(), 0
        while died < times:
            self.restore()
            child = os.fork()
            if not child:
                try:
                    self.scenario.save(self.target)
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            found = self.after_restart()
            assert found in (self.before, after), f"kill {died}: a mixture"
            self.scenario.load(self.target) if found is not None else None
        assert self.saved() == 0 and self.after_restart() == after and not self.leftovers(), self.leftovers()
        return died


if __name__ == "__main__":
    for number, argument in enumerate(sys.argv[2:]):
        paddle.seed(0)
        name, step, error = argument.split(":")
        run = Run(SCENARIOS[name](), os.path.join(sys.argv[1], str(number)))
        if step == "random":
            print(f"{name}: {run.some(int(error), random.Random(0))} killed")
        else:
            print(f"{name}: {run.all(int(step), int(error))} events")
