"""How a decoder is put together, read off its module tree and one observed forward pass.

Names of classes decide nothing: the blocks are the module list as long as the configuration says there are layers; the attention and the
feed-forward are the children that own the last linear map back to the residual width; post-norms, parallel blocks and the middle of the residual
stream follow from which module received which tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mi_audit.errors import HookPointError
from mi_audit.model.devices import input_device
from mi_audit.model.kinds import has_experts, is_linear, is_norm
from mi_audit.model.norms import without_gain
from mi_audit.model.slots import InputSlot, Output, OutputSlot, find_input, find_output

OBSERVED_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """The input or the output of `module`, or what `through` makes of the input; `past`: what it reaches beside `module`; `why_not`: why there is none."""

    module: nn.Module | None
    slot: InputSlot | OutputSlot | None
    width: int
    why_not: str = ""
    past: Output | None = None
    through: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module during the observed pass, with the activation that went in and the one that came out."""

    path: str
    module: nn.Module
    input_slot: InputSlot | None
    input: Tensor | None
    output_slot: OutputSlot | None
    output: Tensor | None

    def place_in(self) -> Place:
        """The place of this call's input."""
        return _place(self.module, self.input_slot, self.input)

    def place_out(self) -> Place:
        """The place of this call's output."""
        return _place(self.module, self.output_slot, self.output)


@dataclass(frozen=True, slots=True)
class Block:
    """The places of one decoder block, by hook-point name."""

    module: nn.Module
    places: dict[str, Place] = field(default_factory=dict)
    parallel: bool = False


@dataclass(frozen=True, slots=True)
class Decoder:
    """The base model (no LM head), its embedding, its blocks in order, and the norm after the last block, if any."""

    base: nn.Module
    embedding: nn.Embedding
    embed: Place
    blocks: tuple[Block, ...]
    final_norm: nn.Module | None


def text_config(hf: PreTrainedModel) -> Any:
    """The configuration of the text decoder (of the whole model, unless it is multimodal)."""
    return hf.config.get_text_config(decoder=True)


def find_base(hf: PreTrainedModel) -> nn.Module:
    """The decoder without the LM head."""
    base: object = hf.get_decoder()  # type: ignore[no-untyped-call]
    if not isinstance(base, nn.Module) or base is hf:
        raise HookPointError(f"{type(hf).__name__} has no decoder apart from its head; its children are: {_listing(hf)}")
    return base


def embedding_of(hf: PreTrainedModel) -> nn.Embedding:
    """The token embedding."""
    embedding = hf.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise HookPointError(f"the token embedding of {type(hf).__name__} is a {type(embedding).__name__}, not an embedding table")
    return embedding


def find_blocks(base: nn.Module, n_layers: int) -> nn.ModuleList:
    """The outermost module list with as many entries as the configuration has layers."""
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    fitting = {name: module for name, module in lists.items() if len(module) == n_layers and not any(name.startswith(f"{other}.") for other in lists)}
    if len(fitting) != 1:
        found = ", ".join(f"{name or '(top)'} with {len(module)} entries" for name, module in lists.items()) or "no module list at all"
        raise HookPointError(f"can't tell which module list holds the {n_layers} decoder blocks of {type(base).__name__}; found: {found}")
    return next(iter(fitting.values()))


