//! A column of text in parquet files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{AsBytes as _, ByteArray, DataType};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::ColumnDescPtr;

use super::lines::NO_LABEL;
use super::open::stand_in;
use super::{LONGEST_LINE, Label, Losses, Place, Reader, Sink};

/// Rows that are read at once.
const ROWS: usize = 256;

/// Hands out the texts of a column of all files, one file after the other.
pub(super) fn read(
    how: &Reader<'_>,
    files: &[PathBuf],
    column: &str,
    losses: &mut Losses,
    sink: Sink<'_>,
) -> Result<()> {
    let all = if how.slice.is_all() { u64::MAX } else { rows(files)? };
    let range = how.slice.of(all).ok_or_else(|| {
        Error::data(
            format!("the corpus has {all} rows, fewer than its split leaves out"),
            "fetch it again: files seem to be missing",
        )
    })?;
    let mut number = 0;
    for path in files {
        let file = Table::open(path)?;
        let place = file.column(column)?;
        let label = how.label.map(|name| file.label_column(name)).transpose()?;
        let (first, whole) = (number, Place::whole(path));
        for group in 0..file.reader.num_row_groups() {
            let size = file.reader.metadata().row_group(group).num_rows().cast_unsigned();
            if number + size <= range.start {
                number += size;
                continue;
            }
            if number >= range.end {
                return Ok(());
            }
            let labels = label.map(|label| file.labels(group, label)).transpose()?;
            let before = number;
            file.group(group, place, &mut |value| {
                let document = number;
                number += 1;
                if !range.contains(&document) {
                    return Ok(());
                }
                let place = whole.at("row", document - first);
                let Some(bytes) = value else {
                    let what = format!("{place}: `{column}` is empty (null)");
                    return how.no_text(what, "a document is a text", losses);
                };
                if bytes.len() > LONGEST_LINE {
                    let what = format!("{place} has more than {LONGEST_LINE} bytes");
                    return how.no_text(what, "split the text into several", losses);
                }
                let label = match &labels {
                    None => None,
                    Some(labels) => {
                        let own = labels.get((document - before) as usize).cloned().flatten();
                        if own.is_none() {
                            let name = how.label.unwrap_or_default();
                            let what = format!("{place}: `{name}`, the label, is empty (null)");
                            return how.no_text(what, NO_LABEL, losses);
                        }
                        own
                    }
                };
                let text = how.text(bytes.to_vec(), &place.to_string(), 0, losses)?;
                text.map_or(Ok(()), |text| how.document((text, label), place, losses, sink))
            })?;
        }
    }
    Ok(())
}

/// Rows of all files.
pub(crate) fn rows(files: &[PathBuf]) -> Result<u64> {
    let mut rows = 0;
    for path in files {
        rows += Table::open(path)?.reader.metadata().file_metadata().num_rows().cast_unsigned();
    }
    Ok(rows)
}

struct Table<'a> {
    path: &'a Path,
    reader: SerializedFileReader<File>,
}

