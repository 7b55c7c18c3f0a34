"""The Python side of the door: makes objects, calls their methods, and hands the model to them.

Runs inside the host's process. A request is JSON and a list of at::Tensor*; an answer is JSON and a list of
c10::TensorImpl*, which the host takes while we hold them.
"""
import _posixsubprocess
import ctypes
import functools
import importlib.machinery
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import traceback
import types

import torch



def part(name, text):
    """Another file of this door, as a module of its own."""
    made = types.ModuleType(f'maskdiff_{name}')
    exec(compile(text, f'maskdiff/{name}.py', 'exec'), made.__dict__)
    return made


backward, network = part('backward', BACKWARD), part('network', NETWORK)

Pointers = ctypes.POINTER(ctypes.c_void_p)
Call = ctypes.CFUNCTYPE(None, ctypes.c_char_p, Pointers, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
take_answer = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, Pointers, ctypes.c_size_t)(TAKE_ANSWER)
call_model = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p, Pointers, ctypes.c_size_t,
                              Pointers)(CALL_MODEL)

# torch's own function from at::Tensor to a Python object; a PyDLL call keeps the interpreter's lock.
_library = ctypes.PyDLL(os.path.join(os.path.dirname(torch.__file__), 'lib', 'libtorch_python.so'))
wrap = _library._Z16THPVariable_WrapRKN2at10TensorBaseE
wrap.argtypes, wrap.restype = [ctypes.c_void_p], ctypes.py_object

DTYPES = {'f32': torch.float32, 'f64': torch.float64, 'bf16': torch.bfloat16, 'f16': torch.float16}


class HostError(RuntimeError):
    """What the host answered to a call of the model."""

    def __init__(self, said):
        super().__init__(said['error'])
        self.said = said


class Model:
    """The model that a method is given; see `maskdiff_plugin_api::Denoiser` for shapes and meaning."""

    def __init__(self, host, facts, device):
        self._host = host
        self.vocab_size = facts['vocab_size']
        self.mask_id = facts['mask_id']
        self.time_conditioning = facts['time_conditioning']
        self.device = device
        self._thread = threading.get_ident()

    def _call(self, name, *numbers, **tensors):
        if self._host is None or self._thread != threading.get_ident():
            raise RuntimeError('a model is there only during the call that brought it, on the thread of that call')
        for argument, value in tensors.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f'`{argument}` of `{name}` is {value!r:.80}, expected a tensor')
        for number in numbers:
            if not isinstance(number, (int, float)) and not hasattr(number, '__float__'):
                raise TypeError(f'`{name}` was given {number!r:.80}, expected a number')
            if not math.isfinite(number):
                raise ValueError(f'`{name}` was given {float(number)}, which is no number')
        impls = (ctypes.c_void_p * max(1, len(tensors)))(*[tensor._cdata for tensor in tensors.values()])
        made = ctypes.c_void_p()
        request = json.dumps({'name': name, 'numbers': [float(n) for n in numbers]}, allow_nan=False).encode()
        said = call_model(self._host, request, impls, len(tensors), ctypes.byref(made))
        if made.value:
            return wrap(made.value)
        said = json.loads(said)
        if 'error' in said:
            raise HostError(said)
        return said['value']

    def sigma(self, t):
        return self._call('sigma', t=t)

    def dsigma(self, t):
        return self._call('dsigma', t=t)

    def alpha(self, t):
        return self._call('alpha', t)

    def time_of_alpha(self, alpha):
        return self._call('time_of_alpha', alpha=alpha)

    def sigma_range(self):
        return tuple(self._call('sigma_range'))

    def importance(self, t):
        return self._call('importance', t=t)

    def corrupt(self, x0, alpha):
        return self._call('corrupt', x0_bl=x0, alpha_b=alpha)

    def posterior(self, xt, alpha_t, alpha_s, p):
        return self._call('posterior', alpha_t, alpha_s, xt_n=xt, p_nv=p)

    def hidden(self, xt, sigma):
        return self._call('hidden', xt_bl=xt, sigma_b=sigma)

    def logits(self, hidden):
        return self._call('logits', hidden_nd=hidden)

    def weighted_nll(self, hidden, target, weight, banned=None):
        return self._call('weighted_nll', -1 if banned is None else banned, hidden_nd=hidden, target_n=target,
                          weight_n=weight)

    def log_x0(self, xt, t, rows):
        return self._call('log_x0', xt_bl=xt, t_b=t, rows_n=rows)

    def score(self, xt, t, rows):
        return self._call('score', xt_bl=xt, t_b=t, rows_n=rows)

    def uniforms(self, *shape):
        """Uniform numbers in (0, 1), float64, from the run's streams: the first size is that of the batch, and each sequence has its own."""
        return self._call('uniforms', *shape)

    def normals(self, *shape):
        """The same, standard normal numbers."""
        return self._call('normals', *shape)

    def progress(self, done, total, xt):
        self._call('progress', done, total, xt_bl=xt)

    def times(self, batch, t):
        return torch.full([batch], t, dtype=torch.float64, device=self.device)


