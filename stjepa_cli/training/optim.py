"""Going downhill: which optimizer moves which parameter, how fast at which step, and the moving average that is released."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stjepa_cli.core.config import SCHEDULE, OptimizerConfig


def cosine_path(step: int, last_step: int, first: float, last: float) -> float:
    """Return a value that goes from `first` to `last` along half a cosine over the steps 0 to `last_step`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / max(1, last_step))) / 2


def learning_rate(step: int, total_steps: int, config: OptimizerConfig, batch_size: int, schedule: int = SCHEDULE) -> float:
    """Return the rate of a step: a linear rise to the peak over `warmup`, then half a cosine down to `final_lr` of the peak.

    Args:
        step: Step, from 0 to `total_steps` - 1, which has the final rate.
        total_steps: Steps of the whole schedule. A schedule of one step has the peak rate.
        config: Rates of the optimizer.
        batch_size: Clips of a step.
        schedule: `RunConfig.schedule`; 1 has its first step down from the peak, and the final rate, one step later.
    """
    peak = config.peak_lr(batch_size)
    late = 1 if schedule == 1 else 0
    warmup_steps = max(1, min(round(config.warmup * total_steps), total_steps - 1 + late))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    top = warmup_steps - 1 + late
    return cosine_path(step - top, total_steps - 1 + late - top, peak, peak * config.final_lr)


def weight_decay(step: int, total_steps: int, config: OptimizerConfig, schedule: int = SCHEDULE) -> float:
    """Return the weight decay of a step, from 0 to `total_steps` - 1, which has the final one; with schedule 1, one step later."""
    last = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    return cosine_path(step, total_steps if schedule == 1 else total_steps - 1, config.weight_decay, last)


def the_same(name: str) -> float:
    """Return 1, the whole rate, whatever the parameter."""
    return 1.0


class ScheduledOptimizer:
    """The optimizers of a module's parameters.

    AdamW (arXiv 1711.05101) for all of them, or Muon (arXiv 2502.16982) for the matrices inside blocks and AdamW for the
    rest. Norms, biases and mask tokens, that is what has one dimension, are not decayed.

    A step whose gradient is not finite is not taken, on the device and without waiting for it: what was learned so far stays
    whole, and the loss that is read later tells.

    Args:
        module: Module that is trained.
        config: Settings of the optimizers.
        batch_size: Clips of a step, by which the rate is scaled.
        rate_share: Returns the share of the rate that a parameter of this name learns with.

    Attributes:
        schedule: `RunConfig.schedule`; a run that is resumed sets the one that it began with.
    """

    schedule = SCHEDULE

    def __init__(self, module: nn.Module, config: OptimizerConfig, batch_size: int, rate_share: Callable[[str], float] = the_same) -> None:
        self.module, self.config, self.batch_size = module, config, batch_size
        named = list(module.named_parameters())
        in_blocks = [p for name, p in named if p.ndim == 2 and (".attention." in name or "_attention." in name or ".mlp." in name)]
        by_muon = set(in_blocks) if config.name == "muon" else set()
        rest = _groups([(name, p) for name, p in named if p not in by_muon], rate_share)
        self._adamw = torch.optim.AdamW(rest, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [self._adamw]
        if by_muon:
            matrices = _groups([(name, p) for name, p in named if p in by_muon], rate_share)
            self.optimizers.append(torch.optim.Muon(matrices, lr=config.lr, adjust_lr_fn="match_rms_adamw"))

    def step(self, step: int, total_steps: int) -> dict[str, Tensor | float]:
        """Take a step (from 0) along the gradients that are there, drop them, and return its rate and the gradients' norm."""
        rate = learning_rate(step, total_steps, self.config, self.batch_size, self.schedule)
        decay = weight_decay(step, total_steps, self.config, self.schedule)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
                group["weight_decay"] = decay if group["decayed"] else 0.0
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self._adamw.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self._adamw.step()
        for optimizer in self.optimizers[1:]:
            if norm.isfinite():  # Muon cannot skip on the device
                optimizer.step()
        self.drop_gradients()
        return {"lr": rate, "weight_decay": decay, "grad_norm": norm.detach()}

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of all parameters as tensors named `<parameter>.<state>`."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.module.named_parameters()
            for key, value in self._state_of(parameter).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        for name, parameter in self.module.named_parameters():
            mine = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.rpartition(".")[0] == name}
            if mine:
                owner = next(o for o in self.optimizers if any(parameter is p for g in o.param_groups for p in g["params"]))
                owner.state[parameter] = {key: value.to(parameter.device) for key, value in mine.items()}

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return next((optimizer.state[parameter] for optimizer in self.optimizers if parameter in optimizer.state), {})


def _groups(named: list[tuple[str, nn.Parameter]], rate_share: Callable[[str], float]) -> list[dict[str, Any]]:
    """Group parameters that learn alike: by the share of the rate, and by whether they are decayed."""
    alike: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        alike.setdefault((rate_share(name), parameter.ndim >= 2), []).append(parameter)
    return [{"params": parameters, "share": share, "decayed": decayed} for (share, decayed), parameters in alike.items()]


class MovingAverage(nn.Module):
    """Polyak average of a module's parameters (arXiv 2307.13813): its weights are what is released.

    Args:
        module: Module that is averaged; the copy starts as it is now.
        decay: Decay of the average; less in the first steps, (1 + step) / (10 + step), so that it does not lag behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the parameters after a step (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield its parameters by their names in the module."""
        yield from self.module.state_dict().items()
