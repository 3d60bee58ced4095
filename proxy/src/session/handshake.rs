//! From an accepted connection to a session: TLS, startup packet, authentication, first parameters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sql::operation::Exchange;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, Stream};
use super::pipeline::Pipeline;
use super::prepared::Statements;
use super::routing::{Kind, UNENDED_MAX};
use super::settings::{REPORTED, Settings};
use super::tokens::quote_literal;
use super::{End, Session};
use crate::client::Cancel;
use crate::config::Authentication;
use crate::error::{ApplicationError, NO_PROGRESS, Severity};
use crate::scram::{MECHANISM, Scram, ScramError, Verifier};
use crate::shared::Shared;
use crate::wire::{FrameError, FrameReader, Frontend, PROTOCOL_LATEST_MINOR, Startup, StartupPacket, read_rows};

/// How long an application may take to log in (as Postgres's `authentication_timeout`).
const LOGIN_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to the end of its startup packet, TLS included.
const STARTUP_MAX: Duration = Duration::from_secs(10);
/// The first byte of a TLS handshake: TLS without SSLRequest (`sslnegotiation=direct`).
const TLS_HANDSHAKE: u8 = 0x16;
/// The length of cancel keys in protocol 3.2, in bytes.
const LONG_KEY_BYTES: usize = 32;
/// The length of cancel keys before, in bytes.
const SHORT_KEY_BYTES: usize = 4;

/// Brings a connection to the point where it can ask queries. `None` when it ends before.
pub(crate) async fn greet(
    stream: TcpStream,
    shared: Arc<Shared>,
    limit: Arc<Semaphore>,
) -> Option<(Session, OwnedSemaphorePermit)> {
    let _ = stream.set_nodelay(true);
    let (connection, startup, encrypted) = tokio::time::timeout(STARTUP_MAX, negotiate(stream, &shared))
        .await
        .ok()
        .flatten()?;
    let logged_in = tokio::time::timeout(LOGIN_MAX, login(connection, startup, encrypted, shared, limit)).await;
    match logged_in.ok()? {
        Ok(session) => Some(session),
        Err((mut connection, End::Told(error))) => {
            // An application that does not even take this is not waited for.
            let _ = tokio::time::timeout(STARTUP_MAX, refuse(&mut connection, error)).await;
            None
        }
        Err((_, End::Gone)) => None,
    }
}

async fn refuse(connection: &mut Connection, error: ApplicationError) {
    connection.out.error(&ApplicationError {
        severity: Severity::Fatal,
        ..error
    });
    let _ = connection.flush().await;
}

/// Encryption and the startup packet; answers cancel requests.
async fn negotiate(tcp: TcpStream, shared: &Shared) -> Option<(Connection, Startup, bool)> {
    let mut first = [0_u8; 1];
    tcp.peek(&mut first).await.ok()?;
    let tls = shared.config.tls.clone().map(TlsAcceptor::from);
    let mut encrypted = false;
    let mut stream: Box<dyn Stream> = match &tls {
        Some(acceptor) if first == [TLS_HANDSHAKE] => {
            encrypted = true;
            Box::new(acceptor.accept(tcp).await.ok()?)
        }
        _ => Box::new(tcp),
    };
    let mut reader = FrameReader::default();
    loop {
        let packet = match reader.startup(&mut stream).await {
            Ok(body) => StartupPacket::parse(body),
            Err(error) => Err(error),
        };
        let error = match packet {
            Ok(StartupPacket::Startup(startup)) => {
                return Some((Connection::new(stream, reader), startup, encrypted));
            }
            Ok(StartupPacket::Cancel { process, key }) => {
                shared.cancels.cancel(process, &key).await;
                return None;
            }
            Ok(StartupPacket::GssEncryptionRequest) => {
                stream.write_all(b"N").await.ok()?;
                continue;
            }
            Ok(StartupPacket::SslRequest) => match &tls {
                Some(acceptor) if !encrypted => {
                    stream.write_all(b"S").await.ok()?;
                    // What came in clear after the request would be taken for encrypted (CVE-2021-23222).
                    if reader.has_buffered() {
                        return None;
                    }
                    stream = Box::new(acceptor.accept(stream).await.ok()?);
                    encrypted = true;
                    continue;
                }
                _ => {
                    stream.write_all(b"N").await.ok()?;
                    continue;
                }
            },
            Ok(StartupPacket::UnsupportedVersion { major, minor }) => ApplicationError::fatal(
                "0A000",
                format!(
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{PROTOCOL_LATEST_MINOR}"
                ),
            ),
            Err(FrameError::Closed | FrameError::Connection(_)) => return None,
            Err(error) => ApplicationError::from(&error),
        };
        refuse(&mut Connection::new(stream, reader), error).await;
        return None;
    }
}

