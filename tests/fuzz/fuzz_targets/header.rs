//! The header of a file of blocks: whatever the bytes are, it is read or refused, and what is read can be used.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maskdiff_data::{Cache, Header};
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    let _ = Header::parse(data, data.len() as u64);
    // The hash would stop nearly everything: here it is right. The first bytes are what follows the header.
    let Some((n, rest)) = data.split_first() else { return };
    let (body, json) = rest.split_at(rest.len().min(usize::from(*n)));
    let mut file = b"MASKDIFF".to_vec();
    file.extend(1u32.to_le_bytes());
    file.extend((json.len() as u32).to_le_bytes());
    file.extend(Sha256::digest(json));
    file.extend(json);
    file.extend(body);
    let Ok((header, from)) = Header::parse(&file, file.len() as u64) else { return };
    assert_eq!(from, file.len() - body.len());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.blocks");
    std::fs::write(&path, &file).expect("written");
    let cache = Cache::open(&path).expect("it was read above");
    let length = header.packing.length;
    let mut row = vec![0; length.min(1 << 16)];
    for number in 0..cache.rows() {
        if length <= row.len() {
            cache.read(number * length as u64, &mut row);
        }
        assert!(cache.used(number) <= length);
    }
    let _ = cache.verify();
});
