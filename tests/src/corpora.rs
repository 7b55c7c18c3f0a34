//! Small corpora in the schemas of the real ones, as a stand-in for the hub serves them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::golden;
use crate::hub::OWNER;

/// A column of texts, a null where there is none; or of numbers.
pub enum Column<'a> {
    /// Texts.
    Texts(&'a str, Vec<Option<String>>),
    /// Numbers.
    Numbers(&'a str, Vec<i64>),
}

/// Writes a parquet file with rows in groups of `group`.
pub fn write_parquet(path: &Path, columns: &[Column<'_>], group: usize) {
    let field = |column: &Column<'_>| match column {
        Column::Texts(name, _) => format!("optional binary {name} (UTF8);"),
        Column::Numbers(name, _) => format!("required int64 {name};"),
    };
    let fields: String = columns.iter().map(field).collect();
    let schema = parse_message_type(&format!("message schema {{ {fields} }}")).expect("a schema");
    fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    let file = fs::File::create(path).expect("a file");
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), properties).expect("a writer");
    let rows = match &columns[0] {
        Column::Texts(_, texts) => texts.len(),
        Column::Numbers(_, numbers) => numbers.len(),
    };
    for start in (0..rows).step_by(group.max(1)) {
        let end = rows.min(start + group);
        let mut rows = writer.next_row_group().expect("a group");
        for column in columns {
            let mut writing = rows.next_column().expect("a column").expect("another column");
            match column {
                Column::Texts(_, texts) => {
                    let there: Vec<i16> =
                        texts[start..end].iter().map(|t| i16::from(t.is_some())).collect();
                    let texts = texts[start..end].iter().flatten();
                    let values: Vec<ByteArray> =
                        texts.map(|t| ByteArray::from(t.as_str())).collect();
                    let typed = writing.typed::<ByteArrayType>();
                    typed.write_batch(&values, Some(&there), None).expect("written");
                }
                Column::Numbers(_, numbers) => {
                    let typed = writing.typed::<Int64Type>();
                    typed.write_batch(&numbers[start..end], None, None).expect("written");
                }
            }
            writing.close().expect("closed");
        }
        rows.close().expect("closed");
    }
    writer.close().expect("closed");
}

/// A sentence for each number, all different.
pub fn sentence(number: u64) -> String {
    format!(" the {number} th stone 's colour , which was N then , is {} . ", number * 7919 % 97)
}

fn texts(from: u64, n: u64) -> Vec<Option<String>> {
    (from..from + n).map(|i| Some(sentence(i))).collect()
}

/// Fills `root` with every corpus that has a name and the tokenizers of `gpt2` and `bert-base-uncased`, for
/// [`crate::hub::Hub`].
pub fn fill(root: &Path) {
    let put = |path: &str, columns: &[Column<'_>]| {
        write_parquet(&root.join("datasets").join(path), columns, 50)
    };
    let plain = |path: &str, from, n| put(path, &[Column::Texts("text", texts(from, n))]);
    for name in ["wikitext-2-raw-v1", "wikitext-103-raw-v1"] {
        for (part, from) in [("train", 0), ("validation", 1000), ("test", 2000)] {
            plain(&format!("Salesforce/wikitext/{name}/{part}-00000-of-00001.parquet"), from, 120);
        }
    }
    // The last 100,000 rows of the corpus are held out.
    for (file, n) in [(0, 60_000), (1, 40_200)] {
        let path = format!("Skylion007/openwebtext/data/train-{file:05}-of-00002.parquet");
        let texts = (0..n).map(|i| Some(format!("page {i}"))).collect();
        write_parquet(&root.join("datasets").join(path), &[Column::Texts("text", texts)], 20_000);
    }
    let converted = "@refs--convert--parquet";
    for (part, from) in [("train", 0), ("test", 5000)] {
        plain(
            &format!("billion-word-benchmark/lm1b{converted}/plain_text/{part}/0000.parquet"),
            from,
            150,
        );
    }
    for (part, from) in [("train", 0), ("validation", 5000), ("test", 6000)] {
        let path =
            format!("ptb-text-only/ptb_text_only{converted}/penn_treebank/{part}/0000.parquet");
        put(&path, &[Column::Texts("sentence", texts(from, 100))]);
    }
    plain(&format!("EleutherAI/lambada_openai{converted}/default/test/0000.parquet"), 0, 100);
    for (part, from) in [("train", 0), ("test", 5000)] {
        let path = format!("fancyzhx/ag_news/data/{part}-00000-of-00001.parquet");
        let labels = (0..100).map(|i| i % 4).collect();
        put(&path, &[Column::Texts("text", texts(from, 100)), Column::Numbers("label", labels)]);
    }
    for name in ["arxiv", "pubmed"] {
        for (part, from) in [("partial-train", 0), ("validation", 5000), ("test", 6000)] {
            let path = format!("armanc/scientific_papers{converted}/{name}/{part}/0000.parquet");
            put(
                &path,
                &[
                    Column::Texts("article", texts(from, 60)),
                    Column::Texts("abstract", texts(from, 60)),
                    Column::Texts("section_names", texts(from, 60)),
                ],
            );
        }
    }
    for (repo, folder) in [("gpt2", "tok_gpt2"), ("bert-base-uncased", "bert-base-uncased")] {
        // With its owner for ours, without for a stand-in that knows no other names.
        for place in [format!("{OWNER}/{repo}"), repo.to_string()] {
            let place = root.join("models").join(place);
            fs::create_dir_all(&place).expect("folders");
            for file in fs::read_dir(golden().join("h_pipeline").join(folder)).expect("a tokenizer")
            {
                let file = file.expect("a file");
                let content = fs::read(file.path()).expect("a file");
                fs::write(place.join(file.file_name()), content).expect("written");
            }
        }
    }
}

/// Letters for `text8`: as many as its parts need.
pub fn letters(n: usize) -> String {
    let words =
        "anarchism originated as a term of abuse first used against early working class radicals ";
    words.chars().cycle().take(n).collect()
}
