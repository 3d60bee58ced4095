//! Statements that wait for the writes before them, and are missing these in the end.

use std::time::Instant;

use ordering::message::DirectKind;

use super::{Command, Slot};
use crate::postgres::PostgresError;
use crate::transactions::Turn;

/// A statement that waits for writes before it.
pub(super) struct Waiting {
    pub(super) command: Command,
    pub(super) deadline: Instant,
}

impl Slot {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline);
        deadlines.min().filter(|_| self.begun)
    }

    /// When a statement that waits from now on has waited too long.
    pub(super) fn missing_at(&self) -> Instant {
        Instant::now() + self.shared.config.limits.direct_wait
    }

    /// Runs a statement whose turn it is, and then those that waited for it.
    pub(super) async fn wait_or_run(&mut self, command: Command) -> Result<(), PostgresError> {
        if self.waiting.iter().any(|waiting| waiting.command.replays().is_some()) {
            self.run_waiting().await?;
        }
        match self.turn(&command) {
            Turn::Never => self.refuse(command).await,
            Turn::Later if self.signal.is_ending() || self.lost => self.refuse(command).await,
            Turn::Later => {
                let deadline = self.missing_at();
                self.waiting.push_back(Waiting { command, deadline });
            }
            Turn::Now => {
                self.run_now(command).await?;
                self.run_waiting().await?;
            }
        }
        Ok(())
    }

    /// Runs the statements that waited and whose turn has come.
    pub(super) async fn run_waiting(&mut self) -> Result<(), PostgresError> {
        let due = |slot: &Self| {
            let turn = |waiting: &Waiting| slot.turn(&waiting.command) != Turn::Later;
            slot.waiting.iter().position(turn)
        };
        while self.begun
            && let Some(waiting) = due(self).and_then(|at| self.waiting.remove(at))
        {
            match self.turn(&waiting.command) {
                Turn::Now if waiting.command.replays().is_some() => self.replay(waiting).await?,
                Turn::Now => self.run_now(waiting.command).await?,
                Turn::Later | Turn::Never => self.refuse(waiting.command).await,
            }
        }
        Ok(())
    }

    pub(super) fn turn(&self, command: &Command) -> Turn {
        match command {
            _ if !self.begun => Turn::Later,
            Command::Direct(_, _, place) => self.history.turn(place.writes_before, Some(&place.chain)),
            Command::Extend(asker, ..) if self.cancelled.contains(&asker.number) => Turn::Never,
            Command::Extend(_, _, before, _) | Command::Read(_, _, before) => self.history.turn(*before, None),
            _ => Turn::Now,
        }
    }

    /// Statements that waited too long: the writes before them are not coming. A voter that misses a write does not follow.
    pub(super) async fn expire(&mut self) {
        let now = Instant::now();
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.deadline <= now) {
            let Some(waiting) = self.waiting.remove(at) else { break };
            let write = match &waiting.command {
                Command::Direct(_, _, place) => matches!(place.kind, DirectKind::Write | DirectKind::Replay),
                Command::Extend(..) => true,
                _ => false,
            };
            self.lost |= write;
            self.refuse(waiting.command).await;
        }
    }

    pub(super) async fn drop_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.refuse(waiting.command).await;
        }
    }
}
