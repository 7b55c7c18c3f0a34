"""A model in a process beside this one, `maskdiff serve` on the loopback interface."""
from __future__ import annotations

import collections
import dataclasses
import http.client
import json
import os
import secrets
import subprocess
import threading
import typing
import urllib.error
import urllib.request
import weakref

from . import _program, _tensors

if typing.TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that was drawn."""

    text: str
    """With its prompt."""
    ids: list[int]
    """Its tokens, the prompt's among them."""
    seed: int
    number: int
    """`seed` and `number` draw it again."""
    calls: float
    """Network calls."""

    def __str__(self) -> str:
        return self.text


def _end(process, readers):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for reader in readers:
        reader.join(1)
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def _listening(process):
    """The address that the server says it listens at; None where it ends before."""
    for line in process.stdout:
        try:
            return json.loads(line)["listening"]
        except (ValueError, KeyError, TypeError):
            # A class in Python may print while it is made.
            continue
    return None


def _kept(pipe):
    """The last lines of a pipe, which is read all the time: a full one would stop the server."""
    lines = collections.deque(maxlen=40)

    def read():
        for line in pipe:
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader, lines


# The limits of a server are for strangers, and this one has none.
_OWN_LIMITS = ["--max-texts", "100000", "--queue", "100000", "--max-body", "1000000", "--timeout", "10000000", "--grace", "1"]

# What is sent to this machine goes through no proxy.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Model:
    """A checkpoint that answers; made by `maskdiff.load`. It ends with its `with` block, by `close()`, or with this program."""

    def __init__(self, checkpoint: str | os.PathLike, settings: typing.Sequence[str] = (), trust: bool = False):
        # A key of our own: other users of this machine may reach the port too.
        self._key = secrets.token_urlsafe(24)
        words = ["serve", os.fspath(checkpoint), "--port", "0", "--format", "json", "--quiet", *_OWN_LIMITS, *settings]
        process = _program.start(words + (["--trust"] if trust else []), self._key)
        said, self._said = _kept(process.stderr)
        self.close = weakref.finalize(self, _end, process, [said])
        try:
            self._address = _listening(process)
        except BaseException:
            self.close()
            raise
        if self._address is None:
            self.close()
            raise _program.Error("".join(self._said).strip() or f"maskdiff ended with code {process.returncode}")
        self._printed = _kept(process.stdout)
        # What the model is, asked for once.
        self._facts = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self, path, body):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, headers)
        try:
            return _direct.open(request)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                text = json.loads(text)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                pass
            raise _program.Error(text) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None

    def _gone(self, error):
        last = "".join(self._said).strip()
        reason = getattr(error, "reason", error)
        return _program.Error(f"the model does not answer (was it closed?): {reason}" + (f"\nits last words: {last}" if last else ""))

    def _ask(self, path, body):
        try:
            with self._open(path, body) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None

    def _fact(self, name: str) -> typing.Any:
        if self._facts is None:
            with self._open("/v1/models", None) as answer:
                self._facts = json.load(answer)["data"][0]["maskdiff"]
            with self._open("/tokenizer_info", None) as answer:
                self._facts["mask_id"] = json.load(answer)["mask_token_id"]
        return self._facts[name]

    @property
    def length(self) -> int:
        """Tokens that the model reads at most."""
        return self._fact("length")

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, the mask among them."""
        return self._fact("vocab_size")

    @property
    def mask_id(self) -> int:
        """The id of the mask, a hole in a text."""
        return self._fact("mask_id")

    @property
    def samplers(self) -> list[str]:
        """The samplers that fit the model, by name."""
        return self._fact("samplers")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self._ask("/tokenize", {"prompt": text})["tokens"]

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens."""
        return self._ask("/detokenize", {"tokens": [int(id) for id in ids]})["prompt"]

    def logits(self, x: torch.Tensor | list, t: torch.Tensor | list | float) -> torch.Tensor:
        """The network's logits [B, L, V] at noisy tokens `x` [B, L] and times `t`: one, or one for each text, from 0 (data) to 1 (noise).

        A hole is `mask_id`. For `x` [L] they are [L, V]. They are on the CPU, in float32 (float64 of a network in double precision), and
        without gradients: the network is in another process. They arrive as bytes, which are read into the tensor's own memory.
        """
        return self._table(x, t, law=False)

    def log_x0(self, x: torch.Tensor | list, t: torch.Tensor | list | float) -> torch.Tensor:
        """log p(x0 | xt) of the parameterization, of the shape of `logits`: normalized over the vocabulary; a token that is known is certain."""
        return self._table(x, t, law=True)

    def _table(self, x, t, law):
        ids, times, single = _tensors.texts_and_times(x, t)
        try:
            made = _tensors.gather(lambda body: self._open("/v1/logits", body), ids, times, self.vocab_size, law=law)
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        return made[0] if single else made

    def sample(self, prompt: str | list | None = None, *, n: int = 1, seed: int | None = None, max_tokens: int | None = None,
               **options) -> list[Text]:
        """`n` texts (`Text`), the same as those of `maskdiff sample` with that seed.

        `prompt` is a text, which may have holes (`[MASK:3]`), or token ids. `options` are those of the sampler: `steps`, `temperature`,
        `sampler="confidence"`, ..., and the keys of `/v1/completions`.
        """
        body = {"prompt": prompt, "n": n, "seed": seed, "max_tokens": max_tokens, "echo": True, **options}
        answer = self._ask("/v1/completions", {key: value for key, value in body.items() if value is not None})
        made = [(choice["text"], choice["maskdiff"]) for choice in answer["choices"]]
        return [Text(text, of["ids"], of["seed"], of["number"], of["calls"]) for text, of in made]

    def trace(self, prompt: str | list | None = None, **options) -> list[dict]:
        """One text as it comes about: for each step a dict with `step`, `steps`, `opened` (`[position, id, text]` each) and `masked`."""
        body = {"stream": True, "denoising": True, **({} if prompt is None else {"prompt": prompt}), **options}
        steps = []
        with self._open("/v1/completions", body) as events:
            for line in events:
                data = line.decode().partition("data:")[2].strip()
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise _program.Error(event["error"]["message"])
                of = event.get("maskdiff") or (event["choices"][0].get("maskdiff") if event.get("choices") else None)
                if of and "opened" in of:
                    steps.append(of)
        return steps

    def loglikelihood(self, texts: list[str], contexts: list[str] | None = None, likelihood: str | None = None, **options) -> list[float]:
        """log p of each text in nats, behind its context where there are some.

        `likelihood` is `"bound"` or `"duel"`; options: `samples`, `order`, `tokens_per_step`.
        """
        for name, given in (("texts", texts), ("contexts", contexts)):
            if isinstance(given, (str, bytes)):
                raise TypeError(f"`{name}` is one text, expected a list of texts")
        contexts = [""] * len(texts) if contexts is None else contexts
        requests = [{"context": context, "continuation": text} for context, text in zip(contexts, texts, strict=True)]
        body = {"requests": requests, **({} if likelihood is None else {"likelihood": likelihood}), **options}
        return [result["loglikelihood"] for result in self._ask("/v1/loglikelihood", body)["results"]]
