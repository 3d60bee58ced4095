//! The text of an error that f+1 voters certify by severity and SQLSTATE alone (`docs/decisions/0049`): the first row that
//! fails is another one on each server where rows stand in another order. The application is told what f+1 of them say
//! alike, field by field, so that no single voter writes a text.

use bytes::{Bytes, BytesMut};
use sql::operation::ExchangeResult;
use sql::result::{ERROR_RESPONSE, error_fields, is_certified_field, messages};

/// What stands for the message where no f+1 voters give the same one.
const MESSAGE: &[u8] = b"the statement fails on each database server, with messages that differ";

/// What stands for the detail where no f+1 voters give the same one.
const DETAIL: &[u8] = b"Each database server met another row first.";

/// A result that enough voters agree on but for the text of its errors, with only what at least `needed` of `results`, this
/// one among them, say alike in each field.
pub(super) fn undisputed(result: ExchangeResult, results: &[ExchangeResult], needed: usize) -> ExchangeResult {
    let mut settled = BytesMut::with_capacity(result.messages.len());
    let mut index = 0;
    for (tag, message) in messages(&result.messages).flatten() {
        if tag != ERROR_RESPONSE {
            settled.extend_from_slice(message);
            continue;
        }
        let others = results.iter().filter_map(|other| errors_of(&other.messages).nth(index));
        settled.extend_from_slice(&settled_error(message, &others.collect::<Vec<_>>(), needed));
        index += 1;
    }
    ExchangeResult {
        messages: settled.freeze(),
        status: result.status,
    }
}

/// The last messages of a result of which f+1 voters agree on no more than its multiset digest, in which errors keep only
/// what that vouches for.
pub(super) fn certified(messages: Bytes) -> Bytes {
    let result = ExchangeResult { messages, status: b'E' };
    undisputed(result, &[], usize::MAX).messages
}

/// Whether a result holds an error, whose text may be disputed.
pub(super) fn has_error(result: &ExchangeResult) -> bool {
    errors_of(&result.messages).next().is_some()
}

fn errors_of(result: &Bytes) -> impl Iterator<Item = &[u8]> {
    let errors = messages(result).flatten().filter(|(tag, _)| *tag == ERROR_RESPONSE);
    errors.map(|(_, message)| message)
}

fn settled_error(message: &[u8], others: &[&[u8]], needed: usize) -> BytesMut {
    let mut body = BytesMut::with_capacity(message.len());
    for field in error_fields(message) {
        let same = others
            .iter()
            .filter(|other| error_fields(other).any(|said| said == field));
        let (kind, value) = match field {
            (kind, value) if is_certified_field(kind) || same.count() >= needed => (kind, value),
            (b'M', _) => (b'M', MESSAGE),
            (b'D', _) => (b'D', DETAIL),
            _ => continue,
        };
        body.extend_from_slice(&[kind]);
        body.extend_from_slice(value);
        body.extend_from_slice(&[0]);
    }
    body.extend_from_slice(&[0]);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    framed.extend_from_slice(&[ERROR_RESPONSE]);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&body);
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(fields: &[u8]) -> ExchangeResult {
        let mut messages = b"1\0\0\0\x04E".to_vec();
        messages.extend_from_slice(&(fields.len() as u32 + 4).to_be_bytes());
        messages.extend_from_slice(fields);
        ExchangeResult {
            messages: messages.into(),
            status: b'E',
        }
    }

    #[test]
    fn a_field_that_two_of_three_give_alike_stays_and_another_does_not() {
        let one = failed(b"SERROR\0C23505\0Mduplicate key\0DKey (id)=(1) exists.\0tboxes\0\0");
        let other = failed(b"SERROR\0C23505\0Mduplicate key\0DKey (id)=(2) exists.\0tboxes\0\0");
        let results = [one.clone(), other.clone()];
        let expected =
            failed(b"SERROR\0C23505\0Mduplicate key\0DEach database server met another row first.\0tboxes\0\0");
        assert_eq!(undisputed(one.clone(), &results, 2), expected);
        assert_eq!(undisputed(other.clone(), &results, 2), expected);
        let three = [one.clone(), other.clone(), one.clone()];
        assert_eq!(undisputed(one.clone(), &three, 2), one);
    }

    #[test]
    fn a_message_of_one_voter_alone_is_not_shown() {
        let one = failed(b"SERROR\0C22P02\0Minvalid input: \"pay here\"\0Wanywhere\0\0");
        let other = failed(b"SERROR\0C22P02\0Minvalid input: \"x\"\0\0");
        let expected =
            failed(b"SERROR\0C22P02\0Mthe statement fails on each database server, with messages that differ\0\0");
        assert_eq!(undisputed(one.clone(), &[one, other], 2), expected);
    }

    #[test]
    fn what_did_not_fail_stays_as_it_is() {
        let result = ExchangeResult {
            messages: Bytes::from_static(b"C\0\0\0\x0dUPDATE 1\0"),
            status: b'I',
        };
        assert_eq!(undisputed(result.clone(), &[], 2), result);
    }
}
