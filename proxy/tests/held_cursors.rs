//! Cursors WITH HOLD, on three real voters with a server each (decision 0055, rule CursorOrder).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use support::raw::{Answer, Raw, bind_formats, describe, execute, extended, message, parse, query, sync};
use support::{Postgres, World};

const TABLE: &str =
    "CREATE TABLE held (id int PRIMARY KEY, v text); INSERT INTO held SELECT g, 'v' || g FROM generate_series(1, 7) g";

/// Behind a column's name in a RowDescription.
const COLUMN_BYTES: usize = 18;

/// An answer in words; of what differs for good reasons (whose table, which line of PostgreSQL's source) nothing.
fn told(answer: &Answer) -> Option<String> {
    let body = match answer.tag {
        b'S' => return None,
        b'T' => {
            let mut rest = &answer.body[2..];
            let mut columns = Vec::new();
            while !rest.is_empty() {
                let end = rest.iter().position(|byte| *byte == 0).unwrap();
                let fields = &rest[end + 1..end + 1 + COLUMN_BYTES];
                columns.push(format!("{} {:?}", String::from_utf8_lossy(&rest[..end]), &fields[6..]));
                rest = &rest[end + 1 + COLUMN_BYTES..];
            }
            columns.join(", ")
        }
        b'E' | b'N' => {
            let fields = [b'S', b'C', b'M', b'D', b'H', b'P'].map(|kind| answer.field(kind).unwrap_or_default());
            fields.join("|")
        }
        _ => format!("{:?}", String::from_utf8_lossy(&answer.body)),
    };
    Some(format!("{} {body}", answer.tag as char))
}

async fn answers<S: AsyncRead + AsyncWrite + Unpin>(raw: &mut Raw<S>, bytes: &[u8]) -> Vec<String> {
    raw.send(bytes).await;
    raw.until_ready().await.iter().filter_map(told).collect()
}

/// A proxy with voters, and a server without: both have the same table.
struct Both {
    world: World,
    server: Arc<Postgres>,
}

impl Both {
    async fn start() -> Self {
        let both = Both {
            world: World::start_voters().await,
            server: Postgres::start(),
        };
        both.world.connect().await.batch_execute(TABLE).await.unwrap();
        both.server.connect().await.batch_execute(TABLE).await.unwrap();
        both
    }

    /// Runs messages one after the other in a new session of each; all answers must be the same.
    async fn same(&self, script: &[Vec<u8>]) {
        let mut ours = Raw::login(self.world.address).await;
        let mut theirs = Raw::of_server(&self.server).await;
        for step in script {
            let expected = answers(&mut theirs, step).await;
            let shown = String::from_utf8_lossy(step);
            assert_eq!(answers(&mut ours, step).await, expected, "{shown}");
        }
    }

