//! What a voter and a proxy know of the catalog after DDL: patched piece by piece, it must be what a whole reading gives.

use ordering::message::Outcome;
use sql::footprint::Footprint;
use sql::operation::Work;
use sql::schema::{CATALOG_QUERY, CatalogChange, CatalogRow, Schema};

use crate::rig::{Rig, rules, sqlstate};

/// A proxy that follows the catalog by its changes only.
struct Follower {
    schema: Schema,
    /// The order of its last reading.
    read: u64,
}

impl Follower {
    async fn new(rig: &Rig) -> Self {
        Self {
            schema: whole(rig).await.0,
            read: rig.last_order() + 1,
        }
    }

    /// Asks for what has changed, takes it in, and tells what it was.
    async fn follow(&mut self, rig: &mut Rig) -> Vec<(String, String)> {
        let work = Work::Catalog { since: self.read };
        let order = rig.order(Footprint::empty(), work).await;
        let rows = rig.rows(order).await;
        let pairs = rows.iter().map(|(label, text)| (label.as_str(), text.as_str()));
        let change = CatalogChange::from_rows(pairs).unwrap();
        self.schema = self.schema.patched(&change).unwrap();
        self.read = order;
        rows
    }

    /// Fails unless what it knows is what the database has.
    async fn check(&self, rig: &Rig, after: &str) {
        let (schema, rows) = whole(rig).await;
        let missed = self.schema.change_to(rows.lines()).unwrap();
        let missed: Vec<_> = missed.rows().collect();
        assert!(missed.is_empty(), "after {after}: {missed:#?}");
        assert!(self.schema == schema, "after {after}: derived otherwise");
        assert_eq!(self.schema.digest(), schema.digest(), "after {after}");
    }
}

/// The catalog as a whole reading gives it.
async fn whole(rig: &Rig) -> (Schema, String) {
    let rows = rig
        .psql(&format!("SET search_path = pg_catalog; {CATALOG_QUERY}"))
        .await;
    (Schema::parse(rows.lines(), &rules()).unwrap(), rows)
}

async fn run(rig: &mut Rig, text: &str) {
    let result = rig.run(text).await;
    assert_eq!(sqlstate(&result), None, "{text}");
}

