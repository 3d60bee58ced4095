//! Frames: what travels on a link, and who may send what.
//!
//! A frame is a little-endian u32 length and that many bytes of Borsh, the first of which names the kind.

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::{Bytes, BytesMut};
use ordering::identifiers::{ClientId, Digest, MachineId, Order, administrator};
use ordering::message::{
    BODY_BYTES_MAX, BodyName, ClientMessage, CommitDb, EffectDigests, MESSAGE_BYTES_MAX, NOTIFICATIONS_BYTES_MAX,
    Notifications, OPERATION_BYTES_MAX, ReplyCommitDb, Request, ResultMessage, StoreReceipt,
};

/// Room for what surrounds an operation or a result in a frame.
const SLACK_BYTES: usize = 64 << 10;
/// The largest frame that carries agreement or operations.
const LARGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + SLACK_BYTES;
/// The largest result, in bytes (voters refuse larger ones).
const RESULT_BYTES_MAX: usize = (64 << 20) + SLACK_BYTES;
/// The largest frame of every other kind.
const SMALL_BYTES_MAX: usize = SLACK_BYTES;
/// The bytes of a frame's length.
pub(super) const LENGTH_BYTES: usize = 4;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// A node.
    Machine(MachineId),
    /// A proxy, or the administrator.
    Client(ClientId),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Machine(machine) => write!(formatter, "m{machine}"),
            Peer::Client(client) if *client == administrator() => formatter.write_str("administrator"),
            Peer::Client(client) => write!(formatter, "client{client}"),
        }
    }
}

/// One message between two processes.
#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
pub enum Frame {
    /// Asks for an echo: measures the round trip, and shows that the peer lives.
    Ping(u64),
    /// The echo.
    Pong(u64),
    /// An operation to be ordered: from its client, or passed on by a replica to the primary.
    Request(Request),
    /// A direct statement or a recall, from a proxy to a voter.
    Client(ClientMessage),
    /// A result, from a voter to a proxy.
    Result(ResultMessage),
    /// A decision, from a replica to a voter.
    CommitDb(CommitDb),
    /// Progress of a voter, to replicas.
    ReplyCommitDb(ReplyCommitDb),
    /// Agreement among replicas and primary candidates; the bytes are `ordering`'s.
    Agreement(Bytes),
    /// A voter asks a replica for its decisions from an order on.
    FetchCommitDb(Order),
    /// A voter asks for the body of a decided request: answered by a [`Frame::CommitDb`] with it.
    FetchRequest(Order, Digest),
    /// A replica's log does not go back to what a voter asked for: it begins with this order.
    LogBegins(Order),
    /// The receipt for a body that a proxy wanted to be kept.
    Receipt(StoreReceipt),
    /// A voter's machine asks another one for a body.
    FetchBody(BodyName),
    /// The body that was asked for.
    Body(BodyName, Bytes),
    /// The digests of one database server's changes, from its voter to the voters of other machines.
    Effects(EffectDigests),
    /// One transaction's notifications, from a voter to a proxy.
    Notifications(Notifications),
}

/// A frame's kind, for metrics and limits; the index is its Borsh tag.
const KINDS: [(&str, usize); 16] = [
    ("ping", SMALL_BYTES_MAX),
    ("pong", SMALL_BYTES_MAX),
    ("request", OPERATION_BYTES_MAX + SLACK_BYTES),
    ("client", OPERATION_BYTES_MAX + SLACK_BYTES),
    ("result", RESULT_BYTES_MAX),
    ("commit_db", LARGE_BYTES_MAX),
    ("reply_commit_db", SMALL_BYTES_MAX),
    ("agreement", LARGE_BYTES_MAX),
    ("fetch_commit_db", SMALL_BYTES_MAX),
    ("fetch_request", SMALL_BYTES_MAX),
    ("log_begins", SMALL_BYTES_MAX),
    ("receipt", SMALL_BYTES_MAX),
    ("fetch_body", SMALL_BYTES_MAX),
    ("body", BODY_BYTES_MAX + SLACK_BYTES),
    ("effects", SMALL_BYTES_MAX),
    ("notifications", NOTIFICATIONS_BYTES_MAX + SLACK_BYTES),
];

