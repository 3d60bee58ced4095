use ordering::identifiers::{ClientId, MachineId, Order as LogOrder};
use tokio::sync::mpsc;

use super::*;

struct Collector(mpsc::UnboundedSender<(Peer, Frame)>);

impl Receiver for Collector {
    async fn receive(&self, from: Peer, frame: Frame, _bytes: usize) {
        let _ = self.0.send((from, frame));
    }
}

const M0: Peer = Peer::Machine(MachineId(0));
const M1: Peer = Peer::Machine(MachineId(1));

struct End {
    links: Links,
    received: mpsc::UnboundedReceiver<(Peer, Frame)>,
}

fn end(me: Peer, identity: &Identity, addresses: &[PeerAddress], listener: Option<TcpListener>) -> End {
    let (sender, received) = mpsc::unbounded_channel();
    let links = Links::start(me, identity, addresses, listener, Arc::new(Collector(sender))).unwrap();
    End { links, received }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn address(peer: Peer, identity: &Identity, dial: Option<SocketAddr>) -> PeerAddress {
    PeerAddress {
        peer,
        key: identity.public().to_bytes(),
        dial,
    }
}

async fn next(end: &mut End) -> (Peer, Frame) {
    timeout(Duration::from_secs(10), end.received.recv())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn frames_travel_both_ways() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (listener, at) = listener().await;
    let mut accepting = end(M1, &two, &[address(M0, &one, None)], Some(listener));
    let mut dialling = end(M0, &one, &[address(M1, &two, Some(at))], None);
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(7)));
    assert!(matches!(
        next(&mut accepting).await,
        (M0, Frame::FetchCommitDb(LogOrder(7)))
    ));
    accepting.links.send_frame(M0, &Frame::FetchCommitDb(LogOrder(8)));
    assert!(matches!(
        next(&mut dialling).await,
        (M1, Frame::FetchCommitDb(LogOrder(8)))
    ));
}

#[tokio::test]
async fn a_key_that_is_not_listed_is_refused() {
    let (listed, stranger, server) = (
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
    );
    let (listener, at) = listener().await;
    let mut accepting = end(M1, &server, &[address(M0, &listed, None)], Some(listener));
    let intruder = end(M0, &stranger, &[address(M1, &server, Some(at))], None);
    intruder.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(7)));
    assert!(
        timeout(Duration::from_millis(500), accepting.received.recv())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_server_with_another_key_is_refused() {
    let (one, expected, actual) = (
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
    );
    let (listener, at) = listener().await;
    let mut accepting = end(M1, &actual, &[address(M0, &one, None)], Some(listener));
    let dialling = end(M0, &one, &[address(M1, &expected, Some(at))], None);
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(7)));
    assert!(
        timeout(Duration::from_millis(500), accepting.received.recv())
            .await
            .is_err()
    );
    assert!(!dialling.links.is_up(M1));
}

#[tokio::test]
async fn a_link_comes_back_after_its_peer_was_away() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (first, at) = listener().await;
    let mut accepting = end(M1, &two, &[address(M0, &one, None)], Some(first));
    let dialling = end(M0, &one, &[address(M1, &two, Some(at))], None);
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(1)));
    next(&mut accepting).await;
    drop(accepting);
    while dialling.links.is_up(M1) {
        sleep(Duration::from_millis(5)).await;
    }
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(2)));
    let mut again = end(
        M1,
        &two,
        &[address(M0, &one, None)],
        Some(TcpListener::bind(at).await.unwrap()),
    );
    assert!(matches!(
        next(&mut again).await,
        (M0, Frame::FetchCommitDb(LogOrder(2)))
    ));
}

#[tokio::test]
async fn a_dead_peer_holds_bounded_memory_and_blocks_nobody() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (_unused, at) = listener().await;
    let dialling = end(M0, &one, &[address(M1, &two, Some(at))], None);
    let frame = Frame::Agreement(bytes::Bytes::from(vec![0; 1 << 20])).encode().unwrap();
    (0..1000).for_each(|_| dialling.links.send(M1, &frame));
    assert!(dialling.links.queued_bytes(M1) <= queue::AWAY_BYTES_MAX);
}

#[tokio::test]
async fn a_frame_that_a_role_may_not_send_ends_the_connection() {
    let (proxy, node) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let client = Peer::Client(ClientId(0));
    let (listener, at) = listener().await;
    let mut accepting = end(M1, &node, &[address(client, &proxy, None)], Some(listener));
    let dialling = end(client, &proxy, &[address(M1, &node, Some(at))], None);
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(1)));
    assert!(
        timeout(Duration::from_millis(500), accepting.received.recv())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn strangers_who_say_nothing_do_not_keep_a_peer_out() {
    let (one, two) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let (listener, at) = listener().await;
    let mut accepting = end(M1, &two, &[address(M0, &one, None)], Some(listener));
    let mut strangers = Vec::new();
    for _ in 0..2 * handshakes::HANDSHAKES_MAX {
        strangers.push(TcpStream::connect(at).await.unwrap());
    }
    let dialling = end(M0, &one, &[address(M1, &two, Some(at))], None);
    dialling.links.send_frame(M1, &Frame::FetchCommitDb(LogOrder(7)));
    let received = timeout(Duration::from_millis(HANDSHAKE_MS_MAX / 2), accepting.received.recv()).await;
    assert!(matches!(received, Ok(Some((M0, Frame::FetchCommitDb(LogOrder(7)))))));
}
