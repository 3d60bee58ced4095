//! What a client makes of the voters' answers: nothing counts that f+1 of them did not say alike.

use ordering::message::{Outcome, ResultKey, ResultMessage};
use sql::operation::ExchangeResult;

use crate::network::Answers;

/// f+1.
pub const QUORUM: usize = 2;

/// What f+1 voters said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This.
    Done(ExchangeResult),
    /// Something, of which only digests are known yet.
    Digest,
    /// They refuse.
    Refused(String),
    /// It was committed, and what it answered is gone.
    Executed,
}

/// What f+1 machines said alike, with the order at which they say that it ran.
pub fn verdict(answers: &Answers) -> Option<(u64, Verdict)> {
    let all: Vec<&ResultMessage> = answers.values().collect();
    for (at, one) in all.iter().enumerate() {
        let same: Vec<_> = all.iter().skip(at).filter(|other| agree(one, other)).collect();
        if same.len() < QUORUM {
            continue;
        }
        let verdict = match &one.outcome {
            Outcome::Done { .. } => same
                .iter()
                .find_map(|message| whole(&message.outcome))
                .map_or(Verdict::Digest, Verdict::Done),
            Outcome::Refused { sqlstate, .. } => Verdict::Refused(sqlstate.clone()),
            Outcome::Executed => Verdict::Executed,
            Outcome::Large { .. } => Verdict::Digest,
            Outcome::Word { .. }
            | Outcome::ObjectNumber { .. }
            | Outcome::Unavailable
            | Outcome::Chunk { .. }
            | Outcome::Running => continue,
        };
        return Some((one.order.0, verdict));
    }
    None
}

/// Whether two machines say the same. What a direct statement's order is enters no vote.
fn agree(one: &ResultMessage, other: &ResultMessage) -> bool {
    let orders = matches!(one.key, ResultKey::Direct(_)) || one.order == other.order;
    let outcomes = match (&one.outcome, &other.outcome) {
        (
            Outcome::Done { sequence, multiset, .. },
            Outcome::Done {
                sequence: other_sequence,
                multiset: other_multiset,
                ..
            },
        ) => sequence == other_sequence || multiset == other_multiset,
        (
            Outcome::Large { sequence, multiset, .. },
            Outcome::Large {
                sequence: other_sequence,
                multiset: other_multiset,
                ..
            },
        ) => sequence == other_sequence || multiset == other_multiset,
        (one, other) => one == other,
    };
    orders && outcomes
}

/// The whole result, if it is there and has its digest.
fn whole(outcome: &Outcome) -> Option<ExchangeResult> {
    let Outcome::Done {
        sequence,
        whole: Some(whole),
        ..
    } = outcome
    else {
        return None;
    };
    let result: ExchangeResult = borsh::from_slice(whole).ok()?;
    (result.digests().ok()?.sequence == *sequence).then_some(result)
}

/// The messages of a result as (type, body).
pub fn messages(result: &ExchangeResult) -> Vec<(u8, &[u8])> {
    let messages = sql::result::messages(&result.messages);
    messages
        .map_while(Result::ok)
        .map(|(tag, message)| (tag, &message[5..]))
        .collect()
}

/// The SQLSTATE of the error in a result.
pub fn error(result: &ExchangeResult) -> Option<String> {
    let (_, body) = messages(result).into_iter().find(|(tag, _)| *tag == b'E')?;
    let code = body
        .split(|byte| *byte == 0)
        .find(|field| field.first() == Some(&b'C'))?;
    Some(String::from_utf8_lossy(&code[1..]).into_owned())
}

/// The last command tag of a result.
pub fn tag(result: &ExchangeResult) -> String {
    let last = messages(result).into_iter().rfind(|(tag, _)| *tag == b'C');
    last.map_or_else(String::new, |(_, body)| {
        String::from_utf8_lossy(body).trim_end_matches('\0').to_owned()
    })
}

/// The first column of the first row, as text.
pub fn value(result: &ExchangeResult) -> Option<String> {
    let (_, row) = messages(result).into_iter().find(|(tag, _)| *tag == b'D')?;
    let (_, rest) = row.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    Some(String::from_utf8_lossy(rest.get(..length)?).into_owned())
}

/// A result in a few words.
pub fn brief(result: &ExchangeResult) -> String {
    let said = match (error(result), value(result)) {
        (Some(code), _) => format!("error {code}"),
        (None, Some(value)) => format!("{} [{value}]", tag(result)),
        (None, None) => tag(result),
    };
    format!("{said} {}", char::from(result.status))
}
