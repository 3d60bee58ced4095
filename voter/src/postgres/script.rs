//! A pipeline to the server, and the reading of its answers: which messages belong to the client's exchange.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use super::PostgresError;
use super::capture::{Capture, CaptureLimits, ServerError, error_fields};
use super::connection::{Connection, HEADER_BYTES, Message};
use super::functions::Call;
use super::notified::Notified;
use super::prepared::PreparedKey;

/// One frontend message whose answer is awaited.
#[derive(Debug)]
enum Awaited {
    Parse(Option<(PreparedKey, String)>),
    Bind,
    Close,
    DescribeStatement,
    DescribePortal,
    /// Describe of a portal on behalf of a simple Query, which says nothing where there are no rows.
    DescribeRows,
    Execute,
    /// A FunctionCall.
    Call,
    /// A FunctionCall that answers one number.
    CallNumber,
    /// A FunctionCall that answers a text.
    CallText,
    Query,
    /// A Query after the end of the transaction, which says nothing of it.
    Aside,
    /// A Query that opens COPY FROM STDIN: ends at CopyInResponse.
    CopyStart,
    Sync,
    /// The client gets these bytes though the server is not asked.
    Synthetic(&'static [u8]),
    /// The next exchange's answers begin.
    Cut,
    /// The same where no Sync has told the transaction's status: it is open, unless something has failed.
    CutOpen,
}

/// Frontend messages with what they are expected to bring.
#[derive(Debug, Default)]
pub struct Script {
    buffer: BytesMut,
    awaited: VecDeque<(Awaited, Part)>,
    /// What an earlier script has brought, if this one goes on with it.
    earlier: Option<Capture>,
    /// It is over when the result cannot be kept: what follows is of no use to anybody.
    stops: bool,
}

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The voter's own: its answers are dropped.
    Own,
    /// On behalf of the client, who did not ask for it: its success is dropped, its error is the result.
    Silent,
    /// The same, and its notices are the result too.
    Noticed,
    /// The client's: its answers are the result.
    Client,
}

/// The answers to one exchange of a script.
#[derive(Debug)]
pub struct Segment {
    /// The client's part.
    pub capture: Capture,
    /// The first error, and whose message it answered.
    pub error: Option<(ServerError, Part)>,
    /// The transaction status of the last ReadyForQuery.
    pub status: u8,
}

/// What a script brought.
#[derive(Debug)]
pub struct Played {
    /// The answers of each exchange, in order; at least one.
    pub segments: Vec<Segment>,
    /// Statements that the server has prepared.
    pub prepared: Vec<(PreparedKey, String)>,
    /// The tag of the last command that succeeded.
    pub tag: Bytes,
    /// What the calls of [`Script::number`] answered.
    pub numbers: Vec<u64>,
    /// What the call of [`Script::text`] answered.
    pub text: Option<String>,
    /// What a transaction of this backend has notified, as far as the backend listens.
    pub notified: Notified,
    /// Whether it was left while the server still answers: the connection is of no use any more.
    pub left: bool,
}

impl Segment {
    fn new(limits: &CaptureLimits) -> Self {
        Self {
            capture: Capture::new(limits),
            error: None,
            status: b'I',
        }
    }
}

impl Played {
    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> u8 {
        self.segments.last().map_or(b'E', |segment| segment.status)
    }

    /// The first error of all.
    pub fn error(&self) -> Option<&(ServerError, Part)> {
        self.segments.iter().find_map(|segment| segment.error.as_ref())
    }

    /// The only exchange's answers.
    pub fn into_segment(mut self, limits: &CaptureLimits) -> Segment {
        self.segments.pop().unwrap_or_else(|| Segment::new(limits))
    }
}

/// The SQLSTATE of a statement in a transaction that has failed.
const IN_FAILED_TRANSACTION: &str = "25P02";

impl Script {
    /// A script whose result goes on with that of an earlier one.
    pub fn after(earlier: Option<Capture>) -> Self {
        Self {
            earlier,
            ..Self::default()
        }
    }

    /// A script that has no effect: it is left when its result cannot be kept.
    pub fn of_read() -> Self {
        Self {
            stops: true,
            ..Self::default()
        }
    }