# The host blocks signals on the threads that compute; the processes that Python starts must not inherit that. Copies made
# by fork have it lifted already.
def lifted(start):
    @functools.wraps(start)
    def call(*args, **named):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, [])
        try:
            return start(*args, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return call


for _module, _names in ((os, ('system', 'posix_spawn', 'posix_spawnp', 'execv', 'execve')),
                        (_posixsubprocess, ('fork_exec',)), (subprocess, ('_fork_exec',))):
    for _name in _names:
        if hasattr(_module, _name):
            setattr(_module, _name, lifted(getattr(_module, _name)))

objects, sources = {}, []


def make(name, kind, promises, options, context):
    file, colon, attribute = name.rpartition(':')
    if not colon:
        raise ValueError(f'`{name}` is not FILE:CLASS')
    if not os.path.isfile(file):
        raise FileNotFoundError(f'there is no file `{file}`')
    # The text itself and no bytecode of it, which is found by the second of its last change: a file is edited twice in one.
    called, path = f'maskdiff_plugin_{len(sources)}', os.path.abspath(file)
    loader = importlib.machinery.SourceFileLoader(called, path)
    spec = importlib.util.spec_from_loader(called, loader)
    module = importlib.util.module_from_spec(spec)
    sources.append(path)
    # As for a script: modules beside it can be imported.
    if os.path.dirname(sources[-1]) not in sys.path:
        sys.path.insert(0, os.path.dirname(sources[-1]))
    sys.modules[spec.name] = module
    exec(loader.source_to_code(loader.get_data(path), path), module.__dict__)
    if not hasattr(module, attribute):
        names = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == spec.name]
        raise AttributeError(f'`{file}` has no class `{attribute}`; it has {", ".join(names) or "none"}')
    for promise in promises:
        if getattr(getattr(module, attribute), promise, False) is not True:
            raise TypeError(f'`{attribute}` must say `{promise} = True`: other components rely on it (see the guide, page python)')
    device = 'cpu' if context['cuda'] is None else f'cuda:{context["cuda"]}'
    facts = {**context, 'kind': DTYPES[context['kind']], 'device': torch.device(device)}
    made = getattr(module, attribute)(types.SimpleNamespace(**facts), **options)
    if kind == 'backbone':
        made = network.Network(made, facts, backward.watch, 'label' in promises)
    number = len(objects) + 1
    while number in objects:
        number += 1
    objects[number] = (made, facts['device'])
    return number


def method(made, name):
    found = getattr(made, name, None)
    if found is None:
        said = {'error': f'`{type(made).__name__}` has no method `{name}`', 'kind': 'Unsupported', 'hint': ''}
        raise HostError(said)
    return found


def answer_to(request, tensors, host, lent):
    if 'make' in request:
        return make(request['make'], request['kind'], request['promises'], request['options'], request['context'])
    if 'drop' in request:
        objects.pop(request['drop'], None)
        return None
    made, device = objects[request['object']]

    def argument(word):
        if not isinstance(word, dict):
            return word
        if 'tensor' in word:
            return tensors[word['tensor']]
        if 'model' not in word:
            return word
        lent.append(Model(host, word['model'], device))
        return lent[-1]

    return method(made, request['method'])(*[argument(word) for word in request['arguments']])


def raised(error):
    """What was raised, with its traceback but for the lines of this file and of the import system."""
    ours = ('maskdiff/', '<frozen importlib')
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    trace = ''.join(['the traceback in Python:\n', *traceback.format_list(frames)]).rstrip() if frames else ''
    own = [f for f in frames if os.path.abspath(f.filename) in sources]
    place = f'{own[-1].filename}:{own[-1].lineno}' if own else ''
    if isinstance(error, HostError):
        hint = '\n'.join(part for part in (error.said['hint'], trace) if part)
        return {'message': str(error), 'chain': error.said.get('chain', []), 'kind': error.said['kind'],
                'traceback': hint, 'place': place}
    if isinstance(error, network.Broken):
        return {'message': str(error), 'kind': error.kind, 'traceback': trace, 'place': error.place}
    said = ''.join(traceback.format_exception_only(type(error), error)).strip()
    if hasattr(error, 'maskdiff_method'):
        said = f'`{error.maskdiff_method}`: {said}'
    # What fails before a line of the class has run is a matter of names and options.
    return {'message': said,
            'kind': 'Other' if frames else 'Config', 'traceback': trace, 'place': place}


@Call
def call(request, tensors, count, host, answer):
    held, lent = [], []
    try:
        value = answer_to(json.loads(request), [wrap(tensors[i]) for i in range(count)], host, lent)
        if isinstance(value, torch.Tensor):
            held, value = [value], None
        elif isinstance(value, tuple) and value and all(isinstance(part, torch.Tensor) for part in value):
            held, value = list(value), None
        elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], list) and value[1] \
                and all(isinstance(part, torch.Tensor) for part in value[1]):
            value, held = value
        said = json.dumps({'value': value}, default=repr, allow_nan=False)
    except BaseException as error:
        held, said = [], json.dumps({'raised': raised(error)})
    finally:
        for model in lent:
            model._host = None
    impls = (ctypes.c_void_p * max(1, len(held)))(*[tensor._cdata for tensor in held])
    take_answer(answer, said.encode(), impls, len(held))


# What a user prints comes out line by line: the process ends without Python's own farewell.
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True)
ctypes.c_void_p.from_address(SHARED).value = ctypes.cast(call, ctypes.c_void_p).value
