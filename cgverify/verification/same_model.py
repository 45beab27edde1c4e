"""Check that a bridge and a reference in memory are of one model: same config, weights and buffers.

The bridge is under test, and its own modules and hooks may do anything. What it wraps must be what the reference has.
If both differ in a weight, neither side can be called wrong: either may have been edited after the bridge was booted.
Of the sin/cos table it is known what Hugging Face's class builds: if the reference has that, and the bridge another
table of the same dtype, the verification finds the bridge's fault. `from_pretrained` and `model.to(dtype)` give tables
of different dtypes, which are both right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge.qkv_layout import join_weight
from cgverify.checkpoint.sin_cos_table import built_table
from cgverify.observe.bits import same_bits, same_tensor

NOT_COMPUTED_WITH = ("initializer_range", "use_cache", "bos_token_id", "eos_token_id")
"""Keys of the config that change no tensor of a forward."""
FUSED = "attn.qkv_proj"


def differences(
    bridge: Any, model: CodeGenForCausalLM, reference: CodeGenForCausalLM, is_processed: bool
) -> Iterator[str]:
    """Yield what differs between the model that a bridge wraps and the reference, each as a clause.

    Args:
        model: the bridge's.
        is_processed: whether compatibility mode has processed the weights. Then only the fused ones, which it leaves as
            they are, and the buffers are compared.
    """
    ours, theirs = model.config, reference.config
    keys = [key for key in CodeGenConfig.__annotations__ if key not in NOT_COMPUTED_WITH]
    other = [key for key in keys if getattr(ours, key) != getattr(theirs, key)]
    yield from (
        f"{key} is {getattr(theirs, key)} in the reference and {getattr(ours, key)} in the bridge" for key in other
    )
    for path, module in [] if other else reference.named_modules():
        is_fused = path.endswith(FUSED)
        tensors = module._buffers if is_processed and not is_fused else module._parameters | module._buffers
        wrapped = _wrapped(model, path)
        for name, of_reference in tensors.items():
            of_bridge = getattr(wrapped, name, None)
            if of_bridge is None and is_fused and not is_processed:
                of_bridge = _joined(bridge.blocks[int(path.split(".")[-3])].attn)
            # What the bridge lacks shows when it runs.
            if of_reference is not None and isinstance(of_bridge, Tensor):
                is_built = name in module._buffers and same_tensor(
                    of_reference.cpu(), built_table(theirs).to(of_reference.dtype)
                )
                yield from _difference(f"{path}.{name}", of_reference, of_bridge, is_built)


def _wrapped(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path of the reference, in a model whose modules a bridge wraps; None if it has none."""
    module: nn.Module | None = model
    for name in filter(None, path.split(".")):
        module = None if module is None else module._modules.get(name)
        while module is not None and module._modules.get("_original_component") is not None:
            module = module._modules["_original_component"]
    return module


def _joined(attention: Any) -> Tensor | None:
    """Return the fused weight of an attention bridge that has dropped it; None if the candidate has no such parts."""
    try:
        return join_weight(*(getattr(attention, which).original_component.weight.detach() for which in "qkv"))
    except AttributeError:
        return None


def _difference(name: str, theirs: Tensor, ours: Tensor, theirs_is_right: bool) -> Iterator[str]:
    for what in ("shape", "dtype", "device"):
        found, wanted = (str(getattr(tensor, what)).removeprefix("torch.") for tensor in (theirs, ours))
        if found != wanted:
            yield f"{name} of the reference has {what} {found}, and that of the bridge {wanted}"
            return
    theirs, ours = theirs.detach().cpu(), ours.detach().cpu()
    if not theirs_is_right and not same_tensor(theirs, ours):
        unequal = ~same_bits(theirs, ours)
        largest = float((theirs.double() - ours.double()).abs().max())
        yield (
            f"{name} of the reference differs from that of the bridge in {int(unequal.sum())} of {theirs.numel()} "
            f"values, by up to {largest:.3g}"
        )