    /// Parse; its success is noted under `key` if there is one.
    pub fn parse(
        &mut self,
        part: Part,
        name: &str,
        text: &str,
        types: &[u32],
        key: Option<PreparedKey>,
    ) -> std::io::Result<()> {
        frontend::parse(name, text, types.iter().copied(), &mut self.buffer)?;
        let noted = key.map(|key| (key, name.to_owned()));
        self.awaited.push_back((Awaited::Parse(noted), part));
        Ok(())
    }

    /// The client's Parse of a statement that is prepared: answered without the server.
    pub fn parsed(&mut self) {
        let answer = Awaited::Synthetic(super::capture::PARSE_COMPLETE);
        self.awaited.push_back((answer, Part::Client));
    }

    /// Bind, with everything as the client sent it.
    pub fn bind(
        &mut self,
        part: Part,
        portal: &str,
        statement: &str,
        formats: &[i16],
        parameters: &[Option<Bytes>],
        result_formats: &[i16],
    ) -> std::io::Result<()> {
        let bound = frontend::bind(
            portal,
            statement,
            formats.iter().copied(),
            parameters.iter(),
            |value, buffer| match value {
                Some(bytes) => {
                    buffer.extend_from_slice(bytes);
                    Ok(IsNull::No)
                }
                None => Ok(IsNull::Yes),
            },
            result_formats.iter().copied(),
            &mut self.buffer,
        );
        bound.map_err(|_| std::io::Error::other("a Bind that cannot be encoded"))?;
        self.awaited.push_back((Awaited::Bind, part));
        Ok(())
    }

    /// Describe of a statement.
    pub fn describe_statement(&mut self, part: Part, name: &str) -> std::io::Result<()> {
        frontend::describe(b'S', name, &mut self.buffer)?;
        self.awaited.push_back((Awaited::DescribeStatement, part));
        Ok(())
    }

    /// Describe of a portal.
    pub fn describe_portal(&mut self, part: Part, name: &str) -> std::io::Result<()> {
        frontend::describe(b'P', name, &mut self.buffer)?;
        self.awaited.push_back((Awaited::DescribePortal, part));
        Ok(())
    }

    /// Describe of a portal on behalf of a simple Query.
    pub fn describe_rows(&mut self, name: &str) -> std::io::Result<()> {
        frontend::describe(b'P', name, &mut self.buffer)?;
        self.awaited.push_back((Awaited::DescribeRows, Part::Client));
        Ok(())
    }

    /// The answers of another exchange follow. To be called only after a Sync or a Query.
    pub fn cut(&mut self) {
        self.awaited.push_back((Awaited::Cut, Part::Own));
    }

    /// The answers of another exchange of an open transaction follow, without a Sync between.
    pub fn cut_open(&mut self) {
        self.awaited.push_back((Awaited::CutOpen, Part::Own));
    }

    /// Execute.
    pub fn execute(&mut self, part: Part, portal: &str, max_rows: u32) -> std::io::Result<()> {
        let max_rows = i32::try_from(max_rows).unwrap_or(i32::MAX);
        frontend::execute(portal, max_rows, &mut self.buffer)?;
        self.awaited.push_back((Awaited::Execute, part));
        Ok(())
    }

    /// Close of a portal (`b'P'`) or a statement (`b'S'`).
    pub fn close(&mut self, part: Part, kind: u8, name: &str) -> std::io::Result<()> {
        frontend::close(kind, name, &mut self.buffer)?;
        self.awaited.push_back((Awaited::Close, part));
        Ok(())
    }