type LoginResult<T> = Result<T, (Connection, End)>;

/// Only an application that has proved who it is takes one of the places.
async fn login(
    mut connection: Connection,
    startup: Startup,
    encrypted: bool,
    shared: Arc<Shared>,
    limit: Arc<Semaphore>,
) -> LoginResult<(Session, OwnedSemaphorePermit)> {
    let authenticated = match check_startup(&startup, encrypted, &shared) {
        Ok(()) => authenticate(&mut connection, &startup, &shared).await,
        Err(error) => Err(End::Told(error)),
    };
    let (role, database) = match authenticated {
        Ok(who) => who,
        Err(end) => return Err((connection, end)),
    };
    let Ok(permit) = limit.try_acquire_owned() else {
        let error = ApplicationError::fatal("53300", "sorry, too many clients already");
        return Err((connection, End::Told(error)));
    };
    let Some(catalog) = shared.catalogs.get(&database).cloned() else {
        let error = ApplicationError::fatal("3D000", format!("database \"{database}\" does not exist"))
            .hint("The databases that applications may use are in the cluster file.");
        return Err((connection, End::Told(error)));
    };
    connection.authenticated();
    connection.out.authentication_ok();
    let key_bytes = if startup.minor >= PROTOCOL_LATEST_MINOR {
        LONG_KEY_BYTES
    } else {
        SHORT_KEY_BYTES
    };
    let key: [u8; LONG_KEY_BYTES] = rand::random();
    let key = key.get(..key_bytes).unwrap_or_default().to_vec();
    let cancel = Arc::new(Cancel::default());
    let registered = shared.cancels.register(key.clone(), Arc::clone(&cancel));
    let id = shared.next_session();
    let session = Session {
        ear: shared.client.hub.ear(id, registered.process),
        station: shared.advisory.station(id),
        ending: None,
        registered,
        id,
        committed_at: None,
        cancel,
        release_until: None,
        catalog,
        role,
        database,
        settings: Settings::default(),
        startup_settings: Settings::default(),
        defaults: Arc::default(),
        context: None,
        transaction: None,
        next_transaction: 1,
        held: super::held::HeldCursors::default(),
        unended: Arc::new(Semaphore::new(UNENDED_MAX)),
        statements: Statements::default(),
        portals: HashMap::new(),
        pipeline: Pipeline::default(),
        skip_to_sync: false,
        made_temporary: false,
        is_gone: false,
        shared,
        connection,
    };
    let session = session.prepare(&startup, &key).await?;
    Ok((session, permit))
}

/// What can be refused before anybody has proved anything.
fn check_startup(startup: &Startup, encrypted: bool, shared: &Shared) -> Result<(), ApplicationError> {
    if shared.config.tls_required && !encrypted {
        return Err(
            ApplicationError::fatal("28000", "this server accepts encrypted connections only")
                .hint("Connect with sslmode=require or stronger."),
        );
    }
    let replication = startup.get("replication").unwrap_or("false").to_ascii_lowercase();
    if !matches!(replication.as_str(), "false" | "off" | "no" | "0") {
        return Err(ApplicationError::fatal(
            "0A000",
            "the replication protocol is not supported through the proxy",
        ));
    }
    let encoding = startup.get("client_encoding").unwrap_or("UTF8");
    if !is_utf8(encoding) && !encoding.eq_ignore_ascii_case("auto") {
        let message = format!("client_encoding \"{encoding}\" is not supported through the proxy");
        return Err(ApplicationError::fatal("0A000", message).hint("Use client_encoding UTF8."));
    }
    Ok(())
}

