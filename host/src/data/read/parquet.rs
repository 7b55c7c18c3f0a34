//! A column of text in parquet files.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::column::reader::ColumnReader;
use parquet::data_type::{AsBytes as _, ByteArray};
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::{Losses, Piece, Place, Reader, Sink};
use crate::error::{Error, Result};

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
                let text = how.text(bytes, &place.to_string(), 0, losses)?;
                text.map_or(Ok(()), |text| sink(Piece { text, starts: true, ends: true, place }))
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
        let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
        let reader = SerializedFileReader::new(file).map_err(|e| broken(path, &e))?;
        Ok(Self { path, reader })
    }

    /// The number of the column of a name.
    fn column(&self, name: &str) -> Result<usize> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let columns = schema.columns();
        let found = columns.iter().position(|column| column.path().string() == name);
        let text = found.filter(|at| {
            columns[*at].physical_type() == parquet::basic::Type::BYTE_ARRAY
                && columns[*at].max_rep_level() == 0
        });
        text.ok_or_else(|| {
            let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
            let what = if found.is_some() { "is no column of texts" } else { "is no column" };
            Error::data(
                format!("`{name}` {what} of `{}`", self.path.display()),
                format!("columns there: {}; choose one by `data.column`", names.join(", ")),
            )
        })
    }

    /// Calls `row` with the value of every row of a group.
    fn group(
        &self,
        group: usize,
        column: usize,
        row: &mut dyn FnMut(Option<Vec<u8>>) -> Result<()>,
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
            let mut texts = values.iter().map(|value| value.as_bytes().to_vec());
            for at in 0..records {
                let is_there = there == 0 || levels.get(at).is_none_or(|level| *level == there);
                row(if is_there { texts.next() } else { None })?;
            }
        }
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
