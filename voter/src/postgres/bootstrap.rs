//! What the voter needs in its database: installed, checked, and read at every start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sql::determinism::FUNCTIONS_SQL;
use sql::schema::Schema;

use super::PostgresError;
use super::catalog::Known;
use super::connection::{APPLICATION_NAME, Connection, PINNED_SETTINGS};
use super::functions::{ALL_SEQUENCES, Call, FUNCTIONS_QUERY, Functions};
use super::settings::literal;
use crate::config::VoterConfig;
use crate::effects::{Divergence, MESSAGE_PREFIX, drop_slot};
use crate::lock_table::Position;

const BOOTSTRAP_SQL: &str = include_str!("bootstrap.sql");
const MEMBERSHIP_SQL: &str = include_str!("membership.sql");

/// Roles of PostgreSQL that reach beyond the database: their members could change the server under the voter.
const POWERFUL_ROLES: &[&str] = &[
    "pg_checkpoint",
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_signal_backend",
    "pg_write_server_files",
];

/// Settings that change results, and that only a superuser may set: they cannot be pinned when an application's role logs
/// in. In lower case.
const UNPINNABLE_SETTINGS: &[&str] = &[
    "lc_messages",
    "lo_compat_privileges",
    "plpgsql.variable_conflict",
    "session_preload_libraries",
    "session_replication_role",
];

/// The largest message of the voter's own queries.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The voter's own connection, as superuser.
#[derive(Debug)]
pub struct Bookkeeper {
    connection: Connection,
    /// The catalog, once it was read.
    pub(super) known: Option<Known>,
    /// The order up to which positions were forgotten, as [`Bookkeeper::write_floor`] writes it; 0: none were.
    forgotten: u64,
}

/// What a voter finds in its database when it starts.
pub struct Found {
    /// The bookkeeping functions.
    pub functions: Functions,
    /// What survived: the last position of each home.
    pub applied: BTreeMap<String, Position>,
    /// The floor and the voter's state there; `None` in a new database.
    pub floor: Option<(u64, Vec<u8>)>,
    /// The catalog.
    pub schema: Arc<Schema>,
}

impl Bookkeeper {
    /// Connects.
    ///
    /// # Errors
    /// When the server is not there or does not let the superuser in.
    pub async fn open(config: &VoterConfig) -> Result<Self, PostgresError> {
        let postgres = &config.postgres;
        let pins = [("synchronous_commit", "on"), ("search_path", "pg_catalog")];
        let connection = Connection::open(postgres, &postgres.superuser, &pins, MESSAGE_BYTES_MAX).await?;
        Ok(Self {
            connection,
            known: None,
            forgotten: 0,
        })
    }

    /// Installs what is missing, ends what an earlier life of the voter left running, checks that the server is fit, sets
    /// sequences back to their committed positions, and reads where the voter is to resume.
    ///
    /// # Errors
    /// [`PostgresError::Unfit`] when this voter must not serve this server.
    pub async fn bootstrap(&mut self, config: &VoterConfig) -> Result<Found, PostgresError> {
        self.end_earlier_backends().await?;
        self.check_server(config).await?;
        self.check_roles(config).await?;
        self.check_attached_settings(config).await?;
        self.query(BOOTSTRAP_SQL).await?;
        self.query(FUNCTIONS_SQL).await?;
        self.check_divergence().await?;
        if !config.compare_effects {
            self.query(&drop_slot(&config.postgres.database)).await?;
        }
        self.query(MEMBERSHIP_SQL).await?;
        let functions = Functions::from_rows(&self.query(FUNCTIONS_QUERY).await?)?;
        self.call(&functions.restore_sequences(None)).await?;
        self.call(&functions.record_sequences(Some(ALL_SEQUENCES))).await?;
        let floor = self.floor().await?;
        if let Some((order, _)) = &floor {
            self.forget_rows(*order).await?;
        }
        Ok(Found {
            applied: self.applied(None).await?,
            floor,
            schema: self.read_catalog(&config.rules).await?,
            functions,
        })
    }

