//! The transaction mix by the deck method of clause 5.2.4.2.

use crate::random::Random;
use crate::transaction::TransactionKind;

/// A hundred cards, shuffled, dealt one by one, and shuffled again.
#[derive(Debug)]
pub(crate) struct Deck {
    cards: Vec<TransactionKind>,
    dealt: usize,
}

impl Deck {
    /// A shuffled deck.
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut cards: Vec<TransactionKind> = TransactionKind::ALL
            .into_iter()
            .flat_map(|kind| std::iter::repeat_n(kind, kind.cards()))
            .collect();
        random.shuffle(&mut cards);
        Self { cards, dealt: 0 }
    }

    /// The next card.
    pub(crate) fn draw(&mut self, random: &mut Random) -> TransactionKind {
        if self.dealt >= self.cards.len() {
            random.shuffle(&mut self.cards);
            self.dealt = 0;
        }
        let card = self.cards.get(self.dealt).copied().unwrap_or(TransactionKind::NewOrder);
        self.dealt += 1;
        card
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deck_holds_the_mix_exactly_in_a_new_order() {
        let mut random = Random::new(1, 0);
        let mut deck = Deck::new(&mut random);
        let mut deal = || (0..100).map(|_| deck.draw(&mut random)).collect::<Vec<_>>();
        let (first, second) = (deal(), deal());
        assert_ne!(first, second);
        for cards in [first, second] {
            let count = |kind| cards.iter().filter(|card| **card == kind).count();
            assert_eq!(TransactionKind::ALL.map(count), [45, 43, 4, 4, 4]);
        }
    }
}
