//! Files of text as users have them: packed, in folders of folders, marked, written by other programs, with columns that are no text.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use maskdiff_tests::corpora::{Column, sentence, write_parquet};
use maskdiff_tests::run::{Output, maskdiff};

fn build(at: &Path, words: &[&str]) -> Output {
    let base = [
        "data",
        "build",
        "data.tokenizer_name_or_path=char",
        "data.insert_special=none",
        "model.length=16",
    ];
    maskdiff(at, &[&base[..], words].concat())
}

fn documents(out: &Output) -> u64 {
    out.expect(0).lines()[0]["packed"]["documents"].as_u64().expect("a number")
}

fn json(from: u64, to: u64) -> String {
    (from..to).map(|i| format!("{{\"text\": \"{}\", \"score\": NaN}}\n", sentence(i))).collect()
}

/// Packs a file with a program that users have.
fn packed(program: &str, text: &str, to: &Path) -> bool {
    let out = fs::File::create(to).expect("a file");
    let child = Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(out).spawn();
    let Ok(mut child) = child else {
        maskdiff_tests::skipped(&format!("there is no {program}"));
        return false;
    };
    let mut to = child.stdin.take().expect("its input");
    std::io::Write::write_all(&mut to, text.as_bytes()).expect("written");
    drop(to);
    child.wait().expect("its end").success()
}

#[test]
fn packed_files_are_read_and_nothing_is_left_out_in_silence() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir_all(at.join("f/year=1/month=2")).expect("folders");
    if !packed("gzip", &json(0, 40), &at.join("f/a.jsonl.gz")) {
        return;
    }
    fs::write(at.join("f/b.jsonl"), json(40, 80)).expect("written");
    fs::write(at.join("f/year=1/month=2/c.json"), json(80, 90)).expect("written");
    fs::write(at.join("f/notes.md"), "nothing to read").expect("written");
    let made = build(at, &["data=jsonl", "data.path=f"]);
    assert_eq!(documents(&made), 90);
    made.says(&["of `f` 3 files are read and 1 left out: 1 `.md`"]);
    // By its bytes, whatever its name; and in a list.
    fs::copy(at.join("f/a.jsonl.gz"), at.join("bare")).expect("copied");
    assert_eq!(documents(&build(at, &["data=jsonl", "data.path=bare"])), 40);
    assert_eq!(documents(&build(at, &["data=jsonl", "data.path=[bare,f/b.jsonl]"])), 80);
    let text: String = (0..40).map(|i| sentence(i) + "\n").collect();
    if packed("gzip", &text, &at.join("t.txt.gz")) {
        let lines = build(at, &["data=text", "data.path=t.txt.gz", "data.documents=line"]);
        assert_eq!(documents(&lines), 40);
        assert_eq!(documents(&build(at, &["data=text", "data.path=t.txt.gz"])), 1);
    }
    // What is cut off or packed otherwise is no text, even to those who mend.
    let whole = fs::read(at.join("t.txt.gz")).expect("a file");
    fs::write(at.join("cut.txt.gz"), &whole[..whole.len() / 2]).expect("written");
    fs::write(at.join("x.txt.bz2"), b"BZh91AY&SY and more").expect("written");
    fs::write(at.join("x.txt"), b"\xfd7zXZ\0 and more").expect("written");
    let text = |file: &str| {
        build(at, &["data=text", &format!("data.path={file}"), "data.on_invalid=replace"])
    };
    text("cut.txt.gz").expect(2).says(&["`cut.txt.gz` is no whole gzip file"]);
    text("x.txt.bz2").expect(2).says(&["`x.txt.bz2` is no text but packed by bzip2", "gzip"]);
    fs::write(at.join("wide.txt"), b"\xff\xfea\0b\0").expect("written");
    text("wide.txt").expect(2).says(&["`wide.txt` is not UTF-8 but UTF-16 text"]);
    let skipped = ["data=text", "data.path=wide.txt", "data.on_invalid=skip"];
    build(at, &skipped).expect(2).says(&["its documents were left out as no valid text"]);
    text("x.txt").expect(2).says(&["`x.txt` is no text but packed by xz"]);
}

