//! Programs that use `maskdiff serve`: the commands of the docs, the official client, lm-eval.

use std::path::Path;

use maskdiff_tests::run::shell;
use maskdiff_tests::served::{Server, chatting, folder};
use serde_json::{Value, json};

/// The commands of the docs, against a server of their own.
#[test]
fn the_commands_of_the_docs_work() {
    let text =
        std::fs::read_to_string(maskdiff_tests::root().join("docs/serve.md")).expect("the page");
    let server = Server::start(folder(), &["run", "sampling.predictor=first_hitting"]);
    let mut ran = 0;
    for block in text.split("```sh served\n").skip(1) {
        for line in block.split("```").next().expect("a block").lines() {
            let line = line.replace("127.0.0.1:8000", &format!("127.0.0.1:{}", server.port));
            let out = shell(folder(), &line.replacen("curl ", "curl --fail-with-body ", 1));
            out.expect(0);
            assert!(out.stdout.len() > 20, "{line}: {}", out.stdout);
            ran += 1;
        }
    }
    assert!(ran >= 10, "only {ran} commands");
}

/// The official client of OpenAI's API, where `scripts/setup.sh --serve` has installed it.
#[test]
fn the_official_client_reads_its_streams() {
    let Some(python) = maskdiff_tests::serve_clients() else {
        maskdiff_tests::skipped("no official client: `scripts/setup.sh --serve` installs it");
        return;
    };
    let server = chatting("tiny");
    let body = json!({"prompt": "Ben has a", "max_tokens": 12, "seed": 8});
    let whole = server.post("/v1/completions", &body).expect(200)["choices"][0]["text"].clone();
    let program = format!(
        r#"
from openai import OpenAI, BadRequestError, NotFoundError
client = OpenAI(base_url="http://127.0.0.1:{}/v1", api_key="none")
assert [m.id for m in client.models.list()] == ["tiny"]
assert client.models.retrieve("tiny").id == "tiny"
try:
    client.models.retrieve("other")
    raise SystemExit("there is no such model")
except NotFoundError:
    pass
said = [{{"role": "user", "content": "Ben has a"}}]
for seed in range(4):
    turn = dict(model="tiny", messages=said, max_tokens=12, seed=seed, logprobs=True, top_logprobs=2)
    answer = client.chat.completions.create(**turn).choices[0]
    with client.chat.completions.stream(**turn) as stream:
        kinds = [event.type for event in stream]
        last = stream.current_completion_snapshot.choices[0]
    assert last.message.role == "assistant", last
    assert last.message.content == answer.message.content, (last, answer)
    assert len(answer.logprobs.content) > 0 and last.logprobs.content == answer.logprobs.content
    assert last.finish_reason == answer.finish_reason and "content.delta" in kinds
whole = client.completions.create(model="tiny", prompt="Ben has a", max_tokens=12, seed=8)
stream = client.completions.create(model="tiny", prompt="Ben has a", max_tokens=12, seed=8, stream=True, extra_body={{"denoising": True}})
events = list(stream)
assert len(events) > 5, len(events)
text = "".join(e.choices[0].text for e in events)
assert text == whole.choices[0].text, (text, whole)
try:
    client.completions.create(model="tiny", prompt="Ben", extra_body={{"stepz": 3}})
    raise SystemExit("it was not refused")
except BadRequestError as error:
    assert "unknown key" in str(error), error
print(text, end="")
"#,
        server.port
    );
    let out = std::process::Command::new(python).args(["-c", &program]).output().expect("python");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout), whole.as_str().expect("a text"));
}

/// A client that waits where the server is busy, and cuts what the model has no room for: against a server of a few lines.
#[test]
fn the_package_is_patient_and_cuts_what_is_too_long() {
    let Some(python) = maskdiff_tests::serve_clients() else {
        maskdiff_tests::skipped("no lm-eval: `scripts/setup.sh --serve` installs it");
        return;
    };
    let program = r#"
import http.server, json, threading, time
from maskdiff_lm_eval import cut, known_length, patient
assert cut([1, 2, 3], [4, 5], 4) == ([2, 3], [4, 5])
assert cut([1, 2, 3], [4, 5], 2) == ([], [4, 5])
assert cut([1], [4, 5, 6], 2) == ([], [5, 6])
assert cut([], [4], 9) == ([], [4])
codes = [429, 503, 200]
class Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(codes.pop(0))
        self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"max_model_len": 64}]}).encode())
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1/completions"
assert known_length(url) == 64 and codes == []
codes[:] = [400]
try:
    known_length(url)
    raise SystemExit("it was not refused")