/// DDL of all kinds; above all what changes the rows of relations that it does not name.
const STATEMENTS: &[&str] = &[
    "CREATE TABLE a (id bigserial PRIMARY KEY, name text NOT NULL, at date DEFAULT '2020-01-01', n int CHECK (n > 0))",
    "CREATE TABLE b (id int PRIMARY KEY, a bigint REFERENCES a ON DELETE CASCADE, other int UNIQUE)",
    "CREATE TABLE c (a bigint REFERENCES a, b int REFERENCES b (other), self int)",
    "CREATE INDEX a_name ON a (name)",
    "CREATE UNIQUE INDEX a_lower ON a (lower(name)) WHERE n > 3",
    "ALTER INDEX a_lower RENAME TO a_upper",
    "DROP INDEX a_name",
    "ALTER TABLE a ADD COLUMN more numeric DEFAULT 3, ALTER COLUMN name SET DEFAULT 'x', ALTER COLUMN name DROP NOT NULL",
    "ALTER TABLE b RENAME COLUMN other TO another",
    "ALTER TABLE a RENAME TO a2",
    "ALTER TABLE a2 RENAME CONSTRAINT a_n_check TO positive",
    "ALTER SEQUENCE a_id_seq RENAME TO numbers",
    "ALTER TABLE a2 DROP COLUMN n CASCADE",
    "DROP TABLE IF EXISTS nothing",
    "CREATE TABLE IF NOT EXISTS b (id int)",
    "DO $$ BEGIN CREATE TABLE d1 (i int); BEGIN CREATE TABLE d2 (i int); RAISE EXCEPTION 'no'; EXCEPTION WHEN raise_exception THEN NULL; END; END $$",
    "DO $$ BEGIN ALTER TABLE b RENAME another TO x; ALTER TABLE b RENAME x TO another; END $$",
    "DO $$ BEGIN ALTER TABLE c DROP COLUMN self; ALTER TABLE c RENAME a TO self; END $$",
    "DO $$ BEGIN ALTER TABLE d1 RENAME TO e; CREATE TABLE d1 (other text); END $$",
    "DO $$ BEGIN DROP TABLE e; CREATE TABLE e (third date); END $$",
    "CREATE VIEW v AS SELECT a2.id, b.another FROM a2 JOIN b ON b.a = a2.id",
    "CREATE OR REPLACE VIEW v AS SELECT a2.id, b.another, 3 AS three FROM a2 JOIN b ON b.a = a2.id",
    "CREATE MATERIALIZED VIEW m AS SELECT id FROM a2 ORDER BY id",
    "REFRESH MATERIALIZED VIEW m",
    "CREATE RULE r AS ON UPDATE TO d1 DO ALSO NOTIFY nobody",
    "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER t BEFORE INSERT ON e FOR EACH ROW EXECUTE FUNCTION noted()",
    "ALTER TABLE e DISABLE TRIGGER t",
    "ALTER TABLE e ENABLE TRIGGER t",
    "ALTER TRIGGER t ON e RENAME TO t2",
    "DROP FUNCTION noted() CASCADE",
    "CREATE FUNCTION fine(i int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT i > 0'",
    "CREATE FUNCTION fine(i bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT i > 0'",
    "ALTER TABLE d1 ADD COLUMN i int CHECK (fine(i))",
    "ALTER FUNCTION fine(int) RENAME TO finer",
    "CREATE OR REPLACE FUNCTION finer(i int) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT i > 0'",
    "GRANT EXECUTE ON FUNCTION finer(int) TO PUBLIC",
    "DROP FUNCTION fine(bigint)",
    "DROP FUNCTION finer(int) CASCADE",
    "CREATE TYPE mood AS ENUM ('sad', 'fine')",
    "CREATE TABLE moods (m mood DEFAULT 'sad', ms mood[])",
    "ALTER TYPE mood ADD VALUE 'glad'",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'low'",
    "ALTER TYPE mood RENAME TO temper",
    "CREATE TYPE pair AS (x int, y temper)",
    "ALTER TYPE pair ADD ATTRIBUTE z text",
    "CREATE TABLE pairs (p pair, row_of_a a2)",
    "ALTER TABLE a2 RENAME TO a3",
    "CREATE TABLE typed OF pair",
    "ALTER TYPE pair ADD ATTRIBUTE w int CASCADE",
    "CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%')",
    "CREATE TABLE mails (e email PRIMARY KEY)",
    "ALTER DOMAIN email ADD CONSTRAINT long CHECK (length(VALUE) > 3)",
    "ALTER DOMAIN email DROP CONSTRAINT long",
    "DROP DOMAIN email CASCADE",
    "CREATE TYPE span AS RANGE (subtype = date)",
    "CREATE TABLE spans (s span)",
    "CREATE OPERATOR === (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
    "CREATE TABLE compared (t text CHECK (t OPERATOR(public.===) 'x'))",
    "CREATE FUNCTION same(text, varchar) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2::text'",
    "CREATE OPERATOR = (FUNCTION = same, LEFTARG = text, RIGHTARG = varchar)",
    "CREATE OPERATOR <> (FUNCTION = same, LEFTARG = text, RIGHTARG = varchar, NEGATOR = =)",
    "DROP OPERATOR = (text, varchar)",
    "CREATE SCHEMA deep",
    "CREATE TABLE deep.a (id serial PRIMARY KEY, b int REFERENCES b)",
    "ALTER TABLE moods SET SCHEMA deep",
    "GRANT USAGE ON SCHEMA deep TO PUBLIC",
    "ALTER OPERATOR === (text, text) SET SCHEMA deep",
    "ALTER SCHEMA deep RENAME TO deeper",
    "CREATE TABLE parent (id int, kind text)",
    "CREATE TABLE heir () INHERITS (parent)",
    "ALTER TABLE parent ADD COLUMN inherited date",
    "ALTER TABLE parent RENAME kind TO sort",
    "DROP TABLE heir",
    "CREATE TABLE parts (id int, day date) PARTITION BY RANGE (day)",
    "CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
    "CREATE TABLE part_2 (id int, day date)",
    "ALTER TABLE parts ATTACH PARTITION part_2 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')",
    "CREATE INDEX parts_id ON parts (id)",
    "ALTER TABLE parts ADD PRIMARY KEY (id, day)",
    "ALTER TABLE parts DETACH PARTITION part_1",
    "DROP TABLE part_2",
    "CREATE TABLE account (shop int, id int, PRIMARY KEY (shop, id))",
    "ALTER TABLE account ALTER COLUMN shop TYPE text",
    "ALTER TABLE account RENAME shop TO store",
    "CREATE TABLE text (id int)",
    "CREATE TABLE casting (t varchar CHECK (t::name <> 'x'), n int DEFAULT '3'::int)",
    "CREATE TABLE name (id int)",
    "ALTER TABLE casting ENABLE ROW LEVEL SECURITY",
    "COMMENT ON TABLE casting IS 'nothing'",
    "TRUNCATE a3 CASCADE",
    "CREATE TABLE identity (id int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (2) STORED)",
    "ALTER TABLE identity ALTER id DROP IDENTITY",
    "ALTER TABLE identity ALTER id SET NOT NULL, ALTER id ADD GENERATED BY DEFAULT AS IDENTITY",
    "CREATE SEQUENCE lone",
    "CREATE TABLE draws (id int DEFAULT nextval('lone'))",
    "DROP SEQUENCE lone CASCADE",
    "CREATE TABLE excluded (r int4range, EXCLUDE USING gist (r WITH &&))",
    "CREATE STATISTICS s ON id, inherited FROM parent",
    "DROP TABLE text, name",
    "DROP TABLE b CASCADE",
    "DROP SCHEMA deeper CASCADE",
    "DROP TYPE temper CASCADE",
    "DROP TYPE pair CASCADE",
];

