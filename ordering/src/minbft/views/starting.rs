//! Machines announce themselves, and start together, or are admitted again by those who are live.

use std::sync::Arc;

use crate::identifiers::Digest;
use crate::minbft::core::Core;
use crate::minbft::phase::Phase;
use crate::minbft::start::attempt::{Attempt, is_for_us};
use crate::minbft::start::own_hello;
use crate::minbft::views::Views;
use crate::minbft::wire::outcome::{LiveProof, Proof};
use crate::minbft::wire::start::{Collect, Hello, Start};
use crate::timers::Timer;

impl Views {
    /// Without a view: announces this machine, and says again whatever the others may have missed.
    pub(crate) fn hello_timer(&mut self, core: &mut Core) {
        let now_us = core.now_us();
        if !core.ledger.timers.is_due(Timer::Hello, now_us) {
            return;
        }
        let next_us = now_us + core.ledger.configuration.hello_us;
        core.ledger.timers.set(Timer::Hello, next_us);
        self.starts.rounds += 1;
        let hello = own_hello(core);
        self.on_hello(core, &hello);
        if let Some(leader) = &self.starts.leader {
            let attempt = self.phase.attempt();
            leader.repeat(core, |machine| {
                attempt
                    .as_ref()
                    .is_some_and(|attempt| attempt.has_acknowledged(machine))
            });
        }
        if let Phase::Starting(attempt) = &mut self.phase {
            attempt.repeat(core, self.starts.leader.as_mut(), self.starts.rounds);
        }
    }

    /// A machine has announced itself.
    pub(crate) fn on_hello(&mut self, core: &mut Core, hello: &Arc<Hello>) {
        if !self.starts.roster.hear(core, hello) {
            return;
        }
        match &self.phase {
            Phase::Waiting | Phase::Starting(_) => {
                if let Some((collect, digest)) = self.starts.lead(core) {
                    self.on_collect(core, &collect, digest);
                }
            }
            Phase::Changing(_) | Phase::Live(_) => self.on_late_hello(core, hello),
        }
    }

    /// A machine announces itself although we take part in views.
    fn on_late_hello(&mut self, core: &mut Core, hello: &Hello) {
        let last_live = match &self.phase {
            Phase::Live(live) => Some(&live.proof),
            Phase::Changing(change) => change.proof.as_ref().or(core.past.live.as_ref()),
            Phase::Waiting | Phase::Starting(_) => None,
        };
        if self.starts.roster.lost_counters(last_live) > usize::from(core.ledger.configuration.faults.0) {
            self.abandon_view(core);
            return;
        }
        self.tell_live(core, hello.machine);
        if let Phase::Live(live) = &self.phase
            && let Some(view) = self.suspicion.view_for_return(core, live, hello)
        {
            self.want(core, view);
        }
    }

    /// A candidate has collected hellos: takes part in that attempt to start, if it is for us and no earlier one goes on.
    pub(crate) fn on_collect(&mut self, core: &mut Core, collect: &Arc<Collect>, digest: Digest) {
        let view = collect.view;
        let may_join = match &self.phase {
            Phase::Waiting => core.past.mentioned.is_none_or(|mentioned| mentioned < view),
            Phase::Starting(attempt) => attempt.gives_way_to(view, &digest),
            Phase::Changing(_) | Phase::Live(_) => false,
        };
        if may_join && is_for_us(core, collect) {
            core.past.mention(view);
            let attempt = Attempt::new(collect, digest, self.starts.rounds);
            self.set_phase(core, Phase::Starting(Box::new(attempt)));
            self.advance(core);
        }
    }

    /// The leader's evidence for how the view begins.
    pub(crate) fn on_start(&mut self, core: &mut Core, start: &Arc<Start>) {
        if self.phase.live().is_some() {
            // The leader repeats what led here: it has not heard of all acknowledgements.
            let leader = core.ledger.configuration.primary(start.collect.view);
            self.tell_live(core, leader);
            return;
        }
        // Of two attempts of one view, the later one may have come first.
        self.on_collect(core, &start.collect, start.collect.digest());
        if let Phase::Starting(attempt) = &mut self.phase {
            attempt.on_start(core, start);
        }
    }

    /// A view is live.
    pub(crate) fn on_live(&mut self, core: &mut Core, proof: &Arc<LiveProof>) {
        let is_joined = self.phase.starting_view() == Some(proof.outcome.view);
        match (&proof.decided_by, &mut self.phase) {
            (Proof::Change(_), _) => self.join_live(core, proof),
            // m0 has nothing to report, and nothing to acknowledge: it may come late into a view that was started, too.
            (Proof::Start(_), _) if core.is_sequencer() && !is_joined => self.join_live(core, proof),
            (Proof::Start(_), Phase::Starting(attempt)) => attempt.on_live(core, proof),
            (Proof::Start(_), _) => {}
        }
    }
}
