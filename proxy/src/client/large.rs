//! Results that travel in chunks.
//!
//! f+1 voters that agree on the sequence and on the list of the chunks' digests have vouched for each chunk: it is released
//! as soon as it has come. Where they agree on less (rows in another order on each server, or one voter's answers), all
//! chunks of one voter are read into a file first, and nothing is released before the whole has the digest that was agreed
//! on.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::{Digest, MachineId};
use ordering::message::{ClientMessage, ResultKey};
use spool::{ChunkWriter, SpoolDirectory, StoredResult};
use sql::operation::ExchangeResult;
use sql::result::chunk_digest;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::collect::{Agreed, LargeAnswer};
use super::disputed;
use super::order::wait_for;
use super::{Cancel, Client, Failure};
use crate::error::ApplicationError;
use crate::measures::invalid;
use crate::port::{Destination, MachineSet, ToNode};

/// How long a voter may take with a chunk before another one is asked.
const CHUNK_PATIENCE: Duration = Duration::from_secs(1);

/// The largest result that the proxy reads for itself, in bytes.
const GATHER_BYTES_MAX: usize = 64 << 20;

/// A result that was voted for, on its way to the application.
#[derive(Debug)]
pub(crate) struct VotedResult {
    /// What is released before `messages`, and has not been fetched yet.
    pub(crate) before: Option<Large>,
    /// The messages, or the last ones of them: an error, or the last command's tag, is here.
    pub(crate) messages: Bytes,
    /// The status byte.
    pub(crate) status: u8,
    /// The multiset digest of a result that came in chunks. It is verified unless f+1 voters agree on the sequence.
    multiset: Option<Digest>,
}

impl From<ExchangeResult> for VotedResult {
    fn from(result: ExchangeResult) -> Self {
        Self {
            before: None,
            messages: result.messages,
            status: result.status,
            multiset: None,
        }
    }
}

impl VotedResult {
    /// A result whose status nobody asks for.
    pub(crate) fn of_messages(messages: Bytes) -> Self {
        ExchangeResult { messages, status: b'I' }.into()
    }

    /// The multiset digest; none of a malformed result, which is never agreed on.
    pub(super) fn multiset(&self) -> Option<Digest> {
        self.multiset.or_else(|| {
            let digests = sql::result::digests(&self.messages, self.status);
            digests.ok().map(|digests| digests.multiset)
        })
    }
}

/// What enough voters agree on: it is here, or it has to be fetched.
#[derive(Debug)]
pub(super) enum Whole {
    Result(ExchangeResult),
    Chunks(Chunks),
}

/// A large result that enough voters agree on.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) key: ResultKey,
    pub(super) agreed: Agreed,
    /// The voters that have it, each with its chunks.
    pub(super) sources: Vec<(MachineId, Arc<LargeAnswer>)>,
    /// Whether f+1 voters agree on each chunk.
    pub(super) each_agreed: bool,
}

/// Where chunks that were asked for come in: at most one for each result.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    table: Mutex<HashMap<ResultKey, Arc<Fetch>>>,
}

#[derive(Debug, Default)]
struct Fetch {
    state: Mutex<FetchState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct FetchState {
    /// Which chunk was asked for, and of whom.
    wanted: Option<(MachineId, u32)>,
    /// What came: `None` inside when the voter does not have it any more.
    come: Option<Option<Bytes>>,
}

impl Fetch {
    fn state(&self) -> MutexGuard<'_, FetchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch {
    fn expect(&self, machine: MachineId, index: u32) {
        let mut state = self.state();
        state.wanted = Some((machine, index));
        state.come = None;
    }

    fn take(&self) -> Option<Option<Bytes>> {
        let mut state = self.state();
        let come = state.come.take()?;
        state.wanted = None;
        Some(come)
    }
}

impl Fetches {
    fn table(&self) -> MutexGuard<'_, HashMap<ResultKey, Arc<Fetch>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a result is being fetched.
    pub(super) fn is_wanted(&self, key: ResultKey) -> bool {
        self.table().contains_key(&key)
    }

    /// Takes a chunk that was asked for; anything else is dropped.
    pub(super) fn deliver(&self, from: MachineId, key: ResultKey, index: u32, bytes: Option<Bytes>) {
        let Some(fetch) = self.table().get(&key).cloned() else {
            return;
        };
        let mut state = fetch.state();
        if state.wanted == Some((from, index)) && state.come.is_none() {
            state.come = Some(bytes);
            drop(state);
            fetch.changed.notify_one();
        }
    }
}

/// A fetch in the table. Dropping it ends it: the voters need not keep the result any longer.
#[derive(Debug)]
struct Fetching {
    key: ResultKey,
    fetch: Arc<Fetch>,
    fetches: Arc<Fetches>,
    voters: MachineSet,
    to: mpsc::Sender<(Destination, ToNode)>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.fetches.table().remove(&self.key);
        let message = ToNode::Client(ClientMessage::Release(self.key));
        // A voter that does not get it deletes the result when it needs the room.
        let _ = self.to.try_send((Destination::Machines(self.voters), message));
    }
}

