//! The feature `lying-voter`: every row that it answers is altered, and its digests are those of the lie.
#![allow(clippy::indexing_slicing)]
#![cfg(feature = "lying-voter")]

use bytes::Bytes;
use voter::postgres::capture::Capture;
use voter::postgres::connection::Message;

#[test]
fn a_row_is_altered_and_everything_else_is_not() {
    let row = Bytes::from_static(b"D\0\0\0\x0c\0\x01\0\0\0\x021\x30");
    let complete = Bytes::from_static(b"C\0\0\0\x0dSELECT 1\0");
    let mut capture = Capture::new(1000);
    for frame in [&row, &complete] {
        capture.add(&Message {
            tag: frame[0],
            frame: frame.clone(),
        });
    }
    let result = capture.finish(b'I').map(|result| result.messages).unwrap_or_default();
    assert_eq!(result.len(), row.len() + complete.len());
    assert_ne!(result[..row.len()], row[..]);
    assert_eq!(result[row.len()..], complete[..]);
}