    async fn same_texts(&self, texts: &[&str]) {
        let script: Vec<_> = texts.iter().map(|text| query(text)).collect();
        self.same(&script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_direction_takes_the_rows_that_postgresql_takes() {
    let both = Both::start().await;
    let directions = [
        "FETCH 2 FROM c",
        "FETCH RELATIVE 0 FROM c",
        "FETCH PRIOR FROM c",
        "FETCH PRIOR FROM c",
        "FETCH 0 FROM c",
        "MOVE 0 IN c",
        "FETCH NEXT FROM c",
        "MOVE RELATIVE 3 IN c",
        "FETCH BACKWARD 2 FROM c",
        "FETCH ABSOLUTE 5 FROM c",
        "FETCH ABSOLUTE -2 FROM c",
        "FETCH FIRST FROM c",
        "FETCH LAST FROM c",
        "FETCH NEXT FROM c",
        "MOVE BACKWARD ALL IN c",
        "FETCH ALL FROM c",
        "FETCH ALL FROM c",
        "FETCH BACKWARD ALL FROM c",
        "FETCH c",
        "FETCH IN c",
        "MOVE FORWARD 100 IN c",
        "MOVE 0 c",
        "FETCH BACKWARD c",
        "MOVE ABSOLUTE 0 IN c",
        "FETCH FORWARD -1 FROM c",
        "FETCH BACKWARD -3 FROM c",
        "FETCH ABSOLUTE 100 FROM c",
        "FETCH ABSOLUTE -100 FROM c",
        "FETCH RELATIVE 2 FROM c",
        "FETCH RELATIVE -2 FROM c",
        "CLOSE c",
        "FETCH c",
        "CLOSE c",
    ];
    for declare in [
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id",
        "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT id, v FROM held WHERE id < 3 ORDER BY id DESC",
        "DECLARE c INSENSITIVE CURSOR WITH HOLD FOR SELECT id AS one FROM held WHERE id < 0 ORDER BY id",
        "DECLARE c BINARY CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id",
    ] {
        let autocommit = [&[declare], &directions[..]].concat();
        both.same_texts(&autocommit).await;
        if declare.contains("BINARY") {
            continue;
        }
        // The position is kept over the COMMIT, wherever it is: on a row, before the first one, after the last one.
        for moved in [
            "FETCH 2 FROM c",
            "MOVE 0 IN c",
            "FETCH ALL FROM c",
            "MOVE LAST IN c",
            "FETCH PRIOR FROM c",
        ] {
            let block = [
                "BEGIN",
                declare,
                moved,
                "COMMIT",
                "FETCH RELATIVE 0 FROM c",
                "MOVE BACKWARD 1 IN c",
            ];
            both.same_texts(&[&block, &directions[..]].concat()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_with_no_scroll_goes_ahead_only() {
    let both = Both::start().await;
    let declare = "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id";
    for moved in [
        "MOVE 0 IN c",
        "FETCH 3 FROM c",
        "MOVE ABSOLUTE 2 IN c",
        "FETCH ALL FROM c",
    ] {
        for ahead in [
            "FETCH 2 FROM c",
            "FETCH RELATIVE 2 FROM c",
            "FETCH ABSOLUTE 6 FROM c",
            "MOVE ALL IN c",
        ] {
            for wrong in [
                "FETCH PRIOR FROM c",
                "MOVE FIRST IN c",
                "FETCH LAST FROM c",
                "FETCH 0 FROM c",
                "MOVE 0 IN c",
            ] {
                // A FETCH that cannot be loses the cursor.
                let texts = [
                    "BEGIN", declare, moved, "COMMIT", ahead, wrong, "FETCH c", "CLOSE c", "FETCH c",
                ];
                both.same_texts(&texts).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_savepoints_hold_what_postgresql_holds() {
    let both = Both::start().await;
    let declare = "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id";
    for texts in [
        // An aborted transaction leaves nothing.
        &["BEGIN", declare, "ROLLBACK", "FETCH c"][..],
        &["BEGIN", declare, "SELECT 1/0", "FETCH c", "COMMIT", "FETCH c"],
        // Nor does a savepoint that is rolled back to.
        &["BEGIN", "SAVEPOINT a", declare, "ROLLBACK TO a", "FETCH c", "ROLLBACK"],
        &["BEGIN", "SAVEPOINT a", declare, "ROLLBACK TO a", "COMMIT", "FETCH c"],
        &[
            "BEGIN",
            "SAVEPOINT a",
            "SAVEPOINT b",
            declare,
            "RELEASE b",
            "ROLLBACK TO a",
            "COMMIT",
            "FETCH c",
        ],
        &["BEGIN", "SAVEPOINT a", declare, "RELEASE a", "COMMIT", "FETCH c"],
        &[
            "BEGIN",
            declare,
            "SAVEPOINT a",
            "FETCH 2 FROM c",
            "ROLLBACK TO a",
            "COMMIT",
            "FETCH c",
        ],
        &[
            "BEGIN",
            declare,
            "SAVEPOINT a",
            "CLOSE c",
            "ROLLBACK TO a",
            "COMMIT",
            "FETCH c",
        ],
        // A later transaction undoes neither FETCH nor CLOSE.
        &[declare, "BEGIN", "FETCH 2 FROM c", "ROLLBACK", "FETCH c"],
        &[declare, "BEGIN", "CLOSE c", "ROLLBACK", "FETCH c"],
        &[
            declare,
            "BEGIN",
            "SELECT 1/0",
            "FETCH c",
            "CLOSE c",
            "ROLLBACK",
            "FETCH c",
        ],
        &[declare, "BEGIN", "FETCH x", "FETCH c", "ROLLBACK", "FETCH c"],
        // Names.
        &[declare, declare, "FETCH c"],
        &["BEGIN", declare, declare, "ROLLBACK"],
        &[declare, "BEGIN", "DECLARE c CURSOR FOR SELECT 1", "ROLLBACK", "FETCH c"],
        &[
            "DECLARE \"C d\" CURSOR WITH HOLD FOR SELECT 1",
            "FETCH ALL FROM \"C d\"",
            "FETCH c",
            "CLOSE \"C d\"",
        ],
        // All at once.
        &[
            declare,
            "BEGIN",
            "DECLARE d CURSOR FOR SELECT 1",
            "CLOSE ALL",
            "FETCH d",
            "ROLLBACK",
            "FETCH c",
        ],
        &["CLOSE ALL", declare, "CLOSE ALL", "FETCH c"],
        &[declare, "DISCARD ALL", "FETCH c"],
        &["BEGIN", declare, "CLOSE c", "COMMIT", "FETCH c"],
        &["BEGIN", declare, "CLOSE ALL", "COMMIT", "FETCH c"],
        &[
            "BEGIN", declare, "CLOSE c", declare, "FETCH c", "COMMIT", "FETCH c", "CLOSE c",
        ],
        // In one text.
        &["DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id; FETCH 2 FROM c; CLOSE c"],
        &[
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id; COMMIT; FETCH 2 FROM c; MOVE c",
            "FETCH c; CLOSE c; FETCH c; SELECT 1",
        ],
        &[
            declare,
            "CLOSE c; DECLARE c CURSOR WITH HOLD FOR SELECT 5; FETCH c",
            "FETCH ALL FROM c",
        ],
        &[
            "BEGIN",
            declare,
            "COMMIT AND CHAIN",
            "FETCH 2 FROM c",
            "ROLLBACK",
            "FETCH c",
        ],
        // Refusals.
        &[
            "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held FOR UPDATE",
            "FETCH c",
        ],
        &["DECLARE c CURSOR WITH HOLD FOR SELECT * FROM held ORDER BY id FOR NO KEY UPDATE"],
        &["DECLARE c CURSOR WITH HOLD FOR SELECT nothing FROM held"],
        &["DECLARE c SCROLL NO SCROLL CURSOR WITH HOLD FOR SELECT 1"],
        // Several.
        &[
            "BEGIN",
            declare,
            "DECLARE d CURSOR WITH HOLD FOR SELECT id AS five FROM held WHERE id = 5",
            "FETCH c",
            "COMMIT",
            "FETCH d",
            "FETCH c",
            "CLOSE c",
            "FETCH PRIOR FROM d",
        ],
        // Read only, and on a snapshot.
        &[
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            declare,
            "FETCH c",
            "COMMIT",
            "FETCH c",
        ],
        &[
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            declare,
            "UPDATE held SET v = v",
            "COMMIT",
            "FETCH c",
        ],
    ] {
        both.same_texts(texts).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_extended_protocol_describes_and_formats_rows() {
    let both = Both::start().await;
    let declare =
        "DECLARE c CURSOR WITH HOLD FOR SELECT id, v, id > 2 AS more, id::float8 / 4 AS part FROM held ORDER BY id";
    let fetch = |formats: &[u16]| extended("FETCH 2 FROM c", formats);
    let script = [
        extended(declare, &[]),
        fetch(&[]),
        fetch(&[1]),
        fetch(&[1, 0, 1, 0]),
        fetch(&[1, 1]),
        [describe(b'P', "c"), sync()].concat(),
        extended("MOVE BACKWARD ALL IN c", &[]),
        // Prepared before, while the cursor is in its transaction, and after.
        [parse("f", "FETCH 1 FROM c"), sync()].concat(),
        [
            bind_formats("", "f", &[1]),
            execute("", 0),
            bind_formats("p", "f", &[0]),
            describe(b'P', "p"),
            execute("p", 0),
            sync(),
        ]
        .concat(),
        query("CLOSE c"),
        query("BEGIN"),
        extended(declare, &[]),
        [bind_formats("", "f", &[1]), execute("", 0), sync()].concat(),
        query("COMMIT"),
        [bind_formats("", "f", &[1]), describe(b'P', ""), execute("", 0), sync()].concat(),
        // In one pipeline with its COMMIT.
        extended("CLOSE c", &[]),
        [
            parse("", "BEGIN"),
            bind_formats("", "", &[]),
            execute("", 0),
            parse("", declare),
            bind_formats("", "", &[]),
            execute("", 0),
            parse("", "COMMIT"),
            bind_formats("", "", &[]),
            execute("", 0),
            parse("", "FETCH LAST FROM c"),
            bind_formats("", "", &[1]),
            execute("", 0),
            sync(),
        ]
        .concat(),
        // A portal of its name, and its end as a portal.
        [parse("one", "SELECT 1"), bind_formats("c", "one", &[]), sync()].concat(),
        [message(b'C', b"Pc\0"), sync()].concat(),
        query("FETCH c"),
    ];
    both.same(&script).await;
    both.same(&[
        query("DECLARE c BINARY CURSOR WITH HOLD FOR SELECT id, v FROM held ORDER BY id"),
        fetch(&[0]),
        fetch(&[1]),
        query("FETCH c"),
    ])
    .await;
}

/// A function closes a cursor that its caller wants to be held: the transaction commits, and there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_of_users_may_close_a_cursor() {
    let both = Both::start().await;
    let function =
        "CREATE FUNCTION shut() RETURNS void LANGUAGE plpgsql AS $$DECLARE r refcursor := 'c'; BEGIN CLOSE r; END$$";
    let texts = [
        function,
        "BEGIN",
        "INSERT INTO held VALUES (100, 'kept')",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE d CURSOR WITH HOLD FOR SELECT 2 AS two",
        "SELECT shut()",
        "COMMIT",
        "FETCH c",
        "FETCH d",
        "SELECT v FROM held WHERE id = 100",
    ];
    both.same_texts(&texts).await;
}