/// Where the chunks are.
#[derive(Debug)]
enum Source {
    /// On any of these voters; each chunk has a digest that f+1 voters agree on.
    Voters(Fetching, Vec<MachineId>, Arc<LargeAnswer>),
    /// In a file of the proxy's, verified.
    File(Arc<StoredResult>),
}

/// Chunks that have been voted for and not been read.
#[derive(Debug)]
pub(crate) struct Large {
    source: Source,
    next: usize,
    /// One past the last chunk.
    end: usize,
    /// The statement is committed, whatever becomes of its result.
    pub(crate) committed: bool,
}

impl Client {
    /// Makes ready what voters agree on: nothing of it has to be believed of one of them any more.
    pub(super) async fn resolve(&self, whole: Whole, cancel: Option<&Cancel>) -> Result<VotedResult, Failure> {
        let chunks = match whole {
            Whole::Result(result) => return Ok(result.into()),
            Whole::Chunks(chunks) => chunks,
        };
        metrics::counter!("cloudbft_large_results_total").increment(1);
        match chunks.each_agreed {
            true => self.open_chunks(chunks, cancel).await,
            false => self.read_into_file(chunks, cancel).await,
        }
    }

    fn fetching(&self, key: ResultKey) -> Fetching {
        let fetch = Arc::<Fetch>::default();
        self.fetches.table().insert(key, Arc::clone(&fetch));
        Fetching {
            key,
            fetch,
            fetches: Arc::clone(&self.fetches),
            voters: self.voter_set,
            to: self.to.clone(),
        }
    }

    async fn open_chunks(&self, chunks: Chunks, cancel: Option<&Cancel>) -> Result<VotedResult, Failure> {
        let fetching = self.fetching(chunks.key);
        let Some((_, answer)) = chunks.sources.first() else {
            return Err(Failure::Unavailable);
        };
        let answer = Arc::clone(answer);
        let mut sources: Vec<_> = chunks.sources.iter().map(|(machine, _)| *machine).collect();
        let last = answer.chunks.len().checked_sub(1).ok_or(Failure::Unavailable)?;
        let messages = self.chunk(&fetching, &mut sources, &answer, last, cancel).await?;
        let (status, multiset) = (answer.status, Some(answer.multiset));
        let large = Large {
            source: Source::Voters(fetching, sources, answer),
            next: 0,
            end: last,
            committed: false,
        };
        Ok(VotedResult {
            before: (last > 0).then_some(large),
            messages,
            status,
            multiset,
        })
    }

    async fn read_into_file(&self, chunks: Chunks, cancel: Option<&Cancel>) -> Result<VotedResult, Failure> {
        let fetching = self.fetching(chunks.key);
        let mut failure = Failure::Unavailable;
        for (machine, answer) in &chunks.sources {
            let stored = match self.read_from(&fetching, *machine, answer, cancel).await {
                Ok(stored) => stored,
                Err(Failure::Cancelled) => return Err(Failure::Cancelled),
                Err(other) => {
                    failure = other;
                    continue;
                }
            };
            let digests = stored.digests(answer.status);
            if !chunks.agreed.is_of(&digests.sequence, &digests.multiset) {
                not_voted_for(*machine);
                continue;
            }
            let last = stored.chunk_digests().len().saturating_sub(1);
            let stored = Arc::new(stored);
            let mut messages = read_back(Arc::clone(&stored), last).await?;
            if matches!(chunks.agreed, Agreed::Multiset(_)) {
                messages = disputed::certified(messages);
            }
            let large = Large {
                source: Source::File(stored),
                next: 0,
                end: last,
                committed: false,
            };
            return Ok(VotedResult {
                before: (last > 0).then_some(large),
                messages,
                status: answer.status,
                multiset: Some(digests.multiset),
            });
        }
        Err(failure)
    }

    async fn read_from(
        &self,
        fetching: &Fetching,
        machine: MachineId,
        answer: &LargeAnswer,
        cancel: Option<&Cancel>,
    ) -> Result<StoredResult, Failure> {
        let mut writer = Box::new(in_file(&self.spool, ChunkWriter::new).await?);
        for index in 0..answer.chunks.len() {
            let chunk = self.chunk(fetching, &mut vec![machine], answer, index, cancel).await?;
            let append = move || writer.append(&chunk).map(|()| writer);
            writer = blocking(append).await?;
        }
        blocking(move || writer.finish()).await
    }