/// Types of which a cast runs code change what columns of other tables are.
const CODED: &[&str] = &[
    "CREATE FUNCTION positive(i int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT i > 0'",
    "CREATE DOMAIN count AS int",
    "CREATE TYPE counts AS (c count)",
    "ALTER DOMAIN count ADD CONSTRAINT positive CHECK (positive(VALUE))",
    "CREATE TABLE holds (c counts, cs counts[])",
    "CREATE TABLE holds_row (h holds)",
    "CREATE TABLE later (h holds_row, i int)",
    "ALTER TABLE later RENAME i TO number",
    "ALTER DOMAIN count DROP CONSTRAINT positive",
    "CREATE TABLE after_all (c counts)",
];

#[tokio::test(flavor = "multi_thread")]
async fn changes_add_up_to_the_catalog_after_ddl_of_all_kinds() {
    let mut rig = Rig::start().await;
    rig.psql("GRANT CREATE ON DATABASE test TO application").await;
    let mut follower = Follower::new(&rig).await;
    for text in STATEMENTS.iter().chain(CODED) {
        run(&mut rig, text).await;
        follower.follow(&mut rig).await;
        follower.check(&rig, text).await;
    }
    // A voter that has been started again knows the same, and what happens from there on.
    rig.stop_voter().await;
    rig.start_voter();
    rig.wait_until_serving().await;
    run(&mut rig, "CREATE TABLE again (id int)").await;
    follower.follow(&mut rig).await;
    follower.check(&rig, "a restart").await;
}