/// The name and the largest size in bytes of the kind with this tag.
pub(super) fn kind(tag: u8) -> Option<(&'static str, usize)> {
    KINDS.get(usize::from(tag)).copied()
}

/// Whether a peer of `sender`'s role may send the kind with this tag to `receiver`.
pub(super) fn may_send(sender: Peer, receiver: Peer, tag: u8) -> bool {
    let Some((name, _)) = kind(tag) else { return false };
    match (sender, receiver) {
        (Peer::Client(_), Peer::Machine(_)) => matches!(name, "ping" | "pong" | "request" | "client"),
        (Peer::Machine(_), Peer::Client(_)) => {
            matches!(name, "ping" | "pong" | "result" | "receipt" | "notifications")
        }
        (Peer::Machine(_), Peer::Machine(_)) => !matches!(name, "client" | "result" | "receipt" | "notifications"),
        (Peer::Client(_), Peer::Client(_)) => false,
    }
}

impl Frame {
    /// The frame with its length, ready to be queued for any number of peers. `None` when it exceeds its limit.
    pub fn encode(&self) -> Option<EncodedFrame> {
        let mut buffer = vec![0_u8; LENGTH_BYTES];
        borsh::to_writer(&mut buffer, self).ok()?;
        let length = buffer.len() - LENGTH_BYTES;
        let (_, bytes_max) = kind(*buffer.get(LENGTH_BYTES)?)?;
        if length > bytes_max {
            return None;
        }
        buffer
            .get_mut(..LENGTH_BYTES)?
            .copy_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
        Some(EncodedFrame(Bytes::from(buffer)))
    }
}

/// A frame as on the wire; cheap to clone.
#[derive(Clone, Debug)]
pub struct EncodedFrame(pub(super) Bytes);

impl EncodedFrame {
    /// Its size on the wire.
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a peer did wrong on a link; it is disconnected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// No such kind.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Its role may not send this.
    #[error("a {0} frame is not for its role to send")]
    Forbidden(&'static str),
    /// Over the limit of its kind.
    #[error("a {kind} frame of {bytes} bytes is larger than {bytes_max}")]
    TooLarge {
        /// The kind.
        kind: &'static str,
        /// The announced size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes are not one frame.
    #[error("malformed {0} frame")]
    Malformed(&'static str),
}

impl FrameError {
    /// A bounded label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            FrameError::UnknownKind(_) => "unknown_kind",
            FrameError::Forbidden(_) => "forbidden",
            FrameError::TooLarge { .. } => "too_large",
            FrameError::Malformed(_) => "malformed",
        }
    }
}

/// Takes the first whole frame out of what was read; `None` when more must be read.
///
/// # Errors
/// When the peer broke the rules of the link.
pub(super) fn take(buffer: &mut BytesMut, sender: Peer, receiver: Peer) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some((head, [tag, ..])) = buffer.split_first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let (length, tag) = (u32::from_le_bytes(*head) as usize, *tag);
    let (name, bytes_max) = kind(tag).ok_or(FrameError::UnknownKind(tag))?;
    if !may_send(sender, receiver, tag) {
        return Err(FrameError::Forbidden(name));
    }
    if length > bytes_max {
        return Err(FrameError::TooLarge {
            kind: name,
            bytes: length,
            bytes_max,
        });
    }
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    let bytes = buffer.split_to(LENGTH_BYTES + length);
    let body = bytes.get(LENGTH_BYTES..).unwrap_or_default();
    let frame = borsh::from_slice(body).map_err(|_| FrameError::Malformed(name))?;
    Ok(Some((frame, length)))
}

#[cfg(test)]
mod tests {
    use ordering::message::{EFFECT_DIGESTS_MAX, EffectDigest};

    use super::*;

    const NODE: Peer = Peer::Machine(MachineId(1));
    const OTHER: Peer = Peer::Machine(MachineId(2));
    const PROXY: Peer = Peer::Client(ClientId(0));

