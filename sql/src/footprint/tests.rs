use super::*;

fn warehouse(value: i64) -> Resource {
    Resource::Partition(PartitionKey {
        family: "warehouse".into(),
        value: PartitionValue::Integer(value),
    })
}

#[test]
fn everything_covers_every_partition() {
    assert!(Footprint::everything().covers(&Footprint::of(warehouse(7), Mode::Exclusive)));
    assert!(!Footprint::of(warehouse(7), Mode::Exclusive).covers(&Footprint::everything()));
}

#[test]
fn shared_does_not_cover_exclusive() {
    let shared = Footprint::of(warehouse(1), Mode::Shared);
    assert!(!shared.covers(&Footprint::of(warehouse(1), Mode::Exclusive)));
    assert!(Footprint::of(warehouse(1), Mode::Exclusive).covers(&shared));
}

fn row(bucket: u16) -> Resource {
    let table = "public.account".to_owned();
    Resource::Row { table, bucket }
}

fn value(bucket: u16) -> Resource {
    let (table, key) = ("public.account".to_owned(), "email".to_owned());
    Resource::Value { table, key, bucket }
}

fn table() -> Resource {
    Resource::Table("public.account".into())
}

fn rows(count: u16) -> Footprint {
    let mut footprint = Footprint::empty();
    (0..count).for_each(|bucket| footprint.add(row(bucket), Mode::Exclusive));
    footprint
}

#[test]
fn a_table_covers_its_rows_and_values() {
    let whole = Footprint::of(table(), Mode::Exclusive);
    assert!(whole.covers(&Footprint::of(row(1), Mode::Exclusive)));
    assert!(whole.covers(&Footprint::of(value(1), Mode::Exclusive)));
    assert!(!Footprint::of(row(1), Mode::Exclusive).covers(&whole));
    assert!(!Footprint::of(row(1), Mode::Exclusive).covers(&Footprint::of(row(2), Mode::Shared)));
    assert!(!Footprint::of(Resource::Table("public.other".into()), Mode::Exclusive).covers(&rows(1)));
}

#[test]
fn too_many_rows_are_the_table() {
    let most = u16::try_from(ROWS_MAX).unwrap_or(u16::MAX);
    assert_eq!(rows(most).entries().len(), ROWS_MAX);
    let mut more = rows(most);
    more.add(
        Resource::Row {
            table: "public.other".into(),
            bucket: 1,
        },
        Mode::Exclusive,
    );
    assert_eq!(more.entries().len(), ROWS_MAX + 1, "another table counts for itself");
    more.add(row(most), Mode::Shared);
    let mut expected = Footprint::of(table(), Mode::Exclusive);
    expected.add(
        Resource::Row {
            table: "public.other".into(),
            bucket: 1,
        },
        Mode::Exclusive,
    );
    assert_eq!(more, expected);
}

#[test]
fn rows_of_many_tables_are_bounded_together() {
    let mut footprint = Footprint::empty();
    for number in 0..100 {
        for bucket in 0..100 {
            let table = format!("public.t{number}");
            footprint.add(Resource::Row { table, bucket }, Mode::Exclusive);
        }
    }
    assert!(footprint.entries().len() <= ALL_ROWS_MAX);
    assert!(footprint.covers(&Footprint::of(
        Resource::Row {
            table: "public.t7".into(),
            bucket: 7
        },
        Mode::Exclusive
    )));
}

#[test]
fn rows_that_become_too_many_together_need_the_table() {
    let most = u16::try_from(ROWS_MAX).unwrap_or(u16::MAX);
    let held = rows(most);
    let one_more = Footprint::of(row(most), Mode::Exclusive);
    assert!(
        held.needed_for(&one_more)
            .covers(&Footprint::of(table(), Mode::Exclusive))
    );
    assert_eq!(rows(3).needed_for(&one_more), one_more);
}