impl<'a> Table<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
        let mut head = Vec::new();
        let read = (&mut file).take(512).read_to_end(&mut head);
        read.map_err(|e| Error::io("read", path, &e))?;
        if let Some((what, hint)) = stand_in(&head) {
            let message = format!("`{}` is no parquet file but {what}", path.display());
            return Err(Error::data(message, hint));
        }
        let reader = SerializedFileReader::new(file).map_err(|e| broken(path, &e))?;
        Ok(Self { path, reader })
    }

    /// The number of the column of a name.
    fn column(&self, name: &str) -> Result<usize> {
        let columns = self.reader.metadata().file_metadata().schema_descr().columns();
        let is = |column: &&ColumnDescPtr| column.path().string() == name;
        let found =
            columns.iter().position(|column| is(&column)).filter(|at| is_text(&columns[*at]));
        found.ok_or_else(|| {
            let file = self.path.display();
            let message = match what(columns, name) {
                Some(what) => format!("`{name}` is no column of texts of `{file}`, but {what}"),
                None => format!("`{name}` is no column of `{file}`"),
            };
            let texts: Vec<String> =
                columns.iter().filter(|c| is_text(c)).map(|c| c.path().string()).collect();
            let hint = if texts.is_empty() {
                let mut all: Vec<&str> =
                    columns.iter().filter_map(|c| c.path().parts().first()).map(String::as_str).collect();
                all.dedup();
                format!(
                    "no column there has a text in each row (there are: {}): write one, for example the parts of a list one after \
                     the other",
                    all.join(", ")
                )
            } else {
                format!("columns there: {}; choose one by `data.column`", texts.join(", "))
            };
            Error::data(message, hint)
        })
    }

    /// The number of the column of labels of a name: texts, whole numbers, or truth values.
    fn label_column(&self, name: &str) -> Result<usize> {
        let columns = self.reader.metadata().file_metadata().schema_descr().columns();
        let can = |column: &ColumnDescPtr| {
            is_text(column)
                || column.max_rep_level() == 0
                    && matches!(column.physical_type(), Type::BOOLEAN | Type::INT32 | Type::INT64)
        };
        let is = |column: &ColumnDescPtr| column.path().string() == name && can(column);
        columns.iter().position(is).ok_or_else(|| {
            let all: Vec<String> =
                columns.iter().filter(|c| can(c)).map(|c| c.path().string()).collect();
            Error::data(
                format!("`{name}` is no column of labels of `{}`", self.path.display()),
                format!(
                    "columns there that may be: {}; choose one by `data.label_column`",
                    all.join(", ")
                ),
            )
        })
    }

    /// The labels of all rows of a group; none of a row that is null there.
    fn labels(&self, group: usize, column: usize) -> Result<Vec<Label>> {
        let said = |e: parquet::errors::ParquetError| broken(self.path, &e);
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let there = schema.column(column).max_def_level();
        let group = self.reader.get_row_group(group).map_err(said)?;
        let labels = match group.get_column_reader(column).map_err(said)? {
            ColumnReader::ByteArrayColumnReader(reader) => {
                values(reader, there, |value| String::from_utf8_lossy(value.as_bytes()).into())
            }
            ColumnReader::Int32ColumnReader(reader) => values(reader, there, ToString::to_string),
            ColumnReader::Int64ColumnReader(reader) => values(reader, there, ToString::to_string),
            ColumnReader::BoolColumnReader(reader) => values(reader, there, ToString::to_string),
            _ => Ok(Vec::new()),
        };
        labels.map_err(said)
    }

    /// Calls `row` with the value of every row of a group.
    fn group(
        &self,
        group: usize,
        column: usize,
        row: &mut dyn FnMut(Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let said = |e: parquet::errors::ParquetError| broken(self.path, &e);
        let group = self.reader.get_row_group(group).map_err(said)?;
        let ColumnReader::ByteArrayColumnReader(mut reader) =
            group.get_column_reader(column).map_err(said)?
        else {
            return Err(Error::data(format!("`{}`: no column of texts", self.path.display()), ""));
        };
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let there = schema.column(column).max_def_level();
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::<i16>::new());
        loop {
            values.clear();
            levels.clear();
            let (records, _, _) =
                reader.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(said)?;
            if records == 0 {
                return Ok(());
            }
            let mut texts = values.iter().map(|value| value.as_bytes());
            for at in 0..records {
                let is_there = there == 0 || levels.get(at).is_none_or(|level| *level == there);
                row(if is_there { texts.next() } else { None })?;
            }
        }
    }
}

/// All values of a column in words, where they are there.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    there: i16,
    word: impl Fn(&T::T) -> String,
) -> std::result::Result<Vec<Label>, parquet::errors::ParquetError> {
    let (mut all, mut known) = (Vec::new(), BTreeSet::<Arc<str>>::new());
    let (mut values, mut levels) = (Vec::<T::T>::new(), Vec::<i16>::new());
    loop {
        values.clear();
        levels.clear();
        let (records, _, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Ok(all);
        }
        let mut words = values.iter().map(&word);
        for at in 0..records {
            let is_there = there == 0 || levels.get(at).is_none_or(|level| *level == there);
            let label = if is_there { words.next() } else { None };
            all.push(label.map(|label| match known.get(&label[..]) {
                Some(same) => Arc::clone(same),
                None => {
                    let label: Arc<str> = label.into();
                    known.insert(Arc::clone(&label));
                    label
                }
            }));
        }
    }
}

/// Whether a column has one text in each row.
fn is_text(column: &ColumnDescPtr) -> bool {
    let decimal = matches!(column.converted_type(), ConvertedType::DECIMAL)
        || matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }));
    column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0 && !decimal
}

/// What a name stands for that is no column of texts; none where it stands for nothing.
fn what(columns: &[ColumnDescPtr], name: &str) -> Option<&'static str> {
    let inside = |column: &&ColumnDescPtr| {
        let path = column.path().string();
        path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let parts: Vec<&ColumnDescPtr> = columns.iter().filter(inside).collect();
    let lists = !parts.is_empty() && parts.iter().all(|part| part.max_rep_level() > 0);
    // A list has two names more for each of its levels, and its records have theirs behind them.
    let is_record = |part: &ColumnDescPtr| {
        part.path().parts().len() > 1 + 2 * usize::try_from(part.max_rep_level()).unwrap_or(0)
    };
    Some(match parts[..] {
        [] => return None,
        [part] if lists && is_record(part) => "a list of records",
        [part] if lists && part.max_rep_level() > 1 => "a list of lists",
        [part] if lists && part.physical_type() == Type::BYTE_ARRAY => "a list of texts",
        [part] if lists && part.physical_type() == Type::BOOLEAN => "a list of truth values",
        [_] if lists => "a list of numbers",
        [part] if part.path().string() == name => kind(part),
        _ if lists => "a list of records",
        _ => "a record",
    })
}