def observe(hf: PreTrainedModel) -> Decoder:
    """Resolve the structure of a model in evaluation mode by one forward pass over a few tokens.

    Raises HookPointError, listing what was found, when the blocks can't be identified or are not called once each, in order.
    """
    base, config = find_base(hf), text_config(hf)
    width = int(config.hidden_size)
    blocks, embedding = find_blocks(base, int(config.num_hidden_layers)), embedding_of(hf)
    calls: list[Call] = []
    watched: dict[nn.Module, str] = {embedding: "embed"}
    for index, block in enumerate(blocks):
        for path, module in block.named_modules():
            watched[module] = f"{index}.{path}" if path else f"{index}"
    for path, module in base.named_children():
        if is_norm(module):
            watched.setdefault(module, f"base.{path}")
    tokens = (torch.arange(OBSERVED_TOKENS, device=input_device(embedding)) * 7 + 11) % embedding.weight.shape[0]
    with _recording(watched, calls), torch.no_grad():
        base(input_ids=tokens[None], use_cache=False)
    order = [call.path for call in calls if call.path.isdigit()]
    if order != [str(index) for index in range(len(blocks))]:
        raise HookPointError(f"the blocks of {type(base).__name__} are not called once each and in order, but: {', '.join(order)}")
    by_block: list[list[Call]] = [[] for _ in blocks]
    for call in calls:
        head, _, _ = call.path.partition(".")
        if head.isdigit():
            by_block[int(head)].append(call)
    embedded = next((call for call in calls if call.path == "embed"), None)
    if embedded is None:
        raise HookPointError(f"the embedding of {type(base).__name__} was not called; its children are: {_listing(base)}")
    last = by_block[-1][-1].output
    final = next((call.module for call in calls if call.path.startswith("base.") and _same(call.input, last)), None)
    first = by_block[0][-1]
    # some models scale the embedding outside its module: then what enters the first block is the embedding, scaled
    embed = first.place_in() if _is_multiple(first.input, embedded.output) else embedded.place_out()
    resolved = tuple(_block(module, inside, width) for module, inside in zip(blocks, by_block, strict=True))
    return Decoder(base, embedding, embed, resolved, final)


def _block(module: nn.Module, calls: list[Call], width: int) -> Block:
    """Name the places of one block. `calls` are in order of return, the block itself last."""
    own, inside = calls[-1], [_relative(call) for call in calls[:-1]]
    children = [call for call in inside if "." not in call.path]
    places = {"resid_pre": own.place_in(), "resid_post": own.place_out()}
    attention, z, attn_raw = _attention(children, inside, width)
    attn_out = _after_norm(attn_raw, children)
    places["attn_out"] = attn_out.place_out() if attn_out else _missing(f"no attention module was found among {_listing(module)}")
    places["attn.hook_z"] = z.place_in() if z else _missing(f"no output projection to width {width} was called in an attention module of {_listing(module)}")
    mlp, post, mlp_raw = _feed_forward(children, inside, attention, width)
    mlp_out = _after_norm(mlp_raw, children)
    places["mlp_out"] = mlp_out.place_out() if mlp_out else _missing(f"no feed-forward module was found among {_listing(module)}")
    places["mlp.hook_post"] = post.place_in() if post else _missing(_why_no_neurons(mlp))
    first, norm = _entry(children, attention, mlp) if mlp else (None, None)
    mid, parallel = _middle(own, attention, first, norm)
    places["resid_mid"] = mid
    places["ln2.hook_normalized"] = _normalized(norm, attention)
    places["mlp.hook_in"] = first.place_in() if first else _missing(f"no feed-forward module was found among {_listing(module)}")
    return Block(module, places, parallel)


def _attention(children: list[Call], inside: list[Call], width: int) -> tuple[Call | None, Call | None, Call | None]:
    """The attention child, its output projection, and the call whose output is added (or post-normed) as attention's contribution."""
    found = [
        (child, projection)
        for child in children
        if "attn" in child.path.lower() or "attention" in child.path.lower()
        for projection in [_projection(child, inside, width)]
        if projection
    ]
    if len(found) != 1:
        return None, None, None
    child, projection = found[0]
    return child, projection, child if _same(child.output, projection.output) else projection


def _feed_forward(children: list[Call], inside: list[Call], attention: Call | None, width: int) -> tuple[Call | None, Call | None, Call | None]:
    """The feed-forward child, its down projection (None for experts), and the call whose output is its contribution."""
    others = [child for child in children if child is not attention and not is_norm(child.module)]
    experts = [child for child in others if has_experts(child.module)]
    if experts:
        return experts[-1], None, experts[-1]
    found = [(child, down) for child in others for down in [_projection(child, inside, width)] if down]
    if not found:
        return None, None, None
    child, down = found[-1]
    return child, down, child if _same(child.output, down.output) else down


def _entry(children: list[Call], attention: Call | None, mlp: Call) -> tuple[Call, Call | None]:
    """What reads first in the feed-forward, and the norm that it reads from, if any."""
    # a feed-forward without a module of its own (fc1, fc2 in the block) begins at the first child that is called after the attention
    after = children[children.index(attention) + 1 :] if attention is not None else children
    first = mlp if not is_linear(mlp.module) else next((child for child in after if is_linear(child.module)), mlp)
    return first, next((child for child in children if is_norm(child.module) and _same(child.output, first.input)), None)