    /// A backend of an earlier life may still be about to commit; nothing is read before all of them have ended.
    async fn end_earlier_backends(&mut self) -> Result<(), PostgresError> {
        let others = format!(
            "FROM pg_catalog.pg_stat_activity WHERE application_name = {} AND pid <> pg_catalog.pg_backend_pid() \
             AND datname = pg_catalog.current_database()",
            literal(APPLICATION_NAME)
        );
        loop {
            let left = self
                .query(&format!("SELECT pg_catalog.pg_terminate_backend(pid) {others}"))
                .await?;
            if left.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn check_server(&mut self, config: &VoterConfig) -> Result<(), PostgresError> {
        let rows = self
            .query(
                "SELECT pg_catalog.current_setting('server_version_num')::int / 10000, \
                 pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('fsync'), \
                 pg_catalog.current_setting('full_page_writes'), pg_catalog.current_setting('max_connections'), \
                 pg_catalog.current_setting('lc_messages'), datcollate, datctype FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            )
            .await?;
        let row: Vec<String> = rows.into_iter().flatten().map(Option::unwrap_or_default).collect();
        let [version, encoding, fsync, pages, connections, messages, collate, ctype] = row.as_slice() else {
            return Err(PostgresError::protocol("the server's settings cannot be read"));
        };
        let wanted = config.postgres.major_version;
        let needed = config.limits.backends_max();
        let plain = |locale: &str| matches!(locale, "C" | "POSIX" | "C.UTF-8" | "C.utf8");
        let faults = [
            (
                wanted != 0 && *version != wanted.to_string(),
                format!("its version is {version}, not {wanted}"),
            ),
            (encoding != "UTF8", format!("its encoding is {encoding}, not UTF8")),
            (
                fsync != "on" || pages != "on",
                "fsync or full_page_writes is off".into(),
            ),
            (
                !plain(collate) || !plain(ctype),
                format!("its locale is {collate}, not C"),
            ),
            (
                messages != "C",
                format!("lc_messages is {messages}, not C (an application cannot set it)"),
            ),
            (
                connections.parse().unwrap_or(0) < needed,
                format!("max_connections is {connections}, the voter may need {needed}"),
            ),
        ];
        match faults.into_iter().find(|(fault, _)| *fault) {
            Some((_, fault)) => Err(PostgresError::Unfit(fault)),
            None => Ok(()),
        }
    }

    /// Refuses roles of clients that the server would let do more than an application may.
    async fn check_roles(&mut self, config: &VoterConfig) -> Result<(), PostgresError> {
        let Some(roles) = client_roles(config) else {
            return Ok(());
        };
        let powers = literals(POWERFUL_ROLES.iter().copied());
        let powerful = self
            .query(&format!(
                "SELECT r.rolname, s.rolname, CASE WHEN s.rolsuper THEN 'superuser' WHEN s.rolcreaterole THEN 'createrole' \
                 WHEN s.rolreplication THEN 'replication' WHEN s.rolbypassrls THEN 'bypassrls' ELSE 'server access' END \
                 FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_roles s ON pg_catalog.pg_has_role(r.oid, s.oid, 'MEMBER') \
                 WHERE r.rolname IN ({roles}) AND (s.rolsuper OR s.rolcreaterole OR s.rolreplication OR s.rolbypassrls \
                 OR s.rolname IN ({powers})) ORDER BY r.rolname, r.oid <> s.oid, s.rolname LIMIT 1"
            ))
            .await?;
        match powerful
            .into_iter()
            .flatten()
            .map(Option::unwrap_or_default)
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => Ok(()),
            [role, through, power] if role == through => Err(PostgresError::Unfit(format!(
                "the role {role} of a client has {power}: run ALTER ROLE {role} NO{}",
                power.to_uppercase()
            ))),
            [role, through, power] => Err(PostgresError::Unfit(format!(
                "the role {role} of a client may be {through}, which has {power}: run REVOKE {through} FROM {role}"
            ))),
            _ => Err(PostgresError::protocol("the server's roles cannot be read")),
        }
    }

    /// Looks at what `ALTER ROLE ... SET` and `ALTER DATABASE ... SET` have attached. A role may do that to itself, and some
    /// backends are older than what it does: what is pinned does not count, and the rest is told. What only a superuser can
    /// have attached, and would make this server differ, is refused.
    async fn check_attached_settings(&mut self, config: &VoterConfig) -> Result<(), PostgresError> {
        let Some(roles) = client_roles(config) else {
            return Ok(());
        };
        let attached = self
            .query(&format!(
                "SELECT DISTINCT coalesce(r.rolname, ''), lower(pg_catalog.split_part(setting, '=', 1)) \
                 FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) setting \
                 LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
                 LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
                 WHERE (s.setrole = 0 OR r.rolname IN ({roles})) \
                 AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database()) ORDER BY 1, 2"
            ))
            .await?;
        for row in attached {
            let [Some(role), Some(name)] = row.as_slice() else {
                return Err(PostgresError::protocol("attached settings cannot be read"));
            };
            let place = if role.is_empty() {
                "the database".into()
            } else {
                format!("the role {role}")
            };
            if UNPINNABLE_SETTINGS.contains(&name.as_str()) {
                return Err(PostgresError::Unfit(format!(
                    "{place} has {name} attached by ALTER ... SET: run ALTER ... RESET {name} as superuser"
                )));
            }
            if PINNED_SETTINGS
                .iter()
                .any(|(pinned, _)| pinned.eq_ignore_ascii_case(name))
            {
                tracing::warn!(
                    place,
                    name,
                    "a setting that is attached by ALTER ... SET does not count"
                );
            } else {
                tracing::warn!(
                    place,
                    name,
                    "a setting is attached by ALTER ... SET: backends may differ in it"
                );
            }
        }
        Ok(())
    }

    /// Refuses a database that was found to differ from f+1 others.
    ///
    /// # Errors
    /// [`PostgresError::Diverged`] when that is noted in it; others when the connection is lost.
    pub(crate) async fn check_divergence(&mut self) -> Result<(), PostgresError> {
        let rows = self.query("SELECT \"order\", changed FROM cloudbft.diverged").await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(());
        };
        let [Some(order), Some(shown)] = row.as_slice() else {
            return Err(PostgresError::protocol("cloudbft.diverged cannot be read"));
        };
        Err(PostgresError::Diverged {
            order: number(order)?,
            shown: shown.clone(),
        })
    }