/// Files of users' reports.
#[test]
fn files_of_reports_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports");
    let path = |name: &str| format!("data.path={}", place.join(name).display());
    for (name, expected) in [("packed", 80), ("packed/a.jsonl.gz", 40), ("rows.jsonl", 40)] {
        let out = build(at, &["data=jsonl", &path(name)]);
        assert_eq!(documents(&out), expected, "{name}");
    }
    build(at, &["data=parquet", &path("messages.parquet")])
        .expect(2)
        .says(&["`text` is no column of", "no column there has a text in each row"]);
    build(at, &["data=parquet", &path("messages.parquet"), "data.column=messages"])
        .expect(2)
        .says(&["a list"]);
}

/// Conversations are files as other texts are.
#[test]
fn packed_conversations_are_read_and_the_rest_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir(at.join("f")).expect("a folder");
    let rows = |from: u64| {
        let row =
            |i| format!("{{\"prompt\": \"Hi\", \"response\": \"{}\", \"w\": NaN}}\n", sentence(i));
        (from..from + 20).map(row).collect::<String>()
    };
    if !packed("gzip", &rows(0), &at.join("f/a.jsonl.gz")) {
        return;
    }
    fs::write(at.join("f/b.jsonl"), rows(20)).expect("written");
    fs::write(at.join("f/notes.md"), "nothing to read").expect("written");
    let letters: String = (0..40).map(sentence).collect::<String>() + "Hi";
    fs::write(at.join("letters.txt"), letters).expect("written");
    let first = [
        "train",
        "data=text",
        "data.path=letters.txt",
        "run.dir=first",
        "trainer.max_steps=0",
        "sampling.num_sample_log=0",
        "trainer.accelerator=cpu",
        "model=nano",
        "model.length=16",
    ];
    maskdiff(at, &first).expect(0);
    let words = [
        "train",
        "training.from=first",
        "data=sft",
        "data.path=f",
        "data.valid_path=f/b.jsonl",
        "data.answer_filling=false",
        "run.dir=run",
        "trainer.max_steps=0",
        "sampling.num_sample_log=0",
        "trainer.accelerator=cpu",
    ];
    maskdiff(at, &words).expect(0).says(&[
        "of `f` 2 files are read and 1 left out: 1 `.md`",
        "warning: `f/b.jsonl` is trained on and validated on",
    ]);
    let manifest = fs::read_to_string(at.join("run/manifest.json")).expect("a file");
    assert!(manifest.contains("f/a.jsonl.gz"), "{manifest}");
}

#[test]
fn what_is_trained_on_and_measured_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let text: String = (0..80).map(|i| sentence(i) + "\n").collect();
    fs::write(at.join("a.txt"), text).expect("written");
    let made = build(at, &["data=text", "data.path=a.txt", "data.valid_path=./a.txt"]);
    made.expect(0).says(&["warning: `./a.txt` is trained on and validated on"]);
    build(at, &["data=text", "data.path=[a.txt,lost.txt]"])
        .expect(2)
        .says(&["`lost.txt`: No such file"]);
    build(at, &["data=text", "data.path=[]"]).expect(2).says(&["no file is named"]);
}

#[test]
fn only_columns_that_can_be_chosen_are_offered() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let texts = (0..40).map(|i| Some(sentence(i))).collect();
    let columns = [Column::Texts("body", texts), Column::Numbers("text", (0..40).collect())];
    write_parquet(&at.join("a.parquet"), &columns, 10);
    let base = ["data=parquet", "data.path=a.parquet"];
    build(at, &base).expect(2).says(&[
        "`text` is no column of texts of `a.parquet`, but whole numbers",
        "columns there: body; choose one",
    ]);
    assert_eq!(documents(&build(at, &[&base[..], &["data.column=body"]].concat())), 40);
    write_parquet(&at.join("a.parquet"), &[Column::Numbers("n", (0..40).collect())], 10);
    build(at, &base)
        .expect(2)
        .says(&["`text` is no column of `a.parquet`", "no column there has a text in each row"]);
}