    fn wire(frame: &Frame) -> BytesMut {
        BytesMut::from(&frame.encode().unwrap().0[..])
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut all = wire(&Frame::Ping(7));
        all.extend_from_slice(&wire(&Frame::FetchCommitDb(Order(9))));
        for cut in 0..all.len() {
            let mut buffer = BytesMut::from(&all[..cut]);
            let mut taken = 0;
            while take(&mut buffer, NODE, OTHER).unwrap().is_some() {
                taken += 1;
            }
            buffer.extend_from_slice(&all[cut..]);
            while take(&mut buffer, NODE, OTHER).unwrap().is_some() {
                taken += 1;
            }
            assert_eq!((taken, buffer.len()), (2, 0));
        }
    }

    #[test]
    fn a_proxy_may_not_speak_as_a_replica() {
        let reply = Frame::ReplyCommitDb(ReplyCommitDb {
            executed: Order(1),
            flushed: Order(1),
        });
        assert_eq!(
            take(&mut wire(&reply), PROXY, NODE).unwrap_err(),
            FrameError::Forbidden("reply_commit_db")
        );
        assert!(take(&mut wire(&reply), OTHER, NODE).unwrap().is_some());
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_it_is_read() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f, 0][..]);
        assert!(matches!(
            take(&mut buffer, NODE, OTHER),
            Err(FrameError::TooLarge { kind: "ping", .. })
        ));
    }

    #[test]
    fn garbage_is_refused() {
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 250][..]);
        assert_eq!(
            take(&mut buffer, NODE, OTHER).unwrap_err(),
            FrameError::UnknownKind(250)
        );
        let mut buffer = BytesMut::from(&[2, 0, 0, 0, 0, 1][..]);
        assert_eq!(
            take(&mut buffer, NODE, OTHER).unwrap_err(),
            FrameError::Malformed("ping")
        );
    }

    proptest::proptest! {
        /// Whatever a peer sends is taken as frames, waited for, or refused; and something is always taken or left.
        #[test]
        fn any_bytes_end_without_a_panic(
            tag in 0_u8..16,
            length in 0_u32..300,
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        ) {
            let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
            buffer.extend_from_slice(&[tag]);
            buffer.extend_from_slice(&bytes);
            for receiver in [OTHER, PROXY] {
                let mut buffer = buffer.clone();
                let mut left = buffer.len();
                while let Ok(Some((frame, size))) = take(&mut buffer, NODE, receiver) {
                    proptest::prop_assert_eq!(left - buffer.len(), LENGTH_BYTES + size);
                    proptest::prop_assert_eq!(wire(&frame).len(), LENGTH_BYTES + size, "one encoding of each frame");
                    left = buffer.len();
                }
            }
        }
    }

    #[test]
    fn kinds_are_in_the_order_of_the_frames() {
        let tag = |frame: Frame| wire(&frame)[LENGTH_BYTES];
        assert_eq!(kind(tag(Frame::FetchCommitDb(Order(1)))).unwrap().0, "fetch_commit_db");
        assert_eq!(kind(tag(Frame::Agreement(Bytes::new()))).unwrap().0, "agreement");
        assert_eq!(kind(tag(Frame::LogBegins(Order(1)))).unwrap().0, "log_begins");
        let name = BodyName {
            client: ClientId(0),
            session: 0,
            number: 0,
            digest: [0; 32],
        };
        let kept = ordering::message::Kept::Durable;
        assert_eq!(
            kind(tag(Frame::Receipt(StoreReceipt { name, kept }))).unwrap().0,
            "receipt"
        );
        assert_eq!(kind(tag(Frame::FetchBody(name))).unwrap().0, "fetch_body");
        assert_eq!(kind(tag(Frame::Body(name, Bytes::new()))).unwrap().0, "body");
        let most = EffectDigests {
            asks: true,
            entries: vec![
                EffectDigest {
                    order: Order(u64::MAX),
                    digest: [0; 32]
                };
                EFFECT_DIGESTS_MAX
            ],
        };
        assert_eq!(kind(tag(Frame::Effects(most))).unwrap().0, "effects");
        assert_eq!(
            kind(tag(Frame::FetchRequest(Order(1), [0; 32]))).unwrap().0,
            "fetch_request"
        );
    }
}
