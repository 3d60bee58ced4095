//! What has changed of the catalog, as proxies ask for it: answered from memory, at its order, alike by all correct voters that remember
//! as much.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use sql::schema::CatalogChange;

use super::{Asker, Owner};
use crate::catalog_log::merged;
use crate::executor::{Event, outcome};
use crate::outcome::Outcome;
use crate::postgres::backend::{Answer, answer_of};
use crate::postgres::capture::{Capture, CaptureLimits};
use crate::postgres::connection::Message;
use crate::work::Refused;

/// The SQLSTATE of an answer that this voter does not remember. No application sees it: its proxy reads the whole catalog then.
const CATALOG_FORGOTTEN: &str = "BF008";

/// Answers that are put together at once. Each takes as much memory as the changes that it is made of.
pub(super) const ANSWERS_AT_ONCE: usize = 2;

impl Owner<'_> {
    /// Answers what took effect from the order `since` on. All that was fed before has taken effect: nothing is fed while something that
    /// may change the catalog is under way.
    pub(super) async fn answer_catalog(&mut self, asker: Asker, since: u64) {
        if self.survived.is_past(asker.order) {
            return self.settle(asker, Outcome::Unavailable).await;
        }
        let Some(changes) = self.catalog_log.since(since) else {
            let refused = Refused::new(
                CATALOG_FORGOTTEN,
                "what has changed of the catalog since is not known any more",
            );
            return self.refuse(asker, refused).await;
        };
        let limits = CaptureLimits::of(&self.config);
        let (shared, places) = (Arc::clone(&self.shared), Arc::clone(&self.catalog_answers));
        self.tasks.spawn(async move {
            // A client may ask for all changes as often as it has requests.
            let Ok(_place) = places.acquire().await else { return };
            let outcome = outcome(answer(&merged(&changes), &limits).await).unwrap_or(Outcome::Unavailable);
            asker.answer(&shared.reporter, outcome).await;
            shared.tell(Event::Finished(asker.order, None));
        });
    }
}

async fn answer(change: &CatalogChange, limits: &CaptureLimits) -> Answer {
    let mut capture = Capture::new(limits);
    for (label, text) in change.rows() {
        match data_row([label, &text]) {
            Some(frame) => capture.add(&Message { tag: b'D', frame }),
            None => return Answer::TooLarge,
        }
        if capture.is_full() {
            capture.put_out().await;
        }
    }
    answer_of(capture.finish(b'I').await)
}

/// A DataRow of texts; `None` when they are too large for one.
pub(super) fn data_row(texts: [&str; 2]) -> Option<Bytes> {
    let mut body = BytesMut::new();
    body.put_i16(2);
    for text in texts {
        body.put_i32(i32::try_from(text.len()).ok()?);
        body.put_slice(text.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(body.len() + 5);
    frame.put_u8(b'D');
    frame.put_i32(i32::try_from(body.len() + 4).ok()?);
    frame.unsplit(body);
    Some(frame.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_as_the_protocol_says() {
        let frame = data_row(["more", "{}"]).unwrap();
        assert_eq!(&frame[..], b"D\0\0\0\x14\0\x02\0\0\0\x04more\0\0\0\x02{}");
    }
}