    /// A chunk with the digest that it must have. Sources that are wrong, or do not have it any more, are taken out.
    async fn chunk(
        &self,
        fetching: &Fetching,
        sources: &mut Vec<MachineId>,
        answer: &LargeAnswer,
        index: usize,
        cancel: Option<&Cancel>,
    ) -> Result<Bytes, Failure> {
        let Some(expected) = answer.chunks.get(index) else {
            return Err(Failure::Unavailable);
        };
        let give_up = Instant::now() + self.statement_timeout;
        while let Some(machine) = sources.first().copied() {
            let come = tokio::select! {
                come = self.ask_for_chunk(fetching, machine, index) => come?,
                () = wait_for(cancel) => return Err(Failure::Cancelled),
            };
            match come {
                Some(Some(bytes)) if chunk_digest(&bytes) == *expected => {
                    metrics::counter!("cloudbft_result_chunks_total").increment(1);
                    // The next one is on its way while this one is written.
                    if index + 1 < answer.chunks.len() {
                        self.want(fetching, machine, index + 1).await?;
                    }
                    return Ok(bytes);
                }
                Some(Some(_)) => {
                    not_voted_for(machine);
                    sources.remove(0);
                }
                Some(None) => {
                    sources.remove(0);
                }
                None if give_up <= Instant::now() => return Err(Failure::NoProgress),
                None => sources.rotate_left(1),
            }
        }
        let error = ApplicationError::new("53400", "the result is not kept any more")
            .detail("The database nodes that gave it needed the room for others, were restarted, or gave wrong parts.")
            .hint("Run the statement again, with fewer large results at once.");
        Err(Failure::Refused(error))
    }

    async fn want(&self, fetching: &Fetching, machine: MachineId, index: usize) -> Result<(), Failure> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        fetching.fetch.expect(machine, index);
        let message = ToNode::Client(ClientMessage::RecallChunk {
            key: fetching.key,
            index,
        });
        self.send(Destination::Machines(MachineSet::one(machine)), message)
            .await
    }

    /// What a voter gives for a chunk; `None` when it gives nothing in time.
    async fn ask_for_chunk(
        &self,
        fetching: &Fetching,
        machine: MachineId,
        index: usize,
    ) -> Result<Option<Option<Bytes>>, Failure> {
        let wanted = Some((machine, u32::try_from(index).unwrap_or(u32::MAX)));
        if fetching.fetch.state().wanted != wanted {
            self.want(fetching, machine, index).await?;
        }
        let until = Instant::now() + CHUNK_PATIENCE;
        loop {
            if let Some(come) = fetching.fetch.take() {
                return Ok(Some(come));
            }
            if timeout_at(until, fetching.fetch.changed.notified()).await.is_err() {
                fetching.fetch.state().wanted = None;
                return Ok(None);
            }
        }
    }

    /// The next chunk that is to be released; `None` at the end.
    pub(crate) async fn next_chunk(&self, large: &mut Large, cancel: &Cancel) -> Result<Option<Bytes>, Failure> {
        if large.next >= large.end {
            return Ok(None);
        }
        let chunk = match &mut large.source {
            Source::Voters(fetching, sources, answer) => {
                self.chunk(fetching, sources, answer, large.next, Some(cancel)).await?
            }
            Source::File(_) if cancel.is_requested() => return Err(Failure::Cancelled),
            Source::File(stored) => read_back(Arc::clone(stored), large.next).await?,
        };
        large.next += 1;
        Ok(Some(chunk))
    }

    /// The whole result in memory: for what the proxy itself reads.
    pub(crate) async fn gather(&self, result: VotedResult) -> Result<ExchangeResult, Failure> {
        let (mut messages, status) = (result.messages, result.status);
        if let Some(mut large) = result.before {
            let (cancel, mut all) = (Cancel::default(), Vec::new());
            while let Some(chunk) = self.next_chunk(&mut large, &cancel).await? {
                if all.len() + chunk.len() + messages.len() > GATHER_BYTES_MAX {
                    let error = ApplicationError::new("54000", "the result is too large for what it is needed for");
                    return Err(Failure::Refused(error));
                }
                all.extend_from_slice(&chunk);
            }
            all.extend_from_slice(&messages);
            messages = all.into();
        }
        Ok(ExchangeResult { messages, status })
    }

    /// A large answer that nobody has a use for (any more): the voter need not keep it.
    pub(super) fn release_unwanted(&self, machine: MachineId, key: ResultKey) {
        let message = ToNode::Client(ClientMessage::Release(key));
        // A voter that does not get it deletes the result when it needs the room.
        let _ = self
            .to
            .try_send((Destination::Machines(MachineSet::one(machine)), message));
    }
}

fn not_voted_for(machine: MachineId) {
    tracing::warn!(machine = machine.0, "a voter's result is not the one that it voted for");
    invalid(machine, "result_digest");
}

async fn read_back(stored: Arc<StoredResult>, index: usize) -> Result<Bytes, Failure> {
    let chunk = blocking(move || stored.chunk(index)).await?;
    chunk.map(Bytes::from).ok_or(Failure::Unavailable)
}

async fn in_file<T: Send + 'static>(
    spool: &SpoolDirectory,
    make: impl FnOnce(&SpoolDirectory) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let spool = spool.clone();
    blocking(move || make(&spool)).await
}

/// Does something with a file where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| {
        let refused = match error.kind() {
            ErrorKind::QuotaExceeded | ErrorKind::StorageFull => ApplicationError::new(
                "53400",
                "the proxy has no room to verify the result before it is released",
            )
            .hint("Ask for a total order (ORDER BY): such a result is verified piece by piece."),
            _ => ApplicationError::new("58030", "the proxy cannot keep the result while it is verified")
                .detail(error.to_string()),
        };
        Failure::Refused(refused)
    })
}
