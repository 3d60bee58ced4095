//! The leader's part of a start: chooses the hellos, gathers the reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{Digest, MachineId};
use crate::minbft::messages::Message;
use crate::minbft::outcome::next_view;
use crate::minbft::start::replicas_of;
use crate::minbft::start_messages::{Collect, Hello, Report, Start};
use crate::minbft::{Machine, Output};

/// How long a hello counts, in the intervals in which it is said again.
const HELLO_LASTS: u64 = 10;

/// An attempt that we lead.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) collect: Arc<Collect>,
    pub(crate) digest: Digest,
    pub(crate) reports: BTreeMap<MachineId, Arc<Report>>,
    pub(crate) start: Option<Arc<Start>>,
}

impl Machine {
    /// Repeats our own attempt to those who have not answered.
    pub(crate) fn lead_again(&mut self, out: &mut Vec<Output>) {
        let Some(leading) = &self.start.leading else { return };
        let acknowledged = self.start.joined.as_ref().map(|joined| &joined.acknowledgements);
        for machine in replicas_of(&leading.collect) {
            match &leading.start {
                Some(start) => {
                    if acknowledged.is_none_or(|acknowledged| !acknowledged.contains_key(&machine)) {
                        self.send(To::Machine(machine), Message::Start(Arc::clone(start)), out);
                    }
                }
                None => {
                    if !leading.reports.contains_key(&machine) {
                        let collect = Message::Collect(Arc::clone(&leading.collect));
                        self.send(To::Machine(machine), collect, out);
                    }
                }
            }
        }
    }

    pub(crate) fn on_hello(&mut self, hello: &Arc<Hello>, out: &mut Vec<Output>) {
        // Hellos may arrive late: one of an earlier life must not replace a newer one.
        let age = |hello: &Hello| (hello.admission.epoch, hello.view, hello.point().order);
        if self
            .start
            .hellos
            .get(&hello.machine)
            .is_some_and(|known| age(known) > age(hello))
        {
            return;
        }
        self.start.hellos.insert(hello.machine, Arc::clone(hello));
        self.start.heard_us.insert(hello.machine, self.now.monotonic_us);
        if self.live.is_some() || self.changing.is_some() {
            self.on_late_hello(hello, out);
        } else {
            self.lead(out);
        }
    }

    /// Begins an attempt when it is our turn and everybody who must take part is there.
    fn lead(&mut self, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let needed = self
            .configuration
            .replica_machines()
            .filter(|machine| !self.configuration.lost.contains(machine));
        // Who has not said hello for a while takes part in a view, or is down: an attempt with an old hello of it would
        // hold up those who join.
        let since_us = self
            .now
            .monotonic_us
            .saturating_sub(HELLO_LASTS * self.configuration.hello_us);
        let is_fresh = |machine: &MachineId| self.start.heard_us.get(machine).is_some_and(|at_us| *at_us >= since_us);
        let hellos: Option<BTreeMap<MachineId, Arc<Hello>>> = needed
            .chain([own])
            .map(|machine| {
                let hello = self.start.hellos.get(&machine).filter(|_| is_fresh(&machine))?;
                Some((machine, Arc::clone(hello)))
            })
            .collect();
        let Some(hellos) = hellos else { return };
        if self
            .start
            .leading
            .as_ref()
            .is_some_and(|leading| is_current(&leading.collect, &hellos))
        {
            return;
        }
        let views = hellos.values().filter_map(|hello| hello.view);
        let mentioned = views.max().max(self.start.mentioned);
        let view = next_view(mentioned, self.configuration.machines());
        let view_max = Collect::view_max(hellos.values().map(Arc::as_ref), self.configuration.faults);
        if self.configuration.primary(view) != own || view > view_max {
            return;
        }
        let mut collect = Collect {
            view,
            hellos: hellos.into_values().collect(),
            signature: [0; 64],
        };
        let digest = collect.digest();
        collect.signature = self.sign(&digest);
        let collect = Arc::new(collect);
        let reports = BTreeMap::new();
        self.start.leading = Some(Leading {
            collect: Arc::clone(&collect),
            digest,
            reports,
            start: None,
        });
        self.send(To::Others, Message::Collect(Arc::clone(&collect)), out);
        self.on_collect(&collect, digest, out);
    }

    pub(crate) fn on_report(&mut self, report: &Arc<Report>, out: &mut Vec<Output>) {
        let Some(leading) = self
            .start
            .leading
            .as_mut()
            .filter(|leading| leading.digest == report.collect)
        else {
            return;
        };
        if let Some(start) = leading.start.clone() {
            self.send(To::Machine(report.machine), Message::Start(start), out);
            return;
        }
        leading.reports.insert(report.machine, Arc::clone(report));
        let is_complete = replicas_of(&leading.collect).all(|machine| leading.reports.contains_key(&machine));
        if !is_complete {
            return;
        }
        let reports = leading.reports.values().cloned().collect();
        let mut start = Start {
            collect: Arc::clone(&leading.collect),
            reports,
            signature: [0; 64],
        };
        start.signature = self.sign(&start.digest());
        let start = Arc::new(start);
        if let Some(leading) = self.start.leading.as_mut() {
            leading.start = Some(Arc::clone(&start));
        }
        self.send(To::Others, Message::Start(Arc::clone(&start)), out);
        self.on_start(&start, out);
    }
}

/// Whether an attempt still fits: nobody's counter has changed since.
fn is_current(collect: &Collect, hellos: &BTreeMap<MachineId, Arc<Hello>>) -> bool {
    collect.hellos.len() == hellos.len()
        && hellos.iter().all(|(machine, hello)| {
            collect
                .hello(*machine)
                .is_some_and(|collected| collected.admission == hello.admission)
        })
}
