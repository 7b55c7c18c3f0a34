//! Several documents in one block, one behind the other.

use std::collections::BTreeMap;

use super::rows::{Document, Rows};

/// Blocks of the same length that hold the rows, of which `lengths` are no filling: each row goes to the block whose room it fills best, and the
/// earliest of these. Behind the last document of a block is filling, which counts nowhere.
pub(super) fn packed(rows: &Rows, lengths: &[usize]) -> Rows {
    // The blocks with that much room.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut blocks: Vec<(Vec<i64>, Vec<Document>)> = Vec::new();
    for (row, &length) in lengths.iter().enumerate() {
        let given = rows.given.as_ref().map_or(0, |given| given[row].min(length));
        let start = row * rows.length;
        let text = &rows.ids[start..start + length];
        let best = open.range(length..).next().map(|(room, _)| *room);
        let block = match best {
            Some(room) => {
                let of_room = open.entry(room).or_default();
                let block = of_room.remove(0);
                if of_room.is_empty() {
                    open.remove(&room);
                }
                block
            }
            None => {
                blocks.push(Default::default());
                blocks.len() - 1
            }
        };
        let (ids, documents) = &mut blocks[block];
        ids.extend(text);
        documents.push(Document { length, given });
        let room = rows.length - ids.len();
        if room > 0 {
            let of_room = open.entry(room).or_default();
            let at = of_room.partition_point(|other| *other < block);
            of_room.insert(at, block);
        }
    }
    // What fills a row fills a block.
    let short = lengths.iter().position(|length| *length < rows.length);
    let fill = short.map_or(0, |row| rows.ids[(row + 1) * rows.length - 1]);
    let (mut ids, mut documents) = (Vec::new(), Vec::new());
    for (mut block, of_block) in blocks {
        block.resize(rows.length, fill);
        ids.extend(block);
        documents.push(of_block);
    }
    Rows { ids, length: rows.length, documents: Some(documents), ..Rows::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_they_fit_best_and_none_is_cut() {
        let lengths = [6, 3, 5, 2, 10, 4, 1];
        let row = |(i, n): (usize, &usize)| {
            let mut row = vec![-1; 10];
            row[..*n].fill(i as i64);
            row
        };
        let rows = Rows {
            ids: lengths.iter().enumerate().flat_map(row).collect(),
            length: 10,
            used: Some(lengths.to_vec()),
            given: Some(vec![2, 0, 1, 1, 3, 1, 0]),
            ..Rows::default()
        };
        let packed = packed(&rows, &lengths);
        let of: Vec<Vec<i64>> = packed.ids.chunks(10).map(<[i64]>::to_vec).collect();
        assert_eq!(
            of,
            [
                [0, 0, 0, 0, 0, 0, 1, 1, 1, 6],
                [2, 2, 2, 2, 2, 3, 3, -1, -1, -1],
                [4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
                [5, 5, 5, 5, -1, -1, -1, -1, -1, -1],
            ]
        );
        let document = |length, given| Document { length, given };
        let documents = packed.documents.clone().unwrap();
        assert_eq!(documents[0], [document(6, 2), document(3, 0), document(1, 0)]);
        assert_eq!((packed.used, packed.given), (None, None));
    }
}