/// Whether an encoding's name means UTF-8: as in Postgres (`pg_char_to_encoding`) only letters and digits count, in
/// either case, so that `'utf-8'` with quotes inside the value, as asyncpg sends it, is UTF8.
pub(super) fn is_utf8(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    matches!(name.to_ascii_lowercase().as_str(), "utf8" | "unicode")
}

async fn authenticate(
    connection: &mut Connection,
    startup: &Startup,
    shared: &Shared,
) -> Result<(String, String), End> {
    let unrecognised: Vec<_> = startup
        .parameters
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("_pq_."))
        .collect();
    if startup.minor > PROTOCOL_LATEST_MINOR || !unrecognised.is_empty() {
        let minor = startup.minor.min(PROTOCOL_LATEST_MINOR);
        connection.out.negotiate_protocol_version(minor, &unrecognised);
    }
    let role = startup.get("user").filter(|role| !role.is_empty());
    let role = role.ok_or_else(|| {
        End::Told(ApplicationError::fatal(
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ))
    })?;
    let known = shared.config.roles.iter().any(|allowed| allowed.name == role);
    match shared.config.authentication {
        Authentication::Trust if known => {}
        Authentication::Trust => {
            let error = ApplicationError::fatal("28000", format!("role \"{role}\" does not exist"))
                .hint("The roles that applications may use are in the cluster file.");
            return Err(End::Told(error));
        }
        Authentication::ScramSha256 => scram(connection, role, shared).await?,
    }
    let database = startup
        .get("database")
        .filter(|database| !database.is_empty())
        .unwrap_or(role);
    Ok((role.to_owned(), database.to_owned()))
}

async fn scram(connection: &mut Connection, role: &str, shared: &Shared) -> Result<(), End> {
    let refused = |error: ScramError| match error {
        ScramError::Refused => {
            let message = format!("password authentication failed for user \"{role}\"");
            End::Told(ApplicationError::fatal("28P01", message))
        }
        other => End::Told(ApplicationError::fatal("08P01", other.to_string())),
    };
    connection.out.authentication_sasl(&[MECHANISM]);
    connection.flush().await?;
    let first = password_message(connection).await?;
    let client_first = initial_response(&first).ok_or_else(|| refused(ScramError::Malformed))?;
    let verifier = shared.verifiers.get(role).cloned();
    let made_up = Verifier::made_up(role, &shared.secret, &shared.verifiers);
    let exchange = Scram::start(verifier, made_up, client_first).map_err(refused)?;
    connection.out.authentication_sasl_continue(exchange.server_first());
    connection.flush().await?;
    let last = password_message(connection).await?;
    let server_final = exchange.finish(&last).map_err(refused)?;
    connection.out.authentication_sasl_final(&server_final);
    Ok(())
}

async fn password_message(connection: &mut Connection) -> Result<Bytes, End> {
    match connection.message().await? {
        Frontend::Authentication(body) => Ok(body),
        Frontend::Terminate => Err(End::Gone),
        _ => Err(End::Told(ApplicationError::fatal("08P01", "expected SASL response"))),
    }
}

/// The data of SASLInitialResponse, if it chose our mechanism.
fn initial_response(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(MECHANISM.as_bytes())?.strip_prefix(&[0])?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    (data.len() == length).then_some(data)
}

impl Session {
    /// Reads the defaults, applies the settings of the startup packet, and tells the application that all is ready.
    async fn prepare(mut self, startup: &Startup, key: &[u8]) -> LoginResult<Self> {
        if let Err(error) = self.prepare_settings(startup).await {
            return Err((self.connection, End::Told(error)));
        }
        for name in REPORTED {
            let value = self.reported_value(name);
            self.connection.out.parameter_status(name, &value);
        }
        self.connection.out.backend_key_data(self.registered.process, key);
        match self.ready().await {
            Ok(()) => Ok(self),
            Err(end) => Err((self.connection, end)),
        }
    }

