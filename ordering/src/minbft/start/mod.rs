//! The start of the cluster (rule AllLogsAtStart): fresh, or after all machines were down and their counters have new
//! epochs.
//!
//! 1. Every machine announces itself: HELLO with its counter's epoch and its highest proven checkpoint.
//! 2. The candidate of the next view takes one hello of each machine, and so fixes epochs, view and base: COLLECT
//!    (`leader.rs`).
//! 3. Every replica fetches what it lacks up to the base, and reports what its log holds above it: REPORT. From
//!    then on it takes part in no lower view (`attempt.rs`).
//! 4. From the reports of **all** replicas follows how the view begins (`outcome.rs`): START carries them, and
//!    everybody computes the same, and takes it over (`adoption.rs`).
//! 5. A replica that has this, with all bodies, in its durable log says so: ACKNOWLEDGE.
//! 6. When **all** replicas have acknowledged, the view is live, and what it takes over is decided (rule CommittedView:
//!    no correct machine can have started the view differently).
//!
//! All means all that the operator has not declared lost. A silent liar can hold a start up, but not corrupt it; one
//! that mentions a view far above those of f others counts as silent, else liars could use up the views. A
//! machine that is restarted alone takes no part in this: the live ones admit it by a view change
//! (`change/suspicion.rs`).

pub(crate) mod attempt;
pub(crate) mod leader;
pub(crate) mod outcome;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::configuration::is_replica;
use crate::identifiers::MachineId;
use crate::minbft::core::Core;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::outcome::LiveProof;
use crate::minbft::wire::start::{Collect, Hello};
use leader::Leader;

/// How long a hello counts, in the intervals in which it is said again.
const HELLO_LASTS: u64 = 10;

/// The machines that have announced themselves.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// The last hello of each machine.
    hellos: BTreeMap<MachineId, Arc<Hello>>,
    /// When each machine last said hello, monotonic: a machine that is live no longer does.
    heard_us: BTreeMap<MachineId, u64>,
}

impl Roster {
    /// Takes a hello; false when a newer one is known.
    pub(crate) fn hear(&mut self, core: &Core, hello: &Arc<Hello>) -> bool {
        // Hellos may arrive late: one of an earlier life must not replace a newer one.
        let age = |hello: &Hello| (hello.admission.epoch, hello.view, hello.point().order);
        let known = self.hellos.get(&hello.machine);
        if known.is_some_and(|known| age(known) > age(hello)) {
            return false;
        }
        self.hellos.insert(hello.machine, Arc::clone(hello));
        self.heard_us.insert(hello.machine, core.now_us());
        true
    }

    pub(crate) fn hellos(&self) -> impl Iterator<Item = &Arc<Hello>> {
        self.hellos.values()
    }

    pub(crate) fn forget(&mut self) {
        self.hellos.clear();
    }

    /// The hello of a machine, unless that has been silent for a while: then it takes part in a view, or is down, and an
    /// attempt with its old hello would hold up those who join.
    fn fresh(&self, core: &Core, machine: MachineId) -> Option<(MachineId, Arc<Hello>)> {
        let since_us = core
            .now_us()
            .saturating_sub(HELLO_LASTS * core.ledger.configuration.hello_us);
        let heard_us = self.heard_us.get(&machine)?;
        let hello = self.hellos.get(&machine).filter(|_| *heard_us >= since_us)?;
        Some((machine, Arc::clone(hello)))
    }

    /// How many replica machines have said that they cannot come back to the last view that went live, as far as we know:
    /// it does not admit their epochs.
    pub(crate) fn lost_counters(&self, last_live: Option<&Arc<LiveProof>>) -> usize {
        let Some(proof) = last_live else { return 0 };
        let is_lost = |hello: &&Arc<Hello>| {
            let known = proof.outcome.admission(hello.machine).map(|admission| admission.epoch);
            // Who takes part in an attempt to start a higher view does not come back to this one either.
            let is_beyond = hello.view > Some(proof.outcome.view);
            is_replica(hello.machine) && (is_beyond || known.is_none_or(|known| known < hello.admission.epoch))
        };
        self.hellos.values().filter(is_lost).count()
    }
}

/// What a machine keeps for starts, whatever its phase.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    pub(crate) roster: Roster,
    /// Our own attempt.
    pub(crate) leader: Option<Leader>,
    /// How often this machine has announced itself.
    pub(crate) rounds: u64,
}

/// This machine's own hello.
pub(crate) fn own_hello(core: &mut Core) -> Arc<Hello> {
    let mut hello = Hello {
        machine: core.own(),
        admission: core.counter.position.clone(),
        view: core.past.mentioned,
        stable: core.ledger.checkpoints.stable.clone(),
        signature: [0; 64],
    };
    hello.signature = core.ledger.sign(&hello.digest());
    let hello = Arc::new(hello);
    core.ledger.send(To::Others, Message::Hello(Arc::clone(&hello)));
    hello
}

/// The replicas that take part in an attempt.
pub(crate) fn replicas_of(collect: &Collect) -> impl Iterator<Item = MachineId> + '_ {
    let machines = collect.hellos.iter().map(|hello| hello.machine);
    machines.filter(|machine| is_replica(*machine))
}
