"""TransformerLens's bridge of a whole model, with tokenizers as they are given and batches of texts of any lengths."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import detect_tokenizer_bos_eos
from transformers import PreTrainedTokenizerBase

from cgverify.bridge.fast_path import has_hooks
from cgverify.bridge.fused_projection import projections_of, require_linear

_GENERATE = tuple(
    name
    for name, parameter in inspect.signature(TransformerBridge.generate).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
)

_WRAPPED = ("original_component", "_original_component", "original_model")


class CodeGenBridge(TransformerBridge):  # type: ignore[misc]
    """A `TransformerBridge` of CodeGen.

    In a batch of texts each row gives what its text gives alone: logits, loss and generated tokens. TransformerLens
    takes padding for text where the padding token is the first or the last token of a text as well, and counts it in
    the loss.
    """

    _keeps_last_logits = False
    """Whether the next forward is a step of a generation that needs the last position's logits alone."""

    def _scan_existing_hooks(self, module: nn.Module, prefix: str = "") -> None:
        """Register the hooks of a module and of its parts under the names that TransformerLens gives them.

        TransformerLens asks every hook for all of its attributes, in search of other hooks. That is half of a boot.
        """
        named = {id(hook) for hook in self._hook_registry.values() if hook.name is not None}
        for path, part in _parts_with_hooks(module, prefix, set()):
            own = part.get_hooks() if isinstance(part, GeneralizedComponent) else {}
            shown = {name: getattr(part, name, None) for name in dir(part) if _may_be_hook(name, part)}
            for name, hook in [*own.items(), *shown.items()]:
                if isinstance(hook, HookPoint):
                    full = f"{path}.{name}" if path else name
                    if id(hook) not in named:
                        named.add(id(hook))
                        hook.name = full
                    self._hook_registry[full] = hook

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, or None. Without one, the bridge takes token ids alone."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        if tokenizer is not None:
            self._tokenizer = complete(tokenizer)
            found = detect_tokenizer_bos_eos(self._tokenizer)
            self.cfg.tokenizer_prepends_bos, self.cfg.tokenizer_appends_eos = found

    def to_tokens(self, input: str | list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return token ids `[batch, seq]` of a text or of several, which are padded.

        Raises:
            ValueError: there is no tokenizer.
        """
        self._require_tokenizer()
        return cast(Tensor, super().to_tokens(input, *args, **kwargs))

    def forward(
        self,
        input: str | list[str] | Tensor,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model, as `TransformerBridge.forward` does. Padding of several texts is masked, and is in no loss."""
        keeps_last, self._keeps_last_logits = self._keeps_last_logits, False  # hooks may call the bridge once more
        if keeps_last:
            kwargs["logits_to_keep"] = 1
        if attention_mask is None and isinstance(input, list) and _is_batch(input):
            input, attention_mask = self._pad(input, prepend_bos, padding_side, truncate=True)
        return super().forward(input, return_type, loss_per_token, prepend_bos, padding_side, attention_mask, **kwargs)

    def generate(self, input: str | list[str] | Tensor = "", *args: Any, **kwargs: Any) -> Any:
        """Generate tokens, as `TransformerBridge.generate` does.

        Raises:
            TypeError: a keyword that it does not have.
        """
        unknown = next((name for name in kwargs if name not in _GENERATE), None)
        if unknown is not None:
            raise TypeError(f"generate() got an unexpected keyword argument {unknown!r}")
        return super().generate(*self._padded_left(TransformerBridge.generate, input, args, kwargs), **kwargs)

    def _generate_tokens(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield the steps of a generation, in each of which the model computes the last position's logits alone."""
        steps = super()._generate_tokens(*args, **kwargs)
        while True:
            self._keeps_last_logits = self._may_keep_last_logits()
            try:
                step = next(steps, None)
            finally:
                self._keeps_last_logits = False
            if step is None:
                return
            yield step

    def _may_keep_last_logits(self) -> bool:
        """Return whether no hook sees the logits of the other positions, and the model can leave them out."""
        model, unembed = self.original_model, self.unembed
        seeing = self, model, unembed, unembed.hook_in, unembed.hook_out, unembed.original_component
        return not any(map(has_hooks, seeing)) and "logits_to_keep" in inspect.signature(model.forward).parameters

    def generate_stream(self, input: str | list[str] | Tensor = "", *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Generate tokens and yield them in pieces, as `TransformerBridge.generate_stream` does."""
        arguments = self._padded_left(TransformerBridge.generate_stream, input, args, kwargs)
        return cast("Iterator[Any]", super().generate_stream(*arguments, **kwargs))

    def hf_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with Hugging Face's own function, as `TransformerBridge.hf_generate` does.

        Raises:
            ValueError: there is no tokenizer.
        """
        self._require_tokenizer("call original_model.generate with token ids")
        return super().hf_generate(*args, **kwargs)

    def enable_compatibility_mode(
        self, disable_warnings: bool = False, no_processing: bool = False, **processing: Any
    ) -> None:
        """Behave as a HookedTransformer, as `TransformerBridge.enable_compatibility_mode` describes.

        Raises:
            ValueError: weights would be processed, and a projection is more than a plain Linear.
        """
        if not no_processing:
            require_linear(projections_of(self), "Processing weights")
        super().enable_compatibility_mode(disable_warnings, no_processing, **processing)

    def _require_tokenizer(self, instead: str = "pass token ids") -> None:
        if self.tokenizer is None:
            raise ValueError(
                f"This bridge has no tokenizer: {instead}, or set one by boot(…, tokenizer=…) or bridge.tokenizer = …."
            )

    def _pad(
        self, texts: list[str], prepend_bos: bool | None, side: str | None, *, truncate: bool
    ) -> tuple[Tensor, Tensor]:
        """Return token ids and the mask of several texts, `[texts, seq]` each, every text tokenized alone."""
        rows = [self.to_tokens(text, prepend_bos=prepend_bos, truncate=truncate)[0].long() for text in texts]
        tokenizer = cast(PreTrainedTokenizerBase, self.tokenizer)
        length = max(map(len, rows))
        tokens = rows[0].new_full((len(rows), length), cast(int, tokenizer.pad_token_id))
        mask = torch.zeros_like(tokens)
        for index, row in enumerate(rows):
            start = length - len(row) if (side or tokenizer.padding_side) == "left" else 0
            tokens[index, start : start + len(row)] = row
            mask[index, start : start + len(row)] = 1
        return tokens, mask

    def _padded_left(self, function: Any, input: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the positional arguments of a generation; several texts become ids, with a mask among the keywords."""
        given = inspect.signature(function).bind(self, input, *args, **kwargs).arguments
        if not _is_batch(input) or given.get("attention_mask") is not None:
            return input, *args
        tokens, mask = self._pad(input, given.get("prepend_bos"), "left", truncate=False)
        if given.get("return_type", "input") == "input":
            given["return_type"] = "str"
        del given["self"]
        kwargs.update({name: value for name, value in given.items() if name != "input"}, attention_mask=mask)
        return (tokens,)


def _may_be_hook(name: str, part: nn.Module) -> bool:
    return name.startswith("hook_") or (name in part._modules and not name.startswith("_"))


def _parts_with_hooks(module: nn.Module, path: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and its parts, each once and before its own parts, without hooks and what bridges wrap."""
    seen.add(module)
    yield path, module
    for name, part in module.named_children():
        if not isinstance(part, HookPoint) and name not in _WRAPPED and part not in seen:
            yield from _parts_with_hooks(part, f"{path}.{name}" if path else name, seen)


def complete(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer, or a copy with the special tokens that it lacks: padding like the end, a start like the end.

    Raises:
        ValueError: it has no token of either kind.
    """
    ends = tokenizer.eos_token or tokenizer.bos_token or tokenizer.pad_token
    if ends is None:
        raise ValueError("The tokenizer has no eos_token, bos_token or pad_token: set its pad_token.")
    lacking = [name for name in ("pad_token", "bos_token", "eos_token") if getattr(tokenizer, name) is None]
    if lacking:
        tokenizer = copy.deepcopy(tokenizer)
        for name in lacking:
            setattr(tokenizer, name, ends)
    return tokenizer


def _is_batch(input: Any) -> bool:
    return isinstance(input, list) and len(input) > 1 and all(isinstance(text, str) for text in input)
