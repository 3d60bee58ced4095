//! What goes wrong, and when: drawn before the run begins.

use ordering::identifiers::MachineId;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::network::draw_partition;
use crate::adversary::Behaviour;
use crate::options::Options;

/// Something that happens to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process dies.
    Crash(MachineId),
    /// Whoever leads is cut off for so many microseconds.
    CutPrimary(u64),
    /// It starts again.
    Start(MachineId),
    /// Everything dies at once.
    PowerCut,
    /// Links stop.
    Cut(Vec<(MachineId, MachineId)>),
    /// They carry again.
    Mend(Vec<(MachineId, MachineId)>),
    /// A disk becomes slow, by this factor.
    Disk(MachineId, u64),
    /// A liar restarts without the last records of its log.
    Forget(MachineId, usize),
    /// The adversaries begin.
    Corruption,
    /// A counter certifies something that its machine did not ask for.
    SpendCounter(MachineId),
    /// Twins change sides: the bits say who is connected to which.
    Sides(u64),
    /// The administrator wants so many groups to be in charge, or asks for it wrongly.
    Scale(u16, Mischief),
}

/// What is wrong with what the administrator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Nothing.
    None,
    /// It reaches these machines only, as bits: the others have to ask for it.
    Few(u64),
    /// It is for a version that is there already.
    OldVersion,
    /// It is for a version that is not the next one.
    LaterVersion,
    /// Another change for the same version was sent to the other half of the machines.
    Two,
    /// What was asked for before is sent again.
    Again,
}

/// The changes of the number of groups. Drawn apart: the rest of the run is what it is without them.
fn schedule_scalings(options: &Options, end_us: u64) -> Vec<(u64, Fault)> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0x5ca1e);
    let mut faults = Vec::new();
    for _ in 0..options.scalings {
        let groups = rng.random_range(1..=options.groups_in_all());
        let mischief = match rng.random_range(0..10) {
            0 => Mischief::OldVersion,
            1 => Mischief::LaterVersion,
            2 => Mischief::Two,
            3 => Mischief::Again,
            4 | 5 => Mischief::Few(rng.random()),
            // Only m0, which leads at first: a liar may order it and keep it to itself.
            6 | 7 => Mischief::Few(1),
            _ => Mischief::None,
        };
        let at_us = rng.random_range(0..end_us);
        faults.push((at_us, Fault::Scale(groups, mischief)));
        if options.primary_cuts > 0 && rng.random_bool(0.5) {
            let cut_us = at_us + rng.random_range(0..4 * options.delay_max_us);
            faults.push((cut_us, Fault::CutPrimary(rng.random_range(300_000..1_200_000))));
        }
    }
    faults
}

/// All faults of a run, by virtual time in microseconds.
pub(crate) fn schedule(options: &Options, machines: u8, rng: &mut impl Rng) -> Vec<(u64, Fault)> {
    let end_us = options.safety_ms * 1000;
    let mut faults = Vec::new();
    let machine = |rng: &mut dyn Rng| MachineId(rng.random_range(0..machines));
    for _ in 0..options.crashes {
        let (victim, at_us) = (machine(rng), rng.random_range(0..end_us));
        faults.push((at_us, Fault::Crash(victim)));
        faults.push((at_us + rng.random_range(20_000..1_000_000), Fault::Start(victim)));
    }
    for _ in 0..options.primary_cuts {
        let (at_us, out_us) = (rng.random_range(0..end_us), rng.random_range(300_000..1_200_000));
        faults.push((at_us, Fault::CutPrimary(out_us)));
    }
    for _ in 0..options.power_cuts {
        let at_us = rng.random_range(0..end_us);
        faults.push((at_us, Fault::PowerCut));
        for number in 0..machines {
            faults.push((
                at_us + rng.random_range(1_000..300_000),
                Fault::Start(MachineId(number)),
            ));
        }
    }
    for _ in 0..options.partitions {
        let (links, at_us) = (draw_partition(machines, rng), rng.random_range(0..end_us));
        faults.push((at_us, Fault::Cut(links.clone())));
        faults.push((at_us + rng.random_range(20_000..1_500_000), Fault::Mend(links)));
    }
    for _ in 0..options.slow_disks {
        let (victim, at_us) = (machine(rng), rng.random_range(0..end_us));
        faults.push((at_us, Fault::Disk(victim, rng.random_range(5..100))));
        faults.push((at_us + rng.random_range(20_000..1_000_000), Fault::Disk(victim, 1)));
    }
    faults.push((options.corrupted_ms * 1000, Fault::Corruption));
    for (liar, behaviours) in &options.adversaries {
        if behaviours.contains(&Behaviour::Amnesiac) {
            for _ in 0..2 {
                let at_us = rng.random_range(options.corrupted_ms * 1000..end_us.max(options.corrupted_ms * 1000 + 1));
                faults.push((at_us, Fault::Forget(*liar, rng.random_range(1..20))));
            }
        }
    }
    for _ in 0..3 {
        faults.push((rng.random_range(0..end_us), Fault::Sides(rng.random())));
    }
    for _ in 0..options.spent_counters {
        let victim = machine(rng);
        faults.push((rng.random_range(0..end_us), Fault::SpendCounter(victim)));
    }
    faults.extend(schedule_scalings(options, end_us));
    faults.sort_by_key(|(at_us, _)| *at_us);
    faults
}