def _normalized(norm: Call | None, attention: Call | None) -> Place:
    """What the norm before the feed-forward gives, before its gain."""
    if norm is None or norm.input is None:
        return _missing("no norm stands before the feed-forward, which reads the residual stream as it is")
    if attention is not None and _same(norm.output, attention.input):
        return _missing("attention and feed-forward read what one norm gives (a parallel block), so there is no second one")
    pure = without_gain(norm.module, norm.input)
    if pure is None:
        return _missing(
            f"{type(norm.module).__name__} does not multiply with a gain and add a bias after normalising, so what stands before them can't be told"
        )
    return replace(norm.place_in(), through=pure)


def _middle(own: Call, attention: Call | None, first: Call | None, norm: Call | None) -> tuple[Place, bool]:
    """Where the residual stream passes between attention and feed-forward, and whether the block is parallel (then nowhere)."""
    if attention is None or first is None:
        return _missing("the block has no attention followed by a feed-forward"), False
    reader = norm or first
    if _same(reader.input, own.input) or _same(first.input, attention.input):
        return _missing("attention and feed-forward both read resid_pre (a parallel block), so there is no middle of the residual stream"), True
    # the residual branch has parted before this module, and comes out of the block with what the feed-forward adds to it
    return replace(reader.place_in(), past=Output(own.module, own.output_slot) if own.output_slot else None), False


def _after_norm(raw: Call | None, children: list[Call]) -> Call | None:
    """The norm that receives a contribution before it is added to the stream (Gemma 2 and 3, OLMo 2), else the contribution itself."""
    if raw is None:
        return None
    return next((child for child in children if is_norm(child.module) and _same(child.input, raw.output)), raw)


def _projection(child: Call, inside: list[Call], width: int) -> Call | None:
    """The last linear map onto the residual width that was called at or below `child`."""
    below = [call for call in inside if call.path == child.path or call.path.startswith(f"{child.path}.")]
    return next((call for call in reversed(below) if is_linear(call.module) and call.output is not None and call.output.shape[-1] == width), None)


@contextmanager
def _recording(watched: dict[nn.Module, str], calls: list[Call]) -> Iterator[None]:
    handles = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        into, out = find_input(args, kwargs), find_output(output)
        input = into.get(args, kwargs) if into else None
        calls.append(Call(watched[module], module, into, input, out, out.get(output) if out else None))

    try:
        handles = [module.register_forward_hook(record, with_kwargs=True) for module in watched]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _place(module: nn.Module, slot: InputSlot | OutputSlot | None, tensor: Tensor | None) -> Place:
    if slot is None or tensor is None:
        return _missing(f"{type(module).__name__} passes no activation there")
    if tensor.dim() != 3 or tensor.shape[:2] != (1, OBSERVED_TOKENS):
        return _missing(f"{type(module).__name__} passes a tensor of shape {tuple(tensor.shape)}, not [batch, position, width]")
    return Place(module, slot, tensor.shape[-1])


def _missing(reason: str) -> Place:
    return Place(None, None, 0, reason)


def _why_no_neurons(mlp: Call | None) -> str:
    if mlp is not None and has_experts(mlp.module):
        return "the feed-forward is a mixture of experts: which neurons exist depends on the token, so there is no single hidden activation"
    return "no down projection was found"


def _relative(call: Call) -> Call:
    return Call(call.path.partition(".")[2], call.module, call.input_slot, call.input, call.output_slot, call.output)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two observed tensors are the same activation (evaluation-mode dropout, reshaping and another device make copies)."""
    if one is None or other is None or one is other:
        return one is other
    return one.numel() == other.numel() and torch.equal(one.reshape(-1), other.reshape(-1).to(one.device))


def _is_multiple(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether `one` is `other` times a number other than 1."""
    if one is None or other is None or one.shape != other.shape or _same(one, other):
        return False
    other = other.to(one.device)
    factor = (one.double() * other.double()).sum() / other.double().square().sum()
    return bool((one.double() - factor * other.double()).norm() <= 4 * torch.finfo(one.dtype).eps * one.double().norm())


def _listing(module: nn.Module) -> str:
    return ", ".join(f"{name}: {type(child).__name__}" for name, child in module.named_children()) or "none"