/// What the values of a column are.
fn kind(column: &ColumnDescPtr) -> &'static str {
    if matches!(column.logical_type_ref(), Some(LogicalType::Unknown)) {
        return "nothing but nulls";
    }
    match column.physical_type() {
        Type::BOOLEAN => "true and false",
        Type::INT32 | Type::INT64 => match column.logical_type_ref() {
            Some(LogicalType::Date | LogicalType::Time { .. } | LogicalType::Timestamp { .. }) => {
                "dates or times"
            }
            Some(LogicalType::Decimal { .. }) => "numbers",
            _ => "whole numbers",
        },
        Type::INT96 => "times",
        Type::FLOAT | Type::DOUBLE | Type::BYTE_ARRAY => "numbers",
        Type::FIXED_LEN_BYTE_ARRAY => "bytes of one length",
    }
}

fn broken(path: &Path, error: &parquet::errors::ParquetError) -> Error {
    let words = error.to_string();
    if words.contains("Disabled feature") {
        return Error::data(
            format!("`{}` is compressed in a way that is not read: {words}", path.display()),
            "write it again with zstd, snappy, gzip or lz4",
        );
    }
    Error::data(
        format!("`{}` is no whole parquet file: {error}", path.display()),
        "fetch the file again; one from the hub is fetched anew when it is removed from the hub's cache",
    )
}

#[cfg(test)]
mod tests {
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    /// What each kind of column is called that has no text in each row. A `large_list` of Arrow is a list here.
    #[test]
    fn a_column_of_something_else_is_called_what_it_is() {
        let list = |name: &str, element: &str| {
            format!("optional group {name} (LIST) {{ repeated group list {{ {element} }} }}")
        };
        let text = "optional binary element (UTF8);";
        let fields = [
            list("texts", text),
            list("whole", "optional int64 element;"),
            list("real", "optional double element;"),
            list("truths", "optional boolean element;"),
            list("lists", &list("element", text)),
            list(
                "chats",
                "optional group element { optional binary role (UTF8); optional binary content (UTF8); }",
            ),
            list("alone", "optional group element { optional binary content (UTF8); }"),
            "repeated binary old (UTF8);".into(),
            "optional group record { optional binary a (UTF8); optional int64 b; }".into(),
            "optional group lone { optional binary a (UTF8); }".into(),
            "optional int64 number;".into(),
            "optional boolean truth;".into(),
            "optional int32 day (DATE);".into(),
            "optional binary price (DECIMAL(4, 2));".into(),
            "optional binary text (UTF8);".into(),
        ];
        let schema = parse_message_type(&format!("message m {{ {} }}", fields.join(" "))).unwrap();
        let schema = SchemaDescriptor::new(Arc::new(schema));
        for (name, expected) in [
            ("texts", Some("a list of texts")),
            ("texts.list.element", Some("a list of texts")),
            ("whole", Some("a list of numbers")),
            ("real", Some("a list of numbers")),
            ("truths", Some("a list of truth values")),
            ("lists", Some("a list of lists")),
            ("chats", Some("a list of records")),
            ("alone", Some("a list of records")),
            ("old", Some("a list of texts")),
            ("record", Some("a record")),
            ("lone", Some("a record")),
            ("number", Some("whole numbers")),
            ("truth", Some("true and false")),
            ("day", Some("dates or times")),
            ("price", Some("numbers")),
            ("nothing", None),
            ("te", None),
        ] {
            assert_eq!(what(schema.columns(), name), expected, "{name}");
        }
        let texts = schema.columns().iter().filter(|column| is_text(column));
        let texts: Vec<String> = texts.map(|column| column.path().string()).collect();
        assert_eq!(texts, ["record.a", "lone.a", "text"]);
    }

    #[test]
    fn what_lies_in_the_place_of_a_parquet_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for (bytes, expected) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:1"[..],
                "is no parquet file but a Git LFS pointer",
            ),
            (b"<!DOCTYPE html><html>", "but a web page (HTML)"),
            (b"\x1f\x8b\x08\0", "but packed by gzip"),
            (b"{\"text\": 1}", "but JSON"),
            (b"PARE1234", "but an encrypted one"),
            (b"", "but empty"),
            (b"ARROW1\0\0abc", "but an Arrow file"),
            (b"PAR1 and nothing", "is no whole parquet file"),
            (b"some text", "is no whole parquet file"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let said = Table::open(&path).map(drop).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{said}");
        }
    }
}
