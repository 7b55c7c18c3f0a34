"""lm-eval over `maskdiff serve`.

`--model maskdiff` is lm-eval's `local-completions` but for one thing: likelihoods are asked of `/v1/loglikelihood`, where the context and the
continuation are told apart. The OpenAI shape cannot say where a context ends, so a server can only answer it with a chain from left to right.

    maskdiff serve RUN --port 8000
    python -m maskdiff_lm_eval run --model maskdiff --model_args model=RUN,base_url=http://127.0.0.1:8000/v1/completions --tasks TASK

More of `--model_args`: `likelihood` (`bound` or `duel`), `samples` (draws of the bound), `order` and `tokens_per_step` (of `duel`), and those of
`local-completions`. Without `tokenizer`, that of the server is used. A server with a key is given the one in `OPENAI_API_KEY`.
"""

import logging
import os
import time

import requests
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tqdm import tqdm

WAYS = ("likelihood", "samples", "order", "tokens_per_step")
# What a server answers that takes no more requests for the moment, and how often it is asked again.
BUSY, TRIES = (429, 503), 8
log = logging.getLogger(__name__)


@register_model("maskdiff")
class Maskdiff(LocalCompletionsAPI):
    """A model that `maskdiff serve` serves."""

    def __init__(self, base_url="http://127.0.0.1:8000/v1/completions", tokenizer_backend="remote", **options):
        self._way = {key: options.pop(key) for key in WAYS if key in options}
        if options.get("tokenizer"):
            tokenizer_backend = "huggingface"
        # The tokenizer of the server asks for the key too.
        if key := os.environ.get("OPENAI_API_KEY"):
            options.setdefault("auth_token", key)
        checks = options.get("verify_certificate", True)
        self._verify = options.get("ca_cert_path") or True if checks else False
        # Without it, lm-eval would cut texts at a length of its own.
        self._length = int(options.get("max_length") or known_length(base_url, options.get("header"), self._verify))
        # lm-eval takes one off for a token that is drawn behind each text, and none is drawn here.
        options["max_length"] = self._length + 1
        super().__init__(base_url=base_url, tokenizer_backend=tokenizer_backend, **options)

    def _loglikelihood_tokens(self, all_requests, disable_tqdm=False, **_):
        """Log-likelihoods of `(key, context, continuation)` with token ids; in the order in which they came."""
        url = self.base_url.rsplit("/v1/", 1)[0] + "/v1/loglikelihood"
        size = int(self._batch_size) if str(self._batch_size).isdigit() else 16
        found, errors, likelihood = [], [], None
        for first in tqdm(range(0, len(all_requests), size), disable=disable_tqdm, desc="likelihoods"):
            part = all_requests[first : first + size]
            # A tokenizer without BOS and EOS has no token for an empty context.
            known = lambda ids: [id for id in ids if id is not None]
            pairs = [cut(known(context), list(ids), self._length) for _, context, ids in part]
            pairs = [{"context": context, "continuation": ids} for context, ids in pairs]
            body = {"model": self.model, "seed": self._seed, "requests": pairs, **self._way}
            ask = lambda: requests.post(url, json=body, headers=self.header, timeout=self.timeout, verify=self._verify)
            answer = patient(ask).json()
            likelihood = answer.get("maskdiff", {}).get("likelihood", likelihood)
            for (key, _, _), one in zip(part, answer["results"]):
                errors.append(one.get("stderr") or 0.0)
                found.append((one["loglikelihood"], one["is_greedy"]))
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, found[-1])
        if found:
            log.info(
                "%d likelihoods by %s; standard error %.4f nats on average, %.4f at most",
                len(found), likelihood, sum(errors) / len(errors), max(errors),
            )
        return found

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """The text of a conversation: tasks cut it and add to it before it is sent."""
        if self.tokenizer_backend != "remote":
            return super().apply_chat_template(chat_history, add_generation_prompt)
        return self.tokenizer.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)


def known_length(base_url, header=None, verify=True):
    """Tokens that the served model knows."""
    url = base_url.rsplit("/v1/", 1)[0] + "/v1/models"
    key = os.environ.get("OPENAI_API_KEY", "")
    header = header or ({"Authorization": f"Bearer {key}"} if key else {})
    return patient(lambda: requests.get(url, headers=header, timeout=60, verify=verify)).json()["data"][0]["max_model_len"]


def cut(context, continuation, length):
    """A pair that the model has room for. As lm-eval does it, the beginning of the context goes first."""
    continuation = continuation[-length:]
    kept = length - len(continuation)
    return (context[-kept:] if kept else []), continuation


def patient(ask):
    """An answer of a server, which is asked again while it is busy."""
    for again in range(TRIES):
        answer = ask()
        if answer.status_code not in BUSY or again == TRIES - 1:
            break
        time.sleep(min(30.0, float(answer.headers.get("Retry-After", 1)) * 2**again))
    if not answer.ok:
        raise RuntimeError(f"{answer.url} answered {answer.status_code}: {answer.text[:500]}")
    return answer


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
