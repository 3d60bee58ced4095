//! The scripted replicas: what they order, and what becomes of what the voter puts out.

use super::*;

/// Orders a request; its number is its order unless one is given.
pub(super) fn append(
    log: &Mutex<Log>,
    client: ClientId,
    number: Option<u64>,
    operation: Bytes,
    home: u64,
) -> CommitDbEntry {
    let mut log = log.lock().unwrap();
    let order = log.entries.len() as u64 + 1;
    let request = Request {
        client,
        number: number.unwrap_or(order),
        floor: number.filter(|number| *number > u64::from(u32::MAX)).unwrap_or(0),
        home,
        operation,
        signature: [0; 64],
    };
    let entry = CommitDbEntry {
        order: Order(order),
        time_us: 1_700_000_000_000_000 + order,
        digest: request.digest(),
        request: Some(Arc::new(request)),
    };
    log.entries.push(entry.clone());
    entry
}

pub(super) async fn send(input: &mpsc::Sender<VoterInput>, entry: &CommitDbEntry) {
    for machine in [1, 2] {
        let message = CommitDb {
            group: GroupId(0),
            entries: vec![entry.clone()],
        };
        let from = MachineId(machine);
        let _ = input.send(VoterInput::CommitDb { from, message }).await;
    }
}

/// Plays the node: keeps results, and answers Fetch from the log.
pub(super) async fn pump(
    mut outputs: mpsc::Receiver<VoterOutput>,
    input: mpsc::Sender<VoterInput>,
    log: Arc<Mutex<Log>>,
    elsewhere: Bodies,
    bodies: BodyStore,
) {
    while let Some(output) = outputs.recv().await {
        match output {
            VoterOutput::Result { message, .. } => match message.outcome {
                Outcome::Running => {}
                Outcome::Chunk { index, bytes } => {
                    log.lock().unwrap().chunks.insert((message.key, index), bytes);
                }
                _ => log
                    .lock()
                    .unwrap()
                    .results
                    .entry(message.key)
                    .or_default()
                    .push(message),
            },
            VoterOutput::Notifications { message, .. } => log.lock().unwrap().notifications.push(message),
            VoterOutput::Reply(reply) => log.lock().unwrap().flushed = reply.flushed.0,
            VoterOutput::Fetch { from } => {
                let (entries, begins) = {
                    let log = log.lock().unwrap();
                    (log.entries.clone(), Order(log.begins))
                };
                let input = input.clone();
                tokio::spawn(async move {
                    let is_there = |entry: &&CommitDbEntry| entry.order >= from && from >= begins;
                    for entry in entries.iter().filter(is_there) {
                        send(&input, entry).await;
                    }
                });
            }
            VoterOutput::Order { operation, home } => {
                if let Some(held) = &mut log.lock().unwrap().held {
                    held.push((operation, home));
                    continue;
                }
                let entry = append(&log, NODE, None, operation, home);
                send(&input, &entry).await;
            }
            VoterOutput::FetchRequest { .. } => {}
            VoterOutput::Effects { message, .. } => {
                let entries = message.entries.iter().map(|entry| (entry.order.0, entry.digest));
                log.lock().unwrap().effects.extend(entries);
            }
            VoterOutput::FetchBody { name, .. } => {
                let body = elsewhere.lock().unwrap().get(&name).cloned();
                if let Some(body) = body {
                    bodies.fetched(name, body);
                }
            }
        }
    }
}
