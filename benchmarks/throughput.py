"""Images per second of training steps, against the bare encoder's forward and backward pass.

    python -m benchmarks.throughput miniature nyuv2
    python -m benchmarks.throughput paper taskonomy --data DIR --workers 8

The model, image size and batch are those of `notebooks/params/PROFILE/DATASET.yaml`. A training step is one
of `simo.training.fit` with all that belongs to it: loading, copying, forward, losses, backward, clipping and
AdamW. The bare encoder repeats forward and backward on images that are on the device already. Both are
measured in turns in one run, because absolute times depend on what else the machine does; the table gives
medians. Weights are random. So are images, ready in memory, unless `--data` names a prepared folder.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from data_scripts.commands import exit_status
from report.parameters import ROOT, read_parameters
from simo.datasets import PreparedDataset
from simo.models import MODEL, create_model
from simo.tasks import tasks_of
from simo.training import Optimisation, autocast, device_name, fit, memory_need, pick_device

WARM_UP = 2  # steps before the clock starts: allocation, worker processes, compilation


class RandomSamples(Dataset):
    """A few samples of random images and targets, over and over, without reading or decoding.

    Parameters
    ----------
    tasks : sequence of Task
    size : (int, int)
        Height and width.
    """

    def __init__(self, tasks, size):
        self.samples = [{"image": torch.rand(3, *size)} for _ in range(8)]
        for sample in self.samples:
            for task in tasks:
                classes = torch.randint(task.channels, size)
                sample[task.name] = classes if task.is_segmentation else torch.rand(task.channels, *size)

    def __len__(self):
        """Return a number of images of which many batches can be drawn."""
        return 1000

    def __getitem__(self, item):
        """Read `(index, key)`; the key is not used."""
        return self.samples[item[0] % len(self.samples)]


class Timed:
    """A task that notes the time when each of two steps gets to its loss.

    The loss is the place for a clock because it is never compiled. A GPU is waited for at these times only.

    Parameters
    ----------
    task : Task
    steps : sequence of int
        The two steps' numbers.
    optimisation : Optimisation
    """

    def __init__(self, task, steps, optimisation):
        self.task, self.name, self.device = task, task.name, optimisation.device
        self.calls, self.at = 0, [step * optimisation.accumulate for step in steps]
        self.times = []

    def compute_loss(self, prediction, target):
        """Loss of the task."""
        if self.calls in self.at:
            self.times.append(clock(self.device))
        self.calls += 1
        return self.task.compute_loss(prediction, target)


def clock(device):
    """Seconds, when a GPU has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def time_encoder(encoder, images, optimisation):
    """Seconds of the encoder's forward and backward pass over a micro-batch of images, times `accumulate`."""
    forward = torch.compile(encoder) if optimisation.compile else encoder
    for step in range(WARM_UP + optimisation.steps):
        if step == WARM_UP:
            start = clock(optimisation.device)
        with autocast(optimisation.device, optimisation.precision):
            features = forward(images)
        (features.patches.float().mean() + features.classes.float().mean()).backward()
        encoder.zero_grad(set_to_none=True)
    return (clock(optimisation.device) - start) / optimisation.steps * optimisation.accumulate


def time_training(model, dataset, tasks, optimisation):
    """Seconds of a training step of encoder and heads."""
    timed = Timed(tasks[0], (WARM_UP, WARM_UP + optimisation.steps), optimisation)
    budget = replace(optimisation, steps=WARM_UP + optimisation.steps + 1)
    fit(*plan_of(model, dataset), [timed, *tasks[1:]], budget)
    start, end = timed.times
    return (end - start) / optimisation.steps


def plan_of(model, dataset):
    """What `fit` and `memory_need` take first. The learning rate is 0: random data should teach nothing."""
    return model, lambda batch: model(batch["image"]), [(list(model.parameters()), 0.0)], dataset


def measure(parameters, optimisation, data, rounds):
    """Time the encoder and every training in turns.

    Parameters
    ----------
    parameters : dict
        Of the profile: model, `dataset`, `crop`, `scales`.
    optimisation : Optimisation
        `steps` are timed in each round.
    data : str, optional
        A prepared folder.
    rounds : int

    Returns
    -------
    dict of str to (float, str)
        By what was measured, median seconds a step and memory.
    """
    everything = tasks_of(parameters["dataset"])
    trainings = {f"expert {task.name}": (task,) for task in everything} | {"joint": everything}
    settings = {name: parameters[name] for name in MODEL}
    cuda = optimisation.device.startswith("cuda")
    encoder = create_model((), 0, **settings).to(optimisation.device).train().encoder
    images = torch.rand(optimisation.micro_batch, 3, *parameters["crop"], device=optimisation.device)
    times, memory = {"encoder": []}, {"encoder": ""}
    for _ in range(rounds):
        times["encoder"].append(time_encoder(encoder, images, optimisation))
        for name, tasks in trainings.items():
            model = create_model(tasks, 0, **settings).to(optimisation.device).train()
            dataset = RandomSamples(tasks, parameters["crop"])
            if data:
                names = [task.name for task in tasks]
                augmentation = (parameters["scales"], parameters["crop"])
                dataset = PreparedDataset(data, parameters["dataset"], "train", names, *augmentation)
            memory[name] = str(memory_need(*plan_of(model, dataset), tasks, optimisation)).split(" (")[0]
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            times.setdefault(name, []).append(time_training(model, dataset, tasks, optimisation))
            if cuda:
                memory[name] += f", at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB held"
    return {name: (statistics.median(values), memory[name]) for name, values in times.items()}


def parse(arguments):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0]
    )
    parser.add_argument("profile", help="miniature or paper")
    parser.add_argument("dataset", help="nyuv2, cityscapes, taskonomy, or another parameter file's name")
    parser.add_argument("--data", help="a prepared folder to load from (default: random images in memory)")
    parser.add_argument("--batch-size", type=int, help="images a step (default: the profile's)")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    options = parser.parse_args(arguments)
    for name in ("steps", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def run(options):
    """Measure, and print a table."""
    if options.threads:
        torch.set_num_threads(options.threads)
    parameters = read_parameters(ROOT / "notebooks" / "params" / options.profile / f"{options.dataset}.yaml")
    device, precision = pick_device(options.device, options.precision)
    optimisation = Optimisation(
        steps=options.steps,
        batch_size=options.batch_size or parameters["batch_size"],
        seed=0,
        device=device,
        precision=precision,
        accumulate=options.accumulate,
        compile=options.compile,
        workers=options.workers,
    )
    rows = measure(parameters, optimisation, options.data, options.rounds)
    compiled = ", compiled" if options.compile else ""
    print(f"{options.profile} {options.dataset}: {parameters['head']} heads, {parameters['crop']} pixels,")
    print(f"{optimisation.batch_size} images a step, {precision}{compiled}, {device_name(device)}\n")
    print(f"{'':22} images/s   ratio   memory")
    for name, (seconds, memory) in rows.items():
        speed, ratio = optimisation.batch_size / seconds, rows["encoder"][0] / seconds
        print(f"{name:22} {speed:8.2f}   {ratio:5.2f}   {memory}")


def main(arguments=None):
    """Run the command line; return its exit status."""
    return exit_status(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