except RuntimeError as error:
    assert "answered 400" in str(error), error
"#;
    let mut command = std::process::Command::new(python);
    command.args(["-c", program]).env("PYTHONPATH", maskdiff_tests::root().join("python"));
    let out = command.output().expect("python");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Two tasks of lm-eval in a folder: `choice` of two continuations, and `write`.
fn tasks(folder: &Path) {
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write(
        "rows.jsonl",
        "{\"q\": \"Ben has a\", \"a\": [\" hat.\", \" farm.\"], \"gold\": 0}\n{\"q\": \"One day Ben\", \"a\": [\" walks\", \" hat\"], \"gold\": 1}\n",
    );
    let data = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n";
    write(
        "choice.yaml",
        &format!(
            "task: choice\n{data}output_type: multiple_choice\ndoc_to_text: \"{{{{q}}}}\"\ndoc_to_choice: \"{{{{a}}}}\"\ndoc_to_target: gold\ntarget_delimiter: \"\"\nmetric_list:\n  - metric: acc\n"
        ),
    );
    write(
        "write.yaml",
        &format!(
            "task: write\n{data}output_type: generate_until\ndoc_to_text: \"{{{{q}}}}\"\ndoc_to_target: \"{{{{a[0]}}}}\"\ngeneration_kwargs:\n  until: [\".\"]\n  max_gen_toks: 8\n  sampler: confidence\n  temperature: 0\nmetric_list:\n  - metric: exact_match\n"
        ),
    );
}

/// lm-eval over the package of `python/`, on tasks that lie beside it: likelihoods of the server, and generations of its sampler.
#[test]
fn lm_eval_gets_the_numbers_of_the_server() {
    let Some(python) = maskdiff_tests::serve_clients() else {
        maskdiff_tests::skipped("no lm-eval: `scripts/setup.sh --serve` installs it");
        return;
    };
    let at = tempfile::tempdir().expect("a folder");
    tasks(at.path());
    let server = chatting("tiny");
    let package = maskdiff_tests::root().join("python");
    let model = format!(
        "model=tiny,base_url=http://127.0.0.1:{}/v1/completions,likelihood=duel,order=left_to_right",
        server.port
    );
    let run = |module: &[&str], model: &str, tasks: &str, output: &str| {
        let wanted =
            ["--model_args", model, "--tasks", tasks, "--include_path", ".", "--log_samples"];
        let mut command = std::process::Command::new(&python);
        command.arg("-m").args(module).args(wanted).args([
            "--output_path",
            output,
            "--batch_size",
            "2",
        ]);
        command.current_dir(at.path()).env("PYTHONPATH", &package).env("HF_HUB_OFFLINE", "1");
        command.env("HF_DATASETS_OFFLINE", "1").env("HF_HOME", at.path().join("home"));
        let out = command.output().expect("lm-eval");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{}{}", said(&out.stdout), said(&out.stderr));
        samples(&at.path().join(output))
    };
    let plain = model.split(",likelihood").next().expect("the model");
    let plain = format!("{plain},tokenizer_backend=remote");
    let talk = plain.replace("/v1/completions", "/v1/chat/completions");
    let talk = talk.replace(",tokenizer_backend=remote", "");
    // Most of their time is their imports.
    let (run, model) = (&run, &model);
    let (ours, theirs, turns) = std::thread::scope(|scope| {
        let own = ["maskdiff_lm_eval", "run", "--model", "maskdiff"];
        let ours = scope.spawn(move || run(&own, model, "choice,write", "ours"));
        let module = ["lm_eval", "run", "--model", "local-completions"];
        let theirs = run(&module, &plain, "choice,write", "theirs");
        let module =
            ["lm_eval", "run", "--model", "local-chat-completions", "--apply_chat_template"];
        let turns = run(&module, &talk, "write", "turns");
        (ours.join().expect("samples"), theirs, turns)
    });
    let numbers = |all: &[Value]| -> Vec<f64> {
        let of = |one: &Value| one["filtered_resps"].as_array().cloned().unwrap_or_default();
        let number = |pair: Value| pair[0].as_f64().or_else(|| pair[0].as_str()?.parse().ok());
        all.iter().flat_map(of).filter_map(number).collect()
    };
    let (ours_numbers, theirs_numbers) = (numbers(&ours), numbers(&theirs));
    assert_eq!((ours_numbers.len(), theirs_numbers.len()), (4, 4), "{ours:?}");
    for (one, other) in ours_numbers.iter().zip(&theirs_numbers) {
        assert!(
            (one - other).abs() < 1e-3,
            "the chain is the same whoever cuts it: {ours_numbers:?} {theirs_numbers:?}"
        );
    }
    let body = json!({"likelihood": "duel", "order": "left_to_right", "requests": [{"context": "Ben has a", "continuation": " hat."}]});
    let direct =
        server.post("/v1/loglikelihood", &body).expect(200)["results"][0]["loglikelihood"].as_f64();
    assert!(
        (direct.expect("a number") - ours_numbers[0]).abs() < 1e-4,
        "{direct:?} {ours_numbers:?}"
    );
    written_alike(&server, [&ours, &theirs], &turns);
    asked_directly(&python, &server);
}

