//! Objects that servers number differently: a note, since the data is equal.

use std::collections::BTreeMap;

use super::Node;
use crate::databases::contents::Numbers;

/// What to say of each node that numbers objects otherwise than most do.
pub(super) fn notes(nodes: &[Node]) -> Vec<String> {
    let named: Vec<_> = nodes.iter().map(|node| (node.name(), &node.numbers)).collect();
    notes_of(&named)
}

fn notes_of(nodes: &[(&str, &Numbers)]) -> Vec<String> {
    let usual = most_common(nodes);
    let note = |(name, numbers): &(&str, &Numbers)| {
        let mut others = numbers
            .iter()
            .filter(|(object, number)| usual.get(object.as_str()).is_some_and(|usual| usual != *number));
        let (first, _) = others.next()?;
        let count = 1 + others.count();
        Some(format!(
            "{name} numbers {count} objects otherwise (OIDs), the first: {first}. The data is not concerned; queries on the catalog may \
             fail (BF001) where no f+1 nodes agree"
        ))
    };
    nodes.iter().filter_map(note).collect()
}

/// The number that the most nodes have for each object; of equals the lowest.
fn most_common<'nodes>(nodes: &[(&str, &'nodes Numbers)]) -> BTreeMap<&'nodes str, u32> {
    let mut counts: BTreeMap<&str, BTreeMap<u32, usize>> = BTreeMap::new();
    for (object, number) in nodes.iter().flat_map(|(_, numbers)| numbers.iter()) {
        *counts.entry(object).or_default().entry(*number).or_default() += 1;
    }
    let usual = counts.into_iter().filter_map(|(object, counts)| {
        let most = counts.iter().rev().max_by_key(|(_, count)| **count)?;
        Some((object, *most.0))
    });
    usual.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_numbers_otherwise_than_most_is_named() {
        let numbers = |pairs: &[(&str, u32)]| {
            let owned = pairs.iter().map(|(object, number)| ((*object).to_owned(), *number));
            owned.collect::<Numbers>()
        };
        let usual = numbers(&[("a", 1), ("b", 2), ("c", 3)]);
        let other = numbers(&[("a", 1), ("b", 7), ("c", 8)]);
        assert!(notes_of(&[("m1", &usual), ("m2", &usual), ("m3", &usual)]).is_empty());
        let notes = notes_of(&[("m1", &other), ("m2", &usual), ("m3", &usual)]);
        assert_eq!(notes.len(), 1);
        assert!(
            notes[0].starts_with("m1 numbers 2 objects otherwise (OIDs), the first: b."),
            "{notes:?}"
        );
        assert_eq!(
            notes_of(&[("m1", &other), ("m2", &usual)]).len(),
            1,
            "of two one is named"
        );
    }
}
