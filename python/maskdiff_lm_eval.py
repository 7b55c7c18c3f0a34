"""lm-eval over `maskdiff serve`.

`--model maskdiff` is lm-eval's `local-completions` but for one thing: likelihoods are asked of `/v1/loglikelihood`, where the context and the
continuation are told apart. The OpenAI shape cannot say where a context ends, so a server can only answer it with a chain from left to right.

    maskdiff serve RUN --port 8000
    python -m maskdiff_lm_eval run --model maskdiff --model_args model=RUN,base_url=http://127.0.0.1:8000/v1/completions --tasks TASK

More of `--model_args`: `likelihood` (`bound` or `duel`), `samples` (draws of the bound), `order` and `tokens_per_step` (of `duel`), and those of
`local-completions`. Without `tokenizer`, that of the server is used.
"""

import requests
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tqdm import tqdm

WAYS = ("likelihood", "samples", "order", "tokens_per_step")


@register_model("maskdiff")
class Maskdiff(LocalCompletionsAPI):
    """A model that `maskdiff serve` serves."""

    def __init__(self, base_url="http://127.0.0.1:8000/v1/completions", tokenizer_backend="remote", **options):
        self._way = {key: options.pop(key) for key in WAYS if key in options}
        if options.get("tokenizer"):
            tokenizer_backend = "huggingface"
        super().__init__(base_url=base_url, tokenizer_backend=tokenizer_backend, **options)

    def _loglikelihood_tokens(self, all_requests, disable_tqdm=False, **_):
        """Log-likelihoods of `(key, context, continuation)` with token ids; in the order in which they came."""
        url = self.base_url.rsplit("/v1/", 1)[0] + "/v1/loglikelihood"
        size = int(self._batch_size) if str(self._batch_size).isdigit() else 16
        found = []
        for first in tqdm(range(0, len(all_requests), size), disable=disable_tqdm, desc="likelihoods"):
            part = all_requests[first : first + size]
            pairs = [{"context": list(context), "continuation": list(ids)} for _, context, ids in part]
            body = {"model": self.model, "seed": self._seed, "requests": pairs, **self._way}
            answer = requests.post(url, json=body, headers=self.header, timeout=self.timeout)
            if not answer.ok:
                raise RuntimeError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
            for (key, _, _), one in zip(part, answer.json()["results"]):
                found.append((one["loglikelihood"], one["is_greedy"]))
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
