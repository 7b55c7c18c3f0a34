"""A `torch.nn.Module` as a backbone: its parameters for the host, and what its methods return, checked.

The host owns the parameters from then on: it steps, averages, saves and loads the very tensors that the module computes with.
"""
import inspect

import torch
from torch import nn
from torch.nn import functional

# What a checkpoint holds.
KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

class Broken(Exception):
    """What a class does against the contract, and where its method begins."""

    def __init__(self, message, kind='Shape', place=''):
        super().__init__(message)
        self.kind, self.place = kind, place


def where(function):
    """FILE:LINE of a function of the user's."""
    code = getattr(inspect.unwrap(function), '__code__', None)
    return f'{code.co_filename}:{code.co_firstlineno}' if code else ''


class Pass:
    """One call of a network in full, as `maskdiff_plugin_api::Pass`: B sequences, S tokens of the call, P of the past.

    `tokens` [B, S]; or [B, S, M] with `weight` [B, S, M] where M tokens are mixed at each position, for which `embedded(table)` is what
    enters the network; `sigma` [B] or [B, S], float64; `label` [B], a class for each sequence; `positions` [1, S] or [B, S]; `past` keys and
    values of other tokens, layer by layer, [B, H, P, K] each, or empty; `wants` 'state', 'keys' or 'both'; `sees` what a token attends to,
    for which `seen()` is the mask.
    """

    def __init__(self, words, tokens, sigma, *more):
        more = list(more)
        self.tokens, self.sigma = tokens, sigma
        self.wants, self.sees, self.block = words['wants'], words['sees'], words['block']
        self.weight = more.pop(0) if words['mixture'] else None
        self.label = more.pop(0) if words['label'] else None
        own = more.pop(0) if words['positions'] else None
        self.pairs = more.pop(0) if self.sees == 'pairs' else None
        self.past = more
        before = more[0].shape[2] if more else 0
        if own is None:
            own = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        self.positions = own

    def embedded(self, table):
        """What enters a network, [B, S, D], of an embedding [V, D]: the row of each token, or a mixture of rows."""
        if self.weight is None:
            return functional.embedding(self.tokens, table)
        weight = self.weight.to(table.dtype)
        if self.tokens.stride()[:2] == (0, 0):
            # The same tokens at every position: a product, and no embedding of each of them at each position.
            return weight @ functional.embedding(self.tokens[0, 0], table)
        return (functional.embedding(self.tokens, table) * weight[..., None]).sum(-2)

    def layer(self, number):
        """Keys and values of the past in a layer; None where there is no past."""
        return tuple(self.past[2 * number:2 * number + 2]) or None

    def wants_state(self):
        return self.wants != 'keys'

    def wants_keys(self):
        return self.wants != 'state'

    def seen(self):
        """True where a token of the call attends to a token of past and call, [1 or B, 1, S, P + S]; None where all see all.

        It fits `attn_mask` of `scaled_dot_product_attention`.
        """
        new, device = self.tokens.shape[1], self.tokens.device
        before = self.past[0].shape[2] if self.past else 0
        if self.sees == 'all':
            return None
        if self.sees == 'causal':
            return torch.ones([new, before + new], dtype=torch.bool, device=device).tril(before)[None, None]
        if self.sees == 'pairs':
            return self.pairs.reshape([-1, 1, new, before + new])
        own = self.positions // self.block
        past = (torch.arange(before, device=device) // self.block).expand([len(own), -1])
        rows, both = own[:, :, None], (past[:, None], own[:, None])
        of_past, of_call = (both[0] <= rows, both[1] <= rows) if self.sees == 'blocks' else (both[0] < rows, both[1] == rows)
        return torch.cat([of_past, of_call], -1)[:, None]


class Network:
    """A module of the user's; methods as those of `maskdiff_plugin_api::Backbone`."""

    def __init__(self, module, facts, watch, labelled=False):
        self.name = type(module).__name__
        # Calls a function of ours when a tensor's gradient is there.
        self.watch = watch
        # Whether `forward` and `hidden` get a label for each sequence.
        self.labelled = labelled
        if not isinstance(module, nn.Module):
            raise Broken(f'`{self.name}` is no `torch.nn.Module`, which a backbone must be', 'Config')
        self.module, self.facts = module, facts
        self._place()
        self.entries = self._entries()
        self.state = self._state()
        # The graph up to this number has been used by a backward pass.
        self.spent = -1
        module.eval()
        self.split, self.head = self._split()

    def _place(self):
        """Moves the module to the host's device, its parameters to the host's type."""
        kind, device = self.facts['kind'], self.facts['device']
        for name, parameter in self.module.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise self._unfit(f'the parameter `{name}` of `{self.name}` has no size before the first call: give it in `__init__`')
            if parameter.is_complex():
                raise self._unfit(f'the parameter `{name}` of `{self.name}` is {parameter.dtype}, expected real numbers')
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if tensor.is_meta:
                raise self._unfit(f'`{name}` of `{self.name}` is on the device `meta`, so it has no numbers: make it on the CPU, and the host '
                                  'moves it')
        for name, part in self.module.named_modules():
            if getattr(part, 'sparse', False) is True and isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
                raise self._unfit(f'`{name}` of `{self.name}` has `sparse=True`, and the optimizer takes no sparse gradients: leave it out')
        # A buffer such as a frequency needs more digits than 16 bits have.
        wide = torch.float32 if kind.itemsize == 2 else kind

        def placed(tensor):
            if not tensor.is_floating_point():
                return tensor.to(device).contiguous()
            return tensor.to(device, kind if isinstance(tensor, nn.Parameter) else wide).contiguous()

        self.module._apply(placed)

    def _entries(self):
        """What a checkpoint holds, in the order of `state_dict`: (name, tensor, first name of a shared one)."""
        owned = dict(self.module.named_parameters(remove_duplicate=False))
        owned.update(self.module.named_buffers(remove_duplicate=False))
        entries, first = [], {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if owned.get(name) is not tensor:
                raise self._unfit(f'`{name}` in the `state_dict` of `{self.name}` is neither a parameter nor a buffer, so the host cannot '
                                  'keep it')
            if tensor.dtype not in KINDS:
                raise self._unfit(f'the buffer `{name}` of `{self.name}` is {tensor.dtype}, which no checkpoint holds: keep it as real numbers '
                                  '(`torch.view_as_real`), or register it with `persistent=False`')
            entries.append((name, tensor, first.setdefault(id(tensor), name)))
        lost = [name for name, parameter in self.module.named_parameters() if id(parameter) not in first]
        if lost:
            raise self._unfit(f'the parameter `{lost[0]}` of `{self.name}` is not in its `state_dict`')
        if not any(tensor.requires_grad for _, tensor, _ in entries):
            raise self._unfit(f'`{self.name}` has no parameter to train')
        return entries

    def _unfit(self, message):
        """What a module is that the host cannot take."""
        return Broken(message, 'Config', where(type(self.module).__init__))

    def _state(self):
        """What must stay as it is: the parts, the parameters, and the buffers that are saved."""
        parts, kept = list(self.module.modules()), {id(tensor) for _, tensor, _ in self.entries}
        held = [(part._modules, key, below) for part in parts for key, below in part._modules.items()]
        held += [(holder, key, tensor) for part in parts for holder in (part._parameters, part._buffers)
                 for key, tensor in holder.items() if id(tensor) in kept]
        sizes = [(tensor, tensor.shape, tensor.dtype, tensor.device) for _, tensor, _ in self.entries]
        return held, [(part, self._count(part)) for part in parts], sizes

    @staticmethod
    def _count(part):
        """How many parts, parameters and saved buffers a module has of its own."""
        saved = [tensor for key, tensor in part._buffers.items() if key not in part._non_persistent_buffers_set]
        return len(part._modules), sum(p is not None for p in part._parameters.values()), sum(b is not None for b in saved)

    def described(self):
        """For the host: words about the parameters and the head, and the parameters."""
        maps = {id(part.weight) for part in self.module.modules() if isinstance(part, nn.Linear)}
        words = [{'name': name, 'trains': tensor.requires_grad and first == name, 'first': first, 'is_map': id(tensor) in maps}
                 for name, tensor, first in self.entries]
        passes = callable(getattr(self.module, 'pass_', None))
        return {'parameters': words, 'split': self.split, 'head': self.head, 'passes': passes}, [tensor for _, tensor, _ in self.entries]

    def _split(self):
        """How logits come about, and the names of the head's matrix and bias where it is a linear map that the host can fuse.

        `hidden`: by the class's own method of that name, then its `head`. `caught`: `forward` ends in a linear map `head`, which the
        host computes in its place. `whole`: by `forward` alone.
        """
        head = getattr(self.module, 'head', None)
        fused = self._head_names(head)
        own = inspect.isfunction(inspect.getattr_static(type(self.module), 'hidden', None))
        if own and not callable(head):
            raise Broken(f'`{self.name}` has a method `hidden` and no `head`, a module or a method that makes logits of its result',
                         'Config', where(type(self.module).hidden))
        if own and self.module._compiled_call_impl is not None and 'hidden' not in vars(self.module):
            raise self._unfit(f'`{self.name}` compiles its `forward` (`self.compile()`), and the host calls its `hidden`: write '
                              '`self.hidden = torch.compile(self.hidden)`')
        if not own and type(self.module).forward is nn.Module.forward:
            raise self._unfit(f'`{self.name}` has no method `forward(x, sigma)`')
        length, device = self.facts['length'], self.facts['device']
        x = torch.zeros([1, length], dtype=torch.int64, device=device)
        sigma = torch.zeros([1], dtype=torch.float64, device=device)
        # A trial, so that what is wrong is told before a run begins; it draws no number of the run's.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == 'cuda' else []):
            if own:
                self.split, self.head = 'hidden', fused
                self.logits(self.hidden(x, sigma, False).flatten(0, 1))
            elif fused and self._ends_in_head(x, sigma):
                self.split, self.head = 'caught', fused
                self.hidden(x, sigma, False)
            else:
                self.split, self.head = 'whole', None
                self.hidden(x, sigma, False)
        return self.split, self.head

    def _head_names(self, head):
        """The names of matrix and bias of a head that is a plain linear map over the vocabulary."""
        plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
        if not plain or head.out_features != self.facts['vocab_size']:
            return None
        if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks:
            return None
        names = {id(tensor): first for _, tensor, first in self.entries}
        weight, bias = names.get(id(head.weight)), names.get(id(head.bias))
        if weight is None or (head.bias is not None and bias is None):
            return None
        return {'weight': weight, 'bias': bias}

    def _ends_in_head(self, x, sigma):
        try:
            result, caught = self._without_head(*self._arguments(x, sigma))
        except Exception:
            # What comes behind the head does not fit its input.
            return False
        return self._is_caught(result, caught)

    @staticmethod
    def _is_caught(result, caught):
        """Whether `forward` ended in its head: what comes out is what went in, and nothing has written into it since."""
        return len(caught) == 1 and result is caught[0][0] and result._version == caught[0][1]

    def _without_head(self, *given):
        """`forward` with its head left out, and what went into the head: the tensor, and how often it had been written into."""
        caught, head = [], self.module.head

        def catch(state):
            caught.append((state, state._version))
            return state

        head.forward = catch
        try:
            return self.module(*given), caught
        finally:
            del head.forward

    def _mode(self, train):
        if self.module.training != train:
            self.module.train(train)

    def pass_(self, words, tokens, sigma, *more):
        call = Pass(words, tokens, sigma, *more)
        if self.labelled and call.label is None:
            call.label = self._no_class(tokens)
        if call.weight is not None:
            tokens = tokens[..., 0]
        self._mode(words['train'])
        trains = self._trains()
        made = self._told('pass_', self.module.pass_, call)
        state, keys = made if isinstance(made, tuple) and len(made) == 2 else (made, [])
        keys = list(keys) if call.wants_keys() else []
        if call.wants_keys():
            if not keys or len(keys) % 2:
                raise self._broken('pass_', f'returned {len(keys)} keys and values, expected `(state, keys)` with two for each layer')
            for each in keys:
                self._check('pass_', each, [len(tokens), None, tokens.shape[1], None], '[B, H, S, K]', tokens)
        if call.wants_state():
            self._check_state('pass_', state, tokens)
            self._check_graph('pass_', state, words['train'])
        elif not isinstance(state, torch.Tensor):
            state = keys[0].new_zeros([*tokens.shape, 1])
        self._check_parameters('pass_', trains)
        return (state, *keys)

    def _no_class(self, x):
        """The label "none" of each sequence, where there are classes."""
        classes = self.facts['classes']
        return x.new_full([len(x)], classes) if classes > 0 else None

    def _arguments(self, x, sigma, label=None):
        if not self.labelled:
            return x, sigma
        return x, sigma, self._no_class(x) if label is None else label

    def hidden(self, x, sigma, train, label=None):
        self._mode(train)
        given, trains = self._arguments(x, sigma, label), self._trains()
        method = 'hidden' if self.split == 'hidden' else 'forward'
        if self.split == 'hidden':
            state = self._told(method, self.module.hidden, *given)
        elif self.split == 'caught':
            state, caught = self._told(method, self._without_head, *given)
            if not self._is_caught(state, caught):
                raise self._broken(method, 'ended in the linear map `head` when it was first called and does not now: give the class a '
                                           'method `hidden(x, sigma)`, or another name to the map')
        else:
            state = self._told(method, self.module, *given)
        self._check_state(method, state, x)
        self._check_graph(method, state, train)
        self._check_parameters(method, trains)
        return state

    def logits(self, hidden):
        logits = self._told('head', self.module.head, hidden)
        size = [hidden.shape[0], self.facts['vocab_size']]
        self._check('head', logits, size, '[N, V]', hidden)
        self._check_kind('head', logits, whole=True)
        return logits

    def _told(self, method, function, *args):
        try:
            return function(*args)
        except Exception as error:
            # Not what a nested call says of itself.
            if not isinstance(error, Broken) and not hasattr(error, 'maskdiff_method'):
                error.maskdiff_method = f'{self.name}.{method}'
            raise

    def _broken(self, method, what, kind='Shape'):
        function = getattr(type(self.module), method, None)
        place = where(function) if inspect.isfunction(function) else where(type(self.module).forward)
        return Broken(f'`{self.name}.{method}` {what}', kind, place)

    def _check(self, method, value, size, letters, like):
        if not isinstance(value, torch.Tensor):
            raise self._broken(method, f'returned {value!r:.80}, expected a tensor {letters}')
        fits = len(value.shape) == len(size) and all(want in (None, got) for got, want in zip(value.shape, size))
        if not fits or not value.is_floating_point():
            wanted = [letter if want is None else want for letter, want in zip(letters.strip('[]').split(', '), size)]
            raise self._broken(method, f'returned {list(value.shape)} {value.dtype}, expected {letters} = '
                                       f'[{", ".join(map(str, wanted))}] of floating point')
        if value.device != like.device:
            raise self._broken(method, f'returned a tensor on {value.device}, expected one on {like.device}')

    def _check_state(self, method, state, x):
        whole = self.split == 'whole'
        width = self.facts['vocab_size'] if whole else self.module.head.in_features if self.head else None
        self._check(method, state, [*x.shape, width], '[B, L, V]' if whole else '[B, L, D]', x)
        self._check_kind(method, state, whole)

    def _check_kind(self, method, value, whole):
        """That numbers are of the parameters' type, of autocast's where that is on, or logits of more digits than 16 bits have."""
        own, device = self.facts['kind'], value.device.type
        kinds = {own, torch.get_autocast_dtype(device), torch.float32} if torch.is_autocast_enabled(device) else {own}
        if whole and own.itemsize == 2:
            kinds.add(torch.float32)
        if value.dtype not in kinds:
            raise self._broken(method, f'returned {value.dtype}, and the parameters are {own}')

    def _check_graph(self, method, state, train):
        """That a pass in training has a gradient, and reaches no graph that an earlier step has used."""
        if not (train and torch.is_grad_enabled()):
            return
        if not state.requires_grad:
            if any(tensor.requires_grad for _, tensor, _ in self.entries):
                raise self._broken(method, 'returned a tensor without a gradient: something in it detaches, or runs under `no_grad`')
            return
        if state.grad_fn is None:
            return
        used = self._used_node(state.grad_fn)
        if used is not None:
            raise self._broken(method, f'uses a tensor of an earlier step (`{used.name()}`), whose graph is gone: keep it by '
                                       '`.detach()`', 'Other')
        now = number_now()

        def was_used(_):
            self.spent = max(self.spent, now)

        self.watch(state, was_used)

    def _used_node(self, root):
        seen, open_ = {root}, [root]
        while open_:
            node = open_.pop()
            # Leaves have the highest number.
            if node._sequence_nr() <= self.spent:
                return node
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    seen.add(below)
                    open_.append(below)
        return None

    def _check_parameters(self, method, trains):
        """That the module is what it was made as, and that what trains is what did before the call."""
        held, counts, sizes = self.state
        if any(self._count(part) != count for part, count in counts):
            raise self._broken(method, 'adds or removes parameters, buffers or modules: the host knows those that `__init__` made')
        for holder, key, own in held:
            if holder.get(key) is not own:
                what = 'module' if own is None or isinstance(own, nn.Module) else 'parameter or buffer'
                raise self._broken(method, f'replaces the {what} `{key}`, and the host keeps the one that `__init__` made: write into it in '
                                           'place (`copy_`)')
        for tensor, *before in sizes:
            now = [tensor.shape, tensor.dtype, tensor.device]
            if now != before:
                said = [f'{list(shape)} {kind} on {device}' for shape, kind, device in (before, now)]
                raise self._broken(method, f'changes a parameter or buffer from {said[0]} to {said[1]}')
        for (name, tensor, _), trained in zip(self.entries, trains):
            if tensor.requires_grad != trained:
                raise self._broken(method, f'changes `requires_grad` of `{name}` to {tensor.requires_grad}: say what trains in `__init__`')

    def _trains(self):
        return [tensor.requires_grad for _, tensor, _ in self.entries]


def number_now():
    """The number of the newest node of this thread's graphs."""
    return torch.ones((), requires_grad=True).exp().grad_fn._sequence_nr()