#[test]
fn what_a_stranger_sends_is_put_in_order() {
    let mut sent = Footprint::empty();
    sent.entries = (0..1000).rev().map(|bucket| (row(bucket), Mode::Exclusive)).collect();
    let bytes = borsh::to_vec(&sent).unwrap_or_default();
    let read = Footprint::try_from_slice(&bytes).ok();
    assert_eq!(read, Some(Footprint::of(table(), Mode::Exclusive)));
    let bytes = borsh::to_vec(&rows(5)).unwrap_or_default();
    assert_eq!(Footprint::try_from_slice(&bytes).ok(), Some(rows(5)));
}

/// Any resources of some tables, drawn by a seed.
fn drawn(seed: u64, count: u64) -> Vec<(Resource, Mode)> {
    let draw = |number: u64| {
        let hash = blake3::hash(&[seed.to_le_bytes(), number.to_le_bytes()].concat());
        let [table, kind, mode, first, second, ..] = *hash.as_bytes();
        let (table, key) = (format!("public.t{}", table % 5), format!("k{}", table % 2));
        let bucket = u16::from_le_bytes([first, second]) % 300;
        let resource = match kind % 40 {
            0 => Resource::Table(table),
            1 => Resource::Key { table, key },
            2..20 => Resource::Value { table, key, bucket },
            _ => Resource::Row { table, bucket },
        };
        (resource, if mode % 2 == 0 { Mode::Shared } else { Mode::Exclusive })
    };
    (0..count).map(draw).collect()
}

#[test]
fn together_resources_are_what_they_are_one_by_one() {
    for seed in 0..200 {
        let mut one_by_one = Footprint::empty();
        let mut together = Footprint::in_order(drawn(seed, seed % 50));
        for (resource, mode) in drawn(seed, seed % 50) {
            one_by_one.add(resource, mode);
        }
        assert_eq!(one_by_one, together, "seed {seed}");
        let more = Footprint::in_order(drawn(seed + 1000, 60));
        together.extend(&more);
        more.entries
            .iter()
            .for_each(|(resource, mode)| one_by_one.add(resource.clone(), *mode));
        assert_eq!(one_by_one, together, "seed {seed} and more");
    }
}

/// A client's request may be 16 MiB: it must not keep a voter busy.
#[test]
fn a_footprint_of_too_many_resources_is_everything() {
    let mut sent = Footprint::empty();
    let name = |number: u32| format!("t{number:06}");
    sent.entries = (0..150_000)
        .flat_map(|number| {
            let (table, key) = (name(number * 2), String::new());
            [
                (Resource::Key { table, key }, Mode::Shared),
                (
                    Resource::Row {
                        table: name(number * 2 + 1),
                        bucket: 1,
                    },
                    Mode::Exclusive,
                ),
            ]
        })
        .collect();
    let bytes = borsh::to_vec(&sent).unwrap_or_default();
    // Work that grows with the square of the entries would not come to an end here.
    let read = Footprint::try_from_slice(&bytes).ok();
    assert_eq!(read, Some(Footprint::everything()));
}

#[test]
fn a_row_overlaps_its_table_only() {
    let one = Footprint::of(row(1), Mode::Exclusive);
    assert!(one.overlaps(&Footprint::of(table(), Mode::Shared)));
    assert!(Footprint::of(table(), Mode::Shared).overlaps(&one));
    assert!(one.overlaps(&Footprint::everything()));
    assert!(!one.overlaps(&Footprint::of(row(2), Mode::Shared)));
    assert!(!one.overlaps(&Footprint::of(Resource::Table("public.other".into()), Mode::Shared)));
}

#[test]
fn home_is_the_smallest_exclusive_resource() {
    let mut footprint = Footprint::of(warehouse(1), Mode::Shared);
    footprint.add(warehouse(9), Mode::Exclusive);
    footprint.add(warehouse(4), Mode::Exclusive);
    assert_eq!(footprint.home(), warehouse(4));
}