    async fn prepare_settings(&mut self, startup: &Startup) -> Result<(), ApplicationError> {
        let limit = self.shared.config.statement_timeout;
        if tokio::time::timeout(limit, self.catalog.wait_loaded()).await.is_err() {
            return Err(ApplicationError::fatal(NO_PROGRESS, "the cluster does not answer yet"));
        }
        self.defaults = match self.shared.defaults(&self.role, &self.database) {
            Some(defaults) => defaults,
            None => self.read_defaults().await?,
        };
        for (name, value) in startup_settings(startup)? {
            let text = format!("SET {name} TO {}", quote_literal(&value));
            if let Some(refusal) = self.catalog.current().analyzer.text(&text).refusal() {
                return Err(refusal.clone().into());
            }
            self.change_setting(&name, Some(value), false, false).await?;
        }
        self.startup_settings = self.settings.clone();
        // What was reported so far is reported again, as a whole.
        Ok(())
    }

    async fn read_defaults(&mut self) -> Result<Arc<BTreeMap<String, String>>, ApplicationError> {
        let text = REPORTED.map(|name| format!("SHOW {name}")).join("; ");
        let result = self.execute_and_gather(&Exchange::Simple { text }, Kind::Plain).await?;
        if let Some(error) = crate::wire::first_error(&result.messages) {
            return Err(error);
        }
        let rows = read_rows(&result.messages).unwrap_or_default();
        let values = rows
            .into_iter()
            .map(|row| row.into_iter().next().flatten().unwrap_or_default());
        let defaults: BTreeMap<_, _> = REPORTED.iter().map(|name| (*name).to_owned()).zip(values).collect();
        let defaults = Arc::new(defaults);
        self.shared
            .remember_defaults(&self.role, &self.database, Arc::clone(&defaults));
        Ok(defaults)
    }
}

/// The settings that a startup packet asks for: its own parameters, and those of `options` (`-c name=value`).
fn startup_settings(startup: &Startup) -> Result<Vec<(String, String)>, ApplicationError> {
    let mut settings = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => settings.extend(options(value)?),
            "client_encoding" if value.eq_ignore_ascii_case("auto") => {}
            name if name.starts_with("_pq_.") => {}
            name => settings.push((name.to_ascii_lowercase(), value.clone())),
        }
    }
    Ok(settings)
}

/// Command-line options as libpq's `options` carries them; a backslash escapes white space.
fn options(text: &str) -> Result<Vec<(String, String)>, ApplicationError> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => words
                .last_mut()
                .into_iter()
                .for_each(|word| word.extend(characters.next())),
            space if space.is_ascii_whitespace() => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let assignment = match word.as_str() {
            "-c" => words.next().unwrap_or_default(),
            other => match other.strip_prefix("--").or_else(|| other.strip_prefix("-c")) {
                Some(assignment) => assignment.to_owned(),
                None => return Err(unknown_option(other)),
            },
        };
        let (name, value) = assignment.split_once('=').ok_or_else(|| unknown_option(&word))?;
        settings.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Ok(settings)
}

fn unknown_option(option: &str) -> ApplicationError {
    ApplicationError::fatal(
        "42601",
        format!("invalid command-line argument for server process: {option}"),
    )
    .hint("The proxy takes -c name=value and --name=value.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_writes_them() {
        let expected = vec![
            ("geqo".to_string(), "off".to_string()),
            ("search_path".into(), "a b".into()),
        ];
        assert_eq!(options("-c geqo=off --search-path=a\\ b").unwrap(), expected);
        assert!(options("-x").is_err());
        assert_eq!(options("").unwrap(), []);
    }

    #[test]
    fn initial_responses_must_fill_their_frame() {
        assert_eq!(initial_response(b"SCRAM-SHA-256\0\0\0\0\x03abc"), Some(&b"abc"[..]));
        assert_eq!(initial_response(b"SCRAM-SHA-256\0\0\0\0\x04abc"), None);
        assert_eq!(initial_response(b"SCRAM-SHA-256\0\xff\xff\xff\xff"), None);
        assert_eq!(initial_response(b"SCRAM-SHA-256-PLUS\0\0\0\0\x03abc"), None);
    }
}