/// A text without a context, a whole text, and a conversation, by the class that lm-eval uses.
fn asked_directly(python: &Path, server: &Server) {
    let program = r#"
import sys
from lm_eval.api.instance import Instance
from maskdiff_lm_eval import Maskdiff
model = Maskdiff(model="tiny", base_url=sys.argv[1], likelihood="duel", order="left_to_right")
ask = lambda kind, *words: [Instance(kind, {}, words, 0)]
[(whole, greedy)] = model.loglikelihood(ask("loglikelihood", "", "Ben has a hat."))
[rolled] = model.loglikelihood_rolling(ask("loglikelihood_rolling", "Ben has a hat."))
assert whole < 0 and abs(whole - rolled) < 1e-4, (whole, rolled)
said = model.apply_chat_template([{"role": "user", "content": "Ben has a"}])
assert isinstance(said, str) and "Ben has a" in said, said
[(answer, _)] = model.loglikelihood(ask("loglikelihood", said, "hat."))
assert answer < 0, answer
"#;
    let url = format!("http://127.0.0.1:{}/v1/completions", server.port);
    let mut command = std::process::Command::new(python);
    command.args(["-c", program, &url]);
    command.env("PYTHONPATH", maskdiff_tests::root().join("python"));
    let out = command.output().expect("python");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Whoever writes them, generations are those of the server with the sampler that the task names; those of turns are turns.
fn written_alike(server: &Server, texts: [&Vec<Value>; 2], turns: &[Value]) {
    let drawn = json!({"max_tokens": 8, "sampler": "confidence", "temperature": 0, "stop": "."});
    let mut body = drawn.clone();
    body["prompt"] = json!("Ben has a");
    let text = server.post("/v1/completions", &body).expect(200)["choices"][0]["text"].clone();
    let mut body = drawn;
    body["messages"] = json!([{"role": "user", "content": "Ben has a"}]);
    let turn = server.post("/v1/chat/completions", &body).expect(200);
    let turn = turn["choices"][0]["message"]["content"].clone();
    for (all, text) in [(&texts[0][..], &text), (&texts[1][..], &text), (turns, &turn)] {
        let is_written = |one: &&Value| {
            let asked = one["arguments"].to_string();
            asked.contains("until") && asked.contains("Ben has a")
        };
        let written = all.iter().find(is_written).expect("a generation");
        assert_eq!(&written["filtered_resps"][0], text, "{written}");
    }
}

/// The lines of the samples that lm-eval logged below a folder.
fn samples(folder: &Path) -> Vec<Value> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(samples(&path));
        } else if path.extension().is_some_and(|ending| ending == "jsonl") {
            let text = std::fs::read_to_string(&path).expect("a file");
            all.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")));
        }
    }
    all
}
