//! What a transaction has notified, from the server's NotificationResponses.
//!
//! A backend that listens is told at the end of its transaction what that has notified. So a voter has a backend listen inside of the
//! transaction, right before its COMMIT, and stop right after it: no backend listens for longer, so that the server's queue of
//! notifications never waits for one (`docs/decisions/0050`).

use std::fmt::Write;
use std::sync::Arc;

use ordering::message::{NOTIFICATIONS_BYTES_MAX, Notification};

/// Makes the backend listen to nothing any more.
pub const UNLISTEN: &str = "UNLISTEN *";

/// What was notified, up to what travels in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notified {
    /// In the order of the transaction.
    pub notifications: Vec<Notification>,
    bytes: usize,
    /// How many there was no room for.
    pub dropped: u64,
}

impl Notified {
    /// Takes a NotificationResponse if it is of the transaction of this process. Others commit while it listens.
    pub fn take(&mut self, body: &[u8], process: i32) {
        let Some(notification) = parse(body, process) else {
            return;
        };
        let bytes = notification.bytes();
        // Once there is no room, nothing has any: what is kept is the beginning.
        if self.dropped > 0 || self.bytes + bytes > NOTIFICATIONS_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes += bytes;
        self.notifications.push(notification);
    }

    /// Whether nothing was notified.
    pub fn is_empty(&self) -> bool {
        self.notifications.is_empty()
    }
}

fn parse(body: &[u8], process: i32) -> Option<Notification> {
    let (sender, rest) = body.split_first_chunk::<4>()?;
    (i32::from_be_bytes(*sender) == process).then_some(())?;
    let mut texts = rest.split(|byte| *byte == 0);
    let mut text = || std::str::from_utf8(texts.next()?).ok().map(str::to_owned);
    Some(Notification {
        channel: text()?,
        payload: text()?,
    })
}

/// Has the backend listen to these channels from the end of its open transaction on.
pub fn listen(channels: &Arc<[String]>) -> String {
    let mut text = String::new();
    for channel in channels.iter() {
        // Writing to a string cannot fail.
        let _ = write!(text, "LISTEN \"{}\";", channel.replace('"', "\"\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(process: i32, channel: &str, payload: &str) -> Vec<u8> {
        let mut body = process.to_be_bytes().to_vec();
        body.extend_from_slice(format!("{channel}\0{payload}\0").as_bytes());
        body
    }

    #[test]
    fn only_what_the_transaction_itself_notified_counts() {
        let mut notified = Notified::default();
        notified.take(&response(7, "a", "one"), 7);
        notified.take(&response(8, "a", "another's"), 7);
        notified.take(&response(7, "b", ""), 7);
        for cut in 0..12 {
            notified.take(&response(7, "c", "cut")[..cut.min(7)], 7);
        }
        let texts: Vec<_> = notified
            .notifications
            .iter()
            .map(|one| (one.channel.as_str(), one.payload.as_str()))
            .filter(|(channel, _)| *channel != "c")
            .collect();
        assert_eq!(texts, [("a", "one"), ("b", "")]);
    }

    #[test]
    fn what_exceeds_a_message_is_dropped_and_counted() {
        let mut notified = Notified::default();
        for _ in 0..300 {
            notified.take(&response(7, "a", &"x".repeat(7999)), 7);
        }
        let kept = notified.notifications.len();
        assert!((100..300).contains(&kept));
        assert_eq!(kept as u64 + notified.dropped, 300);
        notified.take(&response(7, "a", "small"), 7);
        assert_eq!(
            notified.notifications.len(),
            kept,
            "nothing after the first that is dropped"
        );
    }

    #[test]
    fn names_are_quoted() {
        let channels: Arc<[String]> = vec!["a".to_owned(), "b\"; DROP".to_owned()].into();
        assert_eq!(listen(&channels), "LISTEN \"a\";LISTEN \"b\"\"; DROP\";");
    }
}
