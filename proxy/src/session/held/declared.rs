//! Cursors WITH HOLD whose transaction is open: database nodes have them, and the proxy knows of them what their texts tell.

use sql::analysis::{ExchangeAnalysis, StatementAnalysis};
use sql::operation::{Exchange, Step};
use sql::result::messages;
use sql::statement::{Cursor, Direction, StatementClass};

use crate::client::VotedResult;
use crate::wire::command_tag;

/// A cursor that is to be held once its transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holdable {
    pub(super) name: String,
    pub(super) scrolls: bool,
    pub(super) binary: bool,
    /// Rows that FETCH and MOVE ahead have taken, as far as statements tell.
    pub(super) taken: u64,
    /// Savepoints that there were when it was declared.
    savepoints: usize,
}

/// The cursors WITH HOLD that a transaction has declared. A cursor that code of users has closed is still here: its rows are asked for in vain.
#[derive(Debug, Default)]
pub(in crate::session) struct Holdables {
    list: Vec<Holdable>,
}

impl Holdables {
    pub(in crate::session) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn list(&self) -> &[Holdable] {
        &self.list
    }

    /// ROLLBACK TO the savepoint of this number, from 0: what was declared behind it is gone.
    pub(in crate::session) fn rolled_back_to(&mut self, savepoint: usize) {
        self.list.retain(|cursor| cursor.savepoints <= savepoint);
    }

    /// RELEASE of the savepoint of this number, from 0: what was declared behind it belongs to the one before.
    pub(in crate::session) fn released(&mut self, savepoint: usize) {
        for cursor in &mut self.list {
            cursor.savepoints = cursor.savepoints.min(savepoint);
        }
    }

    /// An exchange ran, perhaps not to its end.
    pub(in crate::session) fn note(
        &mut self,
        exchange: &Exchange,
        analysis: &ExchangeAnalysis,
        result: &VotedResult,
        savepoints: usize,
    ) {
        if let Exchange::Extended { steps, .. } = exchange
            && !self.list.is_empty()
        {
            for step in steps {
                if let Step::ClosePortal { portal } = step {
                    self.list.retain(|cursor| cursor.name != *portal);
                }
            }
        }
        let mut texts = analysis.texts.iter().flat_map(|text| &text.statements);
        if !texts.any(|statement| matches!(statement.class, StatementClass::Cursor(_))) {
            return;
        }
        let (statements, bound) = executed(exchange, analysis);
        let mut tags = tags(&result.messages);
        if result.before.is_some() {
            // Of a large result only the last chunk is at hand. Statements whose answers came before it have ended.
            let missing = statements.len().saturating_sub(tags.len());
            tags.splice(..0, std::iter::repeat_n(None, missing));
        }
        for (statement, tag) in statements.into_iter().zip(tags) {
            if let Some(StatementClass::Cursor(cursor)) = statement.map(|statement| &statement.class) {
                self.ran(cursor, tag.as_deref(), savepoints);
            }
        }
        // A portal that was only bound may be executed later, where nobody knows of what.
        for statement in bound {
            if let StatementClass::Cursor(cursor @ Cursor::Declare { .. }) = &statement.class {
                self.ran(cursor, None, savepoints);
            }
        }
    }

    fn ran(&mut self, cursor: &Cursor, tag: Option<&str>, savepoints: usize) {
        match cursor {
            Cursor::Declare { name, holding } => {
                self.list.retain(|cursor| cursor.name != *name);
                if let Some(holding) = holding {
                    self.list.push(Holdable {
                        name: name.clone(),
                        scrolls: holding.scrolls,
                        binary: holding.binary,
                        taken: 0,
                        savepoints,
                    });
                }
            }
            Cursor::Fetch { name, direction } | Cursor::Move { name, direction } => {
                let count = tag
                    .and_then(|tag| tag.rsplit(' ').next()?.parse::<u64>().ok())
                    .unwrap_or(0);
                let taken = self
                    .list
                    .iter_mut()
                    .find(|cursor| cursor.name == *name && !cursor.scrolls);
                if let Some(cursor) = taken {
                    cursor.taken = match direction {
                        // The present row again.
                        Some(Direction::Forward(Some(0)) | Direction::Relative(0)) => cursor.taken,
                        Some(Direction::Absolute(number)) if *number > 0 && count > 0 => number.unsigned_abs(),
                        Some(Direction::Relative(number)) if *number > 0 && count > 0 => {
                            cursor.taken + number.unsigned_abs()
                        }
                        _ => cursor.taken + count,
                    };
                }
            }
            Cursor::Close(Some(name)) => self.list.retain(|cursor| cursor.name != *name),
            Cursor::Close(None) => self.list.clear(),
        }
    }
}

/// The statements that an exchange runs, in their order (`None`: of a portal that was bound before), and those that it only binds.
fn executed<'analysis>(
    exchange: &Exchange,
    analysis: &'analysis ExchangeAnalysis,
) -> (
    Vec<Option<&'analysis StatementAnalysis>>,
    Vec<&'analysis StatementAnalysis>,
) {
    let of_text = |index: usize| {
        let statements = analysis.texts.get(index).map(|text| text.statements.as_slice());
        statements.unwrap_or_default().iter()
    };
    let Exchange::Extended { steps, .. } = exchange else {
        let statements = of_text(0).filter(|statement| statement.class != StatementClass::Empty);
        return (statements.map(Some).collect(), Vec::new());
    };
    let mut bound: Vec<(&str, &StatementAnalysis)> = Vec::new();
    let mut executed = Vec::new();
    for step in steps {
        match step {
            Step::Bind { portal, statement, .. } => {
                let statements = of_text(usize::from(*statement));
                bound.extend(statements.map(|statement| (portal.as_str(), statement)));
            }
            Step::Execute { portal, .. } => {
                let at = bound.iter().rposition(|(name, _)| name == portal);
                executed.push(at.map(|at| bound.remove(at).1));
            }
            _ => {}
        }
    }
    (executed, bound.into_iter().map(|(_, statement)| statement).collect())
}

/// The tags of the commands that have ended; `None` for a portal that is suspended, and for an empty text.
fn tags(result: &[u8]) -> Vec<Option<String>> {
    let ends = messages(result)
        .flatten()
        .filter(|(tag, _)| matches!(tag, b'C' | b's' | b'I'));
    ends.map(|(_, message)| command_tag(message)).collect()
}
