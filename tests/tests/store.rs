//! Checkpoints in an object store, against a real server of the S3 protocol (moto), which the test starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::run::{Output, SMALL, command, finish};

/// A running server; ended with the test.
struct Server {
    python: PathBuf,
    process: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Option<Self> {
        let Some(python) = maskdiff_tests::moto() else {
            maskdiff_tests::skipped("no moto, which `scripts/setup.sh --s3` installs");
            return None;
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let mut command = Command::new(&python);
        // The third part of a file below `refused` cannot be written.
        let script = format!(
            "from moto.server import DomainDispatcherApplication, create_backend_app\n\
             from werkzeug.serving import run_simple\n\
             inner = DomainDispatcherApplication(create_backend_app)\n\
             def app(environ, start):\n    \
                 if 'partNumber=3' in environ['QUERY_STRING'] and '/refused/' in environ['PATH_INFO']:\n        \
                     start('403 Forbidden', [('Content-Length', '0')])\n        \
                     return [b'']\n    \
                 return inner(environ, start)\n\
             run_simple('127.0.0.1', {port}, app, threaded=True)"
        );
        command.args(["-c", &script]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("moto");
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "moto does not listen");
            std::thread::sleep(Duration::from_millis(100));
        }
        let this = Self { python, process, url: format!("http://127.0.0.1:{port}") };
        this.ask("s3.create_bucket(Bucket='runs')");
        Some(this)
    }

    /// Runs a line of Python with a client `s3`; gives what it prints.
    fn ask(&self, line: &str) -> String {
        let url = &self.url;
        let script = format!(
            "import boto3\ns3 = boto3.client('s3', endpoint_url='{url}', region_name='us-east-1', \
             aws_access_key_id='key', aws_secret_access_key='secret')\n{line}"
        );
        let said = Command::new(&self.python).args(["-c", &script]).output().expect("python");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    fn keys(&self) -> Vec<String> {
        let line = "print('\\n'.join(o['Key'] for o in s3.list_objects_v2(Bucket='runs').get('Contents', [])))";
        self.ask(line).lines().map(str::to_string).collect()
    }

    fn train(&self, folder: &Path, more: &[&str]) -> Output {
        let mut command = command(folder, &[&["train"], SMALL, more].concat());
        command.env("AWS_ENDPOINT_URL", &self.url).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
        finish(command.env("AWS_REGION", "us-east-1"))
    }
}

#[test]
fn a_run_goes_on_from_the_store_when_its_machine_is_gone() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let base =
        ["model.dropout=0.2", "checkpointing.every_n_steps=3", "trainer.val_check_interval=0"];
    let whole = [&base[..], &["run.dir=whole", "trainer.max_steps=12"]].concat();
    server.train(folder.path(), &whole).expect(0);
    let words = [
        &base[..],
        &[
            "run.dir=run",
            "checkpointing.resume_from_ckpt=true",
            "checkpointing.mirror=s3://runs/some/run",
        ],
    ]
    .concat();
    let go = |steps: &str| server.train(folder.path(), &[&words[..], &[steps]].concat());
    // Of what waits for a slow store only the newest and the best are copied: an end waits for all.
    go("trainer.max_steps=6").expect(0);
    go("trainer.max_steps=7").expect(0);
    let keys = server.keys();
    let has = |key: &str| keys.iter().any(|k| k == &format!("some/run/{key}"));
    assert!(has("last") && has("best") && has("step-00000007/state.json"), "{keys:?}");
    assert!(has("step-00000006/model.safetensors") && !has("step-00000003/state.json"), "{keys:?}");
    assert!(!has("probe"));
    // Another machine: nothing of the run is there.
    fs::remove_dir_all(folder.path().join("run")).expect("the run is gone");
    let out = go("trainer.max_steps=9");
    out.expect(0).says(&["fetched `s3://runs/some/run/step-00000007`", "resuming after step 7"]);
    // One that arrives damaged is passed over, one that was cut off does not count.
    server.ask(
        "s3.put_object(Bucket='runs', Key='some/run/step-00000009/model.safetensors', Body=b'x')",
    );
    server.ask(
        "s3.put_object(Bucket='runs', Key='some/run/step-00000099/model.safetensors', Body=b'x')",
    );
    fs::remove_dir_all(folder.path().join("run")).expect("the run is gone");
    let out = go("trainer.max_steps=12");
    out.expect(0).says(&["is damaged", "fetched `s3://runs/some/run/step-00000007`"]);
    let weights = |run: &str| {
        fs::read(folder.path().join(run).join("checkpoints/last/model.safetensors"))
            .expect("weights")
    };
    assert!(weights("run") == weights("whole"), "bit for bit");
    // The newest one here is damaged, and whole there.
    let newest = folder.path().join("run/checkpoints/step-00000012/model.safetensors");
    fs::write(&newest, b"half a file").expect("the checkpoint of step 12");
    go("trainer.max_steps=12").expect(0).says(&[
        "is damaged; it is set aside as",
        "fetched `s3://runs/some/run/step-00000012`",
        "the run is complete",
    ]);
    assert!(weights("run") == weights("whole"), "bit for bit");
}

#[test]
fn large_files_go_in_parts() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    // 6.5 million parameters: moments of 52 MB, parts of 8 MiB.
    let words = [
        "model.hidden_size=512",
        "model.n_blocks=2",
        "trainer.max_steps=2",
        "loader.global_batch_size=2",
        "run.dir=run",
        "checkpointing.mirror=s3://runs/large",
    ];
    server.train(folder.path(), &words).expect(0);
    let local = folder.path().join("run/checkpoints/last/optimizer.safetensors");
    let size = fs::metadata(local).expect("the file").len();
    let line = "print(s3.head_object(Bucket='runs', Key='large/step-00000002/optimizer.safetensors')['ContentLength'])";
    assert!(size > 32 << 20, "{size}");
    assert_eq!(server.ask(line).trim(), size.to_string());
    fs::remove_dir_all(folder.path().join("run")).expect("the run is gone");
    let again =
        [&words[..], &["checkpointing.resume_from_ckpt=true", "trainer.max_steps=3"]].concat();
    server.train(folder.path(), &again).expect(0).says(&["resuming after step 2"]);
}

#[test]
fn a_store_that_cannot_be_written_is_refused_before_the_first_step() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    for (mirror, said, code) in [
        ("s3://nowhere/run", "NoSuchBucket", 5),
        ("ftp://runs/run", "there is no store for `ftp://`", 2),
        ("runs/run", "relative URL", 2),
    ] {
        let word = format!("checkpointing.mirror={mirror}");
        let out = server.train(folder.path(), &["run.dir=run", &word]);
        out.expect(code).says(&[&format!("`{word}`"), said]);
    }
    assert!(!folder.path().join("run").exists());
}

/// Parts of a file that was not written to its end would stay in the store, and be paid for.
#[test]
fn a_file_that_fails_leaves_no_parts() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let words = [
        "model.hidden_size=512",
        "model.n_blocks=2",
        "trainer.max_steps=2",
        "loader.global_batch_size=2",
        "run.dir=run",
        "checkpointing.mirror=s3://runs/refused",
    ];
    // The run itself is whole.
    server
        .train(folder.path(), &words)
        .expect(0)
        .says(&["warning: cannot write into `s3://runs/refused`"]);
    let line = "print(len(s3.list_multipart_uploads(Bucket='runs').get('Uploads', [])))";
    assert_eq!(server.ask(line).trim(), "0");
}
