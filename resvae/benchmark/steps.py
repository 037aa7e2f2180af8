"""A configuration's training step on random images, whole and in parts, and its sampling."""

from typing import Any

import torch
from torch import Tensor

from resvae.benchmark.ceilings import Recorded, Shape
from resvae.benchmark.timing import Case, Step, flops_of, peak_memory
from resvae.data.module import ImageDataset
from resvae.data.sources import Images
from resvae.devices import free_memory
from resvae.errors import ResvaeError
from resvae.models.base import to_unit
from resvae.probability import weighted_elbo
from resvae.training.configuration import Configuration
from resvae.training.guard import GradientGuard

NUM_IMAGES = 2048  # of the random data set; enough that gathering a batch jumps about in memory


class Training:
    """What ``resvae fit`` does with a batch, without Lightning: the same model, optimiser, guard and average.

    Args:
        configuration: of a VAE.
        device: to train on.
        channels_last: the memory format of images and weights.

    Raises:
        ResvaeError: the configuration trains a classifier.
    """

    def __init__(self, configuration: Configuration, device: torch.device, channels_last: bool = True):
        if configuration.field != "vae":
            raise ResvaeError("bench: the configuration trains a classifier; give one that trains a VAE")
        torch.manual_seed(0)
        parts = configuration.instantiate()
        self.configuration = configuration
        self.device, self.batch_size = device, int(configuration.values.data.batch_size)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.module: Any = parts.model.to(device, memory_format=memory_format)
        self.module.memory_format = memory_format
        self.vae: Any = self.module.vae
        self.bf16 = self.module.in_bf16(device.type)
        self.optimizer = self.module.make_optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the same work, and weights that stay as they are however often it is done
        self.average = [p.detach().clone() for p in self.vae.parameters()] if self.module.ema_decay else []
        x = torch.randint(256, (NUM_IMAGES, *self.module.image_shape), dtype=torch.uint8)
        data: Any = parts.data
        images = Images(x, torch.zeros(NUM_IMAGES, dtype=torch.long))
        there = device if free_memory(device) else None
        self.dataset = ImageDataset(images, data.crop_padding, data.flip, device=there)
        self.x = self.fetch()
        self.flops = flops_of(lambda: self.loss("eager").backward())  # the counter sees only what is not compiled
        self.optimizer.zero_grad()
        self.module.fit_memory(self.batch_size, device.type)  # which computes some of it twice; counted once
        self.module.on_fit_start()  # compiles, where that is asked for

    def fetch(self) -> Tensor:
        """A batch, gathered and augmented, on the device."""
        indices = torch.randint(NUM_IMAGES, (self.batch_size,)).tolist()
        return self.dataset.__getitems__(indices)[0].to(self.device)

    def loss(self, split: str = "train") -> Tensor:
        """Of one batch; compiled for ``train`` where that is asked for."""
        return -weighted_elbo(self.module.compute(split, self.x), 1.0, self.module.free_bits).mean()

    def backward(self) -> None:
        """Make the gradients."""
        self.optimizer.zero_grad()
        self.loss().backward()

    def judge(self) -> None:
        """Measure, judge and clip the gradient's norm; a guard that has seen nothing refuses no update."""
        self.module.guard = GradientGuard()
        self.module.on_before_optimizer_step(self.optimizer)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average of the weights."""
        if self.average:
            torch._foreach_lerp_(self.average, list(self.vae.parameters()), 1 - self.module.ema_decay)

    def step(self) -> None:
        """Everything, once."""
        self.x = self.fetch()
        self.backward()
        self.judge()
        self.optimizer.step()
        self.follow()

    def case(self, name: str) -> Case:
        """The whole step."""
        return Case(name, self.step, self.batch_size, self.flops)

    def parts(self) -> list[Case]:
        """The step's parts one by one; the likelihood's is within that of the gradients."""
        parts: dict[str, Step] = {
            "data": self.fetch,
            "forward and backward": self.backward,
            "of which the likelihood": self.likelihood(),
            "norm of the gradient, clipping": self.judge,
            "optimiser": self.optimizer.step,
            "average of the weights": self.follow,
        }
        self.backward()  # gradients for those that need them
        return [Case(name, step, self.batch_size) for name, step in parts.items()]

    def likelihood(self) -> Step:
        """The likelihood by itself, forward and backward, on the features that the decoder gives it; not compiled."""
        seen: list[Tensor] = []
        hook = self.vae.likelihood.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            self.loss("eager")
        hook.remove()
        features, x = seen[0].requires_grad_(), to_unit(self.x, self.module.image_shape)

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                log_prob = self.vae.likelihood(features, x).log_prob(x)
            log_prob.sum().backward()

        return step

    def convolutions(self) -> dict[Shape, int]:
        """How often the forward pass uses each shape of convolution."""
        with Recorded() as recorded, torch.no_grad():
            self.loss("eager")
        return dict(recorded.shapes)

    def memory(self) -> int:
        """The most bytes that activations and gradients take at once."""
        self.optimizer.zero_grad()
        return peak_memory(self.backward, self.device)

    def sampling(self, num: int) -> Case:
        """Images from the prior, ``num`` at once."""

        def step() -> None:
            self.vae.eval()
            self.vae.sample(num)
            self.vae.train()

        return Case(f"sampling, {num} at once", step, num)