/// A list of DDL drawn from a seed.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn statement(&mut self) -> String {
        let (one, other) = (self.below(8), self.below(8));
        let (column, another) = (self.below(4), self.below(4));
        match self.below(14) {
            0..3 => format!("CREATE TABLE t{one} (k serial PRIMARY KEY, c{column} int UNIQUE, d{another} date)"),
            3 => format!("CREATE TABLE t{one} (k int PRIMARY KEY, r int REFERENCES t{other} ON DELETE CASCADE)"),
            4 => format!("DROP TABLE IF EXISTS t{one} CASCADE"),
            5 => format!("ALTER TABLE t{one} RENAME TO t{other}"),
            6 => format!("ALTER TABLE t{one} ADD COLUMN c{column} text DEFAULT 'x' CHECK (c{column} <> 'y')"),
            7 => format!("ALTER TABLE t{one} DROP COLUMN c{column} CASCADE"),
            8 => format!("ALTER TABLE t{one} RENAME COLUMN c{column} TO c{another}"),
            9 => format!("CREATE UNIQUE INDEX i{other} ON t{one} (c{column})"),
            10 => format!("DROP INDEX IF EXISTS i{other}"),
            11 => format!(
                "ALTER TABLE t{one} ADD CONSTRAINT f{other} FOREIGN KEY (c{column}) REFERENCES t{other} (c{another})"
            ),
            12 => format!("CREATE OR REPLACE FUNCTION f{one}(i int) RETURNS int LANGUAGE sql AS 'SELECT {other}'"),
            _ => format!("CREATE VIEW v{other} AS SELECT * FROM t{one}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_add_up_to_the_catalog_after_a_long_random_list() {
    let mut rig = Rig::start().await;
    let mut follower = Follower::new(&rig).await;
    let mut drawn = Drawn(7);
    let (mut text, mut done) = (String::new(), 0);
    while done < 120 {
        // Several in one transaction, some of which fail and take themselves back.
        let statements: Vec<_> = (0..=drawn.below(3)).map(|_| drawn.statement()).collect();
        text = match statements.as_slice() {
            [only] => only.clone(),
            all => {
                let run = |one: &String| format!("BEGIN {one}; EXCEPTION WHEN OTHERS THEN NULL; END;");
                format!("DO $body$ BEGIN {} END $body$", all.iter().map(run).collect::<String>())
            }
        };
        let result = rig.run(&text).await;
        done += usize::from(sqlstate(&result).is_none());
        if drawn.below(4) == 0 {
            follower.follow(&mut rig).await;
            follower.check(&rig, &text).await;
        }
    }
    follower.follow(&mut rig).await;
    follower.check(&rig, &text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_statement_has_changed_is_read() {
    let mut rig = Rig::start().await;
    run(&mut rig, "CREATE TABLE first (id int PRIMARY KEY)").await;
    let mut follower = Follower::new(&rig).await;
    // Whoever looks at all of the catalog finds this table too.
    rig.psql("CREATE TABLE unseen (id int)").await;
    run(
        &mut rig,
        "CREATE TABLE seen (id serial PRIMARY KEY, first int REFERENCES first)",
    )
    .await;
    assert_eq!(
        names(&follower.follow(&mut rig).await),
        ["relation seen", "relation seen_id_seq"]
    );
    for nothing in [
        "DROP TABLE IF EXISTS nothing",
        "CREATE TABLE IF NOT EXISTS seen (id int)",
        "COMMENT ON TABLE seen IS 'x'",
        "TRUNCATE seen",
        "GRANT SELECT ON seen TO PUBLIC",
        "DO $$ BEGIN INSERT INTO seen DEFAULT VALUES; END $$",
        "DO $$ BEGIN CREATE TABLE gone (id int); RAISE EXCEPTION 'x'; EXCEPTION WHEN OTHERS THEN NULL; END $$",
    ] {
        run(&mut rig, nothing).await;
        assert_eq!(names(&follower.follow(&mut rig).await), [""; 0], "{nothing}");
    }
    run(&mut rig, "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'").await;
    assert_eq!(names(&follower.follow(&mut rig).await), ["more f"]);
    run(&mut rig, "DROP TABLE seen").await;
    assert_eq!(
        names(&follower.follow(&mut rig).await),
        ["gone seen", "gone seen_id_seq"]
    );
    // A relation with another name is told of by others: all are read.
    run(&mut rig, "ALTER TABLE first RENAME TO second").await;
    let all = names(&follower.follow(&mut rig).await);
    assert_eq!(all, ["gone first", "relation second", "relation unseen"]);
}

/// The names of the objects that the rows of a change describe, with the labels of the rows.
fn names(rows: &[(String, String)]) -> Vec<String> {
    let name = |text: &str| match text.strip_prefix('[') {
        Some(schema_and_name) => schema_and_name.split('"').nth(3).unwrap().to_owned(),
        None => match CatalogRow::read(text).unwrap() {
            CatalogRow::Table { name, .. } | CatalogRow::Sequence { name, .. } => name,
            CatalogRow::Global => {
                let (_, after) = text.split_once("\"name\": \"").unwrap();
                after.split('"').next().unwrap().to_owned()
            }
        },
    };
    rows.iter()
        .map(|(label, text)| format!("{label} {}", name(text)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_tells_only_what_it_remembers() {
    let mut rig = Rig::start().await;
    run(&mut rig, "CREATE TABLE before (id int)").await;
    let old = rig.last_order();
    rig.stop_voter().await;
    rig.start_voter();
    rig.wait_until_serving().await;
    run(&mut rig, "CREATE TABLE after (id int)").await;
    let order = rig.order(Footprint::empty(), Work::Catalog { since: 1 }).await;
    let outcome = rig.result(order).await.outcome;
    assert!(
        matches!(&outcome, Outcome::Refused { sqlstate, .. } if sqlstate == "BF008"),
        "{outcome:?}"
    );
    let order = rig.order(Footprint::empty(), Work::Catalog { since: old + 1 }).await;
    assert_eq!(rig.rows(order).await.len(), 1);
}
