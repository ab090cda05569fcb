//! The worked examples of docs/format-files.md are what the writers write.

use std::fs;

use crate::support::{Place, decompress, whole};

/// The `hex` block with this number.
fn dump(number: usize) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format-files.md");
    let page = fs::read_to_string(path).unwrap();
    let block = page
        .split("```hex\n")
        .nth(1 + number)
        .and_then(|rest| rest.split("```").next());
    let bytes = block.unwrap().split_whitespace();
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn examples_are_what_is_written() {
    let json = concat!(
        r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"#,
        r#""b":{"dtype":"BF16","shape":[0],"data_offsets":[4,4]}}   "#
    );
    let model = whole(json, &[0x80, 0x3f, 0x00, 0x40]);
    let place = Place::new();
    for (number, original) in [b"neuzip\n".to_vec(), model].into_iter().enumerate() {
        assert_eq!(
            place.compressed(&original),
            dump(number),
            "example {number}"
        );
        let example = place.put("example", &dump(number));
        decompress(&example, &place.path("restored")).unwrap();
        assert_eq!(fs::read(place.path("restored")).unwrap(), original);
    }
}
