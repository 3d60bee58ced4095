//! The leader's part of a start: chooses the hellos, gathers the reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{Digest, MachineId};
use crate::minbft::core::Core;
use crate::minbft::start::outcome::next_view;
use crate::minbft::start::{Roster, Starts, replicas_of};
use crate::minbft::wire::message::Message;
use crate::minbft::wire::start::{Collect, Hello, Report, Start};

/// An attempt that we lead.
#[derive(Debug)]
pub(crate) struct Leader {
    collect: Arc<Collect>,
    digest: Digest,
    reports: BTreeMap<MachineId, Arc<Report>>,
    start: Option<Arc<Start>>,
}

impl Leader {
    /// Repeats our own attempt to those who have not answered.
    pub(crate) fn repeat(&self, core: &mut Core, has_acknowledged: impl Fn(MachineId) -> bool) {
        for machine in replicas_of(&self.collect) {
            let message = match &self.start {
                Some(start) => (!has_acknowledged(machine)).then(|| Message::Start(Arc::clone(start))),
                None => {
                    let has_reported = self.reports.contains_key(&machine);
                    (!has_reported).then(|| Message::Collect(Arc::clone(&self.collect)))
                }
            };
            if let Some(message) = message {
                core.ledger.send(To::Machine(machine), message);
            }
        }
    }

    /// Takes a report. Returns the START that follows from all of them, which was sent.
    pub(crate) fn on_report(&mut self, core: &mut Core, report: &Arc<Report>) -> Option<Arc<Start>> {
        if self.digest != report.collect {
            return None;
        }
        if let Some(start) = self.start.clone() {
            core.ledger.send(To::Machine(report.machine), Message::Start(start));
            return None;
        }
        self.reports.insert(report.machine, Arc::clone(report));
        if !replicas_of(&self.collect).all(|machine| self.reports.contains_key(&machine)) {
            return None;
        }
        let mut start = Start {
            collect: Arc::clone(&self.collect),
            reports: self.reports.values().cloned().collect(),
            signature: [0; 64],
        };
        start.signature = core.ledger.sign(&start.digest());
        let start = Arc::new(start);
        self.start = Some(Arc::clone(&start));
        core.ledger.send(To::Others, Message::Start(Arc::clone(&start)));
        Some(start)
    }
}

impl Starts {
    /// Begins an attempt when it is our turn and everybody who must take part is there. Returns the COLLECT, which was sent.
    pub(crate) fn lead(&mut self, core: &mut Core) -> Option<(Arc<Collect>, Digest)> {
        let hellos = complete(&self.roster, core)?;
        let leader = self.leader.as_ref();
        if leader.is_some_and(|leader| is_current(&leader.collect, &hellos)) {
            return None;
        }
        let configuration = &core.ledger.configuration;
        let views = hellos.values().filter_map(|hello| hello.view);
        let view = next_view(views.max().max(core.past.mentioned), configuration.machines());
        let view_max = Collect::view_max(hellos.values().map(Arc::as_ref), configuration.faults);
        if configuration.primary(view) != configuration.machine || view > view_max {
            return None;
        }
        let mut collect = Collect {
            view,
            hellos: hellos.into_values().collect(),
            signature: [0; 64],
        };
        let digest = collect.digest();
        collect.signature = core.ledger.sign(&digest);
        let collect = Arc::new(collect);
        self.leader = Some(Leader {
            collect: Arc::clone(&collect),
            digest,
            reports: BTreeMap::new(),
            start: None,
        });
        core.ledger.send(To::Others, Message::Collect(Arc::clone(&collect)));
        Some((collect, digest))
    }
}

/// A hello of everybody who must take part: all replicas that are not lost, and this machine.
fn complete(roster: &Roster, core: &Core) -> Option<BTreeMap<MachineId, Arc<Hello>>> {
    let configuration = &core.ledger.configuration;
    let needed = configuration.replica_machines();
    let needed = needed.filter(|machine| !configuration.lost.contains(machine));
    needed
        .chain([core.own()])
        .map(|machine| roster.fresh(core, machine))
        .collect()
}

/// Whether an attempt still fits: nobody's counter has changed since.
fn is_current(collect: &Collect, hellos: &BTreeMap<MachineId, Arc<Hello>>) -> bool {
    let is_same = |(machine, hello): (&MachineId, &Arc<Hello>)| {
        let collected = collect.hello(*machine);
        collected.is_some_and(|collected| collected.admission == hello.admission)
    };
    collect.hellos.len() == hellos.len() && hellos.iter().all(is_same)
}