    /// Sync.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.buffer);
        self.awaited.push_back((Awaited::Sync, Part::Own));
    }

    /// A simple Query.
    pub fn query(&mut self, part: Part, text: &str) -> std::io::Result<()> {
        frontend::query(text, &mut self.buffer)?;
        self.awaited.push_back((Awaited::Query, part));
        Ok(())
    }

    /// A simple Query of the voter's own after the end of a transaction: [`Played::tag`] stays the transaction's.
    pub fn aside(&mut self, text: &str) -> std::io::Result<()> {
        frontend::query(text, &mut self.buffer)?;
        self.awaited.push_back((Awaited::Aside, Part::Own));
        Ok(())
    }

    /// A simple Query that opens COPY FROM STDIN.
    pub fn copy_start(&mut self, text: &str) -> std::io::Result<()> {
        frontend::query(text, &mut self.buffer)?;
        self.awaited.push_back((Awaited::CopyStart, Part::Client));
        Ok(())
    }

    /// The end of COPY data: CopyFail with a reason, or CopyDone. Answered as a Query.
    pub fn copy_end(&mut self, failure: Option<&str>) -> std::io::Result<()> {
        match failure {
            Some(reason) => frontend::copy_fail(reason, &mut self.buffer)?,
            None => frontend::copy_done(&mut self.buffer),
        }
        self.awaited.push_back((Awaited::Query, Part::Client));
        Ok(())
    }

    /// Calls one of the voter's own functions. As [`Part::Silent`] its error is the result.
    pub fn call(&mut self, part: Part, call: &Call<'_>) -> std::io::Result<()> {
        self.add_call(call)?;
        self.awaited.push_back((Awaited::Call, part));
        Ok(())
    }

    /// The same with a function that answers one number, which is kept in [`Played::numbers`]. Its error is the result.
    pub fn number(&mut self, call: &Call<'_>) -> std::io::Result<()> {
        self.add_call(call)?;
        self.awaited.push_back((Awaited::CallNumber, Part::Silent));
        Ok(())
    }

    /// The same with a function that answers a text, which is kept in [`Played::text`].
    pub fn text(&mut self, call: &Call<'_>) -> std::io::Result<()> {
        self.add_call(call)?;
        self.awaited.push_back((Awaited::CallText, Part::Own));
        Ok(())
    }

    /// A FunctionCall ends with ReadyForQuery, as a Query does. A server that skips to the next Sync would skip it.
    fn add_call(&mut self, call: &Call<'_>) -> std::io::Result<()> {
        if self.ends_without_sync() {
            self.sync();
        }
        call.write(&mut self.buffer)
    }

    /// Whether a Sync is due before a simple Query or a FunctionCall.
    pub fn ends_without_sync(&self) -> bool {
        let last = self.awaited.back();
        last.is_some_and(|(awaited, _)| {
            !matches!(
                awaited,
                Awaited::Sync
                    | Awaited::Query
                    | Awaited::Aside
                    | Awaited::Call
                    | Awaited::CallNumber
                    | Awaited::CallText
                    | Awaited::Cut
            )
        })
    }

    /// Bytes that will be written.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing will be written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Writes everything at once and reads the answers to everything. `between` is called at every ReadyForQuery but the
    /// last.
    ///
    /// # Errors
    /// When the connection is lost or the server breaks the protocol; errors of statements are in [`Played::error`].
    pub async fn play(
        mut self,
        connection: &mut Connection,
        limits: &CaptureLimits,
        mut between: impl FnMut(),
    ) -> Result<Played, PostgresError> {
        connection.outgoing().unsplit(std::mem::take(&mut self.buffer));
        let mut first = Segment::new(limits);
        if let Some(earlier) = self.earlier.take() {
            first.capture = earlier;
        }
        let mut played = Played {
            segments: vec![first],
            prepared: Vec::new(),
            tag: Bytes::new(),
            numbers: Vec::new(),
            text: None,
            notified: Notified::default(),
            left: false,
        };
        let process = connection.process();
        while self.advance(&mut played, limits) {
            let message = connection.message().await?;
            if message.tag == b'A' {
                played.notified.take(message.body(), process);
            }
            self.take(&message, &mut played)?;
            if let Some(segment) = played.segments.last_mut().filter(|segment| segment.capture.is_full()) {
                segment.capture.put_out().await;
            }
            if self.stops && played.segments.iter().any(|segment| segment.capture.is_lost()) {
                played.left = true;
                return Ok(played);
            }
            if message.tag == b'Z' && !self.awaited.is_empty() {
                between();
            }
        }
        Ok(played)
    }

    /// Answers what needs no server; whether more is awaited.
    fn advance(&mut self, played: &mut Played, limits: &CaptureLimits) -> bool {
        loop {
            match self.awaited.front() {
                Some((Awaited::Synthetic(bytes), _)) => {
                    if let Some(segment) = played.segments.last_mut() {
                        segment.capture.add_bytes(bytes);
                    }
                }
                Some((Awaited::Cut, _)) => played.segments.push(Segment::new(limits)),
                Some((Awaited::CutOpen, _)) => {
                    if let Some(segment) = played.segments.last_mut() {
                        segment.status = b'T';
                    }
                    played.segments.push(Segment::new(limits));
                }
                Some(_) => return true,
                None => return false,
            }
            self.awaited.pop_front();
        }
    }

    fn take(&mut self, message: &Message, played: &mut Played) -> Result<(), PostgresError> {
        match message.tag {
            b'S' | b'A' | b'K' => return Ok(()),
            b'E' => {
                self.take_error(message, played);
                return Ok(());
            }
            _ => {}
        }
        let (Some((awaited, part)), Some(segment)) = (self.awaited.front(), played.segments.last_mut()) else {
            return Err(PostgresError::protocol("an answer to nothing"));
        };
        let (part, tag) = (*part, message.tag);
        let (keep, done) = match (awaited, tag) {
            (_, b'N') => (true, false),
            (
                Awaited::Sync
                | Awaited::Query
                | Awaited::Aside
                | Awaited::Call
                | Awaited::CallNumber
                | Awaited::CallText
                | Awaited::CopyStart,
                b'Z',
            ) => {
                segment.status = message.body().first().copied().unwrap_or(b'E');
                (false, true)
            }
            (Awaited::Parse(_), b'1') | (Awaited::Bind, b'2') | (Awaited::Close, b'3') => (true, true),
            (Awaited::DescribeStatement, b't') => (true, false),
            (Awaited::DescribeStatement | Awaited::DescribePortal, b'T' | b'n') => (true, true),
            (Awaited::DescribeRows, b'T') => (true, true),
            (Awaited::DescribeRows, b'n') => (false, true),
            (Awaited::Execute, b'C' | b'I' | b's') => (true, true),
            (Awaited::Call, b'V') => (false, false),
            (Awaited::CallNumber, b'V') => {
                let number = value(message.body()).and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| PostgresError::protocol("not one number"))?;
                played.numbers.push(number);
                (false, false)
            }
            (Awaited::CallText, b'V') => {
                let text = value(message.body()).ok_or_else(|| PostgresError::protocol("not one text"))?;
                played.text = Some(text.to_owned());
                (false, false)
            }
            (Awaited::Aside, b'C') => return Ok(()),
            (Awaited::Execute | Awaited::Query, b'D' | b'H' | b'd' | b'c') => (true, false),
            (Awaited::Query, b'T' | b'C' | b'I') => (true, false),
            (Awaited::CopyStart, b'G') => {
                segment.status = b'T';
                (true, true)
            }
            (_, other) => {
                return Err(PostgresError::protocol(format!(
                    "an unexpected message of type {other}"
                )));
            }
        };
        if tag == b'C' {
            played.tag = message.frame.slice(message.frame.len().min(HEADER_BYTES)..);
        }
        if keep && (part == Part::Client || (part == Part::Noticed && tag == b'N')) {
            segment.capture.add(message);
        }
        if done && let Some((Awaited::Parse(Some(noted)), _)) = self.awaited.pop_front() {
            played.prepared.push(noted);
        }
        Ok(())
    }

    /// An error: kept whoever caused it (the caller decides), and what follows is skipped as the server skips it. That the
    /// voter's own statements do nothing in a transaction that has failed says nothing of the client's: it may end the failure.
    fn take_error(&mut self, message: &Message, played: &mut Played) {
        let part = self.awaited.front().map_or(Part::Own, |(_, part)| *part);
        let error = error_fields(message.body());
        let skipped = part == Part::Own && error.sqlstate == IN_FAILED_TRANSACTION;
        if let Some(segment) = played.segments.last_mut()
            && segment.error.is_none()
            && !skipped
        {
            segment.error = Some((error, part));
            segment.capture.add(message);
        }
        while let Some((awaited, _)) = self.awaited.front() {
            if matches!(
                awaited,
                Awaited::Sync
                    | Awaited::Query
                    | Awaited::Aside
                    | Awaited::Call
                    | Awaited::CallNumber
                    | Awaited::CallText
                    | Awaited::CopyStart
            ) {
                break;
            }
            self.awaited.pop_front();
        }
    }
}

/// What a FunctionCallResponse says, if it is a text.
fn value(body: &[u8]) -> Option<&str> {
    let (length, rest) = body.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}