    /// Tells by metrics what the last comparison of all contents has left in this database.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn tell_scrub(&mut self) -> Result<(), PostgresError> {
        let rows = self
            .query("SELECT ended, ranges, differences FROM cloudbft.scrub")
            .await?;
        let row = rows.into_iter().next().unwrap_or_else(|| vec![None; 3]);
        let names = [
            "cloudbft_scrub_ended_seconds",
            "cloudbft_scrub_ranges",
            "cloudbft_scrub_differences",
        ];
        for (name, value) in names.into_iter().zip(row) {
            let value = value.and_then(|value| value.parse::<f64>().ok());
            metrics::gauge!(name).set(value.unwrap_or_default());
        }
        Ok(())
    }

    /// Notes durably that this database differs from f+1 others, unless it is another server by now.
    ///
    /// # Errors
    /// When the connection is lost or the server refuses.
    pub(crate) async fn note_divergence(&mut self, divergence: &Divergence) -> Result<(), PostgresError> {
        let Divergence { order, system, shown } = divergence;
        let (system, shown) = (literal(system), literal(shown));
        let note = format!(
            "INSERT INTO cloudbft.diverged SELECT {order}, {shown} FROM pg_catalog.pg_control_system() \
             WHERE system_identifier::text = {system} AND NOT EXISTS (SELECT FROM cloudbft.diverged)"
        );
        self.query(&note).await.map(|_| ())
    }

    /// Writes into the server's log that everything up to `executed` has finished, and nothing above `ceiling` was begun.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn fence(&mut self, executed: u64, ceiling: u64) -> Result<(), PostgresError> {
        let fence =
            format!("SELECT pg_catalog.pg_logical_emit_message(false, '{MESSAGE_PREFIX}', '{executed} {ceiling}')");
        self.query(&fence).await.map(|_| ())
    }

    /// The positions that there are, of one home or of all.
    async fn applied(&mut self, home: Option<&str>) -> Result<BTreeMap<String, Position>, PostgresError> {
        let which = home.map_or(String::from("true"), |home| format!("home = {}", literal(home)));
        let rows = self
            .query(&format!(
                "SELECT home, granted, \"order\" FROM cloudbft.applied WHERE {which}"
            ))
            .await?;
        let mut applied = BTreeMap::new();
        for row in rows {
            let [Some(home), Some(granted), Some(order)] = row.as_slice() else {
                return Err(PostgresError::protocol("a row of cloudbft.applied cannot be read"));
            };
            let position = Position {
                granted: number(granted)?,
                order: number(order)?,
            };
            applied.insert(home.clone(), position);
        }
        Ok(applied)
    }

    /// Forgets the positions of rows and unique values up to the floor: what they tell is over and never runs again. It is done before
    /// any backend runs, because a transaction with an older snapshot could not set a position that was deleted since. Whoever compares
    /// positions with another database's is told how far they are forgotten.
    async fn forget_rows(&mut self, floor: u64) -> Result<(), PostgresError> {
        let forget = format!(
            "WITH gone AS (DELETE FROM cloudbft.applied WHERE granted <= {floor} AND \"order\" <= {floor} \
             AND pg_catalog.split_part(home, ':', 1) IN ('row', 'key', 'value') RETURNING 1) \
             UPDATE cloudbft.floor SET forgotten = {floor} WHERE EXISTS (SELECT FROM gone)"
        );
        self.query(&forget).await?;
        let forgotten = self.query("SELECT coalesce(forgotten, 0) FROM cloudbft.floor").await?;
        let forgotten = forgotten.into_iter().flatten().flatten().next();
        self.forgotten = forgotten.as_deref().map(number).transpose()?.unwrap_or(0);
        Ok(())
    }

    async fn floor(&mut self) -> Result<Option<(u64, Vec<u8>)>, PostgresError> {
        let rows = self
            .query("SELECT \"order\", pg_catalog.encode(state, 'hex') FROM cloudbft.floor")
            .await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let [Some(order), Some(state)] = row.as_slice() else {
            return Err(PostgresError::protocol("cloudbft.floor cannot be read"));
        };
        let state = from_hex(state).ok_or_else(|| PostgresError::protocol("cloudbft.floor is not hexadecimal"))?;
        Ok(Some((number(order)?, state)))
    }

    /// Writes the floor durably; that makes durable what was committed before.
    ///
    /// # Errors
    /// When the connection is lost or the server refuses.
    pub async fn write_floor(&mut self, order: u64, state: &[u8]) -> Result<(), PostgresError> {
        let (state, forgotten) = (to_hex(state), self.forgotten);
        let statement = format!(
            "BEGIN; DELETE FROM cloudbft.floor; INSERT INTO cloudbft.floor VALUES ({order}, '\\x{state}', {forgotten}); COMMIT"
        );
        self.query(&statement).await.map(|_| ())
    }

    /// Ends a backend of the voter's, whatever it runs: its process is asked to end. True when it has gone.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn terminate(&mut self, process: i32) -> Result<bool, PostgresError> {
        let asked = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = {process} \
             AND application_name = {}",
            literal(APPLICATION_NAME)
        );
        Ok(self.query(&asked).await?.is_empty())
    }

    /// Sets sequences (of [`super::backend::sequence_names`]) back to where the last commit left them.
    ///
    /// # Errors
    /// When the connection is lost or the server refuses.
    pub async fn restore_sequences(&mut self, functions: &Functions, names: Option<&str>) -> Result<(), PostgresError> {
        self.call(&functions.restore_sequences(names)).await
    }

    /// The last position of a home, if it has one.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn applied_at(&mut self, home: &str) -> Result<Option<Position>, PostgresError> {
        Ok(self.applied(Some(home)).await?.remove(home))
    }

    /// Runs a text; the rows of all its statements as text.
    ///
    /// # Errors
    /// The first error of the server, or a lost connection.
    pub async fn query(&mut self, text: &str) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        postgres_protocol::message::frontend::query(text, self.connection.outgoing())?;
        self.rows().await
    }

    async fn call(&mut self, call: &Call<'_>) -> Result<(), PostgresError> {
        call.write(self.connection.outgoing())?;
        self.rows().await.map(|_| ())
    }

    /// The rows until the server is ready again.
    async fn rows(&mut self) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let message = self.connection.message().await?;
            match message.tag {
                b'D' => rows.push(columns(message.body()).ok_or_else(|| PostgresError::protocol("a malformed row"))?),
                b'E' if error.is_none() => error = Some(super::capture::error_fields(message.body())),
                b'Z' => break,
                _ => {}
            }
        }
        error.map_or(Ok(rows), |error| Err(error.into()))
    }
}

/// The roles of all clients, as a list of constants; `None` without any.
fn client_roles(config: &VoterConfig) -> Option<String> {
    let roles: BTreeSet<&str> = config.client_roles.values().flatten().map(String::as_str).collect();
    (!roles.is_empty()).then(|| literals(roles.into_iter()))
}

fn literals<'a>(values: impl Iterator<Item = &'a str>) -> String {
    values.map(literal).collect::<Vec<_>>().join(", ")
}

fn number(text: &str) -> Result<u64, PostgresError> {
    text.parse()
        .map_err(|_| PostgresError::protocol("a number that is none"))
}

/// The columns of a DataRow.
pub(crate) fn columns(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => row.push(None),
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                row.push(Some(String::from_utf8_lossy(value).into_owned()));
                rest = after;
            }
        }
    }
    Some(row)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect()
}
