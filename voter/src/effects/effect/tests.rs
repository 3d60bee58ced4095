use super::*;
use crate::effects::change::{Decoded, decode};

/// Table `k` has the primary key `id`, all others none.
fn key(_: &str, name: &str) -> KeyColumns {
    (name == "k").then(|| vec!["id".to_owned()])
}

fn known(_: &str, name: &str) -> KeyAt {
    KeyAt::Known(key("", name))
}

fn effect(lines: &[&str]) -> Effect {
    let mut effect = Effect::default();
    for line in lines {
        match decode(&format!("table public.{line}")) {
            Decoded::Row(row) => effect.row(&row, || key("", &row.table.name)),
            Decoded::Truncate { tables, flags } => {
                for table in &tables {
                    effect.truncate(table, flags, || key("", &table.name));
                }
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    effect
}

fn digest(lines: &[&str]) -> Digest {
    effect(lines).finish(known).digest.unwrap()
}

#[test]
fn rows_count_in_any_order() {
    let one = digest(&[
        "k: INSERT: id[integer]:1 v[integer]:5",
        "k: INSERT: id[integer]:2 v[integer]:6",
    ]);
    let other = digest(&[
        "k: INSERT: id[integer]:2 v[integer]:6",
        "k: INSERT: id[integer]:1 v[integer]:5",
    ]);
    assert_eq!(one, other);
    assert_ne!(one, digest(&["k: INSERT: id[integer]:1 v[integer]:5"]));
    assert_ne!(one, NOTHING);
    assert_eq!(digest(&[]), NOTHING);
    // In a table without a key too, as often as they are there.
    let twice = digest(&["n: INSERT: v[integer]:5", "n: INSERT: v[integer]:5"]);
    assert_ne!(twice, digest(&["n: INSERT: v[integer]:5"]));
}

#[test]
fn values_names_and_kinds_count() {
    let all = [
        digest(&["k: INSERT: id[integer]:1 v[integer]:5"]),
        digest(&["k: INSERT: id[integer]:1 v[integer]:6"]),
        digest(&["k: INSERT: id[integer]:1 v[bigint]:5"]),
        digest(&["k: DELETE: id[integer]:1"]),
        digest(&["k: DELETE: id[integer]:2"]),
        digest(&["k: TRUNCATE: (no-flags)"]),
        digest(&["k: TRUNCATE: cascade"]),
        digest(&["n: INSERT: id[integer]:1 v[integer]:5"]),
        digest(&["n: DELETE: (no-tuple-data)"]),
    ];
    let different: BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
}

#[test]
fn only_what_a_row_is_at_the_end_counts() {
    let sums = |first, last| {
        let rows = [
            format!("k: INSERT: id[integer]:1 sum[integer]:{first}"),
            format!("k: UPDATE: id[integer]:1 sum[integer]:{last}"),
        ];
        digest(&[&rows[0], &rows[1]])
    };
    assert_eq!(sums(5, 12), sums(7, 12), "rows that lie in another order");
    assert_ne!(sums(5, 12), sums(5, 13));
    let moved = digest(&["k: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 v[integer]:5"]);
    assert_ne!(
        moved,
        digest(&["k: UPDATE: id[integer]:2 v[integer]:5"]),
        "row 1 is gone"
    );
    let back = digest(&[
        "k: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 v[integer]:5",
        "k: UPDATE: old-key: id[integer]:2 new-tuple: id[integer]:1 v[integer]:5",
    ]);
    assert_ne!(
        back,
        digest(&["k: UPDATE: id[integer]:1 v[integer]:5"]),
        "row 2 was there, and is gone"
    );
    let emptied = digest(&["k: INSERT: id[integer]:1 v[integer]:5", "k: TRUNCATE: (no-flags)"]);
    assert_eq!(emptied, digest(&["k: TRUNCATE: (no-flags)"]));
}

#[test]
fn rows_without_a_key_that_may_be_one_count_by_number() {
    let sums = |first| {
        let row = format!("n: UPDATE: sum[integer]:{first}");
        digest(&[&row, "n: UPDATE: sum[integer]:12"])
    };
    assert_eq!(sums(5), sums(7));
    assert_ne!(sums(5), digest(&["n: UPDATE: sum[integer]:12"]));
    let one = |value| digest(&[&format!("n: UPDATE: sum[integer]:{value}")]);
    assert_ne!(one(5), one(7));
    // A key that a line does not tell makes no other rows of it.
    let unknown = |first| {
        let row = format!("k: UPDATE: id[integer]:1 v[integer]:{first}");
        digest(&[&row, "k: DELETE: (no-tuple-data)"])
    };
    assert_eq!(unknown(5), unknown(7));
}

#[test]
fn a_key_that_was_another_one_at_the_order_is_not_compared_where_it_matters() {
    let twice = ["n: UPDATE: id[integer]:1", "n: UPDATE: id[integer]:2"];
    let later = |_: &str, _: &str| KeyAt::Known(Some(vec!["id".to_owned()]));
    let unknown = |_: &str, _: &str| KeyAt::Unknown;
    assert_eq!(effect(&twice).finish(later).digest, None);
    assert_eq!(effect(&twice).finish(unknown).digest, None);
    // What had no key at its order is taken as such, whatever was known when it was read.
    let none = |_: &str, _: &str| KeyAt::Known(None);
    let rows = [
        "k: UPDATE: id[integer]:1 v[integer]:5",
        "k: UPDATE: id[integer]:2 v[integer]:5",
    ];
    assert_eq!(
        effect(&rows).finish(none).digest,
        effect(&rows.map(|row| row.replace(":5", ":6")).each_ref().map(String::as_str))
            .finish(none)
            .digest
    );
    assert_ne!(effect(&rows).finish(none).digest, effect(&rows).finish(known).digest);
}

/// A voter that was started again knows less of the catalog than the others, and says the same or nothing.
#[test]
fn without_the_key_a_digest_is_the_same_or_unknown() {
    let unknown = |_: &str, _: &str| KeyAt::Unknown;
    for lines in [
        vec![
            "k: INSERT: id[integer]:1 v[integer]:5",
            "k: INSERT: id[integer]:2 v[integer]:5",
        ],
        vec!["k: UPDATE: id[integer]:1 v[integer]:5"],
        vec!["k: DELETE: id[integer]:1"],
        vec!["k: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 v[integer]:5"],
        vec!["k: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:1 v[integer]:5"],
        vec![
            "k: INSERT: id[integer]:1 v[integer]:5",
            "k: TRUNCATE: (no-flags)",
            "k: INSERT: id[integer]:1 v[integer]:6",
        ],
        vec!["k: INSERT: id[integer]:1 v[integer]:5", "k: DELETE: id[integer]:1"],
    ] {
        let mut forgetful = Effect::default();
        for line in &lines {
            match decode(&format!("table public.{line}")) {
                Decoded::Row(row) => forgetful.row(&row, || None),
                Decoded::Truncate { tables, flags } => forgetful.truncate(&tables[0], flags, || None),
                other => panic!("{other:?}"),
            }
        }
        let told = forgetful.finish(unknown).digest;
        assert!(told.is_none_or(|told| told == digest(&lines)), "{lines:?}");
        let told = effect(&lines).finish(unknown).digest;
        assert!(told.is_none_or(|told| told == digest(&lines)), "{lines:?}");
    }
}

#[test]
fn what_is_large_is_counted_in_bounded_memory() {
    let many = |last: u64| {
        let mut effect = Effect::default();
        for id in 0..CHANGES_MAX as u64 + last {
            let line = format!("table public.k: INSERT: id[bigint]:{id}");
            let Decoded::Row(row) = decode(&line) else { panic!() };
            effect.row(&row, || key("", "k"));
            assert!(effect.changes.len() <= CHANGES_MAX);
        }
        effect.finish(known)
    };
    let (one, other) = (many(1), many(2));
    assert!(one.is_bulk && other.is_bulk);
    assert_ne!(one.digest, other.digest);
    let mut tables = Effect::default();
    for number in 0..TABLES_MAX + 10 {
        let line = format!("table public.t{number}: INSERT: id[integer]:1");
        let Decoded::Row(row) = decode(&line) else { panic!() };
        tables.row(&row, || None);
    }
    assert_eq!(tables.tables.len(), TABLES_MAX + 1);
}

#[test]
fn tables_and_keys_are_shown_bounded() {
    let text = "x".repeat(10_000);
    let lines: Vec<_> = (0..100)
        .map(|number| format!("t{number}: INSERT: id[text]:'{text}'"))
        .collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let shown = effect(&lines).finish(known).shown.to_string();
    assert!(shown.len() <= 2 * NAMED_MAX * (SHOWN_BYTES_MAX + 2), "{}", shown.len());
    let shown = effect(&["k: INSERT: id[integer]:7 v[text]:'secret'"])
        .finish(known)
        .shown
        .to_string();
    assert_eq!(shown, "public.k (1 changes), public.k id=7");
}
